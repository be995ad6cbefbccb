"""Pauses are spread, so that workers that met one trouble do not meet again."""

from __future__ import annotations

import random

import pytest

from tasker_worker.jitter import spread


def test_a_pause_is_up_to_a_fifth_shorter_or_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda least, most: least)
    assert spread(10) == pytest.approx(8)
    monkeypatch.setattr(random, "uniform", lambda least, most: most)
    assert spread(10) == pytest.approx(12)
