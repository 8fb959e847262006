"""The shell of an HTTP rendezvous: carries one large request in, or one large answer out, with back-pressure.

    leg = HttpLeg(link, ...)             link: upgraded to the address of a `request` command
    await leg.request()                  the request, where it was only told of on the control channel
    await leg.piece()                    the next piece of its body; b"" at the end
    leg.command(response); await leg.body(data, end=...)
    leg.close(1000, "")

What is not read stays in the network: behind RECEIVE_HIGH_WATER bytes the leg stops reading. What the relay does not
take makes `body` wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from trunkline.protocol.control_channel import AbortTransport, CloseTransport, Send
from trunkline.protocol.errors import ConnectionLost
from trunkline.protocol.http_rendezvous import BodyPart, Command, Ended, HttpRendezvous, Received
from trunkline.protocol.messages import Request, Response
from trunkline.sdk.clock import Clock
from trunkline.sdk.leg import FRAME_LIMIT
from trunkline.sdk.websocket import MASKER, Link, masks

#: Bytes of a body that may wait to be read before the leg stops reading from the network, and below which it goes on.
RECEIVE_HIGH_WATER = 262_144
RECEIVE_LOW_WATER = 65_536
#: Bytes that are given to the transport before it is asked whether it has room for more.
SEND_PIECE = 262_144


class HttpLeg:
    """The listener's end of the WebSocket of one request.

    Args:
        link: upgraded to the address of the request.
        clock: its monotonic time is the leg's time.
        tracking_id: of the request.
        heartbeat: seconds of silence of ours after which a ping is due; 0 for none.
    """

    def __init__(self, link: Link, *, clock: Clock, tracking_id: str, heartbeat: float) -> None:
        self._link = link
        self._clock = clock
        self._core = HttpRendezvous(
            masked=False,
            now=clock.monotonic(),
            tracking_id=tracking_id,
            frame_limit=FRAME_LIMIT,
            new_mask=masks(),
            heartbeat=heartbeat,
            masker=MASKER,
        )
        self._request: Request | None = None
        # Pieces of the request's body that nobody has read, their bytes, and whether it is whole.
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._whole = False
        # Resolved when any of this, or `ended`, changes; None while nobody waits for it.
        self._changed: asyncio.Future[None] | None = None
        #: This end has closed: what follows is no news.
        self.closing = False
        #: Why nothing can be sent or received any more; None while it can.
        self.ended: Ended | None = None
        #: Called when the relay or the network has ended the leg, which is how a sender's leaving is told.
        self.on_lost: Callable[[], object] | None = None
        link.start(self)

    def __repr__(self) -> str:
        return f"<HttpLeg {self._core!r} unread={self._size} {self._link!r}>"

    @property
    def closed(self) -> asyncio.Future[None]:
        """Resolved when the transport is gone."""
        return self._link.closed

    # --- the request ------------------------------------------------------------------------------------------

    async def request(self) -> Request:
        """The request that the relay sends at the beginning.

        Raises:
            ConnectionLost: the leg ended before it came.
        """
        while self._request is None:
            await self._change()
        return self._request

    async def piece(self) -> bytes:
        """The next piece of the request's body; ``b""`` once all were given.

        Raises:
            ConnectionLost: the leg ended in the middle of the body; the pieces before that were given.
        """
        while not self._pieces:
            if self._whole:
                return b""
            await self._change()
        piece = self._pieces.popleft()
        before = self._size
        self._size -= len(piece)
        if before > RECEIVE_LOW_WATER >= self._size:
            self._link.resume_reading()
        return piece

    async def _change(self) -> None:
        if self.ended is not None:
            raise self._lost()
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _tell_change(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    def _lost(self) -> ConnectionLost:
        assert self.ended is not None
        code = f" with {self.ended.code}" if self.ended.code is not None else ""
        return ConnectionLost(
            f"The sender or the relay has left; the rendezvous ended{code}: {self.ended.reason}",
            tracking_id=self._core.tracking_id,
        )

    # --- the answer -------------------------------------------------------------------------------------------

    def command(self, response: Response) -> None:
        """Send the head of the answer.

        Raises:
            HeadersTooLarge: nothing was sent; another one may be.
        """
        self._run(self._core.command(response, self._clock.monotonic()))

    async def body(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the body, which goes out at once; wait while the relay does not take what was sent.

        Raises:
            ConnectionLost: the leg has ended.
        """
        size = len(data)
        if size <= SEND_PIECE:
            self._send(data, end=end)
            await self._link.drain()
            return
        view = memoryview(data)
        for start in range(0, size, SEND_PIECE):
            self._send(view[start : start + SEND_PIECE], end=end and start + SEND_PIECE >= size)
            await self._link.drain()

    def _send(self, data: bytes | memoryview, *, end: bool) -> None:
        if self.ended is not None:
            raise self._lost()
        self._run(self._core.body(data, self._clock.monotonic(), end=end))

    def answer(self, response: Response, body: bytes) -> None:
        """Send a whole answer, of at most SEND_PIECE bytes or so, and close.

        Raises:
            ConnectionLost: the leg has ended.
            HeadersTooLarge: nothing was sent; another one may be.
        """
        if self.ended is not None:
            raise self._lost()
        now = self._clock.monotonic()
        commands = self._core.command(response, now)
        if response.body:
            commands += self._core.body(body, now, end=True)
        self.closing = True
        self._forget()
        commands += self._core.close(1000, "", now)
        # One write for all of it.
        self._link.write(b"".join(command.data for command in commands if isinstance(command, Send)))
        self._run([command for command in commands if not isinstance(command, Send)])

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self, code: int, reason: str) -> None:
        """Close: 1000 after a whole answer, anything else breaks it off. Unread data is dropped."""
        self.closing = True
        self._forget()
        self._run(self._core.close(code, reason, self._clock.monotonic()))

    def abort(self) -> None:
        """Cut the transport."""
        self.closing = True
        self._link.abort()

    def tick(self) -> None:
        """A second has passed, or so."""
        self._run(self._core.tick(self._clock.monotonic(), unheard=self._link.unheard()))

    def _forget(self) -> None:
        self._pieces.clear()
        self._size = 0
        self._link.resume_reading()  # or the Close that answers ours is not seen

    # --- events -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See `trunkline.sdk.websocket.Receiver`."""
        self._run(self._core.receive(data, self._clock.monotonic()))

    def connection_lost(self, error: Exception | None) -> None:
        """See `trunkline.sdk.websocket.Receiver`."""
        self._run(self._core.connection_lost(self._clock.monotonic()))

    def _run(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Send():
                    self._link.write(command.data)
                case BodyPart():
                    self._take(command)
                case Received():
                    assert isinstance(command.command, Request)  # what `parse_from_relay` gives
                    self._request = command.command
                    self._whole = not command.command.body
                    self._tell_change()
                case Ended():
                    self.ended = command
                    self._tell_change()
                    if self.on_lost is not None and not self.closing:
                        self.on_lost()
                case CloseTransport():
                    self._link.close()
                case AbortTransport():
                    self._link.abort()

    def _take(self, part: BodyPart) -> None:
        if part.data:
            self._pieces.append(part.data)
            self._size += len(part.data)
            if self._size > RECEIVE_HIGH_WATER:
                self._link.pause_reading()
        self._whole = part.end
        self._tell_change()
