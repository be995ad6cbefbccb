"""What the cluster suite is told about the cluster it runs on: the variables of tests/cluster/README.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

KUBECONFIG = "TASKER_TEST_KUBECONFIG"
OPERATOR = "TASKER_TEST_OPERATOR"
OPERATOR_IMAGE = "TASKER_TEST_OPERATOR_IMAGE"
WORKER_IMAGE = "TASKER_TEST_WORKER_IMAGE"
SECOND_WORKER_IMAGE = "TASKER_TEST_WORKER_IMAGE_2"
PULL_POLICY = "TASKER_TEST_IMAGE_PULL_POLICY"
DATABASE_URL = "TASKER_TEST_DATABASE_URL"

OperatorMode = Literal["outside", "chart"]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]

EMBEDDED_SECOND_IMAGE = "registry.example/other/tasker-worker:2"
"""The embedded node runs every image whose repository ends in tasker-worker; nothing is fetched from anywhere."""


class WrongVariables(Exception):
    """The variables cannot be used; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """The cluster, and what of ours runs there. Without a kubeconfig it is the embedded one."""

    kubeconfig: Path | None = None
    operator: OperatorMode = "outside"
    operator_image: str | None = None
    worker_image: str | None = None
    second_worker_image: str | None = None
    pull_policy: PullPolicy | None = None
    database_url: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ClusterSettings:
        """Raises `WrongVariables`."""
        given = {name: value for name, value in environment.items() if value}
        kubeconfig = given.get(KUBECONFIG)
        operator = given.get(OPERATOR, "outside")
        policy = given.get(PULL_POLICY)
        if operator not in get_args(OperatorMode):
            raise WrongVariables(f"{OPERATOR}={operator!r} is none of {', '.join(get_args(OperatorMode))}")
        if policy is not None and policy not in get_args(PullPolicy):
            raise WrongVariables(f"{PULL_POLICY}={policy!r} is none of {', '.join(get_args(PullPolicy))}")
        if kubeconfig is None and operator == "chart":
            raise WrongVariables(
                f"{OPERATOR}=chart needs a cluster that runs Jobs and the operator's image, which the embedded one "
                f"does not: name one with {KUBECONFIG}"
            )
        if kubeconfig is not None and not Path(kubeconfig).is_file():
            raise WrongVariables(f"{KUBECONFIG}={kubeconfig!r} is no file")
        if kubeconfig is not None and DATABASE_URL not in given:
            raise WrongVariables(
                f"{KUBECONFIG} is set and {DATABASE_URL} is not: give the URL of a Postgres that the pods there reach"
            )
        if kubeconfig is None:
            return cls(second_worker_image=EMBEDDED_SECOND_IMAGE)
        return cls(
            kubeconfig=Path(kubeconfig).absolute(),
            operator=cast("OperatorMode", operator),
            operator_image=given.get(OPERATOR_IMAGE),
            worker_image=given.get(WORKER_IMAGE),
            second_worker_image=given.get(SECOND_WORKER_IMAGE),
            pull_policy=cast("PullPolicy | None", policy),
            database_url=given[DATABASE_URL],
        )

    @property
    def is_embedded(self) -> bool:
        return self.kubeconfig is None


def image_values(image: str | None, pull_policy: str | None) -> dict[str, str]:
    """An image as the chart's values have it: repository, tag or digest, pullPolicy. What is not given is left out."""
    values: dict[str, str] = {}
    if image:
        named = re.fullmatch(r"(?P<repository>.+?)(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?", image)
        if named is None:
            raise WrongVariables(f"{image!r} is no name of an image")
        values |= {part: text for part, text in named.groupdict().items() if text}
    if pull_policy:
        values["pullPolicy"] = pull_policy
    return values


def another_name(image: str, nodes: Iterable[Mapping[str, Any]]) -> str | None:
    """Another name of the same image that every node which has the image knows it by, or None.

    Nodes tell what images they have and each one's names. A short name is docker.io's, which containerd and Docker
    write out; an image that came from a registry has its digest for a name too.
    """
    known: list[set[str]] = []
    for node in nodes:
        for each in node.get("status", {}).get("images") or ():
            names = {str(name) for name in each.get("names") or ()}
            if _written_out(image) in names:
                known.append(names)
    if not known:
        return None
    shared = set.intersection(*known) - {image}
    return min(shared, key=lambda name: ("@" in name, name), default=None)


def _written_out(image: str) -> str:
    """`image` with the registry, the repository and the tag that it leaves out."""
    registry, _, path = image.rpartition("/")
    first = registry.split("/")[0]
    if not registry:
        image = f"docker.io/library/{image}"
    elif first != "localhost" and not {".", ":"} & set(first):
        image = f"docker.io/{image}"
    return image if {":", "@"} & set(path) else f"{image}:latest"
