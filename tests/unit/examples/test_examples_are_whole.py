"""Each example folder is complete, consistent, and can be applied as it is."""

from __future__ import annotations

import pytest

from support.examples import NAMES, folder_of, load_handlers, load_manifests, load_templates
from tasker.model.template import parse_template_spec
from tasker_dev.example import read_example
from tasker_worker import HandlerRegistry

pytestmark = pytest.mark.parametrize("name", NAMES)


def test_the_config_map_holds_the_handlers_as_they_are(name: str) -> None:
    (config_map,) = load_manifests(name, "handlers.yaml")
    handlers = (folder_of(name) / "handlers.py").read_text(encoding="utf-8")
    assert config_map["kind"] == "ConfigMap"
    assert config_map["data"] == {"handlers.py": handlers}, "run `make examples`"


def test_the_pool_takes_its_handlers_from_that_config_map(name: str) -> None:
    (config_map,) = load_manifests(name, "handlers.yaml")
    (pool,) = load_manifests(name, "pool.yaml")
    assert pool["spec"]["handlersFrom"] == {"configMapRef": {"name": config_map["metadata"]["name"]}}


def test_every_template_is_valid_and_every_callable_has_a_handler(name: str) -> None:
    specs = [parse_template_spec(template["spec"]) for template in load_templates(name)]
    registry = HandlerRegistry()
    registry.discover(load_handlers(name))
    assert {step.handler.callable for spec in specs for step in spec.steps} == set(registry.list_handlers())


def test_every_task_names_a_template_and_says_how_it_should_end(name: str) -> None:
    templates = {template["metadata"]["name"] for template in load_templates(name)}
    tasks = load_manifests(name, "task.yaml")
    assert {task["spec"]["templateRef"]["name"] for task in tasks} == templates
    assert all("tasker.dev/expected-state" in task["metadata"]["annotations"] for task in tasks)
    assert [task.name for task in read_example(folder_of(name)).tasks] == [task["metadata"]["name"] for task in tasks]


def test_a_readme_tells_what_it_shows(name: str) -> None:
    text = (folder_of(name) / "README.md").read_text(encoding="utf-8")
    assert f"kubectl apply -f examples/{name}" in text
