"""Forwards requests to the target, and its answers back, a piece at a time.

Neither body is held as a whole: the pace of the slower side is the pace of both. Only long forms are, on disk, because
some servers take one without a Content-Length for an empty one (Django, and whatever else is WSGI). A request is never
sent a second time: the target may have seen it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import aiohttp

from trunkline.expose import answers
from trunkline.expose.answers import Refusal, Refused
from trunkline.expose.headers import HeaderRules, Headers, content_length
from trunkline.expose.paths import leaves_root, target_path
from trunkline.expose.pool import Pool
from trunkline.expose.report import Kind, Record, Watcher
from trunkline.protocol.errors import ConnectionLost, HeadersTooLarge, InvalidSetting, RelayError
from trunkline.sdk.asgi.form_body import CollectedForm

if TYPE_CHECKING:
    from trunkline.sdk import HttpRequest, ResponseWriter

#: Bytes of a form that are collected; the rest of a longer one is not waited for, and it goes in chunks.
LONGEST_FORM = 256 * 1024 * 1024


class Forwarder:
    """Forwards plain requests. `handle` is the ``http_handler`` of a listener.

    Args:
        pool: connections to the target.
        rules: of the headers.
        watcher: gets a record of each request.
        clock: seconds, for the records.
    """

    def __init__(
        self,
        pool: Pool,
        rules: HeaderRules,
        watcher: Watcher,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._rules = rules
        self._watcher = watcher
        self._clock = clock
        #: Requests whose answer is not complete.
        self.in_flight = 0

    async def handle(self, request: HttpRequest) -> None:
        """Forward one request; returns when it is answered, whole or broken off.

        Raises:
            ConnectionLost: nobody waits for the answer any more.
        """
        exchange = _Exchange(request, self._rules, self._pool)
        started = self._clock()
        self.in_flight += 1
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._forward(exchange))
                request.disconnected.add_done_callback(lambda _: work.cancel())
            if work.cancelled():
                exchange.leave()
        except BaseException:  # cancelled with the whole program
            exchange.give_up("trunkline expose ended in the middle")
            raise
        finally:
            self.in_flight -= 1
            self._watcher.record(exchange.record(self._clock() - started))
        if exchange.left:
            raise ConnectionLost("The sender or the relay has left", tracking_id=request.tracking_id)

    async def _forward(self, exchange: _Exchange) -> None:
        try:
            try:
                await self._ask(exchange)
            except Refused as refused:
                if exchange.body_failed:
                    raise ConnectionLost from refused
                await exchange.refuse(refused.refusal)
        except RelayError:
            exchange.leave()

    async def _ask(self, exchange: _Exchange) -> None:
        """Raises Refused: the target gave no answer."""
        path, headers = exchange.asked()
        async with exchange.body() as (body, length):
            if length:
                headers.append(("Content-Length", str(length)))
            response = await self._pool.request(exchange.request.method, path, headers, body)
            try:
                await exchange.answer(response)
            finally:
                # Does nothing to one that was read to its end; cuts the connection of any other.
                response.close()


class _Exchange:
    """One request and what became of it."""

    def __init__(self, request: HttpRequest, rules: HeaderRules, pool: Pool) -> None:
        self.request = request
        self._rules = rules
        self._pool = pool
        self._public_path = rules.public_path(request.headers, request.entity)
        self._path = target_path(request.target, request.entity, keep=rules.keep_path)
        self._writer: ResponseWriter | None = None
        self._status = 0
        self._received = 0
        self._sent = 0
        self._error = ""
        #: Nobody waits for the answer.
        self.left = False
        #: The sender's body broke off: nobody waits for an answer.
        self.body_failed = False

    def asked(self) -> tuple[str, Headers]:
        """Path and headers for the target. Raises Refused."""
        if self._rules.is_loop(self.request.headers):
            raise Refused(answers.LOOP)
        if self._pool.target.base_path and leaves_root(self._path):
            raise Refused(answers.OUTSIDE)
        headers = self._rules.request(
            self.request.headers, remote=self.request.remote_address[0], public_path=self._public_path
        )
        return self._path, headers

    @asynccontextmanager
    async def body(self) -> AsyncIterator[tuple[AsyncIterator[bytes] | None, int | None]]:
        """The sender's body in pieces, None for none, and its length, None if that is unknown. Raises Refused."""
        length = self.request.length
        if length == 0:
            yield None, 0
        elif length is not None:
            yield self._pieces(), length
        elif not _is_form(self.request):
            yield _after_the_head(self._pieces()), None
        else:
            pieces = self._pieces()
            beginning = _Beginning(pieces)
            try:
                form = await CollectedForm.of(beginning)
            except OSError as error:
                raise Refused(answers.no_room(error.strerror or str(error))) from error
            with closing(form):
                if beginning.is_whole:
                    yield aiter(form), form.length
                else:
                    yield _joined(form, pieces), None

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self.request:
                self._received += len(piece)
                yield piece
        except RelayError:
            self.body_failed = True
            raise

    async def answer(self, response: aiohttp.ClientResponse) -> None:
        """Pass the target's answer on."""
        headers = self._rules.response(response.raw_headers, self._public_path)
        try:
            writer = await self.request.respond(
                response.status, headers, reason=response.reason or None, length=content_length(headers)
            )
        except (HeadersTooLarge, InvalidSetting) as error:
            raise Refused(answers.target_confused(error.message)) from error
        self._writer, self._status = writer, response.status
        try:
            async for piece in response.content.iter_any():
                self._sent += len(piece)
                await writer.write(piece)
        except aiohttp.ClientError:
            # Whoever gets a part must not take it for the whole.
            self.give_up("the target broke off in the middle of its answer")
        else:
            await writer.end()

    async def refuse(self, refusal: Refusal) -> None:
        """Answer in place of the target."""
        self._status, self._error = refusal.status, refusal.error
        body = refusal.body(self.request.entity, self.request.tracking_id)
        headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
        self._writer = await self.request.respond(refusal.status, headers, length=len(body))
        if self.request.method != "HEAD":
            self._sent = len(body)
            await self._writer.write(body)
        await self._writer.end()

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self.left = True
        self.give_up("the sender left")

    def give_up(self, error: str) -> None:
        """End an answer that was begun without a clean end."""
        self._error = error
        if self._writer is not None:
            self._writer.abort()

    def record(self, seconds: float) -> Record:
        """For whoever watches."""
        return Record(
            Kind.REQUEST,
            self.request.method,
            self._path.partition("?")[0],
            self._status,
            seconds,
            self._received,
            self._sent,
            self.request.remote_address[0],
            self.request.tracking_id,
            self._error,
        )


def _is_form(request: HttpRequest) -> bool:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "multipart/form-data"


class _Beginning:
    """The pieces of a body up to `LONGEST_FORM`."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        #: Once it was iterated: whether that was all.
        self.is_whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        while size < LONGEST_FORM:
            piece = await anext(self._pieces, None)
            if piece is None:
                self.is_whole = True
                return
            size += len(piece)
            yield piece


async def _joined(*bodies: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    for body in bodies:
        async for piece in body:
            yield piece


async def _after_the_head(body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Makes the head go at once: aiohttp would keep it until there is something to send with it."""
    yield b""
    async for piece in body:
        yield piece
