"""A ready step goes into one worker's hands, and only into hands that can do it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta

from support.engine import Lab, SimulatedWorker, connect, step, success


async def test_a_claim_carries_all_that_a_handler_needs(lab: Lab) -> None:
    now = await lab.clock.freeze()
    written = {
        "name": "pay",
        "handler": {"callable": "do", "method": "charge", "resolver": "registry", "initialization": {"rate": 2}},
        "timeoutSeconds": 17,
        "retry": {"maxAttempts": 4},
    }
    await lab.template(written, version="1.2.3")
    task = await lab.submit(context={"order": 7}, correlation_id="c-1", deadline_seconds=60)
    claim = await (await lab.worker()).claim_one()
    row = dict(claim.row)
    steps = await lab.steps(task)
    lease = (await lab.rows("select * from tasker.leases"))[0]
    assert row == {
        "kind": "claim",
        "step_id": steps["pay"]["step_id"],
        "fence": lease["fence"],
        "task_uuid": task,
        "step_uuid": steps["pay"]["step_uuid"],
        "namespace": "shop",
        "template_name": "order",
        "template_version": "1.2.3",
        "step_name": "pay",
        "step_type": "standard",
        "callable": "do",
        "method": "charge",
        "resolver": "registry",
        "attempt": 1,
        "max_attempts": 4,
        "timeout_ms": 17_000,
        "deadline": now + timedelta(seconds=60),
        "correlation_id": "c-1",
        "ready_at": now,
        "configuration": {"rate": 2},
        "inputs": {},
        "context": {"order": 7},
        "dependency_results": {},
        "results_left": None,
        "condition": None,
        "result_schema": None,
        "dependents": None,
        "batch": None,
        "checkpoint": None,
        "ready_left": None,
        "tasks_finished": None,
    }
    assert lease["attempt"] == 1 and lease["started_at"] == now
    assert lease["timeout_at"] == now + timedelta(seconds=17)
    assert (steps["pay"]["state"], steps["pay"]["attempts"], steps["pay"]["started_at"]) == ("in_progress", 1, now)
    assert await lab.step_log(task, "pay") == ["pending -enqueue-> enqueued", "enqueued -start-> in_progress"]
    counts = (await lab.engine.tasks.read(task)).counts
    assert (counts.ready, counts.running) == (0, 1)


async def test_a_worker_is_offered_only_what_it_has_handlers_for(lab: Lab) -> None:
    await lab.run(step("a", callable="one"), step("b", callable="two"), step("c", callable="three"))
    worker = await lab.worker(callables=["one", "three", "four"])
    assert sorted(claim.step for claim in await worker.claim()) == ["a", "c"]
    assert await worker.claim() == []
    await worker.register(["two"])
    assert [claim.step for claim in await worker.claim()] == ["b"]
    assert await (await lab.worker("without", callables=[])).claim() == []


async def test_a_worker_is_offered_only_work_of_its_namespace(lab: Lab) -> None:
    for namespace in ("one", "two"):
        await lab.template(step(f"of-{namespace}"), namespace=namespace)
        await lab.submit(namespace=namespace)
    assert [claim.step for claim in await (await lab.worker("w1", namespace="one")).claim()] == ["of-one"]
    assert await (await lab.worker("w3", namespace="three")).claim() == []
    assert [claim.step for claim in await (await lab.worker("w2", namespace="two")).claim()] == ["of-two"]


async def test_an_unknown_or_a_draining_worker_gets_nothing(lab: Lab) -> None:
    await lab.run(step("a"), step("b", "a"), step("c"))
    assert await SimulatedWorker(lab.connection, "never-registered").claim() == []
    worker = await lab.worker()
    claim = await worker.claim_one()
    assert await lab.value("select tasker.drain_worker('shop', 'worker-1')") is True
    assert await worker.claim() == []
    settlement = await worker.settle(success(claim), claim_limit=10)
    assert settlement.settled == [claim.step_id] and settlement.claims == [] and settlement.ready_left == 1
    assert (await worker.renew()).draining
    assert await lab.engine.workers.undrain("shop", ["worker-1"]) == ["worker-1"]
    assert sorted(claim.step for claim in await worker.claim()) == ["b", "c"]
    assert await lab.value("select tasker.drain_worker('shop', 'nobody')") is False


async def test_a_worker_that_registers_again_while_draining_goes_on_draining(lab: Lab) -> None:
    await lab.run(step("a"))
    worker = await lab.worker()
    await lab.execute("select tasker.drain_worker('shop', 'worker-1')")
    await worker.register()
    assert await worker.claim() == []


async def test_no_more_than_the_limit_is_claimed_and_the_oldest_first(lab: Lab) -> None:
    await lab.clock.freeze()
    await lab.template(step("a"), step("b"))
    for _ in range(3):
        await lab.submit()
        await lab.clock.advance(1)
    worker = await lab.worker()
    places = [row["step_id"] for row in await lab.rows("select step_id from tasker.steps order by step_id")]
    assert await worker.claim(0) == [] and await worker.claim(-1) == []
    assert await lab.rows("select * from tasker.claim_steps('shop', 'worker-1', null)") == []
    taken = [sorted(claim.step_id for claim in await worker.claim(limit)) for limit in (1, 2, 100)]
    assert taken == [places[:1], places[1:3], places[3:]]


async def test_claimers_at_once_never_get_the_same_step(lab: Lab) -> None:
    total = 400
    await lab.template(*(step(f"s{n}") for n in range(40)))
    for _ in range(total // 40):
        await lab.submit()

    async def work(name: str) -> list[int]:
        async with await connect(lab.url) as connection:
            worker = SimulatedWorker(connection, name)
            await worker.register()
            mine: list[int] = []
            misses = 0
            # A claim skips what others are just taking, so one empty answer does not mean that nothing is left.
            while misses < 3:
                claims = await worker.claim(7)
                misses = 0 if claims else misses + 1
                mine += [claim.step_id for claim in claims]
            return mine

    hands = await asyncio.gather(*(work(f"worker-{n}") for n in range(8)))
    taken = Counter(step_id for mine in hands for step_id in mine)
    assert len(taken) == total and set(taken.values()) == {1}
    assert sum(bool(mine) for mine in hands) > 1
    assert await lab.value("select count(*) from tasker.leases") == total
    assert await lab.value("select count(distinct fence) from tasker.leases") == total
    assert await lab.value("select count(*) from tasker.ready_steps") == 0


async def test_a_claim_waits_for_no_other_claim(lab: Lab) -> None:
    """What another worker is just taking is passed over."""
    await lab.run(*(step(f"s{n}") for n in range(4)))
    second = await lab.worker("second")
    async with await connect(lab.url) as connection, connection.transaction():
        first = SimulatedWorker(connection, "first")
        await lab.worker("first")
        taken = {claim.step for claim in await first.claim(2)}
        await lab.execute("set lock_timeout = '2s'")
        others = {claim.step for claim in await second.claim(4)}
    assert len(taken) == 2 and taken | others == {"s0", "s1", "s2", "s3"} and not taken & others


async def test_a_worker_drained_as_idle_never_holds_anything_afterwards(lab: Lab) -> None:
    """Claims and drains race; whoever wins, a worker that was told to go has nothing in hand."""
    rounds = 25
    await lab.template(*(step(f"s{n}") for n in range(20)))
    async with AsyncExitStack() as stack:
        workers = [
            SimulatedWorker(await stack.enter_async_context(await connect(lab.url)), f"worker-{n}") for n in range(6)
        ]
        names = [worker.name for worker in workers]
        drained_altogether = 0
        for turn in range(rounds):
            task = await lab.submit()
            for worker in workers:
                await worker.register()
            claiming_first = [asyncio.create_task(worker.claim(2)) for worker in workers[: turn % 7]]
            drain = asyncio.create_task(lab.engine.workers.drain("shop", names))
            claiming_then = [asyncio.create_task(worker.claim(2)) for worker in workers[turn % 7 :]]
            taken = await asyncio.gather(*claiming_first, *claiming_then)
            drained = await drain
            claiming = {worker.name for worker, claimed in zip(workers, taken, strict=True) if claimed}
            holding = {info.name for info in await lab.engine.workers.read("shop") if info.running}
            assert holding == claiming
            assert not holding & set(drained)
            drained_altogether += len(drained)
            await lab.engine.actions.cancel(task, actor="me", reason="next round")
            await lab.execute("delete from tasker.workers")
    assert 0 < drained_altogether < rounds * len(workers), "the two never raced"


async def test_results_of_all_ancestors_are_delivered_while_they_are_few(lab: Lab) -> None:
    await lab.run(step("a"), step("b", "a"), step("c", "b"), step("aside"), step("d", "c"))
    worker = await lab.worker(callables=["do"])
    results: dict[str, dict[str, object]] = {}
    claims = await worker.claim()
    while claims:
        results |= {claim.step: claim.row["dependency_results"] for claim in claims}
        outcomes = [success(claim, {"of": claim.step}) for claim in claims]
        claims = (await worker.settle(*outcomes, claim_limit=10)).claims
    assert results == {
        "a": {},
        "aside": {},
        "b": {"a": {"of": "a"}},
        "c": {"a": {"of": "a"}, "b": {"of": "b"}},
        "d": {"a": {"of": "a"}, "b": {"of": "b"}, "c": {"of": "c"}},
    }


async def test_beyond_a_hundred_ancestors_the_results_of_the_direct_parents_are_delivered(lab: Lab) -> None:
    roots = [f"r{n}" for n in range(99)]
    await lab.run(
        *(step(root) for root in roots), step("join", *roots), step("hundred", "join"), step("over", "hundred", "r0")
    )
    worker = await lab.worker()
    claims = await worker.claim(200)
    results: dict[str, dict[str, object]] = {}
    while claims:
        results |= {claim.step: claim.row["dependency_results"] for claim in claims}
        claims = (await worker.settle(*(success(claim, claim.step) for claim in claims), claim_limit=10)).claims
    assert results["hundred"] == {name: name for name in [*roots, "join"]}
    assert results["over"] == {"hundred": "hundred", "r0": "r0"}


async def test_every_kind_of_json_is_a_result(lab: Lab) -> None:
    values = {"text": "ü€😀", "number": 1.5, "null": None, "list": [1, [2]], "object": {"a": {}}, "yes": True}
    await lab.run(*(step(name) for name in values), step("last", *values))
    worker = await lab.worker()
    claims = await worker.claim()
    (last,) = (await worker.settle(*(success(claim, values[claim.step]) for claim in claims), claim_limit=1)).claims
    assert last.row["dependency_results"] == values
