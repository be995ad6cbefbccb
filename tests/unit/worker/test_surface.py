"""What a person who writes steps may rely on finding at the top level."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import tasker_worker
from tasker_worker import batch, decision, lifecycle, types


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


@pytest.mark.parity(137)
def test_the_types_that_other_sdks_export_are_here_too() -> None:
    """By their own names where these are clear, else as what they are here."""
    assert dataclasses.is_dataclass(lifecycle.BootstrapConfig)
    assert dataclasses.is_dataclass(lifecycle.WorkerStatus)
    assert batch.BatchableResult is tasker_worker.StepResult, "as StepHandlerResult is"
    assert inspect.isclass(tasker_worker.StepContext), "which stands for the event of a step, too"


def test_the_submodule_of_types_holds_exactly_the_documented_names() -> None:
    assert set(types.__all__) == {
        *("RustCursorConfig", "CursorConfig", "Cursor", "NoBatchesOutcome", "CreateBatchesOutcome"),
        *("BatchProcessingOutcome", "RustBatchWorkerInputs", "BatchMetadata", "FailureStrategy", "Checkpoint"),
        *("BatchAggregationResult", "aggregate_batch_results"),
        *("no_batches", "create_batches", "is_no_batches", "is_create_batches"),
    }
    assert all(hasattr(types, name) for name in types.__all__)


def test_a_context_has_exactly_the_documented_names() -> None:
    assert {name for name in dir(tasker_worker.StepContext) if not name.startswith("_")} == {
        *("task_uuid", "step_uuid", "step_name", "namespace", "template_name", "template_version", "correlation_id"),
        *(
            "attempt",
            "retry_count",
            "max_retries",
            "is_retry",
            "is_last_retry",
            "deadline",
            "seconds_left",
            "cancelled",
        ),
        *("task_context", "step_inputs", "step_config", "dependency_results", "batch_config", "checkpoint"),
        *("get_input", "get_config", "get_dependency_result", "get_dependency_field", "get_all_dependency_results"),
        *("heartbeat", "save_checkpoint", "batch_results"),
        *("add_results", "json_texts", "begin"),  # for who runs the handler
    }


def test_importing_the_sdk_brings_in_nothing_of_the_server_nor_what_few_workers_need() -> None:
    program = (
        "import sys, tasker_worker, tasker_worker.testing, tasker_worker.lifecycle, tasker_worker.process;"
        "others = 'tasker', 'kopf', 'kubernetes', 'aiohttp', 'yaml', 'click', 'cel', 'jsonschema';"
        "print([name for name in others if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
