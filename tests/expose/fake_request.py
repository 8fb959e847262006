"""A request as the SDK hands it to a handler, without a relay; the test says what comes and sees what goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, cast

from trunkline.expose.report import Kind, Record
from trunkline.protocol.errors import ConnectionLost
from trunkline.sdk.incoming import CaseInsensitiveHeaders

if TYPE_CHECKING:
    from trunkline.sdk import HttpRequest, ResponseWriter


class FakeRequest:
    """What `trunkline.expose` uses of an `HttpRequest`, and of its `ResponseWriter`; keeps what it was given."""

    def __init__(
        self,
        method: str = "GET",
        target: str = "/myHC",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = b"",
        *,
        entity: str = "myHC",
    ) -> None:
        self.method = method
        self.target = target
        self.headers = CaseInsensitiveHeaders({"Host": "relay.example:8443", **(headers or {})})
        self.entity = entity
        self.remote_address = ("192.0.2.7", 40_000)
        self.tracking_id = "11111111-2222-3333-4444-555555555555"
        self.disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: None: it streams, from what `feed` is given.
        self.length = None if body is None else len(body)
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        if body is not None:
            self.feed(body)
            self.feed_end()
        # --- the answer ---
        self.status = 0
        self.reason: str | None = None
        self.answer_headers: list[tuple[str, str]] = []
        self.answer_length: int | None = None
        self.pieces: list[bytes] = []
        self.begun = asyncio.Event()
        self.arrived = asyncio.Event()
        self.ended = False
        self.aborted = False
        #: Cleared: the sender takes nothing.
        self.takes = asyncio.Event()
        self.takes.set()

    @property
    def seen(self) -> HttpRequest:
        """For the code under test."""
        return cast("HttpRequest", self)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def header(self, name: str) -> list[str]:
        """All values of a header of the answer."""
        return [value for key, value in self.answer_headers if key.lower() == name.lower()]

    def feed(self, piece: bytes) -> None:
        self._pieces.put_nowait(piece)

    def feed_end(self) -> None:
        self._pieces.put_nowait(None)

    def leave(self) -> None:
        """The sender is gone."""
        self.disconnected.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if piece == b"broken off":
                raise ConnectionLost("The sender left in the middle of its body")
            if piece:
                yield piece

    async def respond(
        self,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
        *,
        reason: str | None = None,
        length: int | None = None,
    ) -> ResponseWriter:
        self.status, self.answer_headers, self.reason, self.answer_length = status, list(headers), reason, length
        self.begun.set()
        return cast("ResponseWriter", self)

    async def write(self, data: bytes) -> None:
        await self.takes.wait()
        self.pieces.append(data)
        self.arrived.set()

    async def end(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.aborted = True


class Watching:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.changes: list[tuple[bool, str]] = []
        self._news = asyncio.Event()

    def record(self, record: Record) -> None:
        self.records.append(record)
        self._news.set()

    def target_changed(self, up: bool, reason: str) -> None:
        self.changes.append((up, reason))
        self._news.set()

    async def wait_for(self, kind: Kind, *, times: int = 1) -> Record:
        """The last of so many records of a kind."""
        while len(found := [each for each in self.records if each.kind is kind]) < times:
            await self._next()
        return found[times - 1]

    async def wait_for_change(self, up: bool) -> None:
        """Until the target is as it should be."""
        while not self.changes or self.changes[-1][0] is not up:
            await self._next()

    async def _next(self) -> None:
        self._news.clear()
        await self._news.wait()
