"""The approval example on a cluster: a decision runs exactly what it chose, and the convergence waits for no more."""

from __future__ import annotations

import json

import pytest

from support.cluster import Namespace
from support.examples import folder_of

APPROVED_BY = {
    "approval-small": ["rules"],
    "approval-medium": ["manager"],
    "approval-large": ["manager", "finance"],
}


@pytest.mark.parity(113, 114, 115, 116)
def test_each_request_is_approved_by_those_whom_its_amount_asks_for(namespace: Namespace) -> None:
    namespace.kubectl("apply", "--server-side", "-f", str(folder_of("04-approval")))
    namespace.wait("condition=Succeeded=True", *(f"task/{name}" for name in APPROVED_BY))
    namespace.wait("condition=Succeeded=False", "task/approval-negative")
    for name, approved_by in APPROVED_BY.items():
        status = namespace.status("task", name)
        assert status["result"]["finalize_approval"]["approved_by"] == approved_by, json.dumps(status)
        assert status["steps"]["complete"] == 3 + len(approved_by)
        assert status["steps"]["skipped"] == 3 - len(approved_by)
        assert status["progress"] == "6/6"
    refused = namespace.status("task", "approval-negative")
    assert [failure["step"] for failure in refused["failures"]] == ["validate_request"]
