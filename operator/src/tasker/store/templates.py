"""Rows of templates: from a checked template to what `tasker.register_template` takes."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from tasker.model import limits
from tasker.model.graph import bounded_ancestors
from tasker.model.task import RegisteredTemplate, TemplateCounts
from tasker.model.template import TemplateSpec
from tasker.store.pool import Database
from tasker.store.queries import load_queries


async def register_template(database: Database, namespace: str, name: str, spec: TemplateSpec) -> RegisteredTemplate:
    """Stores a revision, or activates it again when it is there."""
    rows = await database.fetch(
        load_queries("templates")["register_template"],
        {
            "namespace": namespace,
            "name": name,
            "version": spec.version,
            "revision": spec.revision,
            "spec": Jsonb(spec.model_dump(mode="json")),
            "steps": Jsonb(step_rows(spec)),
            "edges": Jsonb(
                [[parent, child] for child, parents in enumerate(spec.dependency_positions) for parent in parents]
            ),
        },
    )
    return RegisteredTemplate(template_id=rows[0]["template_id"], revision=spec.revision, created=rows[0]["created"])


def step_rows(spec: TemplateSpec) -> list[dict[str, Any]]:
    """The template's nodes in order of position, with all that is worked out once for every run."""
    dependencies = spec.dependency_positions
    has_dependents = {parent for parents in dependencies for parent in parents}
    ancestors = bounded_ancestors(dependencies, limits.DELIVERED_ANCESTORS)
    return [
        {
            "name": step.name,
            "callable": step.handler.callable,
            "method": step.handler.method,
            "resolver": step.handler.resolver,
            "configuration": step.handler.initialization,
            "dependency_count": len(dependencies[position]),
            "is_leaf": position not in has_dependents,
            "result_positions": sorted(dependencies[position]) if ancestors[position] is None else ancestors[position],
            "max_attempts": step.retry.effective_attempts,
            "backoff": step.retry.backoff.value,
            "base_ms": step.retry.base_ms,
            "max_ms": step.retry.max_ms,
            "jitter": step.retry.jitter,
            "timeout_ms": step.timeout_seconds * 1000,
            "schedule_timeout_ms": step.schedule_timeout_seconds and step.schedule_timeout_seconds * 1000,
        }
        for position, step in enumerate(spec.steps)
    ]


async def template_counts(database: Database, namespace: str, name: str) -> TemplateCounts:
    """How many runs of a template stand how."""
    rows = await database.fetch(load_queries("templates")["template_counts"], {"namespace": namespace, "name": name})
    return TemplateCounts(**rows[0])
