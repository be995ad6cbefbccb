"""The log files of containers: ``<logs>/<namespace>/<pod>/<container>.log``, where `kubectl logs` finds them.

Called by ``kubelet``. A process writes its file itself, in append mode. The output of the run before is in
``<container>.previous.log``. Logs of pods that are gone are kept for a look afterwards, the newest of each namespace.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from devcluster.node.objects import Key

LARGEST_BYTES = 32 * 1024 * 1024
KEPT_PODS = 100


class LogFiles:
    """The logs of one node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, pod: Key, container: str) -> Path:
        """The file for a new run; that of the run before is set aside."""
        file = self._file(pod, container)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            file.rename(_previous(file))
        return file

    def current(self, pod: Key, container: str) -> Path:
        """The file of the run that goes on or was the last."""
        return self._file(pod, container)

    def shorten(self, pod: Key, container: str) -> None:
        """Set a file aside that has become too large. The process goes on at its new beginning.

        What it writes between the two steps is lost, as it may be on a real node.
        """
        file = self._file(pod, container)
        with suppress(FileNotFoundError):
            if file.stat().st_size > LARGEST_BYTES:
                shutil.copyfile(file, _previous(file))
                os.truncate(file, 0)

    def prune(self, namespace: str, running: AbstractSet[str]) -> None:
        """Remove the oldest logs of pods that are gone."""
        with suppress(FileNotFoundError):
            gone = [found for found in (self._folder / namespace).iterdir() if found.name not in running]
            gone.sort(key=lambda found: found.stat().st_mtime, reverse=True)
            for found in gone[KEPT_PODS:]:
                shutil.rmtree(found, ignore_errors=True)

    def _file(self, pod: Key, container: str) -> Path:
        return self._folder / pod.namespace / pod.name / f"{container}.log"


def _previous(file: Path) -> Path:
    return file.with_name(f"{file.stem}.previous.log")
