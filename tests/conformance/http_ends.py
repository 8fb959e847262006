"""Who reads the cases of HTTP: the front of a node on its port, a listener through a node, and h11.

await read_by_front(case.sent)      the requests that are handed on, whole, and the status of a refusal
read_by_h11(case.sent)              the same of h11, whose refusals have a status of its own
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import h11

from conformance.http_cases import Read
from e2e.quiet_node import quiet_node
from server.relay.front_port import Port
from server.relay.peers import Peer, until
from trunkline.protocol.errors import RelayError
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.server.relay.exchange import Exchange
from trunkline.testing import RelayNode


class Outcome(NamedTuple):
    """What was made of the bytes of a client."""

    #: In their order, each with its whole body.
    requests: tuple[Read, ...]
    #: Status of the refusal that ended it; None: more was waited for, or the connection ended in order.
    refused: int | None
    #: Whether it ended behind the answer to the last request.
    has_ended: bool = False


class _Served:
    """Collects the body of a request, and answers when it is whole."""

    def __init__(self, exchange: Exchange, whole: list[Read]) -> None:
        self._exchange = exchange
        self._whole = whole
        self._body = b""
        exchange.read_body(self)

    def body_received(self, data: bytes) -> None:
        self._body += data

    def body_ended(self) -> None:
        self._whole.append(Read(self._exchange.head.method, self._exchange.head.target, self._body))
        self._exchange.respond(204)

    def body_failed(self, error: RelayError) -> None:
        self._exchange.refuse(error, error.message)


async def read_by_front(sent: bytes, *, answers: int, pieces: int | None = None) -> Outcome:
    """What the front makes of it.

    Args:
        sent: the first bytes of a connection; nothing comes behind them.
        answers: how many are expected. More are found, and fewer are waited for in vain.
        pieces: bytes that are sent at a time; None: all at once.
    """
    whole: list[Read] = []
    async with Port(lambda exchange: _Served(exchange, whole)) as port, await port.dial() as peer:
        size = pieces or len(sent)
        for at in range(0, len(sent), size):
            peer.send(sent[at : at + size])
            await asyncio.sleep(0)
        statuses = [await _status(peer) for _ in range(answers)]
        if answers and statuses[-1] < 400:
            await until(lambda: not port.held() and not port.frontend.in_flight)
        peer.end()
        # A refusal ends the connection, and with it this; else the end that was sent does.
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                statuses.append(await _status(peer))
        refusals = [status for status in statuses if status >= 400]
        assert refusals == statuses[len(whole) :]
        return Outcome(tuple(whole), refusals[0] if refusals else None)


async def _status(peer: Peer) -> int:
    """Of the next answer; one that refuses ends the connection. An answer of 100 goes ahead of another."""
    answer = await peer.answer()
    if answer.status == 100:
        return await _status(peer)
    if answer.status >= 400:
        await peer.read(int(answer.all("Content-Length")[0]))
    return answer.status


#: Entities that a listener is on; a request for anything else reaches nobody.
ENTITIES = ("a", "next")


class Listening:
    """A node, and a listener that hears what senders ask of it; made by `listening`."""

    def __init__(self, node: RelayNode) -> None:
        self._node = node
        self._heard: list[Read] = []

    async def serve(self, request: HttpRequest) -> HttpResponse:
        """The handler of the listener."""
        # A body that is cut reaches nobody as a request.
        body = await request.read()
        self._heard.append(Read(request.method, request.target, body))
        return HttpResponse(204)

    async def hear(self, sent: bytes, *, answers: int) -> tuple[Read, ...]:
        """What the listener hears of it.

        Args:
            sent: the first bytes of a connection; nothing comes behind them.
            answers: how many are expected.
        """
        self._heard.clear()
        async with await Peer.dial(self._node.node.port) as peer:
            peer.send(sent)
            for _ in range(answers):
                await _status(peer)
        return tuple(self._heard)


@asynccontextmanager
async def listening() -> AsyncIterator[Listening]:
    """A node that lets everybody in, with a listener of the SDK on each of `ENTITIES`."""
    options = {name: {"requires_client_authorization": False} for name in ENTITIES}
    async with quiet_node(options) as node, AsyncExitStack() as stack:
        ends = Listening(node)
        for name in ENTITIES:
            await stack.enter_async_context(node.listener(name, http_handler=ends.serve))
        yield ends


def as_heard(requests: Sequence[Read]) -> tuple[Read, ...]:
    """What a listener must hear of requests: those for it, with their targets in origin form."""
    heard = []
    for method, target, body in requests:
        target = "/" + target.removeprefix("http://x").lstrip("/")
        if target.partition("?")[0].lstrip("/") in ENTITIES:
            heard.append(Read(method, target, body))
    return tuple(heard)


def read_by_h11(sent: bytes) -> Outcome:
    """What h11 makes of it."""
    requests: list[Read] = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=35_000)
    connection.receive_data(sent)
    method, target, body = "", "", b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, target, body = event.method.decode(), event.target.decode(), b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                requests.append(Read(method, target, body))
                connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return Outcome(tuple(requests), None, True)
                connection.start_next_cycle()
            else:
                return Outcome(tuple(requests), None)
    except h11.RemoteProtocolError as error:
        return Outcome(tuple(requests), error.error_status_hint)
