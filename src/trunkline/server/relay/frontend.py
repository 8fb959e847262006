"""Where connections come in: one TCP or TLS connection, whose request heads are read one after the other.

    transport -> Frontend (head, limits, deadline) -> Exchange -> the caller's `serve`
                 later:  Exchange.upgrade(...)  hands the transport to the protocol of a leg
                    or:  Exchange.respond(...), or begin, write and end: an answer, and the next request

Our own protocol over httptools, because a relay needs what ready-made servers do not give: the answer to an upgrade
long after it was asked, the listener's own reason phrase, a deadline and a limit for the head, a body passed on as it
comes, and the transport itself. A head is collected whole before the parser (`request_head`) sees it, so nothing behind
it is ever parsed.

Pipelined requests are answered in their order: the next head is looked at when the answer before it is whole, and while
one is owed only so much is read ahead. An answer behind which the connection ends, ends it in an orderly way: what the
peer still sends is read and dropped for a moment, because closing a socket with unread bytes resets it and the peer
would lose the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from email.utils import formatdate

from trunkline.protocol.errors import RelayError, clean_phrase
from trunkline.server.relay.exchange import Exchange as Exchange
from trunkline.server.relay.forwarded import TrustedProxies
from trunkline.server.relay.front_connection import FrontendProtocol as FrontendProtocol
from trunkline.server.relay.sockets import descriptor_limit

log = logging.getLogger("trunkline.relay")

# Bytes that all peers together may make the node hold before they have their answer. When it is more, those are refused
# that want more than a usual head.
HANDSHAKES_LIMIT = 64 * 2**20
USUAL_HEAD = 4_096

# Bytes of request heads that are read and served in one turn of the loop; what is whole beyond that waits for the next.
# The most expensive head of 32 KiB takes some 5 ms, a usual one of 500 bytes 0.2 ms, and a shorter one hardly less: it
# counts for as many.
HEADS_AT_ONCE = 32_768
LEAST_COUNTED = 512

NO_PROXIES = TrustedProxies()


class Frontend:
    """What the connections of one port share: who serves them, and the clock that looks after slow ones.

    Args:
        serve: called with each request whose head is whole.
        clock: seconds, monotonic; the loop's time.
        has_room: whether the process can hold one more connection, asked for each.
        phrase: the reason phrase of a refusal whose request nobody has seen, and the address of the peer.
        proxies: who is believed when it says whose connection it passes on.
        proxy_protocol: whether these begin each connection with a header of the PROXY protocol.
        keeps_alive: whether a connection may have more than one plain HTTP request. Without that (the admin port) there
            is one, of HTTP/1.1, and refusals are plain text.
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
        keeps_alive: bool = False,
        begin_tls: Callable[[asyncio.Transport, FrontendProtocol], None] | None = None,
    ) -> None:
        self.serve = serve
        self.clock = clock
        self.phrase = phrase
        # Counts for the next connection, and the next request of one that is there.
        self.proxies = proxies
        self.proxy_protocol = proxy_protocol
        self.begin_tls = begin_tls
        self.keeps_alive = keeps_alive
        # From then on every answer ends its connection.
        self.draining = False
        # Plain HTTP requests whose answer is not whole.
        self.in_flight = 0
        self._has_room = has_room
        # Connections for which there was no room, since the last look at the clock.
        self._turned_away = 0
        # Connections that have something to go on with and wait for their turn, how much may be served in this one, and
        # whether there will be a next one.
        self._ready: deque[FrontendProtocol] = deque()
        self._may_serve = HEADS_AT_ONCE
        self._turn_is_due = False
        # The line with the date, and the second that it is of.
        self._date = (0, "")
        # Bytes that are held for handshakes, and how many were refused for that since the last look.
        self.held = 0
        self.too_heavy = 0
        # Connections that owe us a request head, that have an answer and may send another request, or that have their
        # answer and should go: by when. Each stays in the order of its deadlines, so a look at the first is enough.
        self.heads: dict[FrontendProtocol, float] = {}
        self.idle: dict[FrontendProtocol, float] = {}
        self.lingering: dict[FrontendProtocol, float] = {}
        # Accepted, and not there yet: in their TLS handshake. aiofastnet drops the protocol of one that fails.
        self.arriving: weakref.WeakSet[FrontendProtocol] = weakref.WeakSet()
        # Everything else that has not been handed on to a leg.
        self.connections: set[FrontendProtocol] = set()

    def __repr__(self) -> str:
        return f"<Frontend connections={len(self.connections)} heads={len(self.heads)}>"

    @property
    def open(self) -> int:
        """Connections that have not been handed on to a leg."""
        return len(self.connections) + len(self.arriving)

    @property
    def handshakes(self) -> int:
        """Those that are not there for plain HTTP."""
        return self.open - len(self.idle) - self.in_flight

    @property
    def is_answering(self) -> bool:
        """Whether an answer to plain HTTP is owed, or is not sent yet."""
        return self.in_flight > 0 or any(connection.unsent for connection in self.connections)

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
        """Whether so many bytes may be served now; if not, `protocol.go_on` is called later."""
        if self._may_serve <= 0:
            self._ready.append(protocol)
            return False
        self._may_serve -= size if size > LEAST_COUNTED else LEAST_COUNTED
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._next_turn)
        return True

    @property
    def has_time(self) -> bool:
        """Whether more may be served in this turn of the loop."""
        return self._may_serve > 0

    def spend(self, size: int) -> None:
        """Count work that was done in this turn, as so many bytes of heads. Somebody waits for the next one."""
        self._may_serve -= size

    def wait(self, protocol: FrontendProtocol) -> None:
        """Have `protocol.go_on` called in a later turn of the loop."""
        self._ready.append(protocol)
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def is_too_heavy(self, weight: int, before: int) -> bool:
        """Count what is held for a connection, and what was; True when it should be refused or cut."""
        self.held += weight - before
        if weight <= USUAL_HEAD or self.held <= HANDSHAKES_LIMIT:
            return False
        self.too_heavy += 1
        return True

    def _next_turn(self) -> None:
        self._turn_is_due = False
        self._may_serve = HEADS_AT_ONCE
        for _ in range(len(self._ready)):
            if self._may_serve <= 0:
                return
            connection = self._ready.popleft()
            try:
                connection.go_on()
            except Exception:
                # The others still have their turn.
                log.exception("the relay failed on %r", connection)
                connection.abort()

    def date_line(self) -> str:
        """The header with the date (RFC 9110 section 6.6.1); made once a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = now, f"Date: {formatdate(now, usegmt=True)}"
        return self._date[1]

    def drain(self) -> None:
        """Let go of connections that wait for nothing, and end all others behind the answer that they are owed."""
        self.draining = True
        for connection in list(self.idle):
            connection.end_idle()

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
            connection.look(now)
        for overdue, act in (
            (self.heads, FrontendProtocol.head_overdue),
            (self.idle, FrontendProtocol.idle_overdue),
            (self.lingering, FrontendProtocol.linger_overdue),
        ):
            for connection, deadline in list(overdue.items()):
                if deadline > now:
                    break
                act(connection)
