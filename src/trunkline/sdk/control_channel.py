"""The shell of a listener's control channel: runs what `ListenerControlChannel` commands, and asks it each second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from trunkline.protocol.control_channel import (
    AbortTransport,
    CloseTransport,
    Command,
    Ended,
    ListenerControlChannel,
    NeedToken,
    Offered,
    Requested,
    Send,
)
from trunkline.protocol.messages import Accept, Response
from trunkline.sdk.clock import Clock, Timer
from trunkline.sdk.tokens import Token
from trunkline.sdk.websocket import MASKER, Link, masks

#: Seconds before a token expires at which a new one is presented. azure-identity hands out the same token again until
#: five minutes before its end, so asking earlier would be of no use.
RENEW_MARGIN = 240.0


class ControlChannel:
    """One registration of a listener, from the upgrade to the end of its transport.

    Args:
        link: upgraded to the listen address.
        clock: its monotonic time is the channel's time.
        token: what the channel was opened with.
        heartbeat: seconds between pings; 0 for none.
        offered: called with each sender that the relay offers.
        requested: called with this channel and each HTTP request that the relay passes on; answer with `respond`.
        need_token: called when a new token is due; answer with `renew`.
    """

    def __init__(
        self,
        link: Link,
        *,
        clock: Clock,
        token: Token,
        heartbeat: float,
        offered: Callable[[Accept], None],
        requested: Callable[[ControlChannel, Requested], None],
        need_token: Callable[[], None],
    ) -> None:
        self._link = link
        self._clock = clock
        self._offered = offered
        self._requested = requested
        self._need_token = need_token
        self._core = ListenerControlChannel(
            now=clock.monotonic(),
            expires_at=self._deadline(token),
            new_mask=masks(),
            heartbeat=heartbeat,
            renew_margin=RENEW_MARGIN,
            masker=MASKER,
        )
        #: Resolved at the first sign of the end.
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._interval = min(1.0, heartbeat / 4) if heartbeat else 1.0
        self._timer: Timer | None = None
        # What is to be written at the end of this turn of the loop: many small answers are one write then.
        self._unsent: list[bytes] = []
        # The relay does not take our answers, so its requests are not read.
        self._held_back = False
        link.start(self)
        self._arm()

    def __repr__(self) -> str:
        return f"<ControlChannel {self._core!r} {self._link!r}>"

    @property
    def closed(self) -> asyncio.Future[None]:
        """Resolved when the transport is gone."""
        return self._link.closed

    def close(self) -> None:
        """Leave in order."""
        self._run(self._core.close(self._clock.monotonic()))

    def abort(self) -> None:
        """Cut the transport."""
        self._link.abort()

    def renew(self, token: Token) -> None:
        """Present a new token.

        Raises:
            HeadersTooLarge: it is longer than a command may be.
        """
        self._run(self._core.renew(token.text, self._deadline(token), self._clock.monotonic()))

    def respond(self, response: Response, body: bytes) -> None:
        """Answer a request; see `ListenerControlChannel.respond`.

        Raises:
            HeadersTooLarge: the head is longer than a command may be; nothing was sent.
            ConnectionLost: the channel has ended.
        """
        self._run(self._core.respond(response, body))

    def data_received(self, data: bytes) -> None:
        """See `trunkline.sdk.websocket.Receiver`."""
        self._run(self._core.receive(data, self._clock.monotonic()))

    def connection_lost(self, error: Exception | None) -> None:
        """See `trunkline.sdk.websocket.Receiver`."""
        if self._timer is not None:
            self._timer.cancel()
        self._run(self._core.connection_lost(self._clock.monotonic()))

    def _deadline(self, token: Token) -> float | None:
        """When `token` expires, in monotonic time: a step of the computer's clock then ends no channel."""
        if token.expires_at is None:
            return None
        return self._clock.monotonic() + token.expires_at - self._clock.time()

    def _arm(self) -> None:
        if not self._link.closed.done():
            self._timer = self._clock.call_later(self._interval, self._tick)

    def _tick(self) -> None:
        self._run(self._core.tick(self._clock.monotonic()))
        self._arm()

    def _run(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Send():
                    self._write(command.data)
                case Requested():
                    self._requested(self, command)
                case Offered():
                    self._offered(command.accept)
                case NeedToken():
                    self._need_token()
                case Ended():
                    self.ended.set_result(command)
                case CloseTransport():
                    self._flush()
                    self._link.close()
                case AbortTransport():
                    self._flush()
                    self._link.abort()

    def _write(self, data: bytes) -> None:
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        if not self._unsent:
            return
        self._link.write(b"".join(self._unsent))
        self._unsent.clear()
        congestion = self._link.congestion
        if congestion is not None and not self._held_back:
            self._held_back = True
            self._link.pause_reading()
            congestion.add_done_callback(self._go_on)

    def _go_on(self, _: object) -> None:
        self._held_back = False
        self._link.resume_reading()
