"""Pod logs, read from the files that the node writes: `<data>/logs/<namespace>/<pod>/<container>.log`.

The output of the run before a restart is `<container>.previous.log`. The files hold a process's bare output, so the
time of a line is known only when the line says it (a JSON log line with a `timestamp`, or one that begins with it).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from devcluster.apiserver import errors
from devcluster.apiserver.requests import read_bool

POLL_SECONDS = 0.2
CHUNK_BYTES = 64 * 1024
_LEADING_TIME = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?")
_TIME_FIELDS = ("timestamp", "time", "ts", "@timestamp")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogOptions:
    container: str
    follow: bool
    previous: bool
    tail_lines: int | None
    limit_bytes: int | None
    since: datetime | None


def read_log_options(pod: Mapping[str, Any], query: Mapping[str, str], now: datetime) -> LogOptions:
    """The options of a log request. Raises ApiError 400 for what the pod or the server does not have."""
    name = pod["metadata"]["name"]
    containers = [container["name"] for container in pod["spec"].get("containers", [])]
    container = query.get("container", "")
    if not container:
        if len(containers) != 1:
            listed = " ".join(containers)
            raise errors.bad_request(f"a container name must be specified for pod {name}, choose one of: [{listed}]")
        container = containers[0]
    if container not in containers:
        raise errors.bad_request(f"container {container} is not valid for pod {name}")
    if read_bool(query, "timestamps"):
        raise errors.bad_request("timestamps are not available in the embedded cluster: log files hold bare output")
    return LogOptions(
        container=container,
        follow=read_bool(query, "follow") or False,
        previous=read_bool(query, "previous") or False,
        tail_lines=_count(query, "tailLines"),
        limit_bytes=_count(query, "limitBytes"),
        since=_since(query, now),
    )


def log_path(folder: Path, pod: Mapping[str, Any], options: LogOptions) -> Path:
    metadata = pod["metadata"]
    suffix = ".previous.log" if options.previous else ".log"
    return folder.joinpath(metadata["namespace"], metadata["name"], f"{options.container}{suffix}")


def check_log_exists(path: Path, pod: Mapping[str, Any], options: LogOptions) -> None:
    """Raises ApiError 400, with the container's state, when there is no log yet."""
    if path.exists():
        return
    name = pod["metadata"]["name"]
    if options.previous:
        raise errors.bad_request(f'previous terminated container "{options.container}" in pod "{name}" not found')
    for status in pod.get("status", {}).get("containerStatuses", []):
        if status["name"] == options.container and (waiting := status.get("state", {}).get("waiting")):
            raise errors.bad_request(
                f'container "{options.container}" in pod "{name}" is waiting to start: {waiting.get("reason", "")}'
            )
    raise errors.bad_request(f'container "{options.container}" in pod "{name}" is waiting to start: PodInitializing')


async def log_stream(
    path: Path, start: int, options: LogOptions, has_ended: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """The log's bytes from `start` on; with `follow` until `has_ended` says that no more will come."""
    left = options.limit_bytes
    with path.open("rb") as file:
        file.seek(start)
        while True:
            ended = has_ended()
            while chunk := file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)):
                yield chunk
                if left is not None:
                    left -= len(chunk)
            if not options.follow or ended or left == 0:
                return
            await asyncio.sleep(POLL_SECONDS)


def start_offset(path: Path, options: LogOptions) -> int:
    """The offset of the first byte to send. Raises ApiError 400 when a time is asked for that no line tells."""
    start = 0
    if options.since is not None:
        start = _offset_since(path, options.since)
    if options.tail_lines is not None:
        start = max(start, _offset_of_tail(path, options.tail_lines))
    return start


def _offset_of_tail(path: Path, lines: int) -> int:
    with path.open("rb") as file:
        end = position = file.seek(0, 2)
        if lines == 0:
            return end
        wanted = lines
        while position > 0:
            size = min(CHUNK_BYTES, position)
            position -= size
            file.seek(position)
            chunk = file.read(size)
            at = len(chunk)
            while (at := chunk.rfind(b"\n", 0, at)) >= 0:
                if position + at + 1 < end:
                    wanted -= 1
                    if wanted == 0:
                        return position + at + 1
        return 0


def _offset_since(path: Path, since: datetime) -> int:
    offset, dated = 0, False
    with path.open("rb") as file:
        for line in file:
            time = _time_of(line)
            dated = dated or time is not None
            if time is not None and time >= since:
                return offset
            offset += len(line)
    if offset and not dated:
        raise errors.bad_request("sinceSeconds and sinceTime need lines that say their time, and this log has none")
    return offset


def _time_of(line: bytes) -> datetime | None:
    text: Any = None
    if line.startswith(b"{"):
        try:
            content = json.loads(line)
        except ValueError:
            return None
        text = next((content[name] for name in _TIME_FIELDS if isinstance(content.get(name), str)), None)
    elif found := _LEADING_TIME.match(line):
        text = found.group().decode().replace(",", ".")
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _count(query: Mapping[str, str], name: str) -> int | None:
    value = query.get(name)
    if not value:
        return None
    if not value.isdecimal():
        raise errors.bad_request(f"{name}: Invalid value: {value}: must be greater than or equal to 0")
    return int(value)


def _since(query: Mapping[str, str], now: datetime) -> datetime | None:
    if (seconds := _count(query, "sinceSeconds")) is not None:
        return now - timedelta(seconds=seconds)
    if not (text := query.get("sinceTime")):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise errors.bad_request(f'sinceTime: Invalid value: "{text}": must be an RFC 3339 time') from None
