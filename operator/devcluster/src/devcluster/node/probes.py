"""The probes of a container: httpGet requests at their periods, and what follows from the answers.

Called by ``kubelet``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from devcluster.node.environment import HOST_ADDRESS
from devcluster.node.objects import integer

ProbeKind = Literal["Startup", "Liveness", "Readiness"]

# Between the periods, until a first success: a process that is up in 0.3 s need not wait 10 s to be seen. Such an early
# look can only succeed; failures are counted at the probe's own period.
_FIRST_LOOK_SECONDS = 0.05
_LONGEST_LOOK_SECONDS = 0.5
_BODY_BYTES = 200


@dataclass(frozen=True, kw_only=True)
class HttpProbe:
    """One probe with Kubernetes' defaults filled in; times in seconds."""

    url: str
    headers: Mapping[str, str]
    initial_delay: float
    period: float
    timeout: float
    success_threshold: int
    failure_threshold: int
    grace: int | None


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """Whom to tell. `failed` gets each failure that counts, and whether the container must be restarted for it."""

    started: Callable[[], None]
    ready: Callable[[bool], None]
    failed: Callable[[ProbeKind, str, bool, HttpProbe], None]


def read_probe(container: Mapping[str, Any], field: str, http_port: int | None) -> HttpProbe | None:
    """A probe of a container's spec. `http_port` is where the container's port named ``http`` really is."""
    probe = container.get(field)
    if not probe:
        return None
    request = probe["httpGet"]
    host = request.get("host") or HOST_ADDRESS
    port = _resolve_port(container, request["port"], http_port)
    path = request.get("path") or "/"
    return HttpProbe(
        url=f"{(request.get('scheme') or 'HTTP').lower()}://{host}:{port}/{path.removeprefix('/')}",
        headers={header["name"]: header["value"] for header in request.get("httpHeaders") or ()},
        initial_delay=float(integer(probe.get("initialDelaySeconds"), 0)),
        period=float(max(1, integer(probe.get("periodSeconds"), 10))),
        timeout=float(max(1, integer(probe.get("timeoutSeconds"), 1))),
        success_threshold=max(1, integer(probe.get("successThreshold"), 1)),
        failure_threshold=max(1, integer(probe.get("failureThreshold"), 3)),
        grace=probe.get("terminationGracePeriodSeconds"),
    )


def _resolve_port(container: Mapping[str, Any], port: int | str, http_port: int | None) -> int:
    declared = container.get("ports") or ()
    found = next((item for item in declared if port in (item.get("name"), item.get("containerPort"))), None)
    if found is not None and found.get("name") == "http" and http_port is not None:
        return http_port
    if found is not None:
        return int(found["containerPort"])
    return integer(port, 0) if str(port).isdigit() else 0


async def watch_container(
    container: Mapping[str, Any], http_port: int | None, session: aiohttp.ClientSession, report: ProbeReport
) -> None:
    """Probe a running container until cancelled. Without probes it counts as started and ready at once."""
    startup = read_probe(container, "startupProbe", http_port)
    if startup is not None:
        with suppress(_Succeeded):
            await _follow(
                startup, session, _end_at_success, lambda text, fatal: report.failed("Startup", text, fatal, startup)
            )
    report.started()
    liveness = read_probe(container, "livenessProbe", http_port)
    readiness = read_probe(container, "readinessProbe", http_port)
    async with asyncio.TaskGroup() as group:
        if liveness is not None:
            probe = liveness
            group.create_task(
                _follow(
                    liveness,
                    session,
                    lambda _good: None,
                    lambda text, fatal: report.failed("Liveness", text, fatal, probe),
                )
            )
        if readiness is None:
            report.ready(True)
        else:
            group.create_task(
                _follow(
                    readiness,
                    session,
                    report.ready,
                    lambda text, _fatal: report.failed("Readiness", text, False, readiness),
                )
            )


class _Succeeded(Exception):
    """The startup probe is over."""


def _end_at_success(good: bool) -> None:
    if good:
        raise _Succeeded


async def _follow(
    probe: HttpProbe,
    session: aiohttp.ClientSession,
    on_change: Callable[[bool], None],
    on_failure: Callable[[str, bool], None],
) -> None:
    """Ask again and again.

    `on_change` gets each new verdict, `on_failure` each counted failure and whether it is one too many.
    """
    loop = asyncio.get_running_loop()
    good: bool | None = None
    ever = False
    successes = failures = 0
    look = _FIRST_LOOK_SECONDS
    await asyncio.sleep(probe.initial_delay)
    next_count = loop.time() + probe.timeout  # a process that has only just been started is not counted against
    while True:
        refusal = await _ask(probe, session)
        if refusal is None:
            ever, failures, successes = True, 0, successes + 1
            if good is not True and successes >= probe.success_threshold:
                good = True
                on_change(True)
        else:
            successes = 0
            if ever or loop.time() >= next_count:
                next_count = loop.time() + probe.period - _FIRST_LOOK_SECONDS / 2
                failures += 1
                fatal = failures >= probe.failure_threshold
                on_failure(refusal, fatal)
                if fatal:
                    failures = 0
                    if good is not False:
                        good = False
                        on_change(False)
        if ever:
            await asyncio.sleep(probe.period)
        else:
            await asyncio.sleep(min(look, probe.period))
            look = min(look * 1.5, _LONGEST_LOOK_SECONDS)


async def _ask(probe: HttpProbe, session: aiohttp.ClientSession) -> str | None:
    """None: the answer is good. Else why not."""
    timeout = aiohttp.ClientTimeout(total=probe.timeout)
    try:
        async with session.get(probe.url, headers=probe.headers, timeout=timeout, allow_redirects=False) as response:
            if 200 <= response.status < 400:
                return None
            body = (await response.content.read(_BODY_BYTES)).decode(errors="replace").strip()
            return f"HTTP probe failed with statuscode: {response.status}" + (f" ({body})" if body else "")
    except TimeoutError:
        return f'Get "{probe.url}": no answer within {probe.timeout:.0f} s'
    except (aiohttp.ClientError, OSError) as error:
        return f'Get "{probe.url}": {error}'
