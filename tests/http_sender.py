"""A sender of plain HTTP that does what no well-behaved client does, and reads answers with h11.

Requests are written as they are given, so odd targets, pipelining, pieces and broken ends are possible; what comes back
is read by a parser that is not ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import h11

#: Seconds for one thing that a test waits for.
PATIENCE = 30.0


@dataclass(frozen=True)
class Answer:
    """An answer as it came. headers: in the order of arrival, names as sent."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    #: Status codes of interim answers (100 Continue) that came before it.
    interim: tuple[int, ...] = ()

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """The value of a header that is there once; None: it is not there."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def told(self) -> dict[str, Any]:
        """What the listener says that reached it."""
        text = self.get("x-told")
        told: dict[str, Any] = json.loads(text if text is not None else self.body)
        return told

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


class Cut(Exception):
    """The connection ended inside an answer, or before it."""


@dataclass
class _Reading:
    """Of the answer that is being read."""

    parser: h11.Connection
    interim: list[int] = field(default_factory=list)


class HttpSender:
    """One connection. Use it with ``async with``.

        async with HttpSender(host, port, ssl=context) as sender:
            sender.write_request("GET", "/test", [("Host", "relay")])
            answer = await sender.answer()

    `answer` reads a whole one, `head` and `piece` read it as it comes.
    """

    def __init__(self, host: str, port: int, *, ssl: ssl.SSLContext | None = None) -> None:
        self._at = (host, port, ssl)
        self._reading: _Reading | None = None
        self._rest = b""

    async def __aenter__(self) -> Self:
        host, port, context = self._at
        async with asyncio.timeout(PATIENCE):
            self._reader, self._writer = await asyncio.open_connection(host, port, ssl=context, limit=1 << 22)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    # --- writing ---

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        self._writer.write(data)

    async def drain(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._writer.drain()

    def write_request(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        chunks: Sequence[int] | None = None,
        version: str = "1.1",
    ) -> None:
        """A whole request.

        Args:
            chunks: sizes of the pieces of a chunked body, the last one takes what is left; None: Content-Length where
                there is a body.
        """
        self.write_head(method, target, [*headers, *framing(method, body, chunks)], version=version)
        if chunks is None:
            self._writer.write(body)
            return
        at = 0
        for size in chunks:
            self.write_chunk(body[at : at + size])
            at += size
        self.write_chunk(body[at:])
        self.write_last_chunk()

    def write_head(self, method: str, target: str, headers: Iterable[tuple[str, str]], *, version: str = "1.1") -> None:
        lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in headers), "", ""]
        self._writer.write("\r\n".join(lines).encode("latin-1"))

    def write_chunk(self, data: bytes) -> None:
        """One piece of a chunked body; nothing for an empty one, which would end it."""
        if data:
            self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def write_last_chunk(self) -> None:
        self._writer.write(b"0\r\n\r\n")

    def abort(self) -> None:
        """Cut the connection."""
        self._writer.transport.abort()

    def finish_writing(self) -> None:
        """Half-close, as a client that has said all it has to say."""
        self._writer.write_eof()

    # --- reading ---

    async def answer(self, method: str = "GET") -> Answer:
        """The next whole answer.

        Args:
            method: of its request, because an answer to HEAD has no body whatever its head says.

        Raises:
            Cut: the connection ended before its end.
        """
        head = await self.head(method)
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return Answer(head.status, head.reason, head.headers, b"".join(pieces), head.interim)

    async def head(self, method: str = "GET") -> Answer:
        """The head of the next answer."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        self._reading = _Reading(parser)
        if self._rest:
            parser.receive_data(self._rest)
            self._rest = b""
        event = await self._event()
        assert isinstance(event, h11.Response), event
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]
        return Answer(
            event.status_code, bytes(event.reason).decode("latin-1"), headers, interim=tuple(self._reading.interim)
        )

    async def interim(self) -> int:
        """The status of an interim answer, which must be what comes next."""
        line = await self._line()
        while (await self._line()).strip():
            pass
        return int(line.split()[1])

    async def piece(self) -> bytes:
        """What came of the body; empty: its clean end."""
        event = await self._event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        assert isinstance(event, h11.EndOfMessage), event
        assert self._reading is not None
        self._rest = self._reading.parser.trailing_data[0]
        self._reading = None
        return b""

    async def ended(self) -> bool:
        """Waits for the end of the connection behind an answer. True: in order; False: it was cut."""
        try:
            async with asyncio.timeout(PATIENCE):
                rest = await self._reader.read()
        except ConnectionError:
            return False
        assert not self._rest + rest, (self._rest + rest)[:200]
        return True

    async def _line(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readline()

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        assert self._reading is not None
        parser = self._reading.parser
        while True:
            try:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    async with asyncio.timeout(PATIENCE):
                        parser.receive_data(await self._reader.read(1 << 18))
                    continue
            except (h11.RemoteProtocolError, ConnectionError) as error:
                raise Cut(str(error)) from error
            if isinstance(event, h11.InformationalResponse):
                self._reading.interim.append(event.status_code)
                continue
            if isinstance(event, h11.ConnectionClosed):
                raise Cut("closed before an answer")
            return event


def framing(method: str, body: bytes, chunks: Sequence[int] | None) -> list[tuple[str, str]]:
    """The header that says how long a body is."""
    if chunks is not None:
        return [("Transfer-Encoding", "chunked")]
    if body or method in ("POST", "PUT", "PATCH"):
        return [("Content-Length", str(len(body)))]
    return []
