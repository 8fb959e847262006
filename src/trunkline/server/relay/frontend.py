"""Where connections come in: one TCP or TLS connection until its request head is read and its answer is given.

    transport -> Frontend (head, limits, deadline) -> Exchange -> the caller's `serve`
                 later:  Exchange.upgrade(...)  hands the transport to the protocol of a leg
                    or:  Exchange.respond(...)  answers and closes

Our own protocol over httptools, because a relay needs what ready-made servers do not give: the answer to an upgrade
long after it was asked, the listener's own reason phrase, a deadline and a limit for the head, and the transport
itself. A head is collected whole before the parser (`request_head`) sees it, so nothing behind it is ever parsed.

An answer other than 101 ends the connection, in an orderly way: what the peer still sends is read and dropped for a
moment, because closing a socket with unread bytes resets it and the peer would lose the answer.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from trunkline.protocol import proxy_protocol
from trunkline.protocol.errors import (
    HeadersTooLarge,
    InvalidRequest,
    RelayError,
    RequestTimedOut,
    ServerBusy,
    UriTooLong,
    clean_phrase,
)
from trunkline.protocol.limits import ENTITY_PATH_LIMIT, HEAD_TIMEOUT, REQUEST_HEAD_LIMIT
from trunkline.server.relay.forwarded import TrustedProxies, plain_address
from trunkline.server.relay.request_head import RequestHead, UpgradeRequired, accept_key, parse_head
from trunkline.server.relay.sockets import RECEIVE_BUFFER, descriptor_limit, enable_keepalive, end_writing, is_lost

if TYPE_CHECKING:
    from trunkline.server.relay.admission import Subject

log = logging.getLogger("trunkline.relay")

# What a client may send ahead of its 101 before the relay stops reading; it ought to send nothing.
EARLY_LIMIT = 16_384

# What is read at a time of a peer without TLS: more than that is no head, and would be held until the answer. Under TLS
# all that was decrypted must be taken (see `RECEIVE_BUFFER`).
_HEAD_BUFFER = RECEIVE_BUFFER[: REQUEST_HEAD_LIMIT + 4_096]

# Bytes that all peers together may make the node hold before they have their answer. When it is more, those are refused
# that want more than a usual head.
HANDSHAKES_LIMIT = 64 * 2**20
USUAL_HEAD = 4_096

# Bytes of request heads that are read and served in one turn of the loop; what is whole beyond that waits for the next.
# The most expensive head of 32 KiB takes some 5 ms, a usual one of 500 bytes 0.2 ms.
HEADS_AT_ONCE = 32_768

# What a header costs in memory beside its bytes.
HEADER_WEIGHT = 200

# Seconds for a refused peer to read its answer and close.
LINGER = 2.0

NO_PROXIES = TrustedProxies()

# Characters of a path in a log line: the longest of an entity with what may stand around it.
_SHOWN = 2 * ENTITY_PATH_LIMIT


class StreamProtocol(Protocol):
    """What takes a transport over after a 101: a leg, a control channel."""

    def take_over(self, transport: asyncio.Transport, early: bytes) -> None:
        """Called once, after the 101 was written and the transport was given to this protocol.

        `early` is what the peer sent behind its request head; it comes again by no other way.
        """


class Exchange:
    """A request whose answer is owed. Answered once, by `upgrade` or `respond`; later calls do nothing."""

    __slots__ = ("_frontend", "head", "on_left", "remote", "secure", "subject")

    def __init__(self, frontend: FrontendProtocol, head: RequestHead, remote: tuple[str, int], secure: bool) -> None:
        self._frontend: FrontendProtocol | None = frontend
        self.head = head
        # Address and port of the client, which may be behind a trusted proxy; then the port may be 0, for unknown.
        # Whatever needs to know who asks, counts, limits or logs, takes it from here.
        self.remote = remote
        # True when the client came over TLS, to this node or to such a proxy.
        self.secure = secure
        # What it is about; set when it is admitted or refused.
        self.subject: Subject | None = None
        # Called when the peer leaves before it was answered; at most once.
        self.on_left: Callable[[], None] | None = None

    def __repr__(self) -> str:
        # Without its query, which may hold a token; and short, because each refusal is a line in the log.
        path = self.head.target.partition("?")[0]
        if len(path) > _SHOWN:
            path = path[:_SHOWN] + "..."
        return f"<Exchange {self.head.method} {path!r} {'open' if self._frontend else 'answered'}>"

    @property
    def is_open(self) -> bool:
        """True while the peer waits for its answer."""
        return self._frontend is not None

    def upgrade(self, protocol: StreamProtocol, *, subprotocol: str | None = None) -> bool:
        """Answer 101 and hand the transport to `protocol`; False when the peer has left."""
        frontend = self._take()
        if frontend is None:
            return False
        frontend.upgrade(self.head, protocol, subprotocol)
        return True

    def respond(
        self,
        status: int,
        phrase: str | None = None,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        content_type: str = "text/plain; charset=utf-8",
    ) -> None:
        """Answer with an HTTP response and close.

        Args:
            status: 200 to 599.
            phrase: the reason phrase, passed whole; None for the one of the code.
            headers: further headers.
            body: sent as it is; none to HEAD.
            content_type: of the body.
        """
        frontend = self._take()
        if frontend is not None:
            frontend.respond(status, phrase, headers, body, content_type, head_only=self.head.method == "HEAD")

    def refuse(self, error: RelayError, phrase: str, *, linger: bool = True) -> None:
        """Answer with an error: the status, the reason phrase that real clients read, and the same text as body.

        Args:
            error: says the status.
            phrase: the reason phrase.
            linger: False to let go of the connection at once, whether or not the peer has read that.
        """
        frontend = self._frontend
        self.respond(error.status, phrase, body=phrase.encode() + b"\n")
        if frontend is not None and not linger:
            frontend.let_go()

    def hold(self) -> None:
        """Keep nothing of the request and read no more of it: it will be refused, later."""
        self.head = RequestHead(self.head.method, self.head.target.partition("?")[0][:_SHOWN], ())
        if self._frontend is not None:
            self._frontend.hold()

    def left(self) -> None:
        """The peer is gone (called by the frontend)."""
        on_left = self.on_left
        if self._take() is not None and on_left is not None:
            on_left()

    def _take(self) -> FrontendProtocol | None:
        frontend, self._frontend = self._frontend, None
        # Whoever wanted to know holds this exchange, most of the time: a circle that only the garbage collector breaks.
        self.on_left = None
        return frontend


class Frontend:
    """What the connections of one port share: who serves them, and the clock that looks after slow ones.

    Args:
        serve: called with each request whose head is whole.
        clock: seconds, monotonic; the loop's time.
        has_room: whether the process can hold one more connection, asked for each.
        phrase: the reason phrase of a refusal whose request nobody has seen, and the address of the peer.
        proxies: who is believed when it says whose connection it passes on.
        proxy_protocol: whether these begin each connection with a header of the PROXY protocol.
        begin_tls: where TLS stands behind that header: takes a connection that came in plain and answers with
            `FrontendProtocol.secured`, or closes it. None: the connections are what they are to be.
    """

    def __init__(
        self,
        serve: Callable[[Exchange], None],
        clock: Callable[[], float],
        *,
        has_room: Callable[[], bool] = lambda: True,
        phrase: Callable[[RelayError, str], str] = lambda error, address: clean_phrase(error.message),
        proxies: TrustedProxies = NO_PROXIES,
        proxy_protocol: bool = False,
        begin_tls: Callable[[asyncio.Transport, FrontendProtocol], None] | None = None,
    ) -> None:
        self.serve = serve
        self.clock = clock
        self.phrase = phrase
        # Counts for the next connection, and the next request of one that is there.
        self.proxies = proxies
        self.proxy_protocol = proxy_protocol
        self.begin_tls = begin_tls
        self._has_room = has_room
        # Connections for which there was no room, since the last look at the clock.
        self._turned_away = 0
        # Connections whose head is whole and waits for its turn, and how much may be served in this one.
        self._ready: deque[FrontendProtocol] = deque()
        self._may_serve = HEADS_AT_ONCE
        # Bytes that are held for handshakes, and how many were refused for that since the last look.
        self.held = 0
        self.too_heavy = 0
        # Connections that owe us a request head, or that have their answer and should go: by when. Both stay in
        # the order of their deadlines, so a look at the first is enough.
        self.heads: dict[FrontendProtocol, float] = {}
        self.lingering: dict[FrontendProtocol, float] = {}
        # Accepted, and not there yet: in their TLS handshake. aiofastnet drops the protocol of one that fails.
        self.arriving: weakref.WeakSet[FrontendProtocol] = weakref.WeakSet()
        # Everything else that has not been handed on to a leg.
        self.connections: set[FrontendProtocol] = set()

    def __repr__(self) -> str:
        return f"<Frontend connections={len(self.connections)} heads={len(self.heads)}>"

    @property
    def handshakes(self) -> int:
        """Connections that have not been handed on to a leg."""
        return len(self.connections) + len(self.arriving)

    def protocol(self) -> FrontendProtocol:
        """A protocol for one more connection.

        Raises:
            ConnectionRefusedError: there is no room; the server closes the connection.
        """
        if not self._has_room():
            self._turned_away += 1
            raise ConnectionRefusedError("no file descriptors are left")
        protocol = FrontendProtocol(self)
        self.arriving.add(protocol)
        return protocol

    def is_its_turn(self, protocol: FrontendProtocol, size: int) -> bool:
        """Whether a head of so many bytes may be served now; if not, `protocol.serve_head` is called later."""
        if self._may_serve <= 0:
            self._ready.append(protocol)
            return False
        if self._may_serve == HEADS_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._may_serve -= size
        return True

    def _next_turn(self) -> None:
        self._may_serve = HEADS_AT_ONCE
        while self._ready and self._may_serve > 0:
            self._may_serve -= self._ready.popleft().serve_head()
        if self._may_serve < HEADS_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._next_turn)

    def tick(self, now: float) -> None:
        """Refuse heads that are overdue, cut peers that linger or are lost; to be called about once a second."""
        if self._turned_away:
            turned_away, self._turned_away = self._turned_away, 0
            log.warning(
                "%d connections were turned away: the process may open only %d files and sockets (ulimit -n)",
                turned_away,
                descriptor_limit(),
            )
        if self.too_heavy:
            too_heavy, self.too_heavy = self.too_heavy, 0
            limit = HANDSHAKES_LIMIT >> 20
            log.warning("%d handshakes were refused or cut: all together hold more than %d MiB", too_heavy, limit)
        for connection in list(self.connections):
            connection.look()
        for overdue, act in (
            (self.heads, FrontendProtocol.head_overdue),
            (self.lingering, FrontendProtocol.linger_overdue),
        ):
            for connection, deadline in list(overdue.items()):
                if deadline > now:
                    break
                act(connection)


class FrontendProtocol(asyncio.BufferedProtocol):
    """One connection, until a leg takes it over."""

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_exchange",
        "_frontend",
        "_head_size",
        "_is_secure",
        "_paused",
        "_peer",
        "_proxy_header_is_due",
        "_transport",
        "_unsent",
        "_was_read",
        "_weight",
    )

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._transport: asyncio.Transport | None = None
        # The head so far; after it, what the peer sends ahead of its answer.
        self._buffer = bytearray()
        # Bytes of a head that is whole and waits for its turn, else 0.
        self._head_size = 0
        # The request that is owed an answer; None before the head is whole.
        self._exchange: Exchange | None = None
        self._paused = False
        # Whether it came over TLS.
        self._is_secure = False
        # Address and port of the other end, or of the one whose connection it passes on.
        self._peer = ("0.0.0.0", 0)
        self._proxy_header_is_due = False
        # Bytes of its answer that the transport still held when its time was over last.
        self._unsent = 0
        # Since the last look; see `is_lost`.
        self._was_read = False
        # What it counts for in `Frontend.held`.
        self._weight = 0

    def __repr__(self) -> str:
        state = "lingering" if self in self._frontend.lingering else "answer owed" if self._exchange else "head"
        return f"<FrontendProtocol {state} held={len(self._buffer)}>"

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
        self._is_secure = transport.get_extra_info("ssl_object") is not None
        self._frontend.arriving.discard(self)
        self._frontend.connections.add(self)
        self._frontend.heads[self] = self._frontend.clock() + HEAD_TIMEOUT

    def _begin_tls(self) -> None:
        transport, self._transport = self._transport, None
        assert transport is not None and self._frontend.begin_tls is not None
        # What comes from now on is for TLS.
        transport.pause_reading()
        self._forget()
        self._frontend.arriving.add(self)
        self._frontend.begin_tls(transport, self)

    def secured(self, transport: asyncio.Transport) -> None:
        """TLS has begun on `transport`. What came with the last of its handshake is here already."""
        self._await_head(transport)
        if self._buffer and not self._is_too_heavy(len(self._buffer)):
            self._look_for_head(len(self._buffer))

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._transport = None
        if self._exchange is not None:
            self._exchange.left()

    def eof_received(self) -> bool:
        # A peer that ends its stream before it has its answer cannot become a leg: False closes the transport, and
        # `connection_lost` tells whoever owes the answer.
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._proxy_header_is_due and self._frontend.begin_tls is not None:
            return RECEIVE_BUFFER[: proxy_protocol.wanted(self._buffer)]
        return RECEIVE_BUFFER if self._is_secure or self in self._frontend.arriving else _HEAD_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if self in self._frontend.lingering:
            return
        self._was_read = True
        self._buffer += RECEIVE_BUFFER[:nbytes]
        if self in self._frontend.arriving:
            return
        if self._is_too_heavy(self._weight + nbytes):
            return
        if self._exchange is None and not self._head_size:
            self._look_for_head(nbytes)
        # Also right behind the head: one read may bring far more than that. An answer empties the buffer.
        if self._exchange is not None and len(self._buffer) > EARLY_LIMIT and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _is_too_heavy(self, weight: int) -> bool:
        """Count what is held for it; True when that is too much, and it was refused or cut."""
        self._weigh(weight)
        if weight <= USUAL_HEAD or self._frontend.held <= HANDSHAKES_LIMIT:
            return False
        self._frontend.too_heavy += 1
        if self._exchange is None:
            self._refuse(ServerBusy("ServerBusy: The relay holds too many large requests, try again"))
        else:
            self.abort()
        return True

    def _weigh(self, weight: int) -> None:
        self._frontend.held += weight - self._weight
        self._weight = weight

    def _look_for_head(self, nbytes: int) -> None:
        if self._proxy_header_is_due:
            if not self._take_proxy_header():
                return
            if self._frontend.begin_tls is not None:
                self._begin_tls()
                return
        if self._buffer.startswith((proxy_protocol.SIGNATURE_1, proxy_protocol.SIGNATURE_2)):
            hint = "proxy_protocol is not set, or the sender is none of trusted_proxies"
            self._refuse(InvalidRequest(f"A header of the PROXY protocol is not expected here: {hint}"))
            return
        # RFC 9112 section 2.2: empty lines ahead of the request line are ignored.
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        if self._buffer and not 0x41 <= self._buffer[0] <= 0x5A and self._buffer[0] != 0x0D:
            hint = "it looks like TLS, and this port is without" if self._buffer[0] == 0x16 else "no method begins it"
            self._refuse(InvalidRequest(f"This is not HTTP: {hint}"))
            return
        end = self._buffer.find(b"\r\n\r\n", max(0, len(self._buffer) - nbytes - 3))
        size = end + 4 if end >= 0 else len(self._buffer)
        if size > REQUEST_HEAD_LIMIT:
            too_long = self._buffer.find(b"\r\n", 0, REQUEST_HEAD_LIMIT) < 0
            self._refuse(UriTooLong() if too_long else HeadersTooLarge("The request head is larger than 32 KiB"))
            return
        if end < 0:
            return
        self._head_size = size
        if self._frontend.is_its_turn(self, size):
            self.serve_head()

    def serve_head(self) -> int:
        """Read the head, which is whole, and have it served; return its size."""
        size, self._head_size = self._head_size, 0
        if self not in self._frontend.connections or self in self._frontend.lingering:
            # It left, or its time was over.
            return 0
        try:
            head = parse_head(bytes(self._buffer[:size]))
        except RelayError as error:
            self._refuse(error)
            return size
        if self._is_too_heavy(len(self._buffer) + HEADER_WEIGHT * len(head.headers)):
            return size
        del self._buffer[:size]
        self._frontend.heads.pop(self, None)
        remote, secure = self._peer, self._is_secure
        if remote[0] in self._frontend.proxies:
            given = head.get("X-Forwarded-For"), head.get("X-Forwarded-Proto")
            remote, secure = self._frontend.proxies.client(remote, secure, *given)
        self._exchange = Exchange(self, head, remote, secure)
        self._frontend.serve(self._exchange)
        return size

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

    def look(self) -> None:
        """Cut it when its peer has left unseen, in the middle of its head or while it waits for its answer."""
        if self._transport is None or not (self._was_read or self._paused):
            return
        self._was_read = False
        if is_lost(self._transport, or_ended=self._paused):
            self._transport.abort()

    def head_overdue(self) -> None:
        """The head did not come in time."""
        self._refuse(RequestTimedOut(f"The request head did not arrive within {HEAD_TIMEOUT:g} s"))

    def _refuse(self, error: RelayError) -> None:
        self._frontend.heads.pop(self, None)
        phrase = self._frontend.phrase(error, self._peer[0])
        headers = [("Sec-WebSocket-Version", "13")] if isinstance(error, UpgradeRequired) else []
        self.respond(error.status, phrase, headers, phrase.encode() + b"\n", "text/plain; charset=utf-8")

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
        self._transport = None
        transport.set_protocol(protocol)  # type: ignore[arg-type]
        protocol.take_over(transport, early)
        if self._paused:
            transport.resume_reading()

    def respond(
        self,
        status: int,
        phrase: str | None,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        content_type: str,
        *,
        head_only: bool = False,
    ) -> None:
        """Write a response, then wait a moment for the peer to close."""
        transport = self._transport
        if transport is None:
            return
        if phrase is None:
            phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        lines = [
            # Nothing that a peer or a listener wrote can end the line, whoever calls.
            f"HTTP/1.1 {status} {clean_phrase(phrase)}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Length: {len(body)}",
            f"Content-Type: {content_type}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in headers),
        ]
        transport.write("\r\n".join((*lines, "", "")).encode("latin-1", "replace") + (b"" if head_only else body))
        self._buffer.clear()
        self._weigh(0)
        self._unsent = transport.get_write_buffer_size()
        self._frontend.lingering[self] = self._frontend.clock() + LINGER
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            end_writing(transport)
        else:
            # TLS cannot end one direction: closing says so with a close_notify, reads and drops what still comes, and
            # waits for the peer.
            transport.close()

    def linger_overdue(self) -> None:
        """Cut it, unless it has a long answer (of the admin port) and has read some of it in the meantime."""
        before, self._unsent = self._unsent, self._transport.get_write_buffer_size() if self._transport else 0
        if 0 < self._unsent < before:
            # Behind the others, so that they stay in the order of their deadlines.
            del self._frontend.lingering[self]
            self._frontend.lingering[self] = self._frontend.clock() + LINGER
        else:
            self.abort()

    def hold(self) -> None:
        """Read no more, and keep nothing of what came behind the head."""
        self._buffer.clear()
        self._weigh(0)
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def let_go(self) -> None:
        """Close the socket behind the answer; the system sends what it has taken."""
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        self._forget()
        if self._transport is not None:
            self._transport.abort()

    def _forget(self) -> None:
        self._frontend.heads.pop(self, None)
        self._frontend.lingering.pop(self, None)
        self._frontend.connections.discard(self)
        self._frontend.arriving.discard(self)
        self._weigh(0)
