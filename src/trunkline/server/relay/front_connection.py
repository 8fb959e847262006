"""One TCP or TLS connection, from its first byte until a leg takes it over or it ends.

    bytes -> (header of the PROXY protocol, TLS) -> head -> Exchange -> its body -> its answer -> the next head

Told in the order in which a connection meets it: the connection itself, its requests (`go_on`), the body of one, the
answers. What all connections share, and whose turn it is, is in `frontend`; what is said in one request and its answer,
in `exchange`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trunkline.protocol import proxy_protocol
from trunkline.protocol.errors import (
    HeadersTooLarge,
    InvalidRequest,
    RelayError,
    RequestTimedOut,
    ServerBusy,
    UriTooLong,
)
from trunkline.protocol.http_body import BodyDecoder, LengthDecoder
from trunkline.protocol.limits import ANSWER_STALLED, HEAD_TIMEOUT, KEEP_ALIVE_TIMEOUT, REQUEST_HEAD_LIMIT
from trunkline.server.relay.exchange import DROPPED_AT_MOST, Exchange, StreamProtocol, refusal_body
from trunkline.server.relay.forwarded import plain_address
from trunkline.server.relay.request_head import RequestHead, UpgradeRequired, accept_key, parse_head
from trunkline.server.relay.sockets import RECEIVE_BUFFER, cut, enable_keepalive, end_writing, is_lost, outstanding

if TYPE_CHECKING:
    from trunkline.server.relay.frontend import Frontend

# What a client may send ahead of an answer before the relay stops reading: pipelined requests, and a body that nobody
# reads yet. Ahead of a 101 it ought to send nothing.
EARLY_LIMIT = 16_384

# What is read at a time of a peer without TLS: more than that is no head, and would be held until the answer. Under TLS
# all that was decrypted must be taken (see `RECEIVE_BUFFER`).
_HEAD_BUFFER = RECEIVE_BUFFER[: REQUEST_HEAD_LIMIT + 4_096]

# And of its body: this much of it may be held until a listener fetches it.
_BODY_BUFFER = RECEIVE_BUFFER[:131_072]

# What a header costs in memory beside its bytes.
HEADER_WEIGHT = 200

# Seconds for a refused peer to read its answer and close.
LINGER = 2.0

# An answer of which a peer has so much left to take is written no further until it has taken most of it.
HIGH_WATER, LOW_WATER = 262_144, 65_536

# What as many chunks as are decoded at once count for, as bytes of heads.
_MANY_CHUNKS = 8_192

# What ends a line for some recipients and not for others (RFC 9112 section 2.2). A head in which all lines end so would
# be waited for in vain.
_BARE_LF = re.compile(rb"(?<!\r)\n")

# What stands for a request whose head was not read.
_UNREAD = RequestHead("GET", "/", ())


class FrontendProtocol(asyncio.BufferedProtocol):
    """One connection, until a leg takes it over."""

    __slots__ = (
        "__weakref__",
        "_body",
        "_buffer",
        "_droppable",
        "_exchange",
        "_frontend",
        "_has_arrived",
        "_head_weight",
        "_head_size",
        "_is_going_on",
        "_is_held",
        "_is_secure",
        "_outstanding",
        "_paused",
        "_peer",
        "_proxy_header_is_due",
        "_searched",
        "_stalled_at",
        "_transport",
        "_was_read",
        "_weight",
        "congested",
    )

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._transport: asyncio.Transport | None = None
        # Whether the TLS handshake is over, where there is one (see `Frontend.arriving`).
        self._has_arrived = False
        # The head so far; while an answer is owed, what the peer sends ahead of that.
        self._buffer = bytearray()
        # Bytes of it in which no head ends.
        self._searched = 0
        # Bytes of a head that is whole and waits for its turn, else 0.
        self._head_size = 0
        # The request that is owed an answer; None before the head is whole.
        self._exchange: Exchange | None = None
        # What is left of the body of a request that has its answer, and how much of it may be dropped.
        self._body: BodyDecoder | None = None
        self._droppable = 0
        # Inside of `go_on`, which goes on by itself.
        self._is_going_on = False
        self._paused = False
        # Nothing is read until the answer.
        self._is_held = False
        # The peer does not take what is written.
        self.congested = False
        # Whether it came over TLS.
        self._is_secure = False
        # Address and port of the other end, or of the one whose connection it passes on.
        self._peer = ("0.0.0.0", 0)
        self._proxy_header_is_due = False
        # Bytes of answers that the peer had not taken when that was asked last, and since when it takes nothing; 0.0
        # while it does, or owes nothing.
        self._outstanding = 0
        self._stalled_at = 0.0
        # Since the last look; see `is_lost`.
        self._was_read = False
        # What it counts for in `Frontend.held`; and the part of that which is the head of the request in hand.
        self._weight = 0
        self._head_weight = 0

    def __repr__(self) -> str:
        state = "lingering" if self in self._frontend.lingering else "answer owed" if self._exchange else "head"
        return f"<FrontendProtocol {state} held={len(self._buffer)}>"

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # From the beginning: a listener may wait long for its place, and nothing else would find that it is gone.
        enable_keepalive(transport)
        address, port, *_ = transport.get_extra_info("peername") or self._peer
        self._peer = (plain_address(address), port)
        self._proxy_header_is_due = self._frontend.proxy_protocol and self._peer[0] in self._frontend.proxies
        self._await_head(transport)  # type: ignore[arg-type]
        if self._frontend.begin_tls is not None and not self._proxy_header_is_due:
            self._begin_tls()

    def _await_head(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        self._is_secure = transport.get_extra_info("ssl_object") is not None
        self._has_arrived = True
        self._frontend.arriving.discard(self)
        self._frontend.connections.add(self)
        self._frontend.heads[self] = self._frontend.clock() + HEAD_TIMEOUT

    def _begin_tls(self) -> None:
        transport, self._transport = self._transport, None
        assert transport is not None and self._frontend.begin_tls is not None
        # What comes from now on is for TLS.
        transport.pause_reading()
        self._forget()
        self._has_arrived = False
        self._frontend.arriving.add(self)
        self._frontend.begin_tls(transport, self)

    def secured(self, transport: asyncio.Transport) -> None:
        """TLS has begun on `transport`. What came with the last of its handshake is here already."""
        self._await_head(transport)
        if self._buffer and not self._is_too_heavy(len(self._buffer)):
            self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._transport = None
        exchange = self._exchange
        if exchange is not None:
            self._let_exchange_go()
            exchange.left()

    def eof_received(self) -> bool:
        # A peer that ends its stream before it has its answer cannot become a leg, and is taken for one that has left:
        # False closes the transport, and `connection_lost` tells whoever owes the answer.
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._proxy_header_is_due and self._frontend.begin_tls is not None:
            return RECEIVE_BUFFER[: proxy_protocol.wanted(self._buffer)]
        if self._is_secure or not self._has_arrived:
            return RECEIVE_BUFFER
        exchange = self._exchange
        return _BODY_BUFFER if exchange is not None and exchange.reads_body else _HEAD_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        frontend = self._frontend
        if self in frontend.lingering:
            return
        self._was_read = True
        exchange = self._exchange
        if exchange is not None and exchange.reads_body and not self._buffer and frontend.has_time:
            self._give(exchange, bytes(RECEIVE_BUFFER[:nbytes]))
            return
        self._buffer += RECEIVE_BUFFER[:nbytes]
        if not self._has_arrived or self._is_too_heavy(self._head_weight + len(self._buffer)):
            return
        if exchange is None and not self._head_size:
            self.go_on()
        elif exchange is not None and exchange.reads_body and not exchange.body_is_paused:
            frontend.wait(self)
        # Also right behind the head: one read may bring far more than that. An answer empties the buffer.
        self.regulate()

    def pause_writing(self) -> None:
        self.congested = True
        exchange = self._exchange
        if exchange is not None and exchange.on_congested is not None:
            exchange.on_congested()

    def resume_writing(self) -> None:
        self.congested = False
        exchange = self._exchange
        if self in self._frontend.lingering:
            if self._transport is not None and not self._transport.can_write_eof():
                self._transport.close()
        elif exchange is None:
            self.go_on()
        elif exchange.on_relieved is not None:
            exchange.on_relieved()

    def regulate(self) -> None:
        """Read from the peer, or do not, as much as is held for it."""
        exchange = self._exchange
        waits = self._is_held
        if exchange is not None and exchange.body_is_paused:
            waits = True
        elif exchange is not None or self._head_size or self.congested:
            waits = waits or len(self._buffer) > EARLY_LIMIT + self._head_size
        if waits != self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = waits
            if waits:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _is_too_heavy(self, weight: int) -> bool:
        """Count what is held for it; True when that is too much, and it was refused or cut."""
        before, self._weight = self._weight, weight
        if not self._frontend.is_too_heavy(weight, before):
            return False
        if self._exchange is None:
            self._refuse(ServerBusy("ServerBusy: The relay holds too many large requests, try again"))
        else:
            self.abort()
        return True

    def _weigh(self) -> None:
        """Count what is held for it, where it is less now."""
        weight = self._head_weight + len(self._buffer)
        self._frontend.held += weight - self._weight
        self._weight = weight

    def look(self, now: float) -> None:
        """Cut it when its peer has left unseen, in the middle of its head or while it waits for its answer."""
        transport = self._transport
        if transport is None:
            return
        if self.congested:
            # One that lingers has its own look.
            if self not in self._frontend.lingering and self._has_stalled(now):
                self.abort()
                return
        elif self not in self._frontend.lingering:
            self._stalled_at = 0.0
        if self._was_read or self._paused or self._exchange is not None:
            self._was_read = False
            if is_lost(transport, or_ended=self._paused):
                transport.abort()

    # -- requests

    def go_on(self) -> None:
        """Serve what is here, one request after the other, as far as it is its turn."""
        if self._is_going_on or not self._has_arrived:
            return
        self._is_going_on = True
        try:
            while self in self._frontend.connections and self not in self._frontend.lingering and self._step():
                pass
        finally:
            self._is_going_on = False
        self.regulate()

    def _step(self) -> bool:
        """Do the next thing; False when more must come first: bytes, an answer, room for one, or its turn."""
        exchange = self._exchange
        if exchange is not None:
            if self._buffer and exchange.reads_body and not exchange.body_is_paused:
                self.read_body()
            return False
        if not self._buffer or self.congested:
            return False
        if self._body is not None:
            return self._drop(self._body)
        if not self._head_size and not self._find_head():
            return False
        if not self._frontend.is_its_turn(self, self._head_size):
            return False
        self._serve_head()
        return True

    def _find_head(self) -> bool:
        """Look for the end of a head; False when it has not come, or the connection is refused."""
        if self._proxy_header_is_due:
            if not self._take_proxy_header():
                return False
            if self._frontend.begin_tls is not None:
                self._begin_tls()
                return False
        if self._buffer.startswith((proxy_protocol.SIGNATURE_1, proxy_protocol.SIGNATURE_2)):
            hint = "proxy_protocol is not set, or the sender is none of trusted_proxies"
            self._refuse(InvalidRequest(f"A header of the PROXY protocol is not expected here: {hint}"))
            return False
        # RFC 9112 section 2.2: empty lines ahead of the request line are ignored.
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        if self._buffer and not 0x41 <= self._buffer[0] <= 0x5A and self._buffer[0] != 0x0D:
            hint = "it looks like TLS, and this port is without" if self._buffer[0] == 0x16 else "no method begins it"
            self._refuse(InvalidRequest(f"This is not HTTP: {hint}"))
            return False
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        size = end + 4 if end >= 0 else len(self._buffer)
        if size > REQUEST_HEAD_LIMIT:
            too_long = self._buffer.find(b"\r\n", 0, REQUEST_HEAD_LIMIT) < 0
            self._refuse(UriTooLong() if too_long else HeadersTooLarge("The request head is larger than 32 KiB"))
            return False
        if end < 0:
            if _BARE_LF.search(self._buffer, self._searched):
                self._refuse(InvalidRequest("The request head is malformed: a line ends in LF without CR"))
                return False
            self._searched = max(0, len(self._buffer) - 3)
            if self in self._frontend.idle and self._buffer:
                del self._frontend.idle[self]
                self._frontend.heads[self] = self._frontend.clock() + HEAD_TIMEOUT
            return False
        self._searched = 0
        self._head_size = size
        return True

    def _serve_head(self) -> None:
        """Read the head, which is whole, and have it served."""
        frontend = self._frontend
        size, self._head_size = self._head_size, 0
        frontend.heads.pop(self, None)
        frontend.idle.pop(self, None)
        try:
            head = parse_head(bytes(memoryview(self._buffer)[:size]))
            if head.version != "1.1" and not frontend.keeps_alive:
                raise InvalidRequest(f"The request is HTTP/{head.version}; speak HTTP/1.1")
        except RelayError as error:
            self._refuse(error)
            return
        self._head_weight = size + HEADER_WEIGHT * len(head.headers)
        del self._buffer[:size]
        if self._is_too_heavy(self._head_weight + len(self._buffer)):
            return
        remote, secure = self._peer, self._is_secure
        if remote[0] in frontend.proxies:
            given = head.get("X-Forwarded-For"), head.get("X-Forwarded-Proto")
            remote, secure = frontend.proxies.client(remote, secure, *given)
        exchange = self._exchange = Exchange(self, head, remote, secure)
        if not exchange.is_websocket:
            frontend.in_flight += 1
        frontend.serve(exchange)

    def _take_proxy_header(self) -> bool:
        """Take the header of the PROXY protocol off; False when it is not there, yet or at all."""
        try:
            header = proxy_protocol.read(self._buffer)
        except RelayError as error:
            self._refuse(error)
            return False
        if header is None:
            return False
        self._proxy_header_is_due = False
        del self._buffer[: header.size]
        if header.source is not None:
            self._peer = (plain_address(header.source[0]), header.source[1])
        return True

    # -- the body of a request

    @property
    def has_unread(self) -> bool:
        """Whether something has come behind the head."""
        return bool(self._buffer)

    def read_body(self) -> None:
        """Give the exchange what is here of its body, and read on."""
        exchange = self._exchange
        if exchange is not None and self._buffer and exchange.reads_body and not exchange.body_is_paused:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._give(exchange, data)
        else:
            self.regulate()

    def _give(self, exchange: Exchange, data: bytes) -> None:
        rest = exchange.take(data)
        if rest and self._transport is not None and self not in self._frontend.lingering:
            # Ahead of nothing: whoever got the body cannot have read more meanwhile.
            self._buffer += rest
            if exchange.reads_body:
                # Much work for few bytes: somebody writes chunks of a byte or two.
                self._frontend.spend(_MANY_CHUNKS)
            if self._exchange is None or exchange.reads_body:
                self._frontend.wait(self)
        if self in self._frontend.connections:
            self._weigh()
        self.regulate()

    def _drop(self, body: BodyDecoder) -> bool:
        """Read what is left of the body of a request that has its answer; False when more has to come."""
        data = bytes(self._buffer)
        self._buffer.clear()
        try:
            _, rest = body.decode(data)
        except RelayError:
            # The answer is out already.
            self._end()
            return False
        self._buffer += rest
        self._weigh()
        self._droppable -= len(data) - len(rest)
        if body.is_whole:
            self._body = None
            return True
        if self._droppable <= 0:
            self._end()
            return False
        if rest:
            self._frontend.spend(_MANY_CHUNKS)
            self._frontend.wait(self)
        return False

    # -- answers

    @property
    def keeps_alive(self) -> bool:
        """Whether plain HTTP requests follow each other here."""
        return self._frontend.keeps_alive

    @property
    def may_stay(self) -> bool:
        """Whether the connection may go on behind an answer."""
        return self._frontend.keeps_alive and not self._frontend.draining

    @property
    def unsent(self) -> int:
        """Bytes that are written and that the peer has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def date_line(self) -> str:
        """The header with the date."""
        return self._frontend.date_line()

    def write(self, data: bytes) -> None:
        """Send to the peer."""
        # The transport of a peer that cut the connection says so for each write, until it tells us.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_all(self, pieces: Sequence[bytes]) -> None:
        """Send to the peer, without making one of them."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(pieces)

    def answered(self, body: BodyDecoder | None, *, stays: bool) -> None:
        """The answer is whole: go on with the next request, or end the connection.

        Args:
            body: what is left of the request.
            stays: whether there may be another request.
        """
        self._let_exchange_go()
        self._is_held = False
        if not stays or (isinstance(body, LengthDecoder) and body.left > DROPPED_AT_MOST):
            self._end()
            return
        self._body, self._droppable = body, DROPPED_AT_MOST
        self._head_weight = 0
        self._weigh()
        self._frontend.idle[self] = self._frontend.clock() + KEEP_ALIVE_TIMEOUT
        if self._buffer and not self._is_going_on:
            self._frontend.wait(self)
        self.regulate()

    def _let_exchange_go(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.is_websocket:
            self._frontend.in_flight -= 1

    def head_overdue(self) -> None:
        """The head did not come in time."""
        self._refuse(RequestTimedOut(f"The request head did not arrive within {HEAD_TIMEOUT:g} s"))

    def idle_overdue(self) -> None:
        """End it: no other request came, and none will while a long answer is still being read (see `look`)."""
        if self.congested:
            del self._frontend.idle[self]
            self._frontend.idle[self] = self._frontend.clock() + KEEP_ALIVE_TIMEOUT
        else:
            self._end()

    def end_idle(self) -> None:
        """End it when it waits for another request and nothing of that has come."""
        if not self._buffer:
            self._end()

    def _refuse(self, error: RelayError) -> None:
        phrase = self._frontend.phrase(error, self._peer[0])
        headers = [("Sec-WebSocket-Version", "13")] if isinstance(error, UpgradeRequired) else []
        is_text = not self.keeps_alive or isinstance(error, UpgradeRequired)
        body, content_type = refusal_body(error, phrase, is_text=is_text)
        exchange = Exchange(self, _UNREAD, self._peer, self._is_secure)
        exchange.end_connection()
        exchange.respond(error.status, phrase, headers=headers, body=body, content_type=content_type)

    def upgrade(self, head: RequestHead, protocol: StreamProtocol, subprotocol: str | None) -> None:
        """Write the 101 and give the transport away."""
        transport = self._transport
        if transport is None:
            return
        # One of each and nothing more: .NET compares `Connection` with the single word, and fails on a subprotocol
        # that it did not ask for.
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Connection: Upgrade",
            "Upgrade: websocket",
            f"Sec-WebSocket-Accept: {accept_key(head.get('Sec-WebSocket-Key') or '')}",
        ]
        if subprotocol is not None:
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        transport.write("\r\n".join((*lines, "", "")).encode("latin-1"))
        early = bytes(self._buffer)
        self._forget()
        self._let_exchange_go()
        self._transport = None
        transport.set_protocol(protocol)  # type: ignore[arg-type]
        protocol.take_over(transport, early)
        if self._paused:
            transport.resume_reading()

    def _end(self) -> None:
        """End it behind what is written, and wait a moment for the peer to close."""
        transport = self._transport
        if transport is None:
            return
        self._buffer.clear()
        self._body = None
        self._head_weight = 0
        self._weigh()
        self._stalled_at = 0.0
        self._frontend.heads.pop(self, None)
        self._frontend.idle.pop(self, None)
        self._frontend.lingering[self] = self._frontend.clock() + LINGER
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            end_writing(transport)
        elif self.unsent:
            # Closing TLS leaves a few seconds for what is held: that is done when it is written (`resume_writing`).
            transport.set_write_buffer_limits(0)
        else:
            # TLS cannot end one direction: closing says so with a close_notify, reads and drops what still comes, and
            # waits for the peer.
            transport.close()

    def linger_overdue(self) -> None:
        """Close it, unless it has an answer of which the peer still takes something now and then."""
        now = self._frontend.clock()
        if self.unsent and not self._has_stalled(now):
            # Behind the others, so that they stay in the order of their deadlines.
            del self._frontend.lingering[self]
            self._frontend.lingering[self] = now + LINGER
            return
        # Without a reset of ours: what the system holds may still arrive.
        self._forget()
        if self._transport is not None:
            self._transport.abort()

    def _has_stalled(self, now: float) -> bool:
        """Whether the peer has taken nothing of what is written for too long; to be asked now and then."""
        assert self._transport is not None
        before, self._outstanding = self._outstanding, outstanding(self._transport)
        if self._outstanding < before or not self._stalled_at:
            self._stalled_at = now
        return now - self._stalled_at >= ANSWER_STALLED

    def hold(self) -> None:
        """Read no more, and keep nothing of what came behind the head."""
        self._buffer.clear()
        self._head_weight = 0
        self._weigh()
        self._is_held = True
        self.regulate()

    def let_go(self) -> None:
        """Close the socket behind the answer; the system sends what it has taken."""
        if self._transport is not None and not self.unsent:
            self._forget()
            self._transport.abort()

    def abort(self) -> None:
        """Cut the connection."""
        self._forget()
        if self._transport is not None:
            cut(self._transport)

    def _forget(self) -> None:
        self._frontend.heads.pop(self, None)
        self._frontend.idle.pop(self, None)
        self._frontend.lingering.pop(self, None)
        self._frontend.connections.discard(self)
        self._frontend.arriving.discard(self)
        self._frontend.held -= self._weight
        self._weight = 0
