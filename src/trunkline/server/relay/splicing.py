"""Connections that are established: runs a `Splice` for each, and knows which hang on what.

    Leg (sender) -> Connection -> Splice -> Connection -> Leg (listener)

`Splicing` finds the connections that must end when a listener is lost, an entity is deleted or a key is removed,
and looks at the clock of all of them once a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trunkline.protocol.causes import Cause
from trunkline.protocol.errors import RelayError
from trunkline.protocol.frames import Masker
from trunkline.protocol.limits import Limits
from trunkline.protocol.splice import Actions, Side, Splice
from trunkline.server.entities.authorization import Grant
from trunkline.server.relay.legs import Leg

# Seconds that the TCP of a peer may owe an acknowledgement: `idle_timeout`, within these bounds. Less would take a lost
# segment, which TCP repeats after a second or two, for a dead network.
SILENCE_AT_LEAST = 5.0
SILENCE_AT_MOST = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a connection hangs on, and what is known of its sender."""

    # Names it within the node, for people: short, and no secret. Not the tracking id, which a sender chooses.
    id: str
    tracking_id: str
    # Id of the hybrid connection, and its name for people.
    entity: str
    path: str
    # Id of the control channel of its listener.
    listener: str
    # What let the sender in; None for an anonymous one.
    grant: Grant | None
    # Address and port of the sender.
    remote: tuple[str, int]
    # What the sender's client calls itself.
    user_agent: str
    # Seconds since the epoch.
    began_at: float


class Connection:
    """A sender and a listener, joined."""

    __slots__ = (
        "_clock",
        "_listen_at",
        "_on_end",
        "_on_gone",
        "_sample",
        "silence_limit",
        "facts",
        "legs",
        "rates",
        "splice",
        "started_at",
    )

    def __init__(
        self,
        facts: Facts,
        limits: Limits,
        *,
        clock: Callable[[], float],
        masker: Masker,
        on_end: Callable[[Connection], None],
        on_gone: Callable[[Connection], None],
    ) -> None:
        self.facts = facts
        self._clock = clock
        self._on_end = on_end
        self._on_gone = on_gone
        self.started_at = clock()
        # Seconds that the TCP of a peer may owe an acknowledgement, and when that is looked at next.
        self.silence_limit = min(max(limits.idle_timeout or SILENCE_AT_MOST, SILENCE_AT_LEAST), SILENCE_AT_MOST)
        self._listen_at = self.started_at
        self.splice = Splice(limits=limits, tracking_id=facts.tracking_id, now=self.started_at, masker=masker)
        # rates[side]: bytes per second that passed from it, between the last two looks at the clock.
        self.rates = (0.0, 0.0)
        # Bytes from each side at the last look, and when that was.
        self._sample = (0, 0, self.started_at)
        # legs[side]; both exist before the first of them is read.
        self.legs = (Leg(self, Side.SENDER), Leg(self, Side.LISTENER))

    def __repr__(self) -> str:
        return f"<Connection {self.facts.id} {self.facts.path} {self.splice!r}>"

    def start(self) -> None:
        """Both legs have their transports: pass on what came ahead of that."""
        for leg in self.legs:
            leg.start()

    def receive(self, side: Side, data: bytes | memoryview) -> None:
        """Bytes came from a leg."""
        self._run(self.splice.receive(side, data, self._clock()))
        if self.splice.lanes[side].behind:
            self.legs[side].pause_reading()
            asyncio.get_running_loop().call_soon(self._catch_up, side)

    def _catch_up(self, side: Side) -> None:
        """Go on with what a leg was read, now that others had their turn."""
        lane = self.splice.lanes[side]
        if self.splice.ended is not None:
            return
        self.receive(side, b"")
        if not lane.behind and not lane.congested:
            self.legs[side].resume_reading()

    def lost(self, side: Side) -> None:
        """A leg is gone."""
        self._run(self.splice.lost(side))
        if self.splice.ended is not None and all(leg.transport is None for leg in self.legs):
            self._on_gone(self)

    def congested(self, side: Side) -> None:
        """A leg takes no more: stop reading the other, unless both are only closing."""
        if self.splice.ended is not None:
            return
        self.splice.congested(side)
        self.legs[side.other].pause_reading()

    def relieved(self, side: Side) -> None:
        """A leg takes bytes again."""
        self._run(self.splice.relieved(side, self._clock()))
        if not self.splice.lanes[side.other].behind:
            self.legs[side.other].resume_reading()

    def tick(self, now: float) -> None:
        """Look at the clock, and whether both legs are still there."""
        for leg in self.legs:
            leg.look()
        if now >= self._listen_at:
            # Seldom, as it costs a system call for each leg.
            self._listen_at = now + self.silence_limit / 12
            for leg in self.legs:
                leg.listen_for_life(self.silence_limit)
        self._measure(now)
        self._run(self.splice.tick(now))

    def _measure(self, now: float) -> None:
        sender, listener, before = self._sample
        by_sender, by_listener = (lane.bytes for lane in self.splice.lanes)
        passed = now - before
        if passed > 0:
            self.rates = ((by_sender - sender) / passed, (by_listener - listener) / passed)
            self._sample = (by_sender, by_listener, now)

    def close(self, error: RelayError) -> None:
        """End both legs with a Close."""
        self._run(self.splice.close(error))

    def tear_down(self, reason: str, cause: Cause) -> None:
        """Cut both legs."""
        self._run(self.splice.tear_down(reason, cause))

    def _run(self, actions: Actions) -> None:
        to_sender, to_listener, end = actions
        if to_listener:
            self.legs[Side.LISTENER].write(to_listener)
        if to_sender:
            self.legs[Side.SENDER].write(to_sender)
        if end is not None:
            self.legs[Side.SENDER].end(abort=end.abort_sender)
            self.legs[Side.LISTENER].end(abort=end.abort_listener)
            self._on_end(self)


