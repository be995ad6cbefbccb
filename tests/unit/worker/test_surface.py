"""What a person who writes steps may rely on finding at the top level."""

from __future__ import annotations

import subprocess
import sys

import tasker_worker


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


def test_importing_the_sdk_brings_in_nothing_of_the_server_nor_of_kubernetes() -> None:
    program = (
        "import sys, tasker_worker, tasker_worker.testing, tasker_worker.lifecycle, tasker_worker.process;"
        "print([name for name in ('tasker', 'kopf', 'kubernetes', 'aiohttp', 'yaml', 'click') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
