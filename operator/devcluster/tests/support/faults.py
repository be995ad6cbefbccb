"""Faults on purpose, for tests: slow or failing requests, watches that break, fall silent or disorder events.

A `FaultPlan` is a list of rules. Tests set it through ``PUT /debug/faults`` or hand one to `DebugSwitch`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from devcluster.apiserver import errors

Action = Literal["delay", "error", "drop-watch", "silence-watch", "reorder-watch"]

_REASONS = {
    409: ("Conflict", "Operation cannot be fulfilled: injected conflict"),
    429: ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
    500: ("InternalError", "Internal error occurred: injected fault"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
}
_KEYS = frozenset(
    {
        "verb",
        "resource",
        "action",
        "status",
        "delaySeconds",
        "retryAfterSeconds",
        "probability",
        "count",
        "afterEvents",
        "late",
    }
)


@dataclass(kw_only=True, slots=True)
class FaultRule:
    """One fault.

    `verb` is get, list, watch, create, update, patch, delete, deletecollection or ``*``; `resource` is like
    ``tasks.tasker.dev`` or ``*``. `probability` is the chance a matching request meets it; `count` how often at most
    (None: always). `late`: the request is carried out first and only its answer is an error. A watch is dropped, falls
    silent or swaps neighbouring events after `after_events` events.
    """

    action: Action
    verb: str = "*"
    resource: str = "*"
    status: int = 500
    delay_seconds: float = 0.0
    retry_after_seconds: int | None = None
    probability: float = 1.0
    count: int | None = None
    after_events: int = 0
    late: bool = False
    hits: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "action": self.action,
            "verb": self.verb,
            "resource": self.resource,
            "status": self.status,
            "delaySeconds": self.delay_seconds,
            "retryAfterSeconds": self.retry_after_seconds,
            "probability": self.probability,
            "count": self.count,
            "afterEvents": self.after_events,
            "late": self.late,
            "hits": self.hits,
        }


def read_rules(body: Any) -> list[FaultRule]:
    """The rules of ``{"rules": [{"action": ..}]}``, with the names of `FaultRule.as_dict`. Raises ApiError 400."""
    if not isinstance(body, Mapping) or not isinstance(body.get("rules"), Sequence):
        raise errors.bad_request('faults: expected {"rules": [...]}')
    rules = []
    for index, given in enumerate(body["rules"]):
        unknown = sorted(set(given) - _KEYS)
        if unknown or given.get("action") not in get_args(Action):
            raise errors.bad_request(
                f"faults: rules[{index}]: unknown fields {unknown} or action {given.get('action')!r}"
            )
        if given.get("status", 500) not in _REASONS:
            raise errors.bad_request(f"faults: rules[{index}]: status must be one of {sorted(_REASONS)}")
        rules.append(
            FaultRule(
                action=given["action"],
                verb=given.get("verb", "*"),
                resource=given.get("resource", "*"),
                status=given.get("status", 500),
                delay_seconds=float(given.get("delaySeconds", 0.0)),
                retry_after_seconds=given.get("retryAfterSeconds"),
                probability=float(given.get("probability", 1.0)),
                count=given.get("count"),
                after_events=int(given.get("afterEvents", 0)),
                late=bool(given.get("late", False)),
            )
        )
    return rules


@dataclass(kw_only=True, slots=True)
class FaultPlan:
    """The rules in force; chances come from `random` so that a test can fix its seed."""

    rules: list[FaultRule] = field(default_factory=list)
    random: random.Random = field(default_factory=random.Random)

    def describe(self) -> dict[str, Any]:
        return {"rules": [rule.as_dict() for rule in self.rules]}

    async def before(self, verb: str, resource: str) -> None:
        """Waits or raises, as the rules say, before a request is carried out."""
        if not self.rules:
            return
        for rule in self._hitting(verb, resource, "delay"):
            await asyncio.sleep(rule.delay_seconds)
        for rule in self._hitting(verb, resource, "error", late=False):
            raise _error(rule)

    def after(self, verb: str, resource: str) -> None:
        """Raises after a request has been carried out: the client cannot know that it was."""
        for rule in self._hitting(verb, resource, "error", late=True):
            raise _error(rule)

    async def disturb(self, resource: str, lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The lines of a watch, as far as the rules let them through."""
        rules = [
            rule
            for action in ("drop-watch", "silence-watch", "reorder-watch")
            for rule in self._hitting("watch", resource, action)
        ]
        sent, held = 0, None
        async for line in lines:
            for rule in rules:
                if sent < rule.after_events:
                    continue
                if rule.action == "drop-watch":
                    return
                if rule.action == "silence-watch":
                    await asyncio.Event().wait()
                if held is None:
                    held = line
                    break
            else:
                yield line
                sent += 1
                if held is not None:
                    yield held
                    sent, held = sent + 1, None
        if held is not None:
            yield held

    def _hitting(self, verb: str, resource: str, action: str, *, late: bool = False) -> list[FaultRule]:
        hitting = []
        for rule in self.rules:
            if rule.action != action or rule.late != late:
                continue
            if rule.verb not in ("*", verb) or rule.resource not in ("*", resource):
                continue
            if rule.count is not None and rule.hits >= rule.count:
                continue
            if rule.probability < 1.0 and self.random.random() >= rule.probability:
                continue
            rule.hits += 1
            hitting.append(rule)
        return hitting


def _error(rule: FaultRule) -> errors.ApiError:
    reason, message = _REASONS[rule.status]
    seconds = rule.retry_after_seconds if rule.retry_after_seconds is not None else (1 if rule.status == 429 else None)
    if seconds is None:
        return errors.ApiError(rule.status, reason, message)
    return errors.ApiError(
        rule.status,
        reason,
        message,
        details={"retryAfterSeconds": seconds},
        headers={"Retry-After": str(seconds)},
    )
