"""A request whose answer is owed, and the answer: what the frontend hands on, and what whoever serves it answers with.

    head                     -> `head`, `remote`, `secure`, `body_length`
    body      read_body(sink) -> sink.body_received, body_ended or body_failed;  pause_body, resume_body
    answer    upgrade(...)      a 101, and the transport is somebody else's
          or  respond(...)      a whole response, `refuse(...)` that of an error
          or  begin(...), write(...) as often as is needed, end()      a response in pieces; `abort()` cuts it

The connection goes on with its next request where the client and the answer allow it (RFC 9112 section 9.3); the answer
to a WebSocket handshake that is no 101 ends it. An answer may come before the body was read: the rest of it is dropped.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from trunkline.protocol.errors import RelayError, clean_phrase
from trunkline.protocol.http_body import BodyDecoder, decoder
from trunkline.protocol.limits import ENTITY_PATH_LIMIT
from trunkline.server.relay.request_head import RequestHead

if TYPE_CHECKING:
    from trunkline.server.relay.admission import Subject
    from trunkline.server.relay.frontend import FrontendProtocol

# Characters of a path in a log line: the longest of an entity with what may stand around it.
_SHOWN = 2 * ENTITY_PATH_LIMIT

# Bytes of a body that are read and dropped behind an early answer. Where more is left, the connection ends.
DROPPED_AT_MOST = 65_536

# A piece of this size is written beside its frame, not joined with it.
_WRITTEN_APART = 16_384

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


# Names of headers that were looked at and are proper, so that each is looked at once; at most so many.
_PROPER_NAMES: set[str] = set()
_MOST_PROPER_NAMES = 1_000
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class StreamProtocol(Protocol):
    """What takes a transport over after a 101: a leg, a control channel."""

    def take_over(self, transport: asyncio.Transport, early: bytes) -> None:
        """Called once, after the 101 was written and the transport was given to this protocol.

        `early` is what the peer sent behind its request head; it comes again by no other way.
        """


class BodySink(Protocol):
    """Whoever wants the body of a request."""

    def body_received(self, data: bytes) -> None:
        """A piece of it, never empty."""

    def body_ended(self) -> None:
        """It is whole; nothing more is called."""

    def body_failed(self, error: RelayError) -> None:
        """It is malformed, and nothing more is called. The answer is still owed; the connection ends behind it."""


class Exchange:
    """A request whose answer is owed. Answered once; what is called behind the answer, or its peer, does nothing."""

    __slots__ = (
        "_body",
        "_connection",
        "_is_chunked",
        "_left",
        "_sink",
        "_stays",
        "body_is_paused",
        "has_begun",
        "head",
        "is_websocket",
        "on_congested",
        "on_left",
        "on_relieved",
        "remote",
        "secure",
        "subject",
    )

    def __init__(self, connection: FrontendProtocol, head: RequestHead, remote: tuple[str, int], secure: bool) -> None:
        self._connection: FrontendProtocol | None = connection
        self.head = head
        # Whether it is the handshake of one; also when no more than the beginning of its head is kept (`hold`).
        self.is_websocket = head.is_websocket
        # Address and port of the client, which may be behind a trusted proxy; then the port may be 0, for unknown.
        # Whatever needs to know who asks, counts, limits or logs, takes it from here.
        self.remote = remote
        # True when the client came over TLS, to this node or to such a proxy.
        self.secure = secure
        # What it is about; set when it is admitted or refused.
        self.subject: Subject | None = None
        # Called when the peer leaves before its answer is whole; at most once.
        self.on_left: Callable[[], None] | None = None
        # Called when the peer takes no more of the answer, and when it does again.
        self.on_congested: Callable[[], None] | None = None
        self.on_relieved: Callable[[], None] | None = None
        # What decodes the body; None when it is whole, and when there is none.
        self._body: BodyDecoder | None = decoder(head.body_length) if head.body_length != 0 else None
        self._sink: BodySink | None = None
        self.body_is_paused = False
        # Whether the connection goes on behind the answer, as far as is known.
        self._stays = True
        # Whether the head of the answer is written; then how its body is: in chunks, or so many bytes are still to
        # come, or (None) until the connection ends.
        self.has_begun = False
        self._is_chunked = False
        self._left: int | None = 0

    def __repr__(self) -> str:
        # Without its query, which may hold a token; and short, because each refusal is a line in the log.
        path = self.head.target.partition("?")[0]
        if len(path) > _SHOWN:
            path = path[:_SHOWN] + "..."
        state = "answered" if self._connection is None else "answering" if self.has_begun else "open"
        return f"<Exchange {self.head.method} {path!r} {state}>"

    @property
    def is_open(self) -> bool:
        """True until the answer is whole, or the peer has left."""
        return self._connection is not None

    # -- the body of the request

    @property
    def body_length(self) -> int | None:
        """Bytes of the body; 0 when there is none, None when it is chunked."""
        return self.head.body_length

    def read_body(self, sink: BodySink) -> None:
        """Give the body to `sink` from now on, beginning with what is here. To be called at most once.

        A client that waits for a 100 before it sends its body gets that now.
        """
        connection = self._connection
        if connection is None:
            return
        if self._body is None:
            sink.body_ended()
            return
        self._sink = sink
        if self.head.expects_continue and not self.has_begun and not connection.has_unread:
            connection.write(_CONTINUE)
        connection.read_body()

    def pause_body(self) -> None:
        """Read no more of the body for now. What was read already may still come."""
        self.body_is_paused = True
        if self._connection is not None:
            self._connection.regulate()

    def resume_body(self) -> None:
        """Read the body again."""
        self.body_is_paused = False
        if self._connection is not None:
            self._connection.read_body()

    @property
    def reads_body(self) -> bool:
        """True while bytes that come are to be given to `take` (for the frontend)."""
        return self._sink is not None and self._body is not None

    def take(self, data: bytes) -> bytes:
        """Decode a part of the body and give it to the sink (called by the frontend); return what is not decoded."""
        body, sink = self._body, self._sink
        assert body is not None and sink is not None
        try:
            piece, rest = body.decode(data)
        except RelayError as error:
            self._body = self._sink = None
            self._stays = False
            sink.body_failed(error)
            return b""
        if body.is_whole:
            self._body = None
        if piece:
            sink.body_received(piece)
        if self._body is None and self._sink is sink:
            self._sink = None
            sink.body_ended()
        return rest

    # -- the answer

    def upgrade(self, protocol: StreamProtocol, *, subprotocol: str | None = None) -> bool:
        """Answer 101 and hand the transport to `protocol`; False when the peer has left."""
        connection = self._take()
        if connection is None:
            return False
        connection.upgrade(self.head, protocol, subprotocol)
        return True

    def respond(
        self,
        status: int,
        phrase: str | None = None,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        content_type: str | None = "text/plain; charset=utf-8",
    ) -> None:
        """Answer with a whole HTTP response.

        Args:
            status: 200 to 999.
            phrase: the reason phrase, passed whole; None for the one of the code.
            headers: further headers.
            body: sent as it is; none to HEAD.
            content_type: of the body; None where it is among the headers, or there is none.
        """
        connection = self._connection
        if connection is None or self.has_begun:
            return
        if content_type is not None:
            headers = (("Content-Type", content_type), *headers)
        head = self._head(connection, status, phrase, headers, len(body), is_whole=True)
        connection.write(head + body if self._left else head)
        self._finish()

    def refuse(self, error: RelayError, phrase: str, *, linger: bool = True) -> None:
        """Answer with an error: the status, the reason phrase that real clients read, and the same text as body.

        Args:
            error: says the status.
            phrase: the reason phrase.
            linger: False to let go of the connection at once, whether or not the peer has read that.
        """
        connection = self._connection
        if connection is None or self.has_begun:
            return
        if not linger:
            self._stays = False
        is_text = not connection.keeps_alive or self.is_websocket
        body, content_type = refusal_body(error, phrase, is_text=is_text)
        self.respond(error.status, phrase, body=body, content_type=content_type)
        if not linger:
            connection.let_go()

    def begin(
        self, status: int, phrase: str | None, headers: Iterable[tuple[str, str]], length: int | None = None
    ) -> None:
        """Send the head of a response whose body follows in pieces.

        Args:
            status: 200 to 999.
            phrase: the reason phrase, passed whole; None for the one of the code.
            headers: all but those of framing, which are added here: the caller drops what is hop by hop. One whose name
                is none is left out.
            length: bytes of the body; None when that is not known.
        """
        connection = self._connection
        if connection is not None and not self.has_begun:
            connection.write(self._head(connection, status, phrase, headers, length))

    def write(self, data: bytes) -> None:
        """Send a piece of the body. Nothing of it is sent where the response has none, and no more than its length."""
        connection = self._connection
        if connection is None or not data:
            return
        if self._is_chunked:
            if len(data) < _WRITTEN_APART:
                connection.write(b"%x\r\n%b\r\n" % (len(data), data))
            else:
                connection.write_all((b"%x\r\n" % len(data), data, b"\r\n"))
        elif self._left is None:
            connection.write(data)
        elif self._left:
            data = data[: self._left]
            self._left -= len(data)
            connection.write(data)

    def end(self) -> None:
        """The response is whole. One that is shorter than its length is cut: there is no other way to say that."""
        connection = self._connection
        if connection is None or not self.has_begun:
            return
        if self._is_chunked:
            connection.write(b"0\r\n\r\n")
        elif self._left:
            self.abort()
            return
        self._finish()

    def abort(self) -> None:
        """Cut the connection, so that no peer takes what it has for a whole response."""
        connection = self._take()
        if connection is not None:
            connection.abort()

    @property
    def congested(self) -> bool:
        """True while the peer does not take what is written."""
        return self._connection is not None and self._connection.congested

    def end_connection(self) -> None:
        """No request follows on the connection."""
        self._stays = False

    def hold(self) -> None:
        """Keep nothing of the request and read no more of it: it will be refused, later."""
        self.head = RequestHead(
            self.head.method, self.head.target.partition("?")[0][:_SHOWN], (), self.head.version, self.head.body_length
        )
        self._stays = False
        if self._connection is not None:
            self._connection.hold()

    def left(self) -> None:
        """The peer is gone (called by the frontend)."""
        on_left = self.on_left
        if self._take() is not None and on_left is not None:
            on_left()

    def _head(
        self,
        connection: FrontendProtocol,
        status: int,
        phrase: str | None,
        headers: Iterable[tuple[str, str]],
        length: int | None,
        *,
        is_whole: bool = False,
    ) -> bytes:
        """The head of the response. Decides how its body is framed, and whether the connection goes on.

        Args:
            is_whole: whether the response ends with this, so that whoever reads the body of the request stops, too.
        """
        head = self.head
        # Nothing that a peer or a listener wrote can end the line, whoever calls.
        phrase = _PHRASES.get(status, "") if phrase is None else clean_phrase(phrase)
        lines = [f"HTTP/1.1 {status} {phrase}"]
        has_date = False
        for name, value in headers:
            if name not in _PROPER_NAMES and not _is_proper(name):
                continue
            lines.append(f"{name}: {value}")
            has_date = has_date or (len(name) == 4 and name.lower() == "date")
        if not has_date:
            lines.append(connection.date_line())
        bodyless = head.method == "HEAD" or status in (204, 304) or status < 200
        self._left = length
        if bodyless:
            self._left = 0
            if length is not None and status != 204 and (length or status != 304):
                lines.append(f"Content-Length: {length}")
        elif length is not None:
            lines.append(f"Content-Length: {length}")
        elif head.version != "1.0":
            self._is_chunked = True
            lines.append("Transfer-Encoding: chunked")
        else:
            self._stays = False
        self._stays = self._stays and connection.may_stay and head.wants_to_stay and not self.is_websocket
        reads_on = self._sink is not None and not is_whole
        self._stays = self._stays and (self._body is None or reads_on or self._is_dropped_soon())
        if not self._stays:
            lines.append("Connection: close")
        elif head.version == "1.0":
            lines.append("Connection: keep-alive")
        self.has_begun = True
        text = "\r\n".join((*lines, "", ""))
        if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1 or "\0" in text:
            text = "\r\n".join((*map(clean_phrase, lines), "", ""))
        return text.encode("latin-1", "replace")

    def _is_dropped_soon(self) -> bool:
        """Whether what is left of the body is so little that it is read for nothing."""
        length = self.head.body_length
        return length is not None and length <= DROPPED_AT_MOST and not self.head.expects_continue

    def _finish(self) -> None:
        body, stays = self._body, self._stays
        connection = self._take()
        if connection is not None:
            connection.answered(body, stays=stays)

    def _take(self) -> FrontendProtocol | None:
        connection, self._connection = self._connection, None
        # Whoever wanted to know holds this exchange, most of the time: a circle that only the garbage collector breaks.
        self.on_left = self.on_congested = self.on_relieved = None
        self._sink = None
        return connection


def _is_proper(name: str) -> bool:
    """Whether a header of an answer may have that name (RFC 9110 section 5.1). What else a listener writes is left out.

    "Content-Length " and "Transfer-Encoding: chunked" are none of the names that the relay keeps for itself, and would
    tell the next recipient where the answer ends.
    """
    if _NAME.fullmatch(name) is None:
        return False
    if len(_PROPER_NAMES) < _MOST_PROPER_NAMES:
        _PROPER_NAMES.add(name)
    return True


def refusal_body(error: RelayError, phrase: str, *, is_text: bool) -> tuple[bytes, str]:
    """The body of an answer that the relay makes itself, and its media type.

    Args:
        error: what is refused, by its name.
        phrase: the words, with the tracking id.
        is_text: for a WebSocket handshake and the admin port, whose clients read the reason phrase.
    """
    if is_text:
        return phrase.encode() + b"\n", "text/plain; charset=utf-8"
    return json.dumps({"error": {"code": error.code, "message": phrase}}).encode(), "application/json"
