"""Which tests judge mutants."""

from __future__ import annotations

RINGS = ("tests/unit", "tests/integration")
"""Tests that run the product in their own process; which of them can see a mutant is recorded."""

LEFT_OUT = ("tests/unit/mutants", "tests/unit/docs", "tests/unit/devcluster", "tests/integration/devcluster")
"""Tests of other things, folders that may not be there."""

PROCESS_SUITES: dict[str, tuple[str, ...]] = {
    "operator/src/tasker/controller": (
        "tests/acceptance/controller",
        "tests/cluster/test_operator_tasks.py",
        "tests/cluster/test_operator_pools.py",
    ),
    "worker_image/src/tasker_worker": ("tests/acceptance/worker", "tests/chaos/test_process_faults.py"),
    "operator/src/tasker": ("tests/acceptance/cli", "tests/chaos/test_random_dags.py"),
}
"""Tests that run the product in processes, by the folder of what they show; run in this order when the others have
found nothing. Which lines those processes run is not recorded."""

ALL_PROCESS_SUITES = tuple(suite for suites in PROCESS_SUITES.values() for suite in suites)


def runs_processes(test: str) -> bool:
    """Whether a test is one of those that run the product in processes."""
    return test.startswith(ALL_PROCESS_SUITES)