class Splicing:
    """Every established connection of the node.

    Args:
        clock: seconds, monotonic; the loop's time.
        masker: the routine that unmasks frames.
    """

    def __init__(self, *, clock: Callable[[], float], masker: Masker) -> None:
        self._clock = clock
        self._masker = masker
        # Keys only, in the order of their beginning. Not by tracking id: a sender chooses its own.
        self._connections: dict[Connection, None] = {}
        # Those that have ended, until both sockets are closed.
        self._closing: set[Connection] = set()

    def __repr__(self) -> str:
        return f"<Splicing connections={len(self._connections)}>"

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections))

    @property
    def unsent(self) -> int:
        """Connections that have ended and still have something to send."""
        return sum(any(leg.unsent for leg in connection.legs) for connection in self._closing)

    def join(self, facts: Facts, limits: Limits, on_end: Callable[[Connection], None]) -> Connection:
        """Make a connection whose two legs are ready to take their transports over.

        Args:
            facts: what it hangs on.
            limits: of its entity.
            on_end: called once, when it has ended.
        """

        def ended(connection: Connection) -> None:
            del self._connections[connection]
            self._closing.add(connection)
            on_end(connection)

        connection = Connection(
            facts,
            limits,
            clock=self._clock,
            masker=self._masker,
            on_end=ended,
            on_gone=self._closing.discard,
        )
        self._connections[connection] = None
        return connection

    def listener_lost(self, listener: str, reason: str) -> None:
        """Cut what runs over this registration (`on_listener_loss = teardown`)."""
        for connection in self:
            if connection.facts.listener == listener:
                connection.tear_down(reason, Cause.CONTROL_CHANNEL_LOST)

    def close(self, which: Callable[[Facts], bool], error: RelayError) -> None:
        """End with a Close what `which` picks."""
        for connection in self:
            if which(connection.facts):
                connection.close(error)

    def tick(self, now: float) -> None:
        """Look at the clock of all; to be called about once a second."""
        for connection in self:
            connection.tick(now)

    def abort(self, reason: str) -> None:
        """Cut everything."""
        for connection in self:
            connection.tear_down(reason, Cause.NODE_STOPPING)
