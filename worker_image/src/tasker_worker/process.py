"""The worker process: arguments, logging, signals, exit codes.

Exit codes: 0 done, 1 wrong configuration (or a port that is taken), 2 database unreachable.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import textwrap
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from . import logging as json_logging
from ._version import __version__
from .errors import ConfigurationError, DatabaseError, TaskerError
from .lifecycle import ShutdownController
from .settings import WorkerSettings, about_settings, load_settings
from .worker import Worker

logger = logging.getLogger("tasker_worker.process")

Result = TypeVar("Result")

_LEFTOVER_SECONDS = 1.0  # for tasks that handlers left behind to end when cancelled
_EXIT_SECONDS = 3.0  # for threads that handlers left behind to end by themselves


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until a signal ends it; returns the exit code."""
    modules = _parser().parse_args(arguments).modules
    try:
        settings = load_settings(os.environ)
    except ConfigurationError as error:
        print(f"tasker_worker: {error}", file=sys.stderr)
        return 1
    json_logging.configure(
        settings.log_level, worker=settings.name, namespace=settings.namespace, environment=settings.environment
    )
    return _run(modules, settings)


def _run(modules: list[str], settings: WorkerSettings) -> int:
    shutdown = ShutdownController()
    try:
        worker = Worker(modules=modules, settings=settings)
        shutdown.on_shutdown(worker.request_stop)
        shutdown.register_signal_handlers()
        run_unharmed(worker.run())
    except DatabaseError as error:
        logger.error(str(error))
        return 2
    except TaskerError as error:
        logger.error(str(error))
        return 1
    finally:
        shutdown.restore_signal_handlers()
    return 0


def run_unharmed(work: Coroutine[Any, Any, Result]) -> Result:
    """Like asyncio.run, but a SystemExit or KeyboardInterrupt in some task of a handler's does not end the loop.

    asyncio lets these two through to whoever runs the loop, beside giving them to the task that awaits; so the
    handler's attempt fails as it should, and the loop goes on.
    """
    loop = asyncio.new_event_loop()
    try:
        main_task = loop.create_task(work)
        while not main_task.done():
            try:
                loop.run_until_complete(main_task)
            except (SystemExit, KeyboardInterrupt) as error:
                if main_task.done():
                    raise
                logger.warning("a task that a handler started raised %r; the worker goes on", error)
        return main_task.result()
    finally:
        loop.run_until_complete(_end_leftovers())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end_leftovers() -> None:
    """Cancel what handlers started and did not wait for, without waiting long for those that will not go."""
    leftovers = asyncio.all_tasks() - {asyncio.current_task()}
    for task in leftovers:
        task.cancel()
    if leftovers:
        await asyncio.wait(leftovers, timeout=_LEFTOVER_SECONDS)


def leave_threads_behind(code: int) -> None:
    """See to it that the process ends: threads that a handler started and left running would keep it alive.

    Only for the end of a program.
    """

    def end() -> None:
        logger.warning("threads that handlers left behind are cut off")
        logging.shutdown()
        os._exit(code)

    timer = threading.Timer(_EXIT_SECONDS, end)
    timer.daemon = True
    timer.start()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasker_worker",
        description="Runs workflow steps: claims them from the engine's database and calls their handlers.",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("modules", nargs="*", help="modules or packages that define handlers, imported in this order")
    parser.add_argument("--version", action="version", version=f"tasker-worker {__version__}")
    return parser


def _settings_help() -> str:
    lines = [
        "Settings come from the environment, or from the TOML file that TASKER_CONFIG_PATH names (keys in brackets):",
        "",
    ]
    for name, (about, default) in about_settings().items():
        shown = {"database_url": "required", "name": "made up"}.get(name, "none" if default is None else str(default))
        lines.append(f"  {about.variable} [{about.key}] in {about.unit}; default: {shown}")
        lines += textwrap.wrap(
            f"{about.text} Default: {about.reason}.", 108, initial_indent="      ", subsequent_indent="      "
        )
    lines += ["", "Exit codes: 0 done, 1 wrong configuration or port taken, 2 database unreachable."]
    return "\n".join(lines)
