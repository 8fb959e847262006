"""The requests of one listener: each is given to the handler in a task of its own, and its answer to the relay.

    control channel -> requested() -> (fetch from its rendezvous) -> handler -> HttpResponse -> relay

Nothing that happens to one request concerns the others. At most ``max_requests`` are in hand at a time; one more is
answered with 503 at once, because a queue would hold senders without saying so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from trunkline.protocol.control_channel import Requested
from trunkline.protocol.errors import ConnectionLost, MessageTooLarge, RelayError
from trunkline.protocol.limits import CONTROL_BODY_LIMIT
from trunkline.protocol.messages import Request, Response
from trunkline.sdk.clock import Clock, Timer
from trunkline.sdk.control_channel import ControlChannel
from trunkline.sdk.endpoint import Endpoint
from trunkline.sdk.http_rendezvous import HttpLeg
from trunkline.sdk.relayed_http import HttpRequest, HttpResponse, ResponseWriter, error_answer, has_header
from trunkline.sdk.websocket import dial

log = logging.getLogger("trunkline.sdk.listener")

#: Requests in hand at a time unless told otherwise.
MAX_REQUESTS = 1_024
#: Seconds that an answer may be held, to go over the control channel if it is whole by then.
FLUSH_AFTER = 0.02
# Seconds between two looks at the answers that wait for that: a look for each would cost as much as the answer, and a
# timer of uvloop that is shorter than a millisecond is over at once.
_FLUSH_APART = 0.005
#: Seconds for going to a rendezvous, and for the request to come there.
RENDEZVOUS_TIMEOUT = 30.0
#: Seconds between two looks at the rendezvous that are open.
_SWEEP = 1.0
#: Requests that are fetched at a time only to be refused; more are left to the relay, which asks another listener.
_REFUSED_AT_A_TIME = 64
#: Seconds that `leave` takes at most.
_LEAVE_WITHIN = 2.0
#: Seconds that `stop` leaves to answers on their last way.
_LAST_WAY = 6.0

HttpHandler = Callable[[HttpRequest], Awaitable[HttpResponse | None]]

# The words of .NET, which Microsoft's own tests look for.
_NO_HANDLER = (501, "RequestHandler has not been configured")
_OVERLOADED = (503, "The listener is overloaded: it has as many requests as it takes")
_FAILED = (500, "The request handler of the listener failed")
_CLOSING = (503, "The listener closes")


class HttpService:
    """Serves what a listener's control channels bring.

    Args:
        handler: answers a request; None answers all of them with 501.
        endpoint: the hybrid connection, with the settings for dialling.
        clock: for its timers.
        heartbeat: seconds between pings on a silent rendezvous; 0 for none.
        max_requests: requests in hand at a time; None for no limit.
    """

    def __init__(
        self,
        handler: HttpHandler | None,
        *,
        endpoint: Endpoint,
        clock: Clock,
        heartbeat: float,
        max_requests: int | None,
    ) -> None:
        self._handler = handler
        self._endpoint = endpoint
        self._clock = clock
        self._heartbeat = heartbeat
        self._max_requests = max_requests
        # Requests that the handler has or gets next, and how many are in hand, those that are being fetched too.
        self._requests: set[HttpRequest] = set()
        self._in_hand = 0
        # Those that are on the way to a rendezvous, so that the end of the control channel is not theirs.
        self._moving: set[HttpRequest] = set()
        # Their answers, where the channel has ended before they came there.
        self._answers: dict[HttpRequest, tuple[Response, bytes]] = {}
        # Fetches whose request will be refused.
        self._refusing = 0
        # The last request was refused for that, which the log says once.
        self._overloaded = False
        # Everything that runs: handlers, fetches of requests, openings of rendezvous.
        self._tasks: set[asyncio.Task[None]] = set()
        self._legs: set[HttpLeg] = set()
        self._sweeper: Timer | None = None
        # Answers that are held, with the time at which that ends; one timer for all, because all wait equally long.
        self._held: deque[tuple[float, ResponseWriter]] = deque()
        self._flusher: Timer | None = None
        self._stopping = False
        # Tasks that close the listener. A handler among them is not ended by it, nor waited for.
        self._closers: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<HttpService requests={self._in_hand} rendezvous={len(self._legs)}>"

    # --- requests ---------------------------------------------------------------------------------------------

    def requested(self, channel: ControlChannel, requested: Requested) -> None:
        """A control channel brings a request."""
        if self._stopping:
            return
        command = requested.request
        refusal = self._refusal()
        if command.method is None:
            if refusal is None:
                self._in_hand += 1
                _ = self.spawn(self._serve_fetched(channel, command))
            elif self._refusing < _REFUSED_AT_A_TIME:
                self._refusing += 1
                _ = self.spawn(self._refuse_fetched(command, refusal))
        elif refusal is not None:
            with contextlib.suppress(ConnectionLost):
                channel.respond(*error_answer(command, *refusal, refusal[1]))
        else:
            self._in_hand += 1
            request = self._request(channel, command, requested.body or b"", None)
            if channel.ended.done():  # it was on its way when the listener left
                self._moving.add(request)
                _ = self.spawn(self._serve_late(request))
            else:
                _ = self.spawn(self._serve(request))

    def channel_ended(self, channel: ControlChannel) -> None:
        """The relay has given up what it asked for on `channel` and what has no rendezvous."""
        for request in [each for each in self._requests - self._moving if each._channel is channel]:
            if request._leg is None and (request._writer is None or request._writer._opening is None):
                request._lose()

    def _refusal(self) -> tuple[int, str] | None:
        if self._handler is None:
            return _NO_HANDLER
        if self._max_requests is not None and self._in_hand >= self._max_requests:
            if not self._overloaded:
                log.warning("%s: requests are refused: max_requests is %d", self._endpoint, self._max_requests)
            self._overloaded = True
            return _OVERLOADED
        self._overloaded = False
        return None

    def _request(self, channel: ControlChannel, command: Request, body: bytes, leg: HttpLeg | None) -> HttpRequest:
        request = HttpRequest(command, body, leg, channel=channel, entity=self._endpoint.path, way=self)
        self._requests.add(request)
        return request

    async def _serve_fetched(self, channel: ControlChannel, told: Request) -> None:
        """Get the request that the relay told of from its rendezvous, and serve it there."""
        fetched = None
        try:
            fetched = await self._fetch(told)
        finally:
            if fetched is None:
                self._in_hand -= 1
        if fetched is not None:
            command, leg = fetched
            await self._serve(self._request(channel, command, b"", leg))

    async def _refuse_fetched(self, told: Request, refusal: tuple[int, str]) -> None:
        """The answer to such a request has to be given there, too."""
        try:
            fetched = await self._fetch(told)
        finally:
            self._refusing -= 1
        if fetched is not None:
            command, leg = fetched
            with contextlib.suppress(ConnectionLost):
                leg.answer(*error_answer(command, *refusal, refusal[1]))

    async def _fetch(self, told: Request) -> tuple[Request, HttpLeg] | None:
        """The request and the leg it came by; None when it cannot be had."""
        leg = None
        try:
            async with asyncio.timeout(RENDEZVOUS_TIMEOUT):
                leg = await self.dial(told.address, told.id)
                return await leg.request(), leg
        except (RelayError, OSError) as error:
            # A sender that has left is no trouble of this side.
            level = logging.INFO if leg is not None and isinstance(error, ConnectionLost) else logging.WARNING
            log.log(level, "%s: the request %s cannot be fetched: %s", self._endpoint, told.id, error)
            if leg is not None:
                leg.close(1011, "The request did not come in time")
            return None

    async def _serve_late(self, request: HttpRequest) -> None:
        """Serve a request that can be answered by its rendezvous alone."""
        await self.move(request)
        await self._serve(request)

    async def _serve(self, request: HttpRequest) -> None:
        """Ask the handler and send its answer."""
        assert self._handler is not None
        try:
            answer = await self._handler(request)
            if answer is not None:
                await self._answer(request, answer)
            elif request._writer is None:
                # Nor one that has left while the handler read what it sent.
                log.log(logging.INFO if request._gone else logging.ERROR, "The handler gave no answer to %r", request)
                self._fail(request, *_FAILED)
            elif not request._writer._ended:
                await request._writer.end()
        except asyncio.CancelledError:
            self._fail(request, *(_CLOSING if self._stopping else _FAILED))
            if not request._gone or self._stopping:
                if not self._stopping:
                    log.error("The request handler was cancelled for %r", request)
                raise
        except (ConnectionLost, MessageTooLarge) as error:
            if isinstance(error, MessageTooLarge) and request._too_long:
                log.info("%r: %s", request, error)
                self._fail(request, error.status, error.message)
            elif request._gone:
                log.info("%r: %s", request, error)
                self._fail(request, *_FAILED)
            else:  # of something else that the handler does
                log.exception("The request handler failed for %r", request)
                self._fail(request, *_FAILED)
        except Exception:
            log.exception("The request handler failed for %r", request)
            self._fail(request, *_FAILED)
        finally:
            self._requests.discard(request)
            self._in_hand -= 1
            request._finish()

    async def _answer(self, request: HttpRequest, answer: HttpResponse) -> None:
        if request._writer is not None:
            raise RuntimeError("The request handler has called respond and has returned an HttpResponse too")
        body = answer.body
        if not isinstance(body, bytes):
            await self._stream(request, answer, body)
            return
        headers = answer.headers
        if request.method == "HEAD" and body and not has_header(headers, "content-length"):
            headers += (("Content-Length", str(len(body))),)
        response = request._head(answer.status, headers, answer.reason)
        if not response.body:
            body = b""
        if len(body) <= CONTROL_BODY_LIMIT:
            self._send(request, response if body else replace(response, body=False), body)
            return
        writer = await request.respond(answer.status, headers, reason=answer.reason, length=len(body))
        await writer.end(body)

    async def _stream(self, request: HttpRequest, answer: HttpResponse, pieces: AsyncIterable[bytes]) -> None:
        """Send the pieces as they come. When the sender leaves, the iteration is cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(pieces, AsyncGenerator):
                await stack.enter_async_context(contextlib.aclosing(pieces))
            writer = await request.respond(answer.status, answer.headers, reason=answer.reason)
            if writer._response.body:
                request._on_gone = asyncio.current_task()
                async for piece in pieces:
                    await writer.write(piece)
                request._on_gone = None
            await writer.end()

    def _fail(self, request: HttpRequest, status: int, words: str) -> None:
        """End a request whose handler did not answer it."""
        writer = request._writer
        if writer is not None:
            if not writer._ended:
                writer._break_off(status, words)
            return
        with contextlib.suppress(ConnectionLost):
            self._send(request, *error_answer(request._command, status, words))

    def _send(self, request: HttpRequest, response: Response, body: bytes) -> None:
        """Send a whole small answer."""
        if request._leg is not None:
            request._leg.answer(response, body)
        else:
            self.respond(request, response, body)

    # --- ways out: see `trunkline.sdk.relayed_http.Way` ---------------------------------------------------------

    def respond(self, request: HttpRequest, response: Response, body: bytes) -> None:
        """Answer on the control channel that brought the request."""
        channel = request._channel
        assert isinstance(channel, ControlChannel)
        if request in self._moving and channel.ended.done():
            self._answers[request] = response, body
            return
        try:
            channel.respond(response, body)
        except ConnectionLost:
            request._lose()
            raise

    async def dial(self, address: str, tracking_id: str) -> HttpLeg:
        """Go to the rendezvous of a request. No token goes along: the address itself is the permission."""
        link, _ = await dial(
            address,
            timeout=RENDEZVOUS_TIMEOUT,
            ssl=self._endpoint.ssl,
            proxy=self._endpoint.proxy,
            clock=self._clock,
        )
        leg = HttpLeg(link, clock=self._clock, tracking_id=tracking_id, heartbeat=self._heartbeat)
        self._legs.add(leg)
        leg.closed.add_done_callback(lambda _: self._legs.discard(leg))
        if self._sweeper is None:
            self._sweeper = self._clock.call_later(_SWEEP, self._sweep)
        return leg

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` in a task, which `stop` ends; at once, as far as it need not wait, where Python can (3.12)."""
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            task = asyncio.Task(work, loop=loop, eager_start=True)
        else:
            task = loop.create_task(work)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    def hold(self, writer: ResponseWriter) -> None:
        """Let an answer go over the rendezvous if it is not whole soon."""
        self._held.append((self._clock.monotonic() + FLUSH_AFTER, writer))
        if self._flusher is None:
            self._flusher = self._clock.call_later(FLUSH_AFTER, self._flush)

    def _flush(self) -> None:
        self._flusher = None
        now = self._clock.monotonic()
        while self._held:
            due, writer = self._held[0]
            if due <= now:
                self._held.popleft()
                writer._flush()
            else:
                self._flusher = self._clock.call_later(max(due - now, _FLUSH_APART), self._flush)
                return

    def _sweep(self) -> None:
        self._sweeper = self._clock.call_later(_SWEEP, self._sweep) if self._legs else None
        for leg in tuple(self._legs):
            leg.tick()

    # --- the end ----------------------------------------------------------------------------------------------

    def spare(self) -> None:
        """The running task closes the listener; if it is a handler, the end of the listener is not its end."""
        task = asyncio.current_task()
        assert task is not None
        self._closers.add(task)

    def give_up(self) -> None:
        """Answer what is in hand with 503, as long as there is the control channel to do so, and take no more."""
        self._stopping = True
        for request in list(self._requests):
            if request._leg is None and (request._writer is None or request._writer._opening is None):
                self._fail(request, *_CLOSING)
                request._lose()

    async def leave(self) -> None:
        """Give each request in hand a rendezvous of its own, so that it can be answered without the control channel.

        Returns at a moment in which each has one or cannot have one; under a load that leaves no such moment, soon.
        """
        tried: set[HttpRequest] = set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_WITHIN):
                while requests := [each for each in self._requests if each._leg is None and each not in tried]:
                    tried.update(requests)
                    await asyncio.wait([self.spawn(self.move(each)) for each in requests])
        for request in self._requests - tried:  # they go there while the channel closes
            self._moving.add(request)
            _ = self.spawn(self.move(request))

    async def move(self, request: HttpRequest) -> None:
        """Give a request a rendezvous of its own, unless it has one or is answered."""
        try:
            await self._move(request)
        finally:
            self._moving.discard(request)
            self._answers.pop(request, None)

    async def _move(self, request: HttpRequest) -> None:
        answered = request in self._answers
        if request._leg is not None or (request not in self._requests and not answered):
            return
        if request._writer is not None and not answered:
            request._writer._flush()
            if request._writer._opening is not None:
                await asyncio.wait([request._writer._opening])
            return
        self._moving.add(request)
        try:
            leg = await self.dial(request._command.address, request.tracking_id)
        except (RelayError, OSError) as error:
            if request in self._requests:  # not answered meanwhile
                log.warning("%r: the rendezvous cannot be reached: %s", request, error)
                channel = request._channel
                if isinstance(channel, ControlChannel) and channel.ended.done():
                    request._lose()
            return
        if request in self._answers:
            leg.answer(*self._answers[request])
        elif request not in self._requests:
            leg.close(1000, "")  # answered meanwhile
        elif request._writer is not None:
            request._writer._flush(leg)
        else:
            request._take(leg)

    def _last(self) -> set[asyncio.Future[None]]:
        """What the end waits for: handlers, and answers on their last way."""
        return {*(self._tasks - self._closers), *(leg.closed for leg in self._legs if leg.closing)}

    async def drained(self) -> None:
        """Wait until no request is in hand and no answer on its way."""
        while last := self._last():
            await asyncio.wait(last)

    async def stop(self) -> None:
        """End what is in hand. Answers that are whole get a moment for their last way."""
        self._stopping = True
        for task in self._tasks - self._closers:
            task.cancel()
        if last := self._last():
            await asyncio.wait(last, timeout=_LAST_WAY)
        if not self._tasks & self._closers:
            self.abort()

    def abort(self) -> None:
        """End everything at once."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        for leg in self._legs:
            leg.abort()
        for timer in (self._sweeper, self._flusher):
            if timer is not None:
                timer.cancel()
