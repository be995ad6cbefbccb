"""The inputSchema of templates, applied to what is submitted: before a row is written, whoever submits.

Plain Postgres cannot apply a JSON Schema, so it is done here, and whoever calls `tasker.submit_tasks` by other means
does without.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasker.engine.pool import Database
from tasker.engine.queries import load_queries
from tasker.errors import Busy, InvalidContext
from tasker.model.schemas import NotQuick, SchemaEnforcement, context_fault, quick_context_fault
from tasker.model.task import TaskRequest

RULES_KEPT = 256
"""Revisions that runs are created of at one time. A revision never changes, so what is kept stays true."""

BUSY_SECONDS = 60
"""Those who are turned away come again one a second, as a check takes, and none later than this."""


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A stored revision of a template."""

    template_id: int
    revision: str
    identity_strategy: str


@dataclass(frozen=True, kw_only=True)
class InputRule:
    """What a revision asks of a context; nothing when `schema` is None."""

    schema: Mapping[str, Any] | None
    enforcement: SchemaEnforcement


@dataclass(frozen=True, kw_only=True)
class CheckedInput:
    """A request's context, held against a revision; None when there is no such template."""

    revision: Revision | None
    fault: InvalidContext | None = None
    """What the context lacks, where the template only warns."""


class Inputs:
    """Checks contexts against the revisions that are current."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rules: OrderedDict[str, InputRule] = OrderedDict()
        """By revision, which is a hash of the content: so they hold in a restored database too."""
        # Whoever comes with a small context and a plain schema never waits for those who do not.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="input-schemas")
        self._turned_away: dict[str, int] = {}
        """The namespaces that have a check in the thread, and how many more they wanted meanwhile."""

    async def check(self, namespace: str, requests: Sequence[TaskRequest]) -> list[CheckedInput]:
        """Each request's context against the revision that its run would get now, in the order of `requests`.

        Raises `InvalidContext` for the first that a template refuses, unless its origin has a run already, and `Busy`.
        """
        revisions = await self._current(namespace, requests)
        rules = await self._load({each for each in revisions if each is not None})
        checked = []
        for request, revision in zip(requests, revisions, strict=True):
            rule = None if revision is None else rules.get(revision.revision)
            if rule is None:
                checked.append(CheckedInput(revision=None))
                continue
            fault = await self._fault(namespace, rule, request)
            await asyncio.sleep(0)  # a set may be large: others run between any two
            if fault is not None and rule.enforcement is SchemaEnforcement.ENFORCE:
                if not await self.has_run(request):
                    raise fault
                fault = None
            checked.append(CheckedInput(revision=revision, fault=fault))
        return checked

    async def _current(self, namespace: str, requests: Sequence[TaskRequest]) -> list[Revision | None]:
        wanted = list(dict.fromkeys((each.template_name, each.template_version) for each in requests))
        rows = await self._database.fetch(
            load_queries("templates")["current_templates"],
            {
                "namespace": namespace,
                "names": [name for name, _ in wanted],
                "versions": [version for _, version in wanted],
            },
        )
        found = {
            each: None if row["revision"] is None else Revision(**row) for each, row in zip(wanted, rows, strict=True)
        }
        return [found[each.template_name, each.template_version] for each in requests]

    async def _load(self, revisions: set[Revision]) -> dict[str, InputRule]:
        """The rules of these revisions; read are those that are not kept."""
        rules = {each.revision: self._rules[each.revision] for each in revisions if each.revision in self._rules}
        missing = [each.template_id for each in revisions if each.revision not in rules]
        if missing:
            rows = await self._database.fetch(load_queries("templates")["input_rules"], {"template_ids": missing})
            for row in rows:
                enforcement = SchemaEnforcement(row["enforcement"] or SchemaEnforcement.ENFORCE)
                rules[row["revision"]] = InputRule(schema=row["input_schema"], enforcement=enforcement)
        for revision, rule in rules.items():
            self._rules[revision] = rule
            self._rules.move_to_end(revision)
        while len(self._rules) > RULES_KEPT:
            self._rules.popitem(last=False)
        return rules

    async def _fault(self, namespace: str, rule: InputRule, request: TaskRequest) -> InvalidContext | None:
        if rule.schema is None or rule.enforcement is SchemaEnforcement.OFF:
            return None
        try:
            found = quick_context_fault(rule.schema, request.context)
        except NotQuick:
            found = await self._laborious_fault(namespace, rule.schema, request.context)
        return None if found is None else InvalidContext(*found)

    async def _laborious_fault(
        self, namespace: str, schema: Mapping[str, Any], context: Mapping[str, Any]
    ) -> tuple[str, str] | None:
        """In the thread, one at a time for a namespace: its many are not to hold up the one of another."""
        if namespace in self._turned_away:
            self._turned_away[namespace] += 1
            raise Busy(min(BUSY_SECONDS, self._turned_away[namespace]))
        self._turned_away[namespace] = 0
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, context_fault, schema, context)
        finally:
            del self._turned_away[namespace]

    async def has_run(self, request: TaskRequest) -> bool:
        """Whether nothing would be created: submitting again is harmless, whatever the template asks by now."""
        if request.origin_uid is None:
            return False
        rows = await self._database.fetch(
            load_queries("tasks")["origins_with_run"], {"origin_uids": [request.origin_uid]}
        )
        return bool(rows)
