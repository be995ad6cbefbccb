"""Wait for what a test expects, never for a duration."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Value = TypeVar("Value")

PATIENCE = float(os.environ.get("TASKER_TEST_PATIENCE") or ("3" if os.environ.get("TASKER_TEST_KUBECONFIG") else "1"))
"""What every longest wait is multiplied by: pods of a real cluster take seconds to start."""


def eventually(
    probe: Callable[[], Value], *, timeout: float = 10.0, interval: float = 0.02, what: str | None = None
) -> Value:
    """The first truthy result of `probe`; fails, naming `what` and the last result, if none came in `timeout` seconds
    (times `PATIENCE`).

    An ``AssertionError`` of the probe counts as "not yet" and is what the test fails with in the end.
    """
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while True:
        try:
            result = probe()
            if result:
                return result
            refusal: AssertionError | None = None
        except AssertionError as error:
            refusal = error
        if time.monotonic() > deadline:
            raise refusal or AssertionError(f"not within {timeout} s: {what or probe}; last: {result!r}")
        time.sleep(interval)


async def eventually_async(
    probe: Callable[[], Awaitable[Value]], *, timeout: float = 10.0, interval: float = 0.02, what: str | None = None
) -> Value:
    """`eventually` for a probe that is awaited."""
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while True:
        try:
            result = await probe()
            if result:
                return result
            refusal: AssertionError | None = None
        except AssertionError as error:
            refusal = error
        if time.monotonic() > deadline:
            raise refusal or AssertionError(f"not within {timeout} s: {what or probe}; last: {result!r}")
        await asyncio.sleep(interval)
