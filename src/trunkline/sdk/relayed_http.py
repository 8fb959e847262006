"""HTTP over a hybrid connection, as an application sees it: a request, and two ways to answer it.

    async def handle(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, await request.read(), headers={"Content-Type": "text/plain"})

    async def stream(request: HttpRequest) -> None:
        answer = await request.respond(200)
        async for chunk in request:
            await answer.write(chunk)
        await answer.end()

`trunkline.sdk.http_service` calls the handler. An answer of at most CONTROL_BODY_LIMIT bytes that ends at once, or
within FLUSH_AFTER seconds, goes over the control channel; for a longer or slower one the listener opens a WebSocket of
its own (`trunkline.sdk.http_rendezvous`), on which each piece goes out as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from trunkline.protocol import messages
from trunkline.protocol.errors import (
    ConnectionLost,
    HeadersTooLarge,
    InvalidSetting,
    MessageTooLarge,
    RelayError,
    clean_phrase,
)
from trunkline.protocol.limits import CONTROL_BODY_LIMIT, CONTROL_MESSAGE_LIMIT
from trunkline.protocol.messages import Request, Response
from trunkline.sdk.http_rendezvous import HttpLeg
from trunkline.sdk.incoming import CaseInsensitiveHeaders

#: Bytes of a request's body that `HttpRequest.read` takes unless told otherwise.
READ_LIMIT = 64 * 1024 * 1024
#: Bytes of an answer that may wait while its rendezvous is opened, before `ResponseWriter.write` waits too.
OPENING_HIGH_WATER = 262_144

HeaderPairs = Mapping[str, str] | Iterable[tuple[str, str]]

_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # a token of RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 section 5.5, in Latin-1
# Characters of names and values of which a command can surely be made: JSON makes at most six of one.
_SURELY_SHORT = 8_192
#: Answers with these have no body (RFC 9110 section 6.4.1).
_WITHOUT_BODY = frozenset((204, 304))


def _pairs(headers: HeaderPairs) -> tuple[tuple[str, str], ...]:
    pairs = tuple(headers.items() if isinstance(headers, Mapping) else headers)
    for name, value in pairs:
        if not _NAME.fullmatch(name):
            raise InvalidSetting(f"The header name {name!r} is no token (RFC 9110 section 5.6.2)")
        if not _VALUE.fullmatch(value):
            raise InvalidSetting(f"The value of the header {name!r} holds characters that no header can carry")
    return pairs


def _checked_status(status: int) -> int:
    if not 200 <= status <= 999:
        raise InvalidSetting(f"status is {status}; an answer can have 200 to 999")
    return status


def has_header(pairs: Iterable[tuple[str, str]], wanted: str) -> bool:
    """Whether `wanted`, in lower case, is among the names."""
    return any(name.lower() == wanted for name, _ in pairs)


class HttpResponse:
    """The answer to a request, as a handler returns it.

    Args:
        status: 200 to 999.
        body: the whole of it, text as UTF-8; or an async iterable, each piece of which goes out as it comes. It is
            not sent where HTTP knows no body: to HEAD, and with 204 and 304.
        headers: names and values; in pairs where a name comes several times. Relays set Content-Length,
            Transfer-Encoding, Connection and the like themselves. Text without a Content-Type is given
            ``text/plain; charset=utf-8``.
        reason: the reason phrase; None for the usual one of the status.

    Raises:
        InvalidSetting: a status, a header or a body that cannot be sent.
    """

    __slots__ = ("body", "headers", "reason", "status")

    def __init__(
        self,
        status: int = 200,
        body: bytes | str | AsyncIterable[bytes] = b"",
        *,
        headers: HeaderPairs = (),
        reason: str | None = None,
    ) -> None:
        self.status = _checked_status(status)
        self.headers = _pairs(headers)
        self.reason = reason
        self.body: bytes | AsyncIterable[bytes]
        if isinstance(body, str):
            self.body = body.encode()
            if not has_header(self.headers, "content-type"):
                self.headers += (("Content-Type", "text/plain; charset=utf-8"),)
        elif isinstance(body, bytes | AsyncIterable):
            self.body = body
        else:
            raise InvalidSetting(f"body is {type(body).__name__}; it must be bytes, text or an async iterable of bytes")

    def __repr__(self) -> str:
        size = f"{len(self.body)} bytes" if isinstance(self.body, bytes) else "streamed"
        return f"<HttpResponse {self.status} {size}>"


class Way(Protocol):
    """How answers leave; `trunkline.sdk.http_service` gives it."""

    def respond(self, request: HttpRequest, response: Response, body: bytes) -> None:
        """Answer on the control channel.

        Raises:
            HeadersTooLarge: the head is longer than a command may be; nothing was sent.
            ConnectionLost: the control channel has ended.
        """

    async def dial(self, address: str, tracking_id: str) -> HttpLeg:
        """Go to the rendezvous of a request. Raises as `trunkline.sdk.websocket.dial`."""

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` in a task, which ends with the listener."""

    async def move(self, request: HttpRequest) -> None:
        """Give a request a rendezvous of its own, unless it has one or is answered."""

    def hold(self, writer: ResponseWriter) -> None:
        """Call `ResponseWriter._flush` in FLUSH_AFTER seconds."""


