"""The connections to the target, and what can go wrong with them.

aiohttp does the HTTP. All that it would do on its own is off: no header of its own, no cookies, no redirects followed,
no decompression, no proxy of the environment, and no second attempt.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.client_proto import ResponseHandler

from trunkline.expose import answers
from trunkline.expose.answers import Refused
from trunkline.expose.headers import Headers
from trunkline.expose.health import Health, reason_of
from trunkline.expose.target import Target

#: Seconds that an idle connection to the target is kept: less than the servers of Node and uvicorn keep theirs (5 s),
#: so that no request meets one that is being closed.
KEEP_IDLE = 4.0
#: Connections to the target at a time; more requests wait for one. As many as a node lets through at once by default.
MOST_CONNECTIONS = 1000
#: Seconds for one attempt to connect.
CONNECT_TIMEOUT = 10.0
#: Seconds from the end of a request to the head of its answer. The protocol has no word for a sender that leaves while
#: a small request waits, so a target that never answers would be waited for without end. A relay gives up after 60 s
#: unless told otherwise.
RESPONSE_TIMEOUT = 300.0
#: Bytes of one header of an answer; the relay passes no more on than this in all.
LONGEST_HEADER = 65_536
MOST_HEADERS = 500
#: Bytes that are read from the target ahead of the sender.
READ_AHEAD = 65_536
#: Bytes of one message of a WebSocket: as many as our SDK takes.
LONGEST_MESSAGE = 100 * 1024 * 1024
#: Seconds that the target has for its Close after ours.
CLOSE_TIMEOUT = 5.0
_NO_HEADERS_OF_ITS_OWN = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class TargetLost(aiohttp.ClientError):
    """The target closed the connection after the request was sent.

    A class of its own, because aiohttp tries again when it meets one of those that it knows.
    """


async def _never_again(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise  # it was not connected, so the target has seen nothing
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise TargetLost(str(error)) from error


class Pool(AbstractAsyncContextManager["Pool"]):
    """Sends requests to the target.

    Args:
        target: where to.
        health: told whether it is there.
        tls: as `target.tls_settings` gives it.
        connect_timeout: seconds for one attempt to connect.
        response_timeout: seconds from the end of a request to the head of its answer.
    """

    def __init__(
        self,
        target: Target,
        health: Health,
        *,
        tls: ssl.SSLContext | bool = True,
        connect_timeout: float = CONNECT_TIMEOUT,
        response_timeout: float = RESPONSE_TIMEOUT,
    ) -> None:
        self.target = target
        self._health = health
        self._tls = tls
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=response_timeout)
        self._session: aiohttp.ClientSession | None = None
        # By connection, the body of the answer that it has brought last.
        self._bodies: dict[ResponseHandler, aiohttp.StreamReader] = {}

    async def __aenter__(self) -> Self:
        connector: aiohttp.BaseConnector
        if self.target.unix_socket:
            connector = aiohttp.UnixConnector(
                self.target.unix_socket, limit=MOST_CONNECTIONS, keepalive_timeout=KEEP_IDLE
            )
        else:
            connector = aiohttp.TCPConnector(limit=MOST_CONNECTIONS, keepalive_timeout=KEEP_IDLE, ssl=self._tls)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NO_HEADERS_OF_ITS_OWN,
            timeout=self._timeout,
            read_bufsize=READ_AHEAD,
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            max_headers=MOST_HEADERS,
            middlewares=(_never_again,),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.close()

    @property
    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("The pool is not open: use it in an `async with` block")
        return self._session

    async def request(
        self, method: str, path: str, headers: Headers, body: AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        """Send one request and give the answer, whose body is not read yet.

        Args:
            method: as the sender wrote it.
            path: with the query; sent byte for byte, below the base path of the target.
            headers: all of them; with ``Content-Length`` unless `body` goes in chunks.
            body: in pieces, taken at the pace of the target; None for none.

        Raises:
            Refused: there is no answer.
        """
        try:
            response = await self._opened.request(
                method, self.target.url(path), headers=headers, data=body, allow_redirects=False
            )
        except aiohttp.ClientError as error:
            raise self._refused(error) from error
        self._health.worked()
        if response.status < 200:
            response.close()
            raise Refused(answers.target_confused(f"status {response.status} without an upgrade"))
        self._look_after(response)
        return response

    def _look_after(self, response: aiohttp.ClientResponse) -> None:
        """Let the body of an answer take any time, and make sure that it ends when its connection does.

        aiohttp (seen in 3.14) leaves the reader waiting for ever when a chunk in the middle is malformed.
        """
        protocol = None if response.connection is None else response.connection.protocol
        if protocol is None or (closed := protocol.closed) is None:
            return
        protocol.read_timeout = None
        protocol.start_timeout()  # without one: ends the one that runs
        if protocol not in self._bodies:
            closed.add_done_callback(partial(self._ended, protocol))
        self._bodies[protocol] = response.content

    def _ended(self, protocol: ResponseHandler, closed: asyncio.Future[None]) -> None:
        closed.exception()  # or asyncio complains that nobody asked for it
        body = self._bodies.pop(protocol)
        if not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("The connection ended in the middle of the answer"))

    async def websocket(
        self, path: str, headers: Headers, subprotocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket; its ``protocol`` is the target's choice.

        Raises:
            Refused: the target did not take it, with the target's status where it gave one.
        """
        try:
            websocket = await self._opened.ws_connect(
                self.target.url(path),
                protocols=subprotocols,
                headers=headers,
                autoclose=False,
                max_msg_size=LONGEST_MESSAGE,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
            )
        except aiohttp.WSServerHandshakeError as error:
            self._health.worked()
            if error.status < 300:
                raise Refused(answers.target_takes_no_websocket(error.status)) from error
            raise Refused(answers.target_refused(error.status)) from error
        except aiohttp.ClientError as error:
            raise self._refused(error) from error
        self._health.worked()
        return websocket

    def _refused(self, error: aiohttp.ClientError) -> Refused:
        reason = reason_of(error)
        if isinstance(error, aiohttp.SocketTimeoutError):
            return Refused(answers.target_silent())
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            self._health.failed(reason)
            return Refused(answers.target_slow(reason))
        if isinstance(error, aiohttp.ClientConnectorError):
            self._health.failed(reason)
            return Refused(answers.target_down(reason))
        if isinstance(error, aiohttp.ClientResponseError):
            return Refused(answers.target_confused(error.message))
        return Refused(answers.target_lost())
