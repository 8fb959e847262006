"""An established connection through the relay: a byte stream and a message channel in one.

    link (bytes) -> Leg (frames, half-close, heartbeat) -> ReceiveBuffer -> read / recv
    write / send -> Leg -> link

Use it as one or the other. As a stream, `Connection.write` and `Connection.read` know no message boundaries. As a
channel, `Connection.send` and `Connection.recv` keep them, and tell text from bytes.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trunkline.protocol.errors import ConnectionLost, InvalidSetting, ProtocolViolation, RelayError
from trunkline.protocol.frames import Close, Data, Opcode, is_valid_close_code
from trunkline.sdk.clock import Clock, Timer
from trunkline.sdk.leg import FRAME_LIMIT, Broken, Leg, PeerClosed, Send, Silent
from trunkline.sdk.receive_buffer import ReceiveBuffer
from trunkline.sdk.websocket import MASKER, Link, masks

if TYPE_CHECKING:
    from trunkline.sdk.incoming import IncomingConnection

#: Bytes that may wait to be read; above, reading from the network pauses until half of them are taken.
RECEIVE_LIMIT = 262_144
#: Bytes of one message that `recv` puts together unless told otherwise; what hyco-ws takes too.
MAX_MESSAGE_SIZE = 100 * 1024 * 1024
#: Seconds that `close` waits for the peer's Close unless told otherwise.
CLOSE_TIMEOUT = 10.0
#: Seconds after both Closes that TCP is left to the relay to end (RFC 6455 section 7.1.1: the server closes first,
#: so that the TIME_WAIT is not on our side).
LINGER = 1.0
#: Close codes that end a stream in order: 1000, none at all (hyco-ws), and 3000 and above, which belong to the
#: applications. Not 1001: with it a relay tells a listener that its sender was lost, and both ends that it cuts them;
#: a stream that ends so may be cut short.
_ORDERLY = (None, 1000)


class ConnectionClosed(EOFError):
    """There is nothing more to receive, or nothing more can be sent: the end came in order.

    Attributes:
        code: close code of the end that closed; None if it gave none.
        reason: its reason, may be empty.
    """

    def __init__(self, message: str, code: int | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class Connection:
    """A connection between a sender and a listener.

    Made by `HybridConnectionClient.create_connection` and by `HybridConnectionListener`. Leaving an ``async with``
    block closes it; leaving it by an exception aborts it, so that the peer does not take a broken stream for a whole
    one.

    The directions end on their own (half-close). After the peer's Close there is nothing more to read, and writing
    goes on until this end closes too, in both uses; so an application that is done must close. A peer that is no
    Trunkline, .NET or azbridge application usually closes its own direction at the same moment and ignores what is
    sent after that; browsers and hyco-ws do.

    A silent connection is kept by pings. Where the system tells whether TCP is acknowledged (Linux), a dead network is
    found within two heartbeats and raises ConnectionLost; a slow peer is never taken for a dead one.

    One task may read and another may write at the same time; two may not read at the same time.
    """

    def __init__(
        self,
        link: Link,
        *,
        clock: Clock,
        heartbeat: float,
        max_message_size: int | None,
        subprotocol: str | None,
        tracking_id: str,
        entity: str,
        request: IncomingConnection | None = None,
    ) -> None:
        self._link = link
        self._clock = clock
        self._leg = Leg(now=clock.monotonic(), new_mask=masks(), heartbeat=heartbeat, masker=MASKER)
        self._received = ReceiveBuffer(max_message_size=max_message_size)
        self._reading_paused = False
        # Resolved when something arrives or ends, for the one task that waits for it.
        self._arrival: asyncio.Future[None] | None = None
        # The peer has closed in order.
        self._eof = False
        # Why sending fails, and receiving too once the buffer is empty, unless the peer had closed in order before.
        self._failure: RelayError | None = None
        # `close` or `abort` was called: what still arrives is not kept.
        self._discarding = False
        # Held while a message that is longer than a frame is being sent.
        self._sending = asyncio.Lock()
        self._heartbeat_timer: Timer | None = None
        self._linger_timer: Timer | None = None
        self._subprotocol = subprotocol
        self._tracking_id = tracking_id
        self._entity = entity
        self._request = request
        link.start(self)
        self._arm_heartbeat()

    def __repr__(self) -> str:
        state = "closed" if self._link.closed.done() else self._leg.state
        if self._failure is not None:
            state = f"failed ({self._failure.message})"
        return f"<Connection {self._entity!r} {state} unread={self._received.size} id={self._tracking_id}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, ConnectionClosed):
            await self.close()
        else:
            self.abort()

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def subprotocol(self) -> str | None:
        """The WebSocket subprotocol that both ends agreed on; None without one."""
        return self._subprotocol

    @property
    def tracking_id(self) -> str:
        """Names this connection in the relay's log lines and errors."""
        return self._tracking_id

    @property
    def entity_path(self) -> str:
        """Path of the hybrid connection."""
        return self._entity

    @property
    def request(self) -> IncomingConnection | None:
        """What the sender asked for, on the listener's side; None on the sender's."""
        return self._request

    @property
    def close_code(self) -> int | None:
        """Code of the peer's Close; None before it, and when it had none. An abnormal end has none either."""
        return self._leg.received_close.code if self._leg.received_close else None

    @property
    def close_reason(self) -> str:
        """Reason of the peer's Close; empty before it."""
        return self._leg.received_close.reason if self._leg.received_close else ""

    # --- byte stream ------------------------------------------------------------------------------------------

    async def read(self, n: int = -1) -> bytes:
        """Read up to `n` bytes, at least one unless the peer has closed; everything to the end if `n` is negative.

        Returns:
            The bytes; ``b""`` once the peer has closed in order and everything was read.

        Raises:
            ConnectionLost: the connection ended without a Close, or with one that reports a failure.
            RuntimeError: another task reads already.
        """
        if n == 0:
            return b""
        if n < 0:
            while await self._more():
                self._gather()
            return self._take(len(self._received))
        while not len(self._received) and await self._more():
            pass
        return self._take(n)

    async def readexactly(self, n: int) -> bytes:
        """Read `n` bytes.

        Raises:
            asyncio.IncompleteReadError: the peer closed before; ``partial`` holds what came.
            ConnectionLost: as `read`.
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError("n must not be negative")
        while len(self._received) < n:
            self._gather()
            if not await self._more():
                raise asyncio.IncompleteReadError(self._take(n), n)
        return self._take(n)

    async def readuntil(self, separator: bytes = b"\n", *, limit: int = 65_536) -> bytes:
        """Read up to and with `separator`.

        Args:
            limit: bytes, with the separator, after which looking for it ends.

        Raises:
            asyncio.IncompleteReadError: the peer closed before; ``partial`` holds what came.
            asyncio.LimitOverrunError: no separator within `limit` bytes; they stay unread.
            ConnectionLost: as `read`.
            ValueError: `separator` is empty.
        """
        if not separator:
            raise ValueError("The separator must not be empty")
        searched = 0
        while True:
            self._gather()
            size = len(self._received)
            found = self._received.find(separator, max(searched - len(separator) + 1, 0), limit)
            if found >= 0:
                return self._take(found + len(separator))
            if size >= limit:
                raise asyncio.LimitOverrunError(f"No separator within {limit} bytes", size)
            searched = size
            if not await self._more():
                raise asyncio.IncompleteReadError(self._take(size), None)

    def at_eof(self) -> bool:
        """True when the peer has closed in order and everything was read."""
        return self._eof and not len(self._received)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; follow it with `drain`. They travel as binary messages of at most 64 KiB.

        Raises:
            ConnectionLost: the connection has ended.
            ConnectionClosed: this end has closed.
            RuntimeError: another task is in the middle of `send`, whose message this would break.
        """
        self._check_writable()
        if self._sending.locked():
            raise RuntimeError("write() while send() is sending a long message; use one or the other")
        now = self._clock.monotonic()
        view = memoryview(data).cast("B")
        for start in range(0, len(view), FRAME_LIMIT):
            for frame in self._leg.message(Opcode.BINARY, view[start : start + FRAME_LIMIT], now):
                self._link.write(frame)

    async def drain(self) -> None:
        """Wait until the network has taken most of what was written; then memory is free for more.

        Raises:
            ConnectionLost: the connection has ended.
        """
        await self._link.drain()
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def write_eof(self) -> None:
        """Half-close: tell the peer that nothing more comes (Close 1000 "Shutdown", as .NET), and go on reading.

        Does nothing when this end has closed already.

        Raises:
            RuntimeError: another task is in the middle of `send`.
        """
        if self._sending.locked():
            raise RuntimeError("write_eof() while send() is sending a long message")
        self._send_close(1000, "Shutdown")

    # --- messages ---------------------------------------------------------------------------------------------

    async def send(self, message: str | bytes | bytearray | memoryview) -> None:
        """Send one message, text or binary, and wait as `drain` does. Longer than 64 KiB, it goes in fragments.

        Cancelling it in the middle of a long message aborts the connection, as the message cannot be completed.

        Raises:
            ConnectionLost: the connection has ended.
            ConnectionClosed: this end has closed.
            TypeError: `message` is neither text nor bytes.
        """
        if isinstance(message, str):
            opcode, payload = Opcode.TEXT, memoryview(message.encode())
        elif isinstance(message, bytes | bytearray | memoryview):
            opcode, payload = Opcode.BINARY, memoryview(message).cast("B")
        else:
            raise TypeError(f"A message is str or bytes, not {type(message).__name__}")
        async with self._sending:
            self._check_writable()
            frames = self._leg.message(opcode, payload, self._clock.monotonic())
            self._link.write(next(frames))
            try:
                for frame in frames:
                    await self.drain()
                    self._link.write(frame)
            except BaseException:
                self.abort()
                raise
        await self.drain()

    async def recv(self) -> str | bytes:
        """Receive one message: `str` if it was sent as text, else `bytes`.

        Cancelling it loses nothing.

        Raises:
            ConnectionClosed: the peer has closed in order and every message was received.
            ConnectionLost: the connection ended without a Close, or with one that reports a failure, or in the
                middle of a message.
            MessageTooLarge: the message is longer than ``max_message_size``; the connection is closed (1009).
            InvalidMessage: a text message is not UTF-8; the connection is closed (1007).
            RuntimeError: another task reads already.
        """
        while True:
            try:
                message = self._received.take_message()
            except ProtocolViolation as error:
                self._fail(error)
                self._send_close(error.close_code, error.message)
                self._link.close()
                raise
            self._resume_if_room()
            if message is not None:
                return message
            if not await self._more():
                if self._received.in_message:
                    raise ConnectionLost("The connection was closed in the middle of a message", entity=self._entity)
                raise ConnectionClosed("The connection is closed", self.close_code, self.close_reason)

    def __aiter__(self) -> Self:
        """Receive messages until the peer closes in order; raises as `recv` otherwise."""
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.recv()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    # --- the end ----------------------------------------------------------------------------------------------

    async def close(self, code: int = 1000, reason: str = "", *, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Close both directions: send Close, let the peer finish, drop what it still sends. Safe to call again.

        Args:
            code: 1000, or 3000 to 4999, for an end in order; 1001 or 1011 tell of a failure.
            reason: up to 123 bytes for people.
            timeout: seconds to wait for the peer's Close; then TCP is ended without it. None: for ever.

        Raises:
            InvalidSetting: `code` must not be sent (RFC 6455 section 7.4).
        """
        if not is_valid_close_code(code):
            raise InvalidSetting(f"{code} is no close code that may be sent: use 1000, 1001, 1011 or 3000 to 4999")
        if self._link.closed.done():
            return
        try:
            async with asyncio.timeout(timeout):
                async with self._sending:  # a message that is being sent is completed first
                    self._send_close(code, reason)
                self._discard()
                await self.wait_closed()
        except TimeoutError:
            self._discard()
            self._link.close()
            await self.wait_closed()

    def abort(self) -> None:
        """Cut the connection at once: unsent data is lost, the peer sees an abnormal end."""
        self._fail(ConnectionLost("The connection was aborted by this end", entity=self._entity))
        self._discard()
        self._link.abort()

    def is_closing(self) -> bool:
        """True when nothing more can be written."""
        return self._leg.sent_close is not None or self._failure is not None or self._link.closed.done()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone, however that comes. It does not begin the end: see `close`."""
        await asyncio.shield(self._link.closed)

    # --- called by the link -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Not for applications."""
        for item in self._leg.receive(data, self._clock.monotonic()):
            match item:
                case Data():
                    if not self._discarding and self._failure is None:
                        self._received.add(item)
                case Send():
                    self._link.write(item.data)
                case PeerClosed():
                    self._peer_closed(item.close)
                case Broken():
                    self._link.write(item.farewell)
                    self._fail(item.error)
                    self._link.close()
        if self._received.size > RECEIVE_LIMIT and not self._reading_paused:
            self._reading_paused = True
            self._link.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Not for applications."""
        self._stop_timers()
        if not self._leg.done and not (self._discarding and self._leg.sent_close is not None):
            how = f": {error}" if error is not None and str(error) else ""
            lost = ConnectionLost(f"The connection was lost{how}", entity=self._entity, tracking_id=self._tracking_id)
            lost.__cause__ = error
            self._fail(lost)
        self._wake()

    # --- inside -----------------------------------------------------------------------------------------------

    def _peer_closed(self, close: Close) -> None:
        if close.code in _ORDERLY or (close.code or 0) >= 3000:
            self._eof = True
        else:
            reason = f": {close.reason}" if close.reason else ""
            self._fail(ConnectionLost(f"The connection was closed with {close.code}{reason}", entity=self._entity))
            # A failure ends both directions: answer, or the relay would wait for us.
            if self._leg.sent_close is None:
                self._link.write(self._leg.close(close.code, "", self._clock.monotonic()))
        self._finish_if_done()

    def _drop(self, code: int, reason: str) -> None:
        """Close without waiting; for a connection that no application owns."""
        self._send_close(code, reason)
        self._discard()
        self._link.close()

    def _send_close(self, code: int, reason: str) -> None:
        if self._leg.sent_close is not None or self._link.closed.done():
            return
        self._link.write(self._leg.close(code, reason, self._clock.monotonic()))
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._leg.done and self._linger_timer is None:
            self._stop_timers()
            self._linger_timer = self._clock.call_later(LINGER, self._link.close)
            self._link.resume_reading()  # to see the relay end TCP

    def _fail(self, error: RelayError) -> None:
        """Remember why the connection fails; the first reason stays."""
        if self._failure is None:
            self._failure = error

    def _discard(self) -> None:
        self._discarding = True
        self._received.clear()
        self._resume_if_room()
        self._wake()

    def _check_writable(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._leg.sent_close is not None:
            close = self._leg.sent_close
            raise ConnectionClosed("This end of the connection is closed", close.code, close.reason)

    def _take(self, limit: int) -> bytes:
        data = self._received.take(limit)
        self._resume_if_room()
        return data

    def _gather(self) -> None:
        self._received.gather()
        self._resume_if_room()

    async def _more(self) -> bool:
        """Wait until something arrives that was not there; False when nothing will, because the end came in order."""
        if self._received.size:
            return True
        if self._eof:
            return False
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._discarding:
            return False
        if self._arrival is not None:
            raise RuntimeError("Another task already reads from this connection")
        self._arrival = asyncio.get_running_loop().create_future()
        try:
            await self._arrival
        finally:
            self._arrival = None
        return True

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _resume_if_room(self) -> None:
        if self._reading_paused and self._received.size <= RECEIVE_LIMIT // 2:
            self._reading_paused = False
            self._link.resume_reading()

    def _arm_heartbeat(self) -> None:
        due = self._leg.next_tick
        self._heartbeat_timer = None
        if due is not None and not self._link.closed.done():
            delay = max(due - self._clock.monotonic(), 0.0)
            self._heartbeat_timer = self._clock.call_later(delay, self._beat)

    def _beat(self) -> None:
        match self._leg.tick(self._clock.monotonic(), unheard=self._link.unheard()):
            case Send(data):
                self._link.write(data)
            case Silent(reason):
                self._fail(ConnectionLost(reason, entity=self._entity, tracking_id=self._tracking_id))
                self._link.abort()
                return
        self._arm_heartbeat()

    def _stop_timers(self) -> None:
        for timer in (self._heartbeat_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
