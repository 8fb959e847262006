"""A request whose body and end the test decides, and the answer as it was written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

from trunkline.protocol.errors import ConnectionLost
from trunkline.protocol.messages import Accept, RemoteEndpoint
from trunkline.sdk.endpoint import Endpoint, read_endpoint
from trunkline.sdk.incoming import CaseInsensitiveHeaders, IncomingConnection
from trunkline.sdk.relayed_http import HttpRequest


def endpoint(address: str = "sb://relay.example/orders", **options: Any) -> Endpoint:
    """Where the listener is; the hybrid connection is `orders`."""
    settings = {"entity_path": None, "token_provider": None, "key_name": None, "key": None, "ssl": None}
    return read_endpoint(address, **{**settings, **options})


class Asked:
    """Stands for a `HttpRequest`: what an exchange uses of it."""

    def __init__(
        self,
        method: str = "GET",
        suffix: str = "",
        query: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        body: Iterable[bytes] | None = None,
        length: int | None = None,
        remote: tuple[str, int] = ("192.0.2.7", 50_000),
    ) -> None:
        self.method, self.suffix, self.query = method, suffix, query
        self.headers = CaseInsensitiveHeaders(headers or {})
        self.remote_address = remote
        self.length = length
        self.disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Pieces of the body; None at its end. Without a body given, the test puts them here.
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        if body is not None:
            for piece in (*body, None):
                self.pieces.put_nowait(piece)
        # The answer: its head, what was written, and how it ended.
        self.status = 0
        self.answer_headers: list[tuple[str, str]] = []
        self.answer_length: int | None = None
        self.written: list[bytes] = []
        self.ended = self.aborted = False
        self.watched = 0
        # Cleared while the sender takes nothing.
        self.taking = asyncio.Event()
        self.taking.set()

    def as_request(self) -> HttpRequest:
        return cast(HttpRequest, self)

    @property
    def is_disconnected(self) -> bool:
        return self.disconnected.done()

    def watch(self) -> None:
        self.watched += 1

    def leave(self) -> None:
        """The sender goes."""
        self.disconnected.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self.pieces.get()) is not None:
            if piece == b"LOST":
                raise ConnectionLost("The sender has left")
            yield piece

    async def respond(
        self, status: int, headers: Iterable[tuple[str, str]] = (), *, length: int | None = None
    ) -> Asked:
        assert self.status == 0
        self.status, self.answer_headers, self.answer_length = status, list(headers), length
        return self

    async def write(self, data: bytes) -> None:
        assert type(data) is bytes
        await self.taking.wait()
        if self.disconnected.done():
            raise ConnectionLost("The sender has left")
        if data:
            self.written.append(data)

    async def end(self, data: bytes = b"") -> None:
        await self.write(data)
        self.ended = True

    def abort(self) -> None:
        self.aborted = True


def incoming(suffix: str = "", query: str = "", headers: Mapping[str, str] | None = None) -> IncomingConnection:
    """What a WebSocket sender asks for."""
    address = f"wss://relay.example/$hc/orders{suffix}?{query}{'&' if query else ''}sb-hc-action=accept&sb-hc-id=1"
    return IncomingConnection(Accept(address, "1", dict(headers or {}), RemoteEndpoint("192.0.2.7", 50_000)), "orders")
