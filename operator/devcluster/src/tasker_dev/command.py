"""`tasker dev`: its options. What it does is in `dev`, which is imported once they are known: `tasker --help` is quick.

`tasker` finds this command through the entry point of the distribution.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from devcluster.errors import ClusterError
from tasker.errors import TaskerError


class DevFailed(TaskerError):
    """The development cluster could not do what was asked."""


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".tasker"),
    show_default=True,
    help="Folder for the database, the cluster's objects, the logs and the kubeconfig.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port of the API server on 127.0.0.1.  [default: the one before, or a free one]",
)
@click.option(
    "--run",
    "folder",
    type=click.Path(path_type=Path),
    help="Apply this folder, follow its Tasks to their end, and stop. Exit code 0 if each ended as it should.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --run: use the cluster of this kubeconfig, which has the product, and start nothing here.",
)
@click.option("-n", "--namespace", help="With --run: the namespace to apply to.  [default: the kubeconfig's]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="With --run: the longest time the run may take, in seconds.",
)
@click.option("--keep", is_flag=True, help="With --run: keep the embedded cluster running afterwards, until Ctrl-C.")
def dev(
    data: Path,
    port: int | None,
    folder: Path | None,
    kubeconfig: Path | None,
    namespace: str | None,
    timeout: float,
    keep: bool,
) -> None:
    """Run a development cluster on this machine: database, API server, node and operator.

    It is not Kubernetes, but the operator and kubectl cannot tell. It runs until Ctrl-C, or with --run until the
    example's Tasks have ended and its workers are gone.
    """
    if folder is None:
        for name, given in (("--kubeconfig", kubeconfig), ("--namespace", namespace), ("--keep", keep)):
            if given:
                raise click.UsageError(f"{name} goes with --run")
    elif kubeconfig is not None and (port is not None or keep):
        raise click.UsageError("--port and --keep are about the embedded cluster, which --kubeconfig does without")
    from tasker_dev.dev import DevOptions, run_dev

    options = DevOptions(
        data=data,
        port=port,
        folder=folder,
        kubeconfig=kubeconfig,
        namespace=namespace,
        timeout=timeout,
        keep=keep,
    )
    try:
        sys.exit(run_dev(options))
    except ClusterError as error:
        raise DevFailed(str(error)) from error
