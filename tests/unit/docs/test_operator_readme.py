"""operator/README.md names every setting, metric and reason that the code has, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from tasker.controller.kube.events import Reason
from tasker.controller.runtime.metrics import OperatorMetrics

ROOT = Path(__file__).parents[3]
README = (ROOT / "operator" / "README.md").read_text(encoding="utf-8")
SOURCES = ROOT / "operator" / "src" / "tasker"


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    code = (SOURCES / "settings.py").read_text(encoding="utf-8")
    in_code = set(re.findall(r'"(TASKER_[A-Z_]+)"', code))
    assert in_code, "the pattern no longer finds the settings"
    assert set(re.findall(r"`(TASKER_[A-Z_]+)`", README)) == in_code


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    families = OperatorMetrics().registry.collect()
    in_code = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert set(re.findall(r"`(tasker_operator_[a-z_]+)`", README)) == in_code


def test_every_reason_of_an_event_is_documented() -> None:
    assert {reason for reason in Reason if f"`{reason}`" not in README} == set()


def test_every_reason_of_a_condition_is_documented() -> None:
    pattern = re.compile(r'reason="([A-Z][A-Za-z]+)"')
    in_code = {
        reason
        for file in (SOURCES / "controller").rglob("*.py")
        for reason in pattern.findall(file.read_text(encoding="utf-8"))
    }
    assert len(in_code) >= 5, "the pattern no longer finds the reasons"
    assert {reason for reason in in_code if f"`{reason}`" not in README} == set()
