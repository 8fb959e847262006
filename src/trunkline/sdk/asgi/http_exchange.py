"""One request and its answer, between a `HttpRequest` and an ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable

from trunkline.protocol.errors import RelayError
from trunkline.sdk.asgi.scopes import Application, Message, Scope
from trunkline.sdk.relayed_http import HttpRequest, ResponseWriter

log = logging.getLogger("trunkline.sdk.asgi")

#: Seconds without an answer after which an application that waits for the sender's end is told of it at once. That
#: costs a connection to the relay; before, the protocol has no word for a sender that leaves a small request.
WATCH_AFTER = 5.0

_FAILED = b"Internal Server Error"


class HttpExchange:
    """Runs the application for one request. Bodies go through it piece by piece, each way at the pace of the receiver.

    Args:
        request: what the sender asks for.
        answered: called once, with the status and the bytes of the body that were sent, when the answer is over.
        body: what is read in place of the request's own body; iterating it again goes on where it has stopped.
    """

    def __init__(
        self,
        request: HttpRequest,
        answered: Callable[[int, int], None],
        body: AsyncIterable[bytes] | None = None,
    ) -> None:
        self._request = request
        self._answered = answered
        self._received = request if body is None else body
        # Made with the first look at the body: most requests have none.
        self._pieces: AsyncIterator[bytes] | None = None
        self._body_ended = False
        # Applications may wait for the next event twice at a time; the body is read once.
        self._reading = asyncio.Lock()
        # None before http.response.start.
        self._writer: ResponseWriter | None = None
        self._status = 0
        self._sent = 0
        # What is missing of the Content-Length that the application gave; None where it gave none, or no body follows.
        self._missing: int | None = None
        # When the request is to be watched, in seconds of the loop; None when that was done.
        self._watch_at: float | None = asyncio.get_running_loop().time() + WATCH_AFTER
        # The answer is whole, or given up.
        self._is_over = False
        # Done then; made when somebody waits for it.
        self._over: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "answered" if self._is_over else "answering" if self._writer else "asked"
        return f"<HttpExchange {self._request.method} {state} status={self._status} sent={self._sent}>"

    @property
    def is_unanswered(self) -> bool:
        """Whether the sender went before anything of an answer."""
        return self._is_over and self._writer is None

    async def run(self, app: Application, scope: Scope) -> None:
        """Run the application to its end. What it does wrong is logged, and the sender gets 500 or a cut answer."""
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            if self._gone:  # it was interrupted, whatever it makes of that
                log.debug("%r: the application ended after its sender", self, exc_info=True)
            else:
                log.exception("%r: the application failed", self)
            await self._give_up()
        except BaseException:  # the host stops
            self._end(cut=True)
            raise
        else:
            if not self._is_over and not self._gone:
                log.error("%r: the application returned without a whole answer", self)
            await self._give_up()

    async def receive(self) -> Message:
        """What happens next: a piece of the body, or the end of the exchange."""
        async with self._reading:
            if not self._body_ended and not self._is_over:
                return await self._next_piece()
        await self._end_of_all()
        return {"type": "http.disconnect"}

    async def _end_of_all(self) -> None:
        """Wait until the answer is over, or the sender has gone."""
        if self._is_over:
            return
        loop = asyncio.get_running_loop()
        if self._over is None:
            self._over = loop.create_future()
        ends = [self._request.disconnected, self._over]
        if self._watch_at is not None and self._writer is None:
            # Also for an application that looks from time to time, and never waits for long.
            if (rest := self._watch_at - loop.time()) > 0:
                done, _ = await asyncio.wait(ends, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return
            self._watch_at = None
            self._request.watch()
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    async def _next_piece(self) -> Message:
        if self._pieces is None:
            self._pieces = aiter(self._received)
        try:
            return {"type": "http.request", "body": await anext(self._pieces), "more_body": True}
        except StopAsyncIteration:
            self._body_ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        except (RelayError, OSError):
            self._body_ended = True
            return {"type": "http.disconnect"}
        except asyncio.CancelledError:  # frameworks look whether there is an event, and go on without one
            self._pieces = None
            raise

    async def send(self, message: Message) -> None:
        """Send the head of the answer, or a piece of its body. Nothing happens once the sender has gone."""
        if self._gone:
            await asyncio.sleep(0)  # an application that never waits would stop everything else
            return
        kind = message["type"]
        try:
            if self._writer is None:
                _expect(kind, "http.response.start")
                await self._start(message)
            else:
                _expect(kind, "http.response.body")
                if self._is_over:
                    raise RuntimeError("The answer is whole already, and more of its body comes")
                await self._body(self._writer, message.get("body", b""), more=message.get("more_body", False))
        except (RelayError, OSError):
            if not self._gone:
                raise

    async def _start(self, message: Message) -> None:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message.get("headers", ())]
        self._status = message["status"]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), None)
        has_body = self._request.method != "HEAD" and self._status not in (204, 304)
        self._missing = length if has_body else None
        self._writer = await self._request.respond(self._status, headers, length=self._missing)

    async def _body(self, writer: ResponseWriter, data: bytes, *, more: bool) -> None:
        if self._missing is not None:
            self._missing -= len(data)
            if self._missing < 0 or (self._missing and not more):
                wrong = "longer" if self._missing < 0 else "shorter"
                raise RuntimeError(f"The body of the answer is {wrong} than its Content-Length")
        if type(data) is not bytes:  # bytearray and memoryview are used too
            data = bytes(data)
        if more:
            await writer.write(data)
            self._sent += len(data)
        else:
            await writer.end(data)
            self._sent += len(data)
            self._end()

    @property
    def _gone(self) -> bool:
        """The sender does not wait for the answer any more."""
        return self._request.is_disconnected and not self._is_over

    async def _give_up(self) -> None:
        """End an answer that is not whole: with 500 while nothing of it was sent, else by cutting it."""
        if self._is_over:
            return
        if self._writer is None and not self._gone:
            try:
                self._status = 500
                self._writer = await self._request.respond(
                    500, [("Content-Type", "text/plain; charset=utf-8")], length=len(_FAILED)
                )
                self._missing = None
                await self._body(self._writer, _FAILED, more=False)
            except (RelayError, OSError):
                self._end(cut=True)
            return
        self._end(cut=True)

    def _end(self, *, cut: bool = False) -> None:
        if self._is_over:
            return
        if cut and self._writer is not None:
            self._writer.abort()
        self._is_over = True
        if self._over is not None:
            self._over.set_result(None)
        self._answered(self._status, self._sent)


def _expect(kind: str, expected: str) -> None:
    if kind != expected:
        raise RuntimeError(f"An ASGI application must send {expected} here, not {kind}")
