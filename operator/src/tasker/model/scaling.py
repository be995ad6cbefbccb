"""How many workers a pool should have: a pure decision from the work there is and the time that has passed.

The operator's scaler calls `decide` about once a second for each pool and passes the returned memory to the next call.
Demand is queued plus running steps, so a pool that is busy is never thought idle. More workers come as soon as they
are wanted (`up_seconds`, 0 by default); fewer only when fewer have been wanted for `down_seconds`, and then no fewer
than were wanted at any moment of that time; the last ones go after `idle_seconds` without any work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleMemory:
    """What one decision leaves for the next. Losing it (a restart) only makes scaling down later, never wrong."""

    over_since: float | None = None
    """Since when more workers have been wanted than there are."""
    under_since: float | None = None
    """Since when fewer workers have been wanted than there are."""
    under_peak: int = 0
    """The most workers wanted at any moment since then."""
    idle_since: float | None = None
    """Since when there has been no work at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleInputs:
    """One pool at one moment. `now` is in seconds of any clock that does not go back."""

    now: float
    current: int
    """The replicas asked for now."""
    queued: int
    running: int
    slots: int
    min_replicas: int
    max_replicas: int
    up_seconds: float = 0.0
    down_seconds: float = 30.0
    idle_seconds: float = 60.0
    max_step: int | None = None
    memory: ScaleMemory = field(default_factory=ScaleMemory)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleDecision:
    """`replicas` is what to ask for; `reason` says why in one line; `memory` goes into the next decision."""

    replicas: int
    reason: str
    memory: ScaleMemory


def wanted_replicas(inputs: ScaleInputs) -> int:
    """Workers whose slots would hold every queued and running step, within the pool's bounds."""
    demand = inputs.queued + inputs.running
    needed = -(-demand // inputs.slots)
    return max(inputs.min_replicas, min(inputs.max_replicas, needed))


def decide(inputs: ScaleInputs) -> ScaleDecision:
    """The number of workers to ask for. Raises ValueError when slots or the bounds are not possible ones."""
    _check(inputs)
    wanted = wanted_replicas(inputs)
    memory = _remember(inputs, wanted)
    current = inputs.current
    if current < inputs.min_replicas:
        target = inputs.min_replicas
        return _move(inputs, memory, max(target, wanted), f"at least {inputs.min_replicas}")
    if current > inputs.max_replicas:
        return _move(inputs, memory, inputs.max_replicas, f"at most {inputs.max_replicas}")
    if wanted > current:
        waited = inputs.now - (memory.over_since if memory.over_since is not None else inputs.now)
        if waited < inputs.up_seconds:
            return _stay(inputs, memory, f"{_demand(inputs)}; up {_within(inputs.up_seconds - waited)}")
        return _move(inputs, memory, wanted, _demand(inputs))
    if wanted < current:
        return _shrink(inputs, memory)
    return _stay(inputs, memory, "idle" if current == 0 else _demand(inputs))


def _check(inputs: ScaleInputs) -> None:
    if inputs.slots < 1:
        raise ValueError(f"slots must be at least 1, not {inputs.slots}")
    if not 0 <= inputs.min_replicas <= inputs.max_replicas:
        raise ValueError(f"replicas from {inputs.min_replicas} to {inputs.max_replicas} are not a range")
    if min(inputs.current, inputs.queued, inputs.running) < 0:
        raise ValueError("current, queued and running must not be negative")


def _remember(inputs: ScaleInputs, wanted: int) -> ScaleMemory:
    old = inputs.memory
    under = wanted < inputs.current
    return ScaleMemory(
        over_since=_since(old.over_since, wanted > inputs.current, inputs.now),
        under_since=_since(old.under_since, under, inputs.now),
        under_peak=max(old.under_peak, wanted) if under and old.under_since is not None else wanted,
        idle_since=_since(old.idle_since, inputs.queued + inputs.running == 0, inputs.now),
    )


def _since(old: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if old is None else old


def _shrink(inputs: ScaleInputs, memory: ScaleMemory) -> ScaleDecision:
    if memory.idle_since is not None and inputs.now - memory.idle_since >= inputs.idle_seconds:
        return _move(inputs, memory, inputs.min_replicas, f"idle for {inputs.now - memory.idle_since:.0f} s")
    waited = inputs.now - (memory.under_since if memory.under_since is not None else inputs.now)
    # Work may come back: while the pool is not idle for long enough, one worker stays warm.
    target = max(memory.under_peak, 1, inputs.min_replicas)
    if waited >= inputs.down_seconds and target < inputs.current:
        return _move(inputs, memory, target, _demand(inputs))
    if memory.idle_since is not None:
        left = inputs.idle_seconds - (inputs.now - memory.idle_since)
        return _stay(inputs, memory, f"idle; down to {inputs.min_replicas} {_within(left)}")
    if target >= inputs.current:
        return _stay(inputs, memory, _demand(inputs))
    left = inputs.down_seconds - waited
    return _stay(inputs, memory, f"{_demand(inputs)}; down to {target} {_within(left)}")


def _move(inputs: ScaleInputs, memory: ScaleMemory, target: int, why: str) -> ScaleDecision:
    if inputs.max_step is not None:
        target = max(inputs.current - inputs.max_step, min(inputs.current + inputs.max_step, target))
    # A new stretch begins: what was wanted before the move says nothing about the time after it.
    moved = ScaleMemory(idle_since=memory.idle_since)
    return ScaleDecision(replicas=target, reason=f"{inputs.current} → {target}: {why}", memory=moved)


def _stay(inputs: ScaleInputs, memory: ScaleMemory, why: str) -> ScaleDecision:
    return ScaleDecision(replicas=inputs.current, reason=why, memory=memory)


def _demand(inputs: ScaleInputs) -> str:
    return f"{inputs.queued} queued, {inputs.running} running, {inputs.slots} slots each"


def _within(seconds: float) -> str:
    # In steps of 5 s, so that a status that shows it is not rewritten every second.
    return f"within {max(1, ceil(seconds / 5)) * 5} s"
