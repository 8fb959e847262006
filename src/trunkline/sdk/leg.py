"""The rules of one data connection, as an end of it sees them. No I/O: bytes and times in, commands out.

    peer's bytes ->  receive(data, now)  -> Data | Send | PeerClosed | Broken
    our messages ->  message(...), close(...), tick(now) -> bytes for the peer

Both directions end on their own (half-close): a Close frame says that its sender will send no more, and the other
direction goes on until its end closes too. A received Close is therefore not answered by itself; .NET's `Shutdown`
and azbridge depend on it. An end that has sent Close sends no ping and no pong after it (RFC 6455 section 5.5.1:
nothing may follow), so from then on it cannot show the relay that it is alive, and the relay does not ask for it.

    we sent Close   peer sent Close
    no              no                open
    yes             no                half-closed: we only read
    no              yes               half-closed: we only write
    yes             yes               done: TCP may go
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trunkline.protocol.errors import InvalidFrame
from trunkline.protocol.frames import (
    Close,
    Data,
    FrameDecoder,
    Masker,
    Opcode,
    close_payload,
    encode_frame,
    parse_close,
)

#: Payload bytes of a frame that the SDK sends; longer messages are cut into fragments. Jetty, under the Java client,
#: closes the connection on a longer frame (seen), and a relay may be set to do so.
FRAME_LIMIT = 65_536
#: Seconds of silence that TCP is allowed however short the heartbeat: acknowledgements are delayed, lost and repeated.
SILENCE_AT_LEAST = 5.0


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes to the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer sends nothing more, of its own will."""

    close: Close


@dataclass(frozen=True, slots=True)
class Broken:
    """The peer broke the protocol. `farewell` goes to it before the transport is closed; empty if we had closed."""

    error: InvalidFrame
    farewell: bytes


@dataclass(frozen=True, slots=True)
class Silent:
    """The network between here and the peer is gone, or the peer's computer is: cut the transport."""

    reason: str


class Leg:
    """One data connection.

    Args:
        now: seconds, of the clock that all later times are of.
        new_mask: yields a fresh mask key for each frame.
        heartbeat: seconds without a frame of ours after which a ping is due; 0 for none.
        masker: the routine that masks.
    """

    def __init__(self, *, now: float, new_mask: Callable[[], bytes], heartbeat: float, masker: Masker) -> None:
        self._new_mask = new_mask
        self._heartbeat = heartbeat
        self._masker = masker
        self._decoder = FrameDecoder(masked=False, masker=masker)
        self._last_sent = now
        #: Our Close, once it was made.
        self.sent_close: Close | None = None
        #: The peer's Close, once it was read.
        self.received_close: Close | None = None

    def __repr__(self) -> str:
        return f"<Leg {self.state}>"

    @property
    def state(self) -> str:
        """``open``, ``half-closed (reading)``, ``half-closed (writing)`` or ``done``."""
        if self.sent_close and self.received_close:
            return "done"
        if self.sent_close:
            return "half-closed (reading)"
        return "half-closed (writing)" if self.received_close else "open"

    @property
    def done(self) -> bool:
        """Both ends have closed."""
        return self.sent_close is not None and self.received_close is not None

    def receive(self, data: bytes, now: float) -> Iterator[Data | Send | PeerClosed | Broken]:
        """Yield what `data` brings, in order; run it to its end."""
        try:
            for item in self._decoder.feed(data):
                if isinstance(item, Data):
                    yield item
                elif item.opcode is Opcode.PING:
                    if self.sent_close is None:
                        yield Send(self._frame(Opcode.PONG, item.payload, now))
                elif item.opcode is Opcode.CLOSE:
                    close = parse_close(item.payload)
                    self.received_close = close
                    yield PeerClosed(close)
        except InvalidFrame as error:
            farewell = b"" if self.sent_close else self.close(error.close_code, error.message, now)
            yield Broken(error, farewell)

    def message(self, opcode: Opcode, payload: bytes | memoryview, now: float) -> Iterator[bytes]:
        """Yield the frames of one message; nothing else but control frames may be sent between them."""
        size = len(payload)
        if size <= FRAME_LIMIT:
            yield self._frame(opcode, payload, now)
            return
        view = memoryview(payload)
        for start in range(0, size, FRAME_LIMIT):
            stop = start + FRAME_LIMIT
            part = Opcode.CONTINUATION if start else opcode
            yield self._frame(part, view[start:stop], now, fin=stop >= size)

    def close(self, code: int | None, reason: str, now: float) -> bytes:
        """Our Close frame, after which this leg sends nothing; call it once."""
        assert self.sent_close is None
        payload = close_payload(code, reason)
        data = self._frame(Opcode.CLOSE, payload, now)
        self.sent_close = parse_close(payload)
        return data

    @property
    def next_tick(self) -> float | None:
        """When `tick` is to be called next; None for never."""
        if self.sent_close is not None or not self._heartbeat:
            return None
        return self._last_sent + self._heartbeat

    def tick(self, now: float, *, unheard: float | None) -> Send | Silent | None:
        """A ping if one is due; it keeps NATs, load balancers and the relay's idle timeout from ending a silent leg.

        A pong is not waited for: a .NET peer answers only while its application reads, and a relay that holds data
        for a slow peer does not read our ping either. What must come is TCP's own acknowledgement of it.

        Args:
            unheard: seconds for which the peer's TCP has owed an acknowledgement and sent none; None where that is not
                known.
        """
        due = self.next_tick
        if due is None:
            return None
        if unheard is not None and unheard >= max(2 * self._heartbeat, SILENCE_AT_LEAST):
            return Silent(f"Nothing was heard from the other end for {unheard:.0f} seconds")
        return Send(self._frame(Opcode.PING, b"", now)) if now >= due else None

    def _frame(self, opcode: Opcode, payload: bytes | memoryview, now: float, *, fin: bool = True) -> bytes:
        self._last_sent = now
        return encode_frame(opcode, payload, fin=fin, mask=self._new_mask(), masker=self._masker)
