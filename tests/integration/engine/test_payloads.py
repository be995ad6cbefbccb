"""What users give comes back as it was written, to the last digit: SQL never looks inside."""

from __future__ import annotations

import json

from support.engine import Lab, step, success

ODD = '{"z": 1e23, "a": -0.0, "n": null, "long": 12345678901234567890.10, "z2": [1.0, 1, 1E-7], "": {"b": 1, "a": 2}}'


async def test_context_configuration_and_results_are_delivered_as_they_were_written(lab: Lab) -> None:
    odd = json.loads(ODD)
    await lab.template(step("a"), step("b", "a"))
    await lab.execute("update tasker.definitions set configuration = %s", ODD)
    await lab.value(
        "select task_uuid from tasker.submit_tasks('shop', %s)",
        f'[{{"template_name": "order", "context": {ODD}}}]',
    )
    worker = await lab.worker()
    claimed = "select context::text, configuration::text, dependency_results::text from tasker.claim_steps({}, 1)"
    (first,) = await lab.rows(claimed.format("'shop', 'worker-1'"))
    assert first == {"context": ODD, "configuration": ODD, "dependency_results": "{}"}
    assert await worker.deregister() == 1
    await worker.register()
    claim = await worker.claim_one()
    await lab.execute(
        "select * from tasker.settle_steps('shop', 'worker-1', array[%s]::bigint[], array[%s]::bigint[],"
        " array['complete'], array[%s]::json[], null, null, null, null, null, null, null, 0)",
        claim.step_id,
        claim.fence,
        ODD,
    )
    (second,) = await lab.rows(claimed.format("'shop', 'worker-1'"))
    assert ODD in second["dependency_results"]
    assert json.loads(second["dependency_results"]) == {"a": odd}


async def test_a_leaf_s_result_is_read_as_it_was_written(lab: Lab) -> None:
    task = await lab.run(step("a"))
    worker = await lab.worker()
    claim = await worker.claim_one()
    await worker.settle(success(claim, {"big": 1e23, "zero": -0.0, "nothing": None}))
    summary = await lab.engine.tasks.read(task)
    assert json.dumps(summary.leaf_results) == '{"a": {"big": 1e+23, "zero": -0.0, "nothing": null}}'
