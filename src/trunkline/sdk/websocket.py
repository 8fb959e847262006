"""The asyncio shell under every WebSocket of the SDK: control channel, accept leg and sender leg.

    link, subprotocol = await dial(url, ...)     proxy, TCP, TLS, upgrade
    link.start(receiver)                         from now on bytes go to the receiver

It carries bytes and decides nothing: frames, heartbeats and closing belong to the state machines above it
(`trunkline.protocol.control_channel`, `trunkline.sdk.leg`). The handshake is that of the websockets library,
which sees the response head only, because it would take frames that arrive behind the head for itself.

Transports come from aiofastnet on every event loop: the loops' own TLS transports lose received data when the
peer closes while reading is paused. It needs no fallback of ours: on a loop that it cannot drive by itself (Windows'
proactor) it already goes through that loop's own sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import socket
import ssl as ssl_module
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import aiofastnet
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.http11 import Request
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from trunkline._version import __version__
from trunkline.protocol.errors import (
    ConnectionLost,
    HeadersTooLarge,
    InvalidSetting,
    ProtocolViolation,
    error_for_status,
)
from trunkline.protocol.frames import Masker, mask_bytes
from trunkline.sdk.clock import SYSTEM_CLOCK, Clock, Timer
from trunkline.sdk.proxy import Proxy, ProxySetting, open_tunnel, proxy_for

try:  # written in C, and part of the websockets wheels of every usual platform
    from websockets.speedups import apply_mask

    MASKER = cast(Masker, apply_mask)
except ImportError:  # a platform without such a wheel; masks some 20 times slower
    MASKER = mask_bytes

#: Bytes of a response head. A refusal may carry the listener's own words in its reason phrase, which the relay
#: passes on whole; they came to the relay in a request head, of at most 32 KiB.
RESPONSE_HEAD_LIMIT = 65_536
#: Bytes of a refusal's body, and seconds to wait for them, where its reason phrase was lost on the way.
REFUSAL_BODY_LIMIT = 8_192
REFUSAL_BODY_TIMEOUT = 1.0
#: Bytes that may wait in the transport before `Link.drain` waits, and below which it goes on.
WRITE_HIGH_WATER = 262_144
WRITE_LOW_WATER = 65_536
#: Seconds that the peer has to follow a close of the transport, before it is cut; the default is no limit for
#: plain TCP and 30 s for TLS.
TRANSPORT_CLOSE_TIMEOUT = 5.0
TLS_HANDSHAKE_TIMEOUT = 10.0
TLS_SHUTDOWN_TIMEOUT = 3.0

# tcpi_unacked (segments) and tcpi_last_ack_recv (milliseconds) of Linux' struct tcp_info (linux/tcp.h): eight bytes,
# then words, of which these are the fifth and the thirteenth.
_TCP_INFO = struct.Struct("=24xI28xI")
# The first byte of it: the state of a connection that is gone (tcp_states.h).
_TCP_CLOSED = 7

#: Sent on listen and connect as the .NET client does, so that an operator sees who is there.
USER_AGENT = f"trunkline/{__version__} ({platform.system()}; Python {platform.python_version()})"

_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # a token of RFC 9110 section 5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: ([^\r\n]*))?\r\n")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,6})[ \t]*\r\n", re.IGNORECASE)
#: What the handshake writes itself. The rest of a request's headers is the application's.
_OWN_HEADERS = frozenset(
    ("host", "upgrade", "connection", "content-length", "transfer-encoding", "servicebusauthorization")
)

Headers = Iterable[tuple[str, str]]


class Receiver(Protocol):
    """Where the bytes of a `Link` go."""

    def data_received(self, data: bytes) -> None:
        """Bytes arrived behind the upgrade."""

    def connection_lost(self, error: Exception | None) -> None:
        """The transport is gone: None after an orderly end of TCP, else what broke it. Called once, and last."""


def masks() -> Callable[[], bytes]:
    """Makes the function that yields one mask key per frame.

    Keys must not be foreseeable by an application whose data is framed (RFC 6455 section 10.3), so they come from
    the operating system; a thousand at a time, because one system call per frame would cost more than the masking.
    """
    pool = memoryview(b"")

    def new_mask() -> bytes:
        nonlocal pool
        if not pool:
            pool = memoryview(os.urandom(4096))
        key, pool = bytes(pool[:4]), pool[4:]
        return key

    return new_mask


class Link(asyncio.Protocol):
    """The transport of one WebSocket. Made by `dial`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        # Bytes that arrived before `start`: the response head, then frames that came right behind it.
        self._early = bytearray()
        # Resolved with the response head, without the empty line's successor; None when it is not awaited.
        self._head: asyncio.Future[bytes] | None = None
        # The body of a refusal, while it is awaited, and its size.
        self._body: asyncio.Future[None] | None = None
        self._body_size = 0
        self._receiver: Receiver | None = None
        self._paused = False
        # Not None while the transport holds more than WRITE_HIGH_WATER bytes; resolved when it has drained.
        self._drained: asyncio.Future[None] | None = None
        self._abort_timer: Timer | None = None
        self._failure: Exception | None = None
        # On uvloop under Linux the socket, to be asked about what uvloop does not tell: see `_look_for_reset`.
        self._socket: socket.socket | None = None
        #: Resolved when the transport is gone, however that came.
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        if self.closed.done():
            state = "closed"
        elif self._transport is None or self._receiver is None:
            state = "connecting"
        elif self._transport.is_closing():
            state = "closing"
        else:
            state = "open"
        return f"<Link {state} unsent={self.unsent}>"

    @property
    def unsent(self) -> int:
        """Bytes given to `write` that the operating system has not taken yet."""
        if self._transport is None or self.closed.done():
            return 0
        return self._transport.get_write_buffer_size()

    @property
    def congestion(self) -> asyncio.Future[None] | None:
        """While the peer does not take what was written: resolved when it has taken most of it, or is gone."""
        return self._drained

    def extra_info(self, name: str) -> object:
        """See `asyncio.BaseTransport.get_extra_info`."""
        return None if self._transport is None else self._transport.get_extra_info(name)

    def unheard(self) -> float | None:
        """Seconds since the peer's TCP last acknowledged anything, while bytes of ours wait for that.

        None when none do, or where the system does not tell (it does on Linux). It answers what no timer above TCP
        can: a peer that is slow still acknowledges what it was sent, one that is gone does not. While its receive
        buffer is full it is sent nothing but probes, up to two minutes apart; then nothing waits.
        """
        connection = self.extra_info("socket")
        if sys.platform != "linux" or connection is None or self.closed.done():
            return None
        info = cast(socket.socket, connection).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        if len(info) != _TCP_INFO.size:
            return None
        unacknowledged, silence = _TCP_INFO.unpack(info)
        return silence / 1000 if unacknowledged else None

    # --- called by the application's side ---------------------------------------------------------------------

    def start(self, receiver: Receiver) -> None:
        """Hand everything from now on to `receiver`, beginning with what has arrived already."""
        self._receiver = receiver
        early, self._early = bytes(self._early), bytearray()
        if early:
            receiver.data_received(early)
        if self.closed.done():
            receiver.connection_lost(self._failure)
        else:
            self.resume_reading()

    def write(self, data: bytes) -> None:
        """Send `data`; dropped when the transport is gone or going, which `Receiver.connection_lost` tells."""
        if self._transport is None or self._transport.is_closing():
            return
        # A uvloop transport raises RuntimeError when the peer's reset was seen but not told to us yet.
        with contextlib.suppress(RuntimeError):
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the transport has taken most of what was written, or is gone."""
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def pause_reading(self) -> None:
        """Take no more from the network, from the end of this turn of the loop; what it has taken still comes.

        Not at once: a TLS transport of aiofastnet 1.2 that is paused while it delivers keeps what it had decrypted
        beyond that, and does not deliver it after `resume_reading` unless more arrives from the network.
        """
        if not self._paused:
            self._paused = True
            asyncio.get_running_loop().call_soon(self._pause)

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        self._paused = False
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def _pause(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def close(self) -> None:
        """Send what is unsent, then end TCP; cut it when that takes longer than TRANSPORT_CLOSE_TIMEOUT."""
        if self._transport is None or self.closed.done():
            return
        if self._abort_timer is None:
            self._abort_timer = self._clock.call_later(TRANSPORT_CLOSE_TIMEOUT, self.abort)
        self.resume_reading()  # a paused transport does not see the peer's end
        self._transport.close()

    def abort(self) -> None:
        """Cut TCP at once; what is unsent is lost."""
        if self._transport is not None and not self.closed.done():
            self._transport.abort()

    # --- called by the transport ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # uvloop's own low-water mark is 16 bytes: every drain would empty the pipe.
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER, low=WRITE_LOW_WATER)
        if sys.platform == "linux" and type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
            self._socket = cast(socket.socket | None, transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        if self._socket is not None:
            self._look_for_reset(self._socket)
        if self._receiver is not None:
            self._receiver.data_received(data)
            return
        self._early += data
        if self._body is not None and len(self._early) >= self._body_size and not self._body.done():
            self._body.set_result(None)
        if self._head is None or self._head.done():
            return
        end = self._early.find(b"\r\n\r\n")
        if end >= 0:
            self._head.set_result(bytes(self._early[: end + 4]))
            del self._early[: end + 4]
        elif len(self._early) > RESPONSE_HEAD_LIMIT:
            self._head.set_exception(HeadersTooLarge("The response head has no end"))
        else:
            return
        self.pause_reading()  # until `start`; what still comes is kept

    def _look_for_reset(self, connection: socket.socket) -> None:
        """Cut TCP when the peer has reset it in the same moment as it sent what is being read now.

        uvloop does not tell of such a reset: it never looks at the socket again (uv_poll of libuv stops at an error).
        """
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSED:
            asyncio.get_running_loop().call_soon(self.abort)

    def eof_received(self) -> bool:
        return False  # a WebSocket that ends without Close is over: nothing can be sent on it

    def connection_lost(self, exc: Exception | None) -> None:
        self._failure = exc
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        self.closed.set_result(None)
        if self._head is not None and not self._head.done():
            lost = ConnectionLost("The connection was closed before the upgrade was answered")
            lost.__cause__ = exc
            self._head.set_exception(lost)
        if self._body is not None and not self._body.done():
            self._body.set_result(None)
        if self._receiver is not None:
            # Not kept: the two hold each other, and would wait for the garbage collector.
            receiver, self._receiver = self._receiver, None
            receiver.connection_lost(exc)

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # --- the handshake ----------------------------------------------------------------------------------------

    async def exchange(self, request: bytes) -> bytes:
        """Send a request head and return the response head.

        Raises:
            ConnectionLost: the peer closed instead of answering.
            HeadersTooLarge: the answer's head is longer than RESPONSE_HEAD_LIMIT.
        """
        self._head = asyncio.get_running_loop().create_future()
        if self.closed.done():
            raise ConnectionLost("The connection was closed before the upgrade was sent") from self._failure
        self.write(request)
        return await self._head

    async def refusal_body(self, size: int) -> bytes:
        """The `size` bytes behind the head of a refusal, or what of them comes within REFUSAL_BODY_TIMEOUT."""
        self._body, self._body_size = asyncio.get_running_loop().create_future(), size
        if len(self._early) < size and not self.closed.done():
            self.resume_reading()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFUSAL_BODY_TIMEOUT):
                    await self._body
        return bytes(self._early[:size])


async def dial(
    url: str,
    *,
    timeout: float | None,
    headers: Headers = (),
    token: str | None = None,
    subprotocols: Sequence[str] = (),
    ssl: ssl_module.SSLContext | None = None,
    proxy: ProxySetting = None,
    clock: Clock = SYSTEM_CLOCK,
) -> tuple[Link, str | None]:
    """Connect to `url` and upgrade.

    Args:
        url: ``ws://`` or ``wss://``; used as it is.
        timeout: seconds for name resolution, proxy, TCP, TLS and the answer to the upgrade together; None for no limit.
        headers: headers of the application, whose names keep their case.
        token: goes into ``ServiceBusAuthorization``, without a scheme word of ours.
        subprotocols: offered, in this order.
        ssl: the TLS settings of a ``wss://`` URL; None for the platform's defaults.
        proxy: see `trunkline.sdk.proxy`; None to look at the environment.

    Returns:
        The link, which stays silent until its `start`, and the subprotocol that was chosen, if one was.

    Raises:
        RelayError: the peer refused; the class follows its status (see `error_for_status`).
        ProtocolViolation: the peer answered something that is no upgrade.
        ConnectionLost: the peer closed the connection without an answer.
        InvalidSetting: the URL, a header or a subprotocol cannot be sent, or the proxy cannot be read.
        ProxyError: a proxy stood in the way.
        OSError: no connection (refused, unknown host, TLS: `ssl.SSLError`).
        TimeoutError: not done within `timeout`.
    """
    uri = _read_url(url)
    handshake, request = _request(uri, headers, token, subprotocols)
    via = proxy_for(uri.host, uri.port, secure=uri.secure, setting=proxy)
    link = Link(clock)
    try:
        async with asyncio.timeout(timeout):
            await _connect(link, uri, ssl, via)
            head = await link.exchange(request.serialize())
            size = _body_to_read(head)
            body = await link.refusal_body(size) if size else b""
    except TimeoutError as error:
        link.abort()
        if error.args:  # the operating system's own (ETIMEDOUT) says more
            raise
        through = f" through the proxy {via}" if via is not None else ""
        raise TimeoutError(f"No WebSocket to {uri.host}:{uri.port}{through} within {timeout:g} s") from None
    except ConnectionResetError as error:
        link.abort()
        if error.args:
            raise
        # How aiofastnet tells of an end in the middle of a TLS handshake.
        raise ConnectionLost("The connection was closed in the TLS handshake") from error
    except BaseException:
        link.abort()
        raise
    try:
        _check_answer(handshake, head, body)
    except BaseException:
        link.close()
        raise
    return link, handshake.subprotocol


def _read_url(url: str) -> WebSocketURI:
    """`url`, whose path and query stay as they are written.

    The websockets library's own reader drops what follows a ``;`` in the last segment of a path.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidSetting(f"The address cannot be read: {error}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or not url.isascii():
        raise InvalidSetting("The address is no ws:// or wss:// URL in ASCII")
    try:
        parts.hostname.encode("idna")  # as the look-up does
    except UnicodeError:
        raise InvalidSetting("The host of the address has a label that is empty or too long") from None
    secure = parts.scheme == "wss"
    return WebSocketURI(secure, parts.hostname, port or (443 if secure else 80), parts.path, parts.query)


