"""`python -m tasker_worker`: the process ends with the worker's code, whatever threads handlers have left."""

from __future__ import annotations

import runpy

import pytest

from tasker_worker import process


def test_the_program_ends_with_the_code_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind: list[int] = []
    monkeypatch.setattr(process, "main", lambda: 7)
    monkeypatch.setattr(process, "leave_threads_behind", left_behind.append)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tasker_worker", run_name="__main__")
    assert (ended.value.code, left_behind) == (7, [7])
