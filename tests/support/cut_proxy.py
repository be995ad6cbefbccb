"""A proxy before Postgres that cuts the line at a chosen moment, or goes silent without cutting it.

For tests of commits whose outcome nobody heard, and of a server behind a load balancer that lost it and says nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

Cut = Literal["before", "after"]
"""Whether the next request is lost on its way to the server, or only the server's answer on its way back."""


class CutProxy:
    """Passes bytes both ways until told to cut. After a cut every new connection works again.

    While silent it takes connections and what they bring, and answers nothing; lines that were open then stay so for
    ever.
    """

    def __init__(self, url: str, folder: str) -> None:
        parts = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
        self._host, self._port = parts["host"], parts.get("port", "5432")
        self._user, self._database = parts.get("user", "postgres"), parts["dbname"]
        self._folder = folder
        self._next_cut: Cut | None = None
        self._lines: set[asyncio.Task[None]] = set()
        self._silent = False
        self._clients: set[asyncio.StreamWriter] = set()
        self._muted: set[asyncio.StreamWriter] = set()
        self._swallowed = asyncio.Event()
        self.tcp_port = 0
        """Where it listens on 127.0.0.1 too."""
        self.cuts = 0
        """How many lines were cut."""

    @property
    def url(self) -> str:
        """The same database, by way of this proxy."""
        return f"postgresql://{quote(self._user)}@/{quote(self._database)}?host={quote(self._folder, safe='')}"

    def cut_next(self, cut: Cut) -> None:
        """The next request from a client, on any connection, is its last."""
        self._next_cut = cut

    @property
    def tcp_url(self) -> str:
        """The same by TCP."""
        return f"postgresql://{quote(self._user)}@127.0.0.1:{self.tcp_port}/{quote(self._database)}"

    def go_silent(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._silent = True
        self._muted |= self._clients
        self._swallowed.clear()

    def speak_again(self) -> None:
        """New connections work again; those of the silence do not."""
        self._silent = False

    async def swallowed(self) -> None:
        """Returns once something was sent into the silence."""
        await self._swallowed.wait()

    async def close(self) -> None:
        """Hangs up on everybody."""
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One client's line, to its end."""
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        self._clients.add(to_client)
        if self._silent:
            self._muted.add(to_client)
        if self._host.startswith("/"):
            opening = asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            opening = asyncio.open_connection(self._host, int(self._port))
        from_server, to_server = await opening
        answering = asyncio.create_task(self._answer(from_server, to_client))
        try:
            while request := await from_client.read(65536):
                if to_client in self._muted:
                    self._swallowed.set()
                    continue
                cut, self._next_cut = self._next_cut, None
                self.cuts += cut is not None
                if cut != "before":
                    if cut == "after":
                        await _cancelled(answering)
                    to_server.write(request)
                if cut == "after":
                    # ReadyForQuery ends the server's answer: what was asked for is committed by then.
                    answer = part = await from_server.read(65536)
                    while part and not answer.endswith(_READY_FOR_QUERY):
                        part = await from_server.read(65536)
                        answer += part
                if cut is not None:
                    break
        except ConnectionError:
            pass
        finally:
            await _cancelled(answering)
            for writer in (to_client, to_server):
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def _answer(self, from_server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while answer := await from_server.read(65536):
                if to_client in self._muted:
                    continue
                to_client.write(answer)
                await to_client.drain()
            to_client.close()  # the server hung up


_READY_FOR_QUERY = (b"Z\0\0\0\5I", b"Z\0\0\0\5T", b"Z\0\0\0\5E")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@asynccontextmanager
async def cut_proxy(url: str) -> AsyncIterator[CutProxy]:
    """A proxy before the database at `url`, which must be one of a Unix socket or a plain TCP address."""
    with tempfile.TemporaryDirectory(prefix="cut-") as folder:
        proxy = CutProxy(url, folder)
        server = await asyncio.start_unix_server(proxy.serve, Path(folder) / ".s.PGSQL.5432")
        tcp_server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.tcp_port = tcp_server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            tcp_server.close()
            await proxy.close()
