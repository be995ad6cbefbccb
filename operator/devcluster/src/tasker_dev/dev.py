"""What `tasker dev` does once its options are known. Called by `command`; what is printed is in `progress`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.kubectl import Kubectl, find_kubectl
from tasker_dev.example import Example, read_example
from tasker_dev.example_run import ExampleRun
from tasker_dev.progress import Reporter
from tasker_dev.session import DevSession, SessionSettings

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class DevOptions:
    """The command's options; see `dev` for what they mean."""

    data: Path
    port: int | None
    folder: Path | None
    kubeconfig: Path | None
    namespace: str | None
    timeout: float
    keep: bool


def run_dev(options: DevOptions) -> int:
    """The exit code. Raises a `ClusterError` or `TaskerError` when something cannot be started or read."""
    return asyncio.run(_until_signal(_dev(options, Reporter())))


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run `work`; a signal cancels it, and a second one ends the process at once.

    Ending at once is safe: every process of the session dies with this one.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)

    def interrupt() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        task.cancel()

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        return INTERRUPTED


async def _dev(options: DevOptions, reporter: Reporter) -> int:
    kubectl = find_kubectl()
    example = None if options.folder is None else read_example(options.folder)
    if options.kubeconfig is not None:
        assert example is not None, "the command line asks for --run with --kubeconfig"
        return await _run(options, example, reporter, options.kubeconfig, kubectl)
    settings = SessionSettings(
        data_folder=options.data,
        port=options.port,
        kubectl=kubectl,
        database_url=os.environ.get("DATABASE_URL") or None,
    )
    code = 0
    async with AsyncExitStack() as stack:
        reporter.starting()
        stack.callback(reporter.stopped)
        session = await stack.enter_async_context(DevSession(settings, say=reporter.say))
        stack.callback(reporter.stopping)
        reporter.started(session)
        if example is not None:
            code = await _run(options, example, reporter, session.kubeconfig, kubectl)
        if example is None or options.keep:
            reporter.how_to_go_on(session.kubeconfig, kubectl, command=None)
            await _show_until_cancelled(session, reporter)
            return code
    reporter.how_to_go_on(session.kubeconfig, kubectl, command=_command(options))
    return code


async def _show_until_cancelled(session: DevSession, reporter: Reporter) -> None:
    """A signal is how a kept session ends: no failure."""
    try:
        await reporter.keep_showing(session)
    except asyncio.CancelledError:
        return


async def _run(options: DevOptions, example: Example, reporter: Reporter, kubeconfig: Path, kubectl: Path) -> int:
    run = ExampleRun(example, Kubectl(executable=kubectl, kubeconfig=kubeconfig, namespace=options.namespace))
    await run.check_cluster()
    removed = await run.remove_earlier_tasks()
    reporter.applying(example, removed)
    with reporter.following(run.state) as show:
        over = await run.follow(show, timeout=options.timeout)
    reporter.results(run.state, run.seconds, over=over)
    return 0 if over and run.state.all_as_expected() else 1


def _command(options: DevOptions) -> str:
    """How to start the session again, as this process was started."""
    program = Path(sys.argv[0])
    name = program.name if shutil.which(program.name) == str(program.absolute()) else str(program)
    return f"{name} dev" + ("" if options.data == Path(".tasker") else f" --data {options.data}")
