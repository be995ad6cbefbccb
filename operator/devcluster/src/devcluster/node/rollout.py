"""What a Deployment does next, as pure functions: how many pods of which template. Called by ``deployments``.

A rollout is a walk between two fences: never more than ``desired + surge`` pods, never fewer available ones than
``desired − unavailable``. One call gives one step; the next is taken when the pods have followed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devcluster.node.objects import integer

# Without vowels and digits that look like letters: a hash never spells a word.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_HASH_LENGTH = 10


@dataclass(frozen=True, kw_only=True)
class ReplicaSetView:
    """What the decision needs to know of a ReplicaSet."""

    name: str
    replicas: int  # asked for
    available: int  # ready for long enough
    present: int = 0  # pods that have not ended, those on their way out included


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The fences of a rolling update, in pods."""

    surge: int
    unavailable: int


def template_hash(template: Mapping[str, Any]) -> str:
    """The value of the label pod-template-hash: the same for equal templates."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True, separators=(",", ":")).encode()).digest()
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(_HASH_LENGTH):
        number, index = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[index])
    return "".join(letters)


def read_bounds(strategy: Mapping[str, Any] | None, desired: int) -> Bounds:
    """The bounds of a Deployment's strategy; percentages are of `desired`. Recreate takes all away first."""
    if (strategy or {}).get("type") == "Recreate":
        return Bounds(surge=0, unavailable=desired)
    rolling = (strategy or {}).get("rollingUpdate") or {}
    surge = _portion(rolling.get("maxSurge", "25%"), desired, math.ceil)
    unavailable = _portion(rolling.get("maxUnavailable", "25%"), desired, math.floor)
    if surge == 0 and unavailable == 0:
        unavailable = 1  # with neither, nothing could ever move
    return Bounds(surge=surge, unavailable=min(unavailable, desired))


def _portion(value: object, whole: int, rounding: Any) -> int:
    if isinstance(value, str) and value.endswith("%"):
        return int(rounding(whole * int(value[:-1]) / 100))
    return integer(value, 0)


def plan_rolling(desired: int, bounds: Bounds, new: ReplicaSetView, old: Sequence[ReplicaSetView]) -> dict[str, int]:
    """The next step of a rolling update: ReplicaSet name → replicas to ask for. Empty: nothing to do now.

    `old` oldest first.
    """
    total = new.replicas + sum(view.replicas for view in old)
    if new.replicas > desired:
        return {new.name: desired}
    room = desired + bounds.surge - total
    if new.replicas < desired and room > 0:
        return {new.name: new.replicas + min(room, desired - new.replicas)}
    return _shrink(desired, bounds, new, old, total)


def _shrink(
    desired: int, bounds: Bounds, new: ReplicaSetView, old: Sequence[ReplicaSetView], total: int
) -> dict[str, int]:
    least = desired - bounds.unavailable
    spare = total - least - max(0, new.replicas - new.available)
    changes: dict[str, int] = {}
    left = {view.name: view.replicas for view in old}
    # First those that serve nobody: they do not count as available, so taking them costs nothing.
    for view in old:
        taken = min(max(0, view.replicas - view.available), spare)
        if taken > 0:
            spare -= taken
            left[view.name] -= taken
            changes[view.name] = left[view.name]
    spare = min(spare, new.available + sum(view.available for view in old) - least)
    for view in old:
        taken = min(left[view.name], spare)
        if taken > 0:
            spare -= taken
            left[view.name] -= taken
            changes[view.name] = left[view.name]
    return changes


def plan_recreate(desired: int, new: ReplicaSetView, old: Sequence[ReplicaSetView]) -> dict[str, int]:
    """The next step when all old pods go before the first new one comes."""
    changes = {view.name: 0 for view in old if view.replicas}
    if changes:
        return changes
    if any(view.present for view in old) or new.replicas == desired:
        return {}
    return {new.name: desired}


def plan_paused(desired: int, new: ReplicaSetView | None, old: Sequence[ReplicaSetView]) -> dict[str, int]:
    """The next step while paused: no new template, but the newest that has any pods follows the number of replicas."""
    views = [*old, *([new] if new is not None else [])]
    active = [view for view in views if view.replicas] or views[-1:]
    if not active:
        return {}
    others = sum(view.replicas for view in active[:-1])
    wanted = max(0, desired - others)
    if wanted != active[-1].replicas:
        return {active[-1].name: wanted}
    excess = others - desired
    changes: dict[str, int] = {}
    for view in active[:-1]:
        taken = min(view.replicas, max(0, excess))
        if taken:
            changes[view.name] = view.replicas - taken
            excess -= taken
    return changes
