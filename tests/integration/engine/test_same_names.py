"""Workers of two namespaces may have one name: pods are named by their namespaces' own controllers."""

from __future__ import annotations

from support.engine import Lab, SimulatedWorker, step, success


async def test_what_one_does_concerns_the_other_in_nothing(lab: Lab) -> None:
    for namespace in ("one", "two"):
        await lab.template(step("a", callable=namespace), step("b", callable="nobody"), namespace=namespace)
    runs = {namespace: await lab.submit(namespace=namespace) for namespace in ("one", "two")}
    workers = {namespace: SimulatedWorker(lab.connection, "same-0") for namespace in runs}
    for namespace, worker in workers.items():
        await worker.register([namespace], namespace=namespace)
    one, two = workers["one"], workers["two"]
    assert [[each.name, each.pool] for n in runs for each in await lab.engine.workers.read(n)] == [
        ["same-0", "default"],
        ["same-0", "default"],
    ]

    claims = {namespace: await worker.claim_one() for namespace, worker in workers.items()}
    assert {namespace: claim.task_uuid for namespace, claim in claims.items()} == runs
    renewal = await one.renew(claims["two"])
    assert (renewal.known, renewal.lost_fences, renewal.unknown_fences) == (True, [], [])
    for namespace in runs:
        rows = await lab.rows("select * from tasker.unhandled_callables(%s, 'same-0')", namespace)
        assert [row["unhandled_callables"] for row in rows] == ["nobody"]

    assert await lab.value("select tasker.drain_worker('two', 'same-0')") is True
    assert [(await worker.renew(claims[n])).draining for n, worker in workers.items()] == [False, True]
    assert (await two.settle(success(claims["two"]), claim_limit=1)).settled == [claims["two"].step_id]

    await one.expire_predecessor()
    assert (await one.settle(success(claims["one"]))).stale == [claims["one"].step_id]
    await two.deregister()
    assert [len(await lab.engine.workers.read(n)) for n in runs] == [1, 0]
    await two.register(["two", "nobody"], namespace="two")
    held = await two.claim_one()
    assert await one.expire_predecessor() == 0
    assert (await two.settle(success(held))).settled == [held.step_id]


async def test_a_worker_is_written_down_when_it_registers_and_not_by_asking_for_work(lab: Lab) -> None:
    """The history knows who did something by a number, given before anything is held."""
    known = "select count(*) from tasker.actors where name = %s"
    stranger = SimulatedWorker(lab.connection, "stranger-0")
    assert await stranger.claim() == []
    assert await lab.value(known, "stranger-0") == 0
    await stranger.register()
    await stranger.register()
    assert await lab.value(known, "stranger-0") == 1
