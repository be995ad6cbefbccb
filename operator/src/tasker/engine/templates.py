"""Templates: from a checked template to what `tasker.register_template` takes, and how their runs stand."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Json

from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.model import limits
from tasker.model.graph import bounded_ancestors
from tasker.model.schemas import SchemaEnforcement
from tasker.model.task import RegisteredTemplate, TemplateCounts
from tasker.model.template import BatchSpec, StepType, TemplateSpec


class Templates:
    """Calls on templates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, namespace: str, name: str, spec: TemplateSpec) -> RegisteredTemplate:
        """Makes `spec` what new runs of the template get; runs under way keep their revision."""
        [row] = await self._database.fetch(
            load_queries("templates")["register_template"],
            {
                "namespace": namespace,
                "name": name,
                "version": spec.version,
                "revision": spec.revision,
                "spec": Json(spec.model_dump()),
                "steps": Json(step_rows(spec)),
                "edges": Json(
                    [[parent, child] for child, parents in enumerate(spec.dependency_positions) for parent in parents]
                ),
                "lifecycle": Json({"on_failure": spec.on_failure.value, **spec.lifecycle.model_dump(mode="json")}),
            },
        )
        return RegisteredTemplate(revision=spec.revision, **row)

    async def counts(self, namespace: str, name: str) -> TemplateCounts:
        """How many runs of a template stand how."""
        [row] = await self._database.fetch(
            load_queries("templates")["template_counts"], {"namespace": namespace, "name": name}
        )
        return TemplateCounts(**row)


def step_rows(spec: TemplateSpec) -> list[dict[str, Any]]:
    """The template's nodes in order of position, with all that is worked out once for every run."""
    dependencies = spec.dependency_positions
    has_dependents = {parent for parents in dependencies for parent in parents}
    ancestors = bounded_ancestors(dependencies, limits.DELIVERED_ANCESTORS)
    worker_seconds = spec.lifecycle.max_waiting_for_worker_seconds
    # A worker enforces every schema that it is given: it cannot only warn.
    schemas_hold = spec.schema_enforcement is SchemaEnforcement.ENFORCE
    results = [
        sorted(parents) if every is None else every for parents, every in zip(dependencies, ancestors, strict=True)
    ]
    return [
        {
            "name": step.name,
            "type": step.type.value,
            "condition": step.when,
            "callable": step.handler.callable,
            "method": step.handler.method,
            "resolver": step.handler.resolver,
            "configuration": step.handler.initialization,
            "dependency_count": len(dependencies[position]),
            "is_leaf": position not in has_dependents,
            "result_positions": results[position],
            **_batch_columns(spec, position, results[position]),
            "max_attempts": step.retry.effective_attempts,
            "backoff": step.retry.backoff.value,
            "base_ms": step.retry.base_ms,
            "max_ms": step.retry.max_ms,
            "jitter": step.retry.jitter,
            "timeout_ms": step.timeout_seconds * 1000,
            "schedule_timeout_ms": step.schedule_timeout_seconds and step.schedule_timeout_seconds * 1000,
            "worker_timeout_ms": worker_seconds and worker_seconds * 1000,
            "result_schema": step.result_schema if schemas_hold else None,
        }
        for position, step in enumerate(spec.steps)
    ]


def _batch_columns(spec: TemplateSpec, position: int, results: list[int]) -> dict[str, Any]:
    """What a node has to do with batches: it divides its work, is a part of it, or comes after it."""
    columns: dict[str, Any] = {
        "batch_positions": [each for each in results if spec.steps[each].type is StepType.BATCH_WORKER] or None
    }
    step = spec.steps[position]
    if step.type is StepType.BATCHABLE:
        worker = spec.worker_positions[position]
        batch = step.batch or BatchSpec()
        columns["batch"] = batch.model_dump(mode="json") | {"worker_template": spec.steps[worker].name}
        columns["worker_position"] = worker
        columns["parallelism"] = batch.parallelism
        columns["failure_strategy"] = batch.failure_strategy.value
    elif step.type is StepType.BATCH_WORKER:
        [batchable] = spec.dependency_positions[position]
        columns["failure_strategy"] = (spec.steps[batchable].batch or BatchSpec()).failure_strategy.value
    return columns