class HttpRequest:
    """A sender's HTTP request. Handlers get it; it is not made by applications."""

    __slots__ = (
        "__weakref__",
        "_body",
        "_channel",
        "_command",
        "_disconnected",
        "_entity",
        "_gone",
        "_headers",
        "_leg",
        "_on_gone",
        "_over",
        "_source",
        "_too_long",
        "_way",
        "_writer",
    )

    def __init__(
        self, command: Request, body: bytes, leg: HttpLeg | None, *, channel: object, entity: str, way: Way
    ) -> None:
        self._command = command
        self._body = body
        # The control channel that told of it.
        self._channel = channel
        # The rendezvous that the body comes by; None when it came over the control channel.
        self._source = leg
        # The rendezvous that the answer takes, once that is sure.
        self._leg = leg
        self._entity = entity
        self._way = way
        self._headers: CaseInsensitiveHeaders | None = None
        self._writer: ResponseWriter | None = None
        self._gone = False
        # The handler has returned.
        self._over = False
        # The body was longer than the handler wanted to read.
        self._too_long = False
        # Made when somebody asks for it.
        self._disconnected: asyncio.Future[None] | None = None
        # Ends what nobody waits for any more: the iteration of a streamed body.
        self._on_gone: asyncio.Task[None] | None = None
        if leg is not None:
            self._take(leg)

    def __repr__(self) -> str:
        # Without the query, which may hold credentials.
        state = " disconnected" if self._gone else ""
        return f"<HttpRequest {self.method} {self.path!r} id={self._command.id}{state}>"

    @property
    def method(self) -> str:
        """As the sender sent it: ``GET``, ``POST``, ..."""
        return self._command.method or ""

    @property
    def target(self) -> str:
        """Path and query as the relay passed them on. The path begins with that of the hybrid connection, and is
        decoded as far as that leaves its meaning; the query is as sent, without the relay's own parameters."""
        return self._command.request_target or "/"

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def suffix(self) -> str:
        """The path behind that of the hybrid connection, without the slash between them."""
        path = self.path.removeprefix("/")
        if path[: len(self._entity)].lower() == self._entity.lower():
            path = path[len(self._entity) :]
        return path.removeprefix("/")

    @property
    def query(self) -> str:
        """The query as sent, without ``?`` and without the relay's own parameters."""
        return self.target.partition("?")[2]

    @property
    def headers(self) -> Mapping[str, str]:
        """The sender's headers, by name in any case; repeated ones are joined with ``", "``, cookies with ``"; "``."""
        if self._headers is None:
            self._headers = CaseInsensitiveHeaders(self._command.request_headers)
        return self._headers

    @property
    def remote_address(self) -> tuple[str, int]:
        """IP address and port of the sender, as the relay saw them; ``("", 0)`` if it did not say."""
        remote = self._command.remote_endpoint
        return ("", 0) if remote is None else (remote.address, remote.port)

    @property
    def tracking_id(self) -> str:
        """Names this request in the relay's log lines and errors."""
        return self._command.id

    @property
    def entity(self) -> str:
        """Path of the hybrid connection."""
        return self._entity

    @property
    def length(self) -> int | None:
        """Bytes of the body that are still to be read; None while they are not known, because it is on its way."""
        return len(self._body) if self._source is None else None

    @property
    def is_disconnected(self) -> bool:
        """Whether `disconnected` is done."""
        return self._gone

    @property
    def disconnected(self) -> asyncio.Future[None]:
        """Done when nobody waits for the answer any more: the sender or the relay is gone.

        Known at once while a WebSocket of this request is open, that is, once its body did not fit in the control
        channel, or the answer does not, or with `watch`. Else the protocol has no word for a sender that leaves, and
        only the loss of the control channel is seen. Never done by the end of the answer.
        """
        if self._disconnected is None:
            self._disconnected = asyncio.get_running_loop().create_future()
            if self._gone:
                self._disconnected.set_result(None)
        return self._disconnected

    def watch(self) -> None:
        """Open a WebSocket for this request, if it has none, so that `disconnected` is known at once from then on.

        It costs a connection to the relay, so it is for requests whose answer takes long.
        """
        if self._leg is None and not self._gone:
            _ = self._way.spawn(self._way.move(self))

    # --- the body ---------------------------------------------------------------------------------------------

    async def read(self, limit: int = READ_LIMIT) -> bytes:
        """The rest of the body; ``b""`` when all of it was read.

        Args:
            limit: bytes. A handler that lets the error pass answers with 413.

        Raises:
            MessageTooLarge: there is more than `limit`. What was read is lost.
            ConnectionLost: the sender left before the end of the body.
        """
        pieces = []
        size = 0
        async for piece in self:
            size += len(piece)
            if size > limit:
                self._too_long = True
                raise MessageTooLarge(f"The body of the request is longer than {limit} bytes")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces, as they arrive. What is not taken is not read from the network.

        Raises:
            ConnectionLost: the sender left before the end of the body.
        """
        if self._body:
            body, self._body = self._body, b""
            yield body
        if self._source is not None:
            while piece := await self._source.piece():
                yield piece

    # --- the answer -------------------------------------------------------------------------------------------

    async def respond(
        self,
        status: int = 200,
        headers: HeaderPairs = (),
        *,
        reason: str | None = None,
        length: int | None = None,
    ) -> ResponseWriter:
        """Begin to answer piece by piece, in place of returning an `HttpResponse`; also before the body was read.

        Args:
            status: 200 to 999.
            headers: see `HttpResponse`.
            reason: the reason phrase; None for the usual one.
            length: bytes of the body, where they are known: for Content-Length, and to choose the way sooner.

        Raises:
            InvalidSetting: a status or a header that cannot be sent.
            HeadersTooLarge: the head is longer than a command may be (64 KiB). Another one may be tried.
            RuntimeError: the request is answered already.
        """
        if self._writer is not None or self._over:
            raise RuntimeError("A request is answered once")
        pairs = _pairs(headers)
        if length is not None and not has_header(pairs, "content-length"):
            pairs += (("Content-Length", str(length)),)
        response = self._head(_checked_status(status), pairs, reason)
        self._writer = ResponseWriter(self, response)
        self._writer._begin(length)
        return self._writer

    def _head(self, status: int, headers: tuple[tuple[str, str], ...], reason: str | None) -> Response:
        """The command that begins an answer; its `body` says whether one is allowed."""
        has_body = self._command.method != "HEAD" and status not in _WITHOUT_BODY
        phrase = None if reason is None else clean_phrase(reason)
        response = Response(self._command.id, status, phrase, headers, has_body)
        if sum(len(name) + len(value) for name, value in headers) > _SURELY_SHORT:
            size = len(messages.encode(response))
            if size > CONTROL_MESSAGE_LIMIT:
                limit = f"{size} bytes, and {CONTROL_MESSAGE_LIMIT} is the limit"
                raise HeadersTooLarge(f"The head of the answer is too long: {limit}", tracking_id=self._command.id)
        return response

    def _take(self, leg: HttpLeg) -> None:
        """The answer takes this rendezvous."""
        self._leg = leg
        leg.on_lost = self._lose
        if leg.ended is not None:
            self._lose()

    def _finish(self) -> None:
        """The handler has returned: hold nothing that holds this."""
        self._over = True
        self._writer = None
        self._on_gone = None
        if self._leg is not None:
            self._leg.on_lost = None

    def _lose(self) -> None:
        """Nobody waits for the answer any more."""
        if self._gone:
            return
        self._gone = True
        if self._disconnected is not None and not self._disconnected.done():
            self._disconnected.set_result(None)
        if self._on_gone is not None:
            self._on_gone.cancel()


class _Stage(enum.Enum):
    HELD = "it may still go over the control channel"
    OPENING = "the rendezvous is being opened"
    STREAMING = "pieces go out on the rendezvous as they come"
    SENT = "all of it is sent, or something else is in its place, or nobody waits for it"


class ResponseWriter:
    """An answer that is given piece by piece. `HttpRequest.respond` gives it.

    A handler that returns without `end` has ended it; one that raises has broken it off.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_held",
        "_held_size",
        "_leg",
        "_opening",
        "_request",
        "_response",
        "_stage",
        "_way",
    )

    def __init__(self, request: HttpRequest, response: Response) -> None:
        self._request = request
        self._way = request._way
        self._response = response
        # The rendezvous, once there is one.
        self._leg = request._leg
        self._stage = _Stage.HELD
        # Pieces that wait for the way to be chosen, or for the rendezvous.
        self._held: list[bytes] = []
        self._held_size = 0
        self._opening: asyncio.Task[None] | None = None
        # Why the rendezvous could not be had.
        self._error: Exception | None = None
        # The handler has said all.
        self._ended = False

    def __repr__(self) -> str:
        return f"<ResponseWriter {self._response.status_code} {self._stage.name} of {self._request!r}>"

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; wait while the sender does not take what was sent.

        It goes out at once, in the first FLUSH_AFTER seconds of an answer with what else comes in them. Dropped where
        the answer has no body (HEAD, 204, 304).

        Raises:
            ConnectionLost: nobody waits for the answer any more.
            RuntimeError: the answer has ended.
        """
        self._check()
        if not data or not self._response.body:
            return
        if self._stage is _Stage.STREAMING:
            assert self._leg is not None
            await self._leg.body(data)
            return
        self._held.append(bytes(data))
        self._held_size += len(data)
        if self._stage is _Stage.HELD and self._held_size > CONTROL_BODY_LIMIT:
            self._open()
        if self._held_size > OPENING_HIGH_WATER:
            await self._opened()

    async def end(self, data: bytes = b"") -> None:
        """End the answer, with a last piece if one is given.

        Raises:
            ConnectionLost: nobody waits for the answer any more.
            RuntimeError: the answer has ended.
        """
        self._check()
        self._ended = True
        try:
            await self._end(data if self._response.body else b"")
        except BaseException:
            # Cancelled, most likely. Whoever waits for the rest must not wait for ever.
            if self._stage is not _Stage.SENT:
                self._break_off(502, "The answer was broken off")
            raise

    def abort(self) -> None:
        """Break the answer off. If nothing of it has gone out, the sender gets 502, else it sees the break.

        Does nothing after the end.
        """
        if not self._ended:
            self._break_off(502, "The answer was broken off")

    # --- inside -----------------------------------------------------------------------------------------------

    async def _end(self, data: bytes) -> None:
        if self._stage is _Stage.HELD:
            if self._held_size + len(data) <= CONTROL_BODY_LIMIT:
                self._send_small(data)
                return
            self._open()
        if self._stage is _Stage.OPENING:
            await self._opened()
        if self._stage is _Stage.STREAMING:
            assert self._leg is not None
            if self._response.body:
                await self._leg.body(data, end=True)
            self._stage = _Stage.SENT
            self._leg.close(1000, "")

    def _check(self) -> None:
        self._check_way()
        if self._ended:
            raise RuntimeError("The answer has ended")

    def _check_way(self) -> None:
        """Raise ConnectionLost where nobody waits for the answer any more."""
        if self._error is not None:
            raise ConnectionLost(
                f"The rendezvous of the request cannot be reached: {self._error}",
                tracking_id=self._request.tracking_id,
            ) from self._error
        if self._request._gone:
            raise ConnectionLost("The sender or the relay has left", tracking_id=self._request.tracking_id)

    def _begin(self, length: int | None) -> None:
        """Choose the way, as far as it can be known."""
        if self._leg is not None:
            self._leg.command(self._response)
            self._stage = _Stage.STREAMING
        elif length is not None and length > CONTROL_BODY_LIMIT and self._response.body:
            self._open()
        else:
            self._way.hold(self)

    def _flush(self, leg: HttpLeg | None = None) -> None:
        """The answer is held for long enough; `leg`: its rendezvous, if there is one already."""
        if self._stage is _Stage.HELD and self._response.body:
            self._open(leg)
            return
        if self._stage is _Stage.HELD:
            self._send_small(b"")
        if leg is not None:
            leg.close(1000, "")

    def _send_small(self, data: bytes) -> None:
        """The answer is whole and small."""
        self._stage = _Stage.SENT
        body = b"".join((*self._held, data))
        response = self._response if body else replace(self._response, body=False)
        self._way.respond(self._request, response, body)

    def _open(self, leg: HttpLeg | None = None) -> None:
        self._stage = _Stage.OPENING
        self._opening = self._way.spawn(self._stream(leg))

    async def _stream(self, leg: HttpLeg | None) -> None:
        """Go to the rendezvous and send what is held."""
        try:
            leg = leg or await self._way.dial(self._request._command.address, self._request.tracking_id)
        except (RelayError, OSError) as error:
            self._stage = _Stage.SENT
            self._error = error
            self._request._lose()
            # If the request is still known, the relay is told; if not, it ignores this.
            self._answer_instead(502, "The listener cannot reach the rendezvous of the request")
            return
        self._leg = leg
        self._request._take(leg)
        try:
            leg.command(self._response)
            while self._held:
                data = b"".join(self._held)
                self._held.clear()
                await leg.body(data)
                self._held_size -= len(data)
        except ConnectionLost:
            self._stage = _Stage.SENT
            self._request._lose()
        else:
            self._stage = _Stage.STREAMING

    async def _opened(self) -> None:
        """Wait until what was held is sent."""
        assert self._opening is not None
        await asyncio.wait([self._opening])
        if not self._opening.cancelled():
            self._opening.result()
        self._check_way()

    def _break_off(self, status: int, words: str) -> None:
        """End without a whole answer: with another one where nothing has gone out, else with a break."""
        self._ended = True
        if self._opening is not None:
            self._opening.cancel()
        if self._leg is not None:
            self._leg.close(1011, words)
        elif self._stage in (_Stage.HELD, _Stage.OPENING):
            self._answer_instead(status, words)
        self._stage = _Stage.SENT

    def _answer_instead(self, status: int, words: str) -> None:
        request = self._request
        response, body = error_answer(request._command, status, words)
        with contextlib.suppress(ConnectionLost):
            self._way.respond(request, response, body)


def error_answer(command: Request, status: int, words: str, reason: str | None = None) -> tuple[Response, bytes]:
    """What the sender gets when the listener itself has to answer."""
    body = b"" if command.method == "HEAD" else f"{words}. TrackingId:{command.id}\n".encode()
    return Response(command.id, status, reason, (("Content-Type", "text/plain; charset=utf-8"),), bool(body)), body