async def _connect(link: Link, uri: WebSocketURI, ssl: ssl_module.SSLContext | None, proxy: Proxy | None) -> None:
    """Open TCP, through the proxy if there is one, and TLS under `link`."""
    where: dict[str, Any] = {"host": uri.host, "port": uri.port}
    if proxy is not None:
        where = {"sock": await open_tunnel(proxy, uri.host, uri.port)}
    if uri.secure:
        where |= {
            "ssl": ssl or ssl_module.create_default_context(),
            "server_hostname": uri.host,
            "ssl_handshake_timeout": TLS_HANDSHAKE_TIMEOUT,
            "ssl_shutdown_timeout": TLS_SHUTDOWN_TIMEOUT,
        }
    try:
        await aiofastnet.create_connection(asyncio.get_running_loop(), lambda: link, **where)
    except BaseException:
        if proxy is not None:
            where["sock"].close()  # as it does with a socket of its own
        raise


def _request(
    uri: WebSocketURI, headers: Headers, token: str | None, subprotocols: Sequence[str]
) -> tuple[ClientProtocol, Request]:
    """The upgrade request, and the object that will judge its answer."""
    for name in subprotocols:
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidSetting(f"The subprotocol {name!r} is no token (RFC 6455 section 4.1)")
    offered = [Subprotocol(name) for name in subprotocols]
    handshake = ClientProtocol(uri, extensions=None, subprotocols=offered or None)
    request = handshake.connect()
    if token is not None:
        if not _HEADER_VALUE.fullmatch(token):
            raise InvalidSetting("The token holds characters that no header can carry")
        request.headers["ServiceBusAuthorization"] = token
    for name, value in headers:
        if name.lower() in _OWN_HEADERS or name.lower().startswith("sec-websocket-"):
            raise InvalidSetting(f"The header {name!r} belongs to the handshake and cannot be set")
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidSetting(f"The header name {name!r} is no token (RFC 9110 section 5.6.2)")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidSetting(f"The value of the header {name!r} holds characters that no header can carry")
        request.headers[name] = value
    return handshake, request


