"""operator/README.md names every setting, metric and reason that the code has, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml

from support.controller_fakes import FakeEngine
from support.fake_cluster import FakeCluster
from tasker.controller import app
from tasker.controller.assembly import assemble
from tasker.controller.kube.client import Cluster
from tasker.controller.kube.events import Reason
from tasker.controller.runtime import metrics
from tasker.controller.runtime.metrics import OperatorMetrics
from tasker.controller.runtime.repeat import ROUND_SECONDS
from tasker.controller.runtime.termination import END_SECONDS, ExitCode, Signals
from tasker.controller.runtime.work_queue import RECONCILE_SECONDS, STALL_SECONDS
from tasker.engine import Engine
from tasker.errors import InvalidContext
from tasker.model import schemas
from tasker.model.identity import IdentityStrategy
from tasker.model.schemas import SchemaEnforcement, context_fault
from tasker.model.template import StepType, parse_template_spec
from tasker.settings import OperatorSettings

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


def test_every_metric_is_described_where_it_is_made() -> None:
    families = OperatorMetrics().registry.collect()
    in_code = {family.name + ("_total" if family.type == "counter" else ""): family.type for family in families}
    rows = re.findall(r"^\| (tasker_operator_[a-z_]+) \| (\w+) \|", metrics.__doc__ or "", re.MULTILINE)
    assert dict(rows) == in_code


def test_every_exit_code_is_documented_and_every_documented_one_exists() -> None:
    section = README.partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", section, re.MULTILINE) == [str(code.value) for code in ExitCode]


def test_the_template_with_schemas_is_one_and_refuses_in_the_words_that_are_shown() -> None:
    section = README.partition("\n## Schemas of templates\n")[2].partition("\n## ")[0]
    [written] = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    spec = parse_template_spec(yaml.safe_load(written)["spec"])
    assert spec.input_schema is not None
    fault = context_fault(spec.input_schema, {"order": {"total": 0}})
    assert fault is not None
    assert f"`{InvalidContext(*fault)}`" in section
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)[1:] == list(SchemaEnforcement)
    assert f"{schemas.CHECKS:,} keywords" in section


async def test_every_part_is_documented_with_what_a_stall_of_it_is() -> None:
    settings = OperatorSettings(worker_image="tasker-worker:1", worker_database_url="postgresql:///x")
    engine, metrics = cast("Engine", FakeEngine()), OperatorMetrics()
    parts = assemble(cast("Cluster", FakeCluster()), engine, settings, metrics)
    table = README.partition("| part | does |")[2].partition("\n## ")[0]
    documented = re.findall(r"`([^`]+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:] if line))
    supervised = app._supervised(parts, engine, settings, metrics, Signals())
    assert documented == [*(part.name for part in supervised), "supervision"]
    for seconds in (STALL_SECONDS, RECONCILE_SECONDS):
        assert f"{seconds:.0f} s" in table
    for seconds in (ROUND_SECONDS, app.RESYNC_ROUND_SECONDS):
        assert f"a round takes {seconds:.0f} s longer than its period" in table
    assert f"more than {END_SECONDS:.0f} seconds" in README
    assert f"silent for {app.SILENT_DATABASE_SECONDS:.0f} seconds" in README


def yaml_of(title: str) -> tuple[str, dict[str, Any]]:
    """A section, and what its YAML says."""
    section = README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return section, yaml.safe_load(section.partition("```yaml\n")[2].partition("```")[0])


def test_what_shows_branches_conditions_and_environments_is_a_template() -> None:
    section, steps = yaml_of("Branches and conditions")
    _, environments = yaml_of("Environments")
    spec = parse_template_spec(steps | environments, environment="production")
    assert {step.type for step in spec.steps} == set(StepType)
    assert {each for each in StepType if f"`type: {each}`" not in section} == {StepType.STANDARD}
    assert any(step.when for step in spec.steps)
    assert {step.timeout_seconds for step in spec.steps} == {60}


def test_what_shows_identity_and_limits_is_a_template() -> None:
    section, identity = yaml_of("Duplicates")
    _, concurrency = yaml_of("Limits on runs")
    steps = [{"name": "a", "handler": {"callable": "do"}}]
    spec = parse_template_spec({"steps": steps} | identity | concurrency)
    assert (spec.identity.strategy, spec.identity.window_seconds) == (IdentityStrategy.CALLER_PROVIDED, 86400)
    assert spec.concurrency.max_tasks == 3
    assert {each for each in IdentityStrategy if f"| `{each}`" not in section} == set()


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
