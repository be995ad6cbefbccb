"""The worker process: arguments, logging, signals, exit codes, last words.

Exit codes: 0 done, 1 wrong configuration, a port that is taken or a worker that broke, 2 database unreachable.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
import threading
import traceback
from collections.abc import Sequence
from typing import NoReturn

from . import logging as json_logging
from ._version import __version__
from .errors import ConfigurationError, DatabaseError, TaskerError
from .eventloop import run_unharmed
from .lifecycle import ShutdownController
from .settings import WorkerSettings, about_settings, load_settings
from .termination import VARIABLE, write_last_words
from .worker import Worker

logger = logging.getLogger("tasker_worker.process")

_EXIT_SECONDS = 3.0  # for threads that handlers left behind to end by themselves
_TRACEBACK_CHARACTERS = 3000  # of the last words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until a signal ends it; returns the exit code."""
    try:
        modules = _parser().parse_args(arguments).modules
        settings = load_settings(os.environ)
    except ConfigurationError as error:
        print(f"tasker_worker: {error}", file=sys.stderr)
        write_last_words(str(error), os.environ.get(VARIABLE) or None)
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
    except TaskerError as error:
        logger.error(str(error))
        write_last_words(_last_words(error), settings.termination_log)
        return 2 if isinstance(error, DatabaseError) else 1
    except (Exception, SystemExit) as error:
        # Nothing that the worker foresees: its own code is wrong, or that of the handlers is where nothing guards it.
        logger.critical("the worker broke", exc_info=True)
        write_last_words(_last_words(error), settings.termination_log)
        return 1
    finally:
        shutdown.restore_signal_handlers()
    return 0


def _last_words(error: BaseException) -> str:
    """The cause in one sentence, and for a worker that broke the end of the traceback."""
    foreseen = isinstance(error, TaskerError)
    sentence = str(error) if foreseen else f"the worker broke: {error!r}"
    broken = error.__cause__ if foreseen else error
    if broken is None or isinstance(broken, OSError) or isinstance(error, ConfigurationError | DatabaseError):
        return sentence  # which says all
    return f"{sentence}\n{''.join(traceback.format_exception(broken))[-_TRACEBACK_CHARACTERS:]}"


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


class _Parser(argparse.ArgumentParser):
    """One whose refusals are faults of the configuration, as all others: argparse would exit with 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
    lines += ["", "Exit codes: 0 done, 1 wrong configuration, port taken or worker broken, 2 database unreachable."]
    return "\n".join(lines)
