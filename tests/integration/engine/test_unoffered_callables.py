"""A callable that no worker has: for scaling it counts until workers have shown that they lack it, and runs say so."""

from __future__ import annotations

from typing import Any

from support.engine import Lab, step
from tasker.model.workers import NO_WORKER_SECONDS, UnofferedCallable

POOL = ("shop", "default")


async def queued(lab: Lab, *pools: tuple[str, str], **hashes: str) -> list[int]:
    """The queued steps of each pool; `hashes` names the current pod template of a pool of namespace shop."""
    found = await lab.engine.workers.demand(pools or [POOL], {("shop", pool): given for pool, given in hashes.items()})
    return [row.queued for row in found]


async def test_it_counts_from_zero_until_a_worker_of_the_pool_has_registered_without_it(lab: Lab) -> None:
    await lab.run(step("a", callable="known"), step("b", callable="missing"))
    assert await queued(lab, default="one") == [2], "nobody knows yet what the pool's workers offer"
    worker = await lab.worker(callables=["known"], template_hash="one")
    assert await queued(lab, default="one") == [1]
    await worker.deregister()
    assert await queued(lab, default="one") == [1], "what the template lacks is known although its workers left"


async def test_a_changed_pod_template_is_tried_again_from_zero(lab: Lab) -> None:
    await lab.run(step("a", callable="missing"))
    await (await lab.worker(callables=["known"], template_hash="one")).deregister()
    assert await queued(lab, default="one") == [0]
    assert await queued(lab, default="two") == [1], "the new template may bring it"
    await lab.worker("late", callables=["known"], template_hash="one")
    assert await queued(lab, default="two") == [1], "an old worker says nothing of the new template"
    await lab.worker("fresh", callables=["missing"], template_hash="two")
    assert await queued(lab, default="two") == [1]
    assert await queued(lab, default="one") == [0], "and after going back it is known what the old one lacks"


async def test_a_new_template_that_lost_a_handler_does_not_keep_the_pool_up(lab: Lab) -> None:
    await lab.run(step("a", callable="dropped"))
    await lab.worker("w1", callables=["dropped"], template_hash="one")
    assert await queued(lab, default="two") == [1], "offered before, and the new template has told nothing yet"
    await lab.worker("w2", callables=["other"], template_hash="two")
    assert await queued(lab, default="two") == [0]


async def test_the_newest_worker_of_a_template_tells_what_it_offers(lab: Lab) -> None:
    """The same tag may have got another image."""
    await lab.run(step("a", callable="a"), step("b", callable="b"))
    await lab.worker("w1", callables=["a"], template_hash="one")
    assert await queued(lab, default="one") == [1]
    await lab.worker("w2", callables=["a", "b"], template_hash="one")
    assert await queued(lab, default="one") == [2]
    await lab.worker("w3", callables=["b"], template_hash="one")
    assert await queued(lab, default="one") == [1]


async def test_a_pool_without_experience_is_not_started_for_what_another_offers(lab: Lab) -> None:
    await lab.run(step("a", callable="cpu-only"), step("b", callable="missing"))
    pools = [("shop", "cpu"), ("shop", "gpu")]
    assert await queued(lab, *pools, cpu="c1", gpu="g1") == [2, 2]
    await lab.worker("c", pool="cpu", callables=["cpu-only"], template_hash="c1")
    assert await queued(lab, *pools, cpu="c1", gpu="g1") == [1, 1], "the cpu pool's own, and what the gpu pool may have"
    await lab.worker("g", pool="gpu", callables=["gpu-only"], template_hash="g1")
    assert await queued(lab, *pools, cpu="c1", gpu="g1") == [1, 0]


async def test_templates_of_long_ago_are_forgotten(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.worker("w1", callables=["a"], template_hash="one")
    await lab.clock.advance(20 * 86400)
    await lab.worker("w2", callables=["a"], template_hash="two")
    assert await hashes(lab) == ["one", "two"]
    await lab.clock.advance(11 * 86400)
    await lab.worker("w3", callables=["a"], template_hash="three")
    assert await hashes(lab) == ["three", "two"]


async def hashes(lab: Lab) -> list[Any]:
    rows = await lab.rows("select distinct template_hash from tasker.pool_callables order by 1")
    return [row["template_hash"] for row in rows]


async def test_a_run_says_from_the_first_minute_which_callables_no_worker_offers(lab: Lab) -> None:
    now = await lab.clock.freeze()
    task = await lab.run(
        step("a", callable="known"), step("b", callable="missing"), step("c", callable="missing"), origin_uid="uid-1"
    )
    await lab.worker(callables=["known"], lease_seconds=3600)
    await lab.clock.advance(NO_WORKER_SECONDS)
    assert (await lab.engine.tasks.read(task)).waiting_for_worker == ()
    assert await lab.engine.workers.unoffered_callables() == []
    assert await lab.engine.tasks.origins_waiting_for_worker() == frozenset()

    await lab.clock.advance(0.001)
    missing = UnofferedCallable(namespace="shop", callable="missing", steps=2, since=now)
    assert (await lab.engine.tasks.read(task)).waiting_for_worker == (missing,)
    assert await lab.engine.workers.unoffered_callables() == [missing]
    assert await lab.engine.tasks.origins_waiting_for_worker() == {"uid-1"}

    await lab.worker("elsewhere", namespace="other", callables=["missing"])
    assert (await lab.engine.tasks.read(task)).waiting_for_worker == (missing,), "of another namespace"
    await lab.worker("has-it", callables=["missing"])
    assert (await lab.engine.tasks.read(task)).waiting_for_worker == ()
    assert await lab.engine.tasks.origins_waiting_for_worker() == frozenset()

    await lab.engine.workers.drain("shop", ["has-it"])
    assert (await lab.engine.tasks.read(task)).waiting_for_worker == (missing,), "a draining worker takes nothing"
    await lab.engine.workers.undrain("shop", ["has-it"])
    await lab.clock.advance(31)
    assert (await lab.engine.tasks.read(task)).waiting_for_worker == (missing,), "its lease ran out"
