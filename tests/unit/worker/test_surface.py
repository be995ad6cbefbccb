"""What a person who writes steps may rely on finding at the top level."""

from __future__ import annotations

import inspect
import subprocess
import sys

import tasker_worker
from tasker_worker import decision


def test_the_top_level_holds_exactly_the_documented_names() -> None:
    assert sorted(tasker_worker.__all__) == [
        "ErrorType",
        "HandlerRegistry",
        "PermanentError",
        "RetryableError",
        "StepContext",
        "StepHandler",
        "StepResult",
        "Worker",
        "__version__",
        "depends_on",
        "inputs",
        "step_handler",
    ]
    assert all(hasattr(tasker_worker, name) for name in tasker_worker.__all__)


def test_the_submodule_for_decisions_holds_exactly_the_documented_names() -> None:
    assert sorted(decision.__all__) == ["Decision", "DecisionHandler", "DecisionMixin", "decision_handler"]
    assert sorted(name for name in vars(decision.DecisionMixin) if not name.startswith("_")) == [
        "decision_no_branches",
        "decision_success",
    ]
    assert {name for name in vars(decision.Decision) if not name.startswith("_")} == {
        *("route", "skip", "as_result"),
        *("step_names", "reason", "routing_context", "metadata"),
    }
    signatures = {
        "route": "(*steps: 'str', **routing_context: 'Any') -> 'Decision'",
        "skip": "(reason: 'str', /, **routing_context: 'Any') -> 'Decision'",
    }
    assert {name: str(inspect.signature(getattr(decision.Decision, name))) for name in signatures} == signatures


def test_importing_the_sdk_brings_in_nothing_of_the_server_nor_what_few_workers_need() -> None:
    program = (
        "import sys, tasker_worker, tasker_worker.testing, tasker_worker.lifecycle, tasker_worker.process;"
        "others = 'tasker', 'kopf', 'kubernetes', 'aiohttp', 'yaml', 'click', 'cel', 'jsonschema';"
        "print([name for name in others if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
