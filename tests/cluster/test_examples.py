"""Every folder of examples/ does on a cluster what its Tasks say: applied by kubectl, run from zero, back to zero."""

from __future__ import annotations

import pytest

from support.cluster import Namespace
from support.examples import NAMES, folder_of, load_manifests, load_templates
from support.waiting import eventually

EXPECTED_STATE = "tasker.dev/expected-state"


@pytest.mark.parametrize("name", NAMES)
def test_an_example_ends_as_it_says_and_leaves_no_worker(namespace: Namespace, name: str) -> None:
    folder = str(folder_of(name))
    [pool] = load_manifests(name, "pool.yaml")
    tasks = load_manifests(name, "task.yaml")
    expected = {task["metadata"]["name"]: task["metadata"]["annotations"][EXPECTED_STATE] for task in tasks}
    namespace.kubectl("apply", "--server-side", "-f", folder)

    def states() -> dict[str, str]:
        return {task["metadata"]["name"]: task.get("status", {}).get("state", "") for task in namespace.list("tasks")}

    def ended() -> bool:
        found = states()
        assert found == expected
        return True

    eventually(lambda: namespace.status("workerpool", pool["metadata"]["name"]).get("readyReplicas"), timeout=30)
    eventually(ended, timeout=60, interval=0.2)
    for task, state in expected.items():
        namespace.wait(f"condition=Succeeded={state == 'complete'}", f"task/{task}")
    for template in load_templates(name):
        assert namespace.condition("tasktemplate", template["metadata"]["name"], "Ready")[0] == "True"

    def empty() -> bool:
        status = namespace.status("workerpool", pool["metadata"]["name"])
        assert (status["desiredReplicas"], status.get("replicas", 0), status["queued"], status["running"]) == (0,) * 4
        assert namespace.list("pods") == []
        return True

    eventually(empty, timeout=60, interval=0.2)
    namespace.kubectl("delete", "-f", folder, "--timeout=60s", timeout=70)

    def gone() -> bool:
        left = namespace.kubectl("get", "tasks,tasktemplates,workerpools,deployments", "--output=name")
        assert left == ""
        return True

    # A managed pool may come and go, for the example's own pool is deleted before its template.
    eventually(gone, timeout=30, interval=0.2)
