"""Advisory locks on files, held by the kernel for a process and gone with it. Used by ``server``."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Literal

from devcluster.errors import EmbeddedError

_POLL_SECONDS = 0.005


class FileLock:
    """One open description of a lock file. Not to be inherited: it is closed when another program is executed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    @property
    def is_open(self) -> bool:
        """Whether this may hold the lock."""
        return self._descriptor >= 0

    def try_lock(self, mode: Literal["shared", "exclusive"]) -> bool:
        """Take the lock now or not at all. Changing the mode may lose the lock held before, even when it fails."""
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if mode == "shared" else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                return False
            raise EmbeddedError(f"{self._path}: the file cannot be locked: {error.strerror}") from error
        return True

    def lock(self, mode: Literal["shared", "exclusive"], timeout: float) -> None:
        """Take the lock within `timeout` seconds. Raises ``EmbeddedError`` when others keep it."""
        deadline = time.monotonic() + timeout
        while not self.try_lock(mode):
            if time.monotonic() > deadline:
                self.release()
                raise EmbeddedError(f"{self._path}: another process has kept this lock for {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give the lock back. Doing it again changes nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_held(path: Path) -> bool:
    """Whether somebody holds this lock exclusively."""
    with FileLock(path) as probe:
        return not probe.try_lock("shared")
