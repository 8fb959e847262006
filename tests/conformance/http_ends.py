"""Who reads the cases of HTTP: the front of a node on its port, and h11.

await read_by_front(case.sent)      the requests that are handed on, whole, and the status of a refusal
read_by_h11(case.sent)              the same of h11, whose refusals have a status of its own
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

import h11

from conformance.http_cases import Read
from server.relay.front_port import Port
from server.relay.peers import Peer, until
from trunkline.protocol.errors import RelayError
from trunkline.server.relay.exchange import Exchange


class Outcome(NamedTuple):
    """What was made of the bytes of a client."""

    #: In their order, each with its whole body.
    requests: tuple[Read, ...]
    #: Status of the refusal that ended it; None: more was waited for, or the connection ended in order.
    refused: int | None


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
        assert answer.all("Connection") == ["close"]
        await peer.read(int(answer.all("Content-Length")[0]))
    return answer.status


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
                    return Outcome(tuple(requests), None)
                connection.start_next_cycle()
            else:
                return Outcome(tuple(requests), None)
    except h11.RemoteProtocolError as error:
        return Outcome(tuple(requests), error.error_status_hint)
