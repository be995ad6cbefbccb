"""The variables of the cluster suite are read as its README says, and wrong ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cluster_settings import ClusterSettings, WrongVariables, another_name, image_values

DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def kubeconfig(tmp_path: Path) -> str:
    (tmp_path / "kubeconfig").touch()
    return str(tmp_path / "kubeconfig")


def test_without_variables_the_cluster_is_the_embedded_one() -> None:
    settings = ClusterSettings.from_environment({"TASKER_TEST_KUBECONFIG": "", "TASKER_TEST_DATABASE_URL": "x"})
    assert settings.is_embedded
    assert settings.operator == "outside"


def test_a_cluster_is_described_by_its_variables(kubeconfig: str) -> None:
    settings = ClusterSettings.from_environment(
        {
            "TASKER_TEST_KUBECONFIG": kubeconfig,
            "TASKER_TEST_OPERATOR": "chart",
            "TASKER_TEST_OPERATOR_IMAGE": "tasker-operator:dev",
            "TASKER_TEST_WORKER_IMAGE": "tasker-worker:dev",
            "TASKER_TEST_WORKER_IMAGE_2": "tasker-worker:dev-2",
            "TASKER_TEST_IMAGE_PULL_POLICY": "Never",
            "TASKER_TEST_DATABASE_URL": "postgresql://10.0.0.5/postgres",
        }
    )
    assert settings == ClusterSettings(
        kubeconfig=Path(kubeconfig),
        operator="chart",
        operator_image="tasker-operator:dev",
        worker_image="tasker-worker:dev",
        second_worker_image="tasker-worker:dev-2",
        pull_policy="Never",
        database_url="postgresql://10.0.0.5/postgres",
    )
    assert "10.0.0.5" not in repr(settings)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TASKER_TEST_OPERATOR": "inside"}, "TASKER_TEST_OPERATOR='inside' is none of outside, chart"),
        ({"TASKER_TEST_OPERATOR": "chart"}, "TASKER_TEST_OPERATOR=chart needs a cluster that runs Jobs"),
        ({"TASKER_TEST_IMAGE_PULL_POLICY": "never"}, "TASKER_TEST_IMAGE_PULL_POLICY='never' is none of"),
        ({"TASKER_TEST_KUBECONFIG": "/no/file"}, "TASKER_TEST_KUBECONFIG='/no/file' is no file"),
        ({"TASKER_TEST_KUBECONFIG": __file__}, "TASKER_TEST_DATABASE_URL is not"),
    ],
)
def test_variables_that_cannot_be_used_are_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(WrongVariables, match=message):
        ClusterSettings.from_environment(variables)


@pytest.mark.parametrize(
    ("image", "values"),
    [
        ("tasker-worker", {"repository": "tasker-worker"}),
        ("tasker-worker:dev", {"repository": "tasker-worker", "tag": "dev"}),
        ("localhost:5000/a/b", {"repository": "localhost:5000/a/b"}),
        ("localhost:5000/a/b:1.2", {"repository": "localhost:5000/a/b", "tag": "1.2"}),
        (f"a/b@{DIGEST}", {"repository": "a/b", "digest": DIGEST}),
        (f"a/b:1@{DIGEST}", {"repository": "a/b", "tag": "1", "digest": DIGEST}),
        (None, {}),
    ],
)
def test_an_image_is_split_as_the_chart_wants_it(image: str | None, values: dict[str, str]) -> None:
    assert image_values(image, None) == values
    assert image_values(image, "Never") == {**values, "pullPolicy": "Never"}


def nodes(*names_by_image: list[list[str]]) -> list[dict[str, object]]:
    return [{"status": {"images": [{"names": names} for names in images]}} for images in names_by_image]


@pytest.mark.parametrize(
    ("image", "known", "expected"),
    [
        ("a:1", nodes([["docker.io/library/b:1"], ["docker.io/library/a:1"]]), "docker.io/library/a:1"),
        ("a", nodes([["docker.io/library/a:latest"]]), "docker.io/library/a:latest"),
        ("team/a:1", nodes([["docker.io/team/a:1"]]), "docker.io/team/a:1"),
        ("docker.io/library/a:1", nodes([["docker.io/library/a:1", "docker.io/library/a:2"]]), "docker.io/library/a:2"),
        ("localhost/a:1", nodes([["localhost/a:1"]]), None),
        ("r.example/a:1", nodes([[f"r.example/a@{DIGEST}", "r.example/a:1"]]), f"r.example/a@{DIGEST}"),
        ("r.example:5000/a", nodes([["r.example:5000/a:latest"]]), "r.example:5000/a:latest"),
        # A name that one of the nodes with the image does not know is no good; a node without it does not count.
        ("r.example/a:1", nodes([["r.example/a:1", "r.example/a:2"]], [["r.example/a:1"]], []), None),
        ("a:1", nodes([]), None),
        ("a:1", [{}], None),
    ],
)
def test_another_name_of_an_image_is_one_that_every_node_knows(
    image: str, known: list[dict[str, object]], expected: str | None
) -> None:
    assert another_name(image, known) == expected