def _body_to_read(head: bytes) -> int:
    """Bytes of the body of a refusal whose reason phrase is not the relay's; 0 where the phrase says all there is.

    Some proxies (Caddy, whatever speaks HTTP/2 on one side) put the usual phrase of the status, or none, in its place.
    A relay of Trunkline says the same in the body.
    """
    status_line, length = _STATUS_LINE.match(head), _CONTENT_LENGTH.search(head)
    if status_line is None or length is None:
        return 0
    status, phrase = int(status_line[1]), (status_line[2] or b"").decode("latin-1").strip()
    usual = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    if status < 400 or phrase.lower() not in ("", usual.lower()):
        return 0
    size = int(length[1])
    return size if size <= REFUSAL_BODY_LIMIT else 0


def _check_answer(handshake: ClientProtocol, head: bytes, body: bytes) -> None:
    """Raise unless `head` accepts the upgrade.

    A refusal is read here and not by the websockets library, which cuts status lines at 8 KiB and waits for a body.
    """
    status_line = _STATUS_LINE.match(head)
    if status_line is None:
        raise ProtocolViolation("The peer did not answer in HTTP/1.1")
    status = int(status_line[1])
    if status != 101:
        phrase = (status_line[2] or b"").decode("latin-1")
        if b"TrackingId:" in body:
            phrase = body.decode("utf-8", "replace")
        raise error_for_status(status, phrase)
    handshake.receive_data(head)
    failure = handshake.handshake_exc
    if failure is not None:
        reason = str(failure) if isinstance(failure, InvalidHandshake) else type(failure).__name__
        raise ProtocolViolation(f"The peer's answer to the upgrade is invalid: {reason}") from failure
