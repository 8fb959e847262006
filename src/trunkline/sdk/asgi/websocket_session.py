"""One WebSocket, between an `IncomingConnection` and an ASGI application.

offered -> websocket.connect -> the application: accept -> rendezvous -> messages -> close
                                                 close, or an HTTP answer: the sender is rejected
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

from trunkline.protocol.errors import ConnectionLost, InvalidSetting, ProtocolViolation
from trunkline.protocol.frames import is_valid_close_code
from trunkline.sdk.asgi.scopes import Application, Message, Scope
from trunkline.sdk.connection import Connection, ConnectionClosed
from trunkline.sdk.incoming import IncomingConnection

log = logging.getLogger("trunkline.sdk.asgi")

#: Seconds in which an accepted sender must be there: the relay gives a rendezvous up before.
RENDEZVOUS_TIMEOUT = 60.0
#: Bytes of the reason in a Close frame (RFC 6455 section 5.5: 125 with the code).
_REASON_LIMIT = 123
_NO_CODE, _ABNORMAL, _GOING_AWAY, _FAILED = 1005, 1006, 1001, 1011


class SenderGone(OSError):
    """The sender has left, so nothing can be sent to it; frameworks know it as a disconnect (ASGI WebSocket 2.4)."""


class WebSocketSession:
    """Runs the application for one WebSocket.

    Args:
        incoming: what the sender asks for.
        decided: called once with the status that the sender gets, 101 when it is accepted.
    """

    def __init__(self, incoming: IncomingConnection, decided: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        self._incoming = incoming
        self._decided = decided
        self._connect_told = False
        # Done when the application has accepted or denied the sender.
        self._decision: asyncio.Future[None] = loop.create_future()
        # The connection; an exception when there will be none.
        self._connected: asyncio.Future[Connection] = loop.create_future()
        # Its code and reason when this end closes it.
        self._closing: asyncio.Future[tuple[int, str]] = loop.create_future()
        # Code and reason that the application was, or is to be, told.
        self._disconnect: tuple[int, str] | None = None
        # The status of a denial whose body is still coming.
        self._denial: int | None = None
        self._rendezvous_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "closing" if self._closing.done() else "open" if self._connected.done() else "offered"
        return f"<WebSocketSession {state} {self._incoming!r}>"

    # --- called by the host -----------------------------------------------------------------------------------

    async def decide(self) -> None:
        """Wait until the application has accepted or denied the sender."""
        try:
            await asyncio.shield(self._decision)
        except asyncio.CancelledError:  # it took too long, or the listener leaves
            self.lose()
            raise

    async def attend(self, connection: Connection) -> None:
        """Lend the connection to the application, and close it when that is done."""
        if self._rendezvous_timer is not None:
            self._rendezvous_timer.cancel()
        if self._connected.done():  # given up a moment ago
            connection.abort()
            return
        self._connected.set_result(connection)
        code, reason = await asyncio.shield(self._closing)
        await connection.close(code, reason)

    def lose(self) -> None:
        """There will be no connection, or not any more."""
        self._over(_ABNORMAL, "")
        if not self._connected.done():
            self._connected.set_exception(ConnectionLost("The sender was lost before it was connected"))
            self._connected.exception()  # known: not an error of the loop when nobody waits

    def go_away(self) -> None:
        """The host stops. A sender that still waits for a decision is left to the relay, which may ask others."""
        self._over(_GOING_AWAY, "")
        self._close(_GOING_AWAY, "")

    async def run(self, app: Application, scope: Scope) -> None:
        """Run the application to its end. What it does wrong is logged; the sender gets 500, or a Close with 1011."""
        code = 1000
        try:
            await app(scope, self.receive, self.send)
        except SenderGone:
            pass
        except Exception:
            log.exception("%r: the application failed", self)
            code = _FAILED
        finally:
            if not self._decision.done():
                if code == 1000:
                    log.error("%r: the application returned without accepting or closing", self)
                self._deny(500, "")
            self._close(code, "")

    # --- called by the application ----------------------------------------------------------------------------

    async def receive(self) -> Message:
        """What happens next: the sender's wish to connect, one of its messages, or its end."""
        if not self._connect_told:
            self._connect_told = True
            return {"type": "websocket.connect"}
        if self._disconnect is None:
            try:
                connection = await asyncio.shield(self._connected)
                message = await connection.recv()
                key = "text" if isinstance(message, str) else "bytes"
                return {"type": "websocket.receive", key: message}
            except ConnectionClosed as end:
                self._over(_NO_CODE if end.code is None else end.code, end.reason)
                self._close(end.code or 1000, "")
            except ProtocolViolation as error:  # the SDK has closed with that code
                self._over(error.close_code, error.message)
            except ConnectionLost:
                # With a Close that reports a failure, such as 1001 of a browser that leaves the page, or without.
                code = connection.close_code if self._connected.exception() is None else None
                self._over(code or _ABNORMAL, connection.close_reason if code else "")
        assert self._disconnect is not None
        code, reason = self._disconnect
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        """Accept, deny, send a message, or close.

        Raises:
            SenderGone: the sender has left.
        """
        kind = message["type"]
        if not self._decision.done():
            self._decide(kind, message)
            if kind == "websocket.accept":
                await self._there()
            return
        if self._incoming.rejection is not None or kind not in ("websocket.send", "websocket.close"):
            raise RuntimeError(f"An ASGI application must not send {kind} here")
        if kind == "websocket.close":  # also of one that has ended meanwhile
            code = message.get("code") or 1000
            if not is_valid_close_code(code):
                raise InvalidSetting(f"{code} is no close code that may be sent: use 1000, 1001, 1011 or 3000 to 4999")
            self._over(_ABNORMAL, "")
            self._close(code, message.get("reason") or "")
            return
        connection = await self._there()
        data = message.get("bytes")
        try:
            await connection.send(message["text"] if data is None else data)
        except (ConnectionClosed, ConnectionLost) as error:
            raise SenderGone(str(error)) from None

    def _decide(self, kind: str, message: Message) -> None:
        match kind:
            case "websocket.accept":
                if message.get("headers"):
                    log.warning(
                        "%r: the headers of websocket.accept do not reach the sender: the protocol of the relay has no "
                        "place for them",
                        self,
                    )
                self._incoming.subprotocol = message.get("subprotocol")
                loop = asyncio.get_running_loop()
                self._rendezvous_timer = loop.call_later(RENDEZVOUS_TIMEOUT, self.lose)
                self._decision.set_result(None)
                self._decided(101)
            case "websocket.close":
                self._deny(403, message.get("reason") or "")
            case "websocket.http.response.start" if self._denial is None:
                self._denial = message["status"]
            case "websocket.http.response.body" if self._denial is not None:
                # The protocol carries a status and a phrase; headers and body have no place.
                if not message.get("more_body", False):
                    self._deny(self._denial, "")
            case _:
                raise RuntimeError(f"An ASGI application must not send {kind} before websocket.accept")

    async def _there(self) -> Connection:
        """The connection, once it is there and while it is.

        Raises:
            SenderGone: there is none.
        """
        try:
            connection = await asyncio.shield(self._connected)
        except ConnectionLost as error:
            raise SenderGone(str(error)) from None
        if self._disconnect is not None or connection.close_code is not None or connection.at_eof():
            raise SenderGone("The WebSocket is closed")
        return connection

    # --- inside -----------------------------------------------------------------------------------------------

    def _deny(self, status: int, reason: str) -> None:
        if not reason:
            try:
                reason = HTTPStatus(status).phrase
            except ValueError:
                reason = "Rejected"
        self._incoming.reject(status, reason)
        self._decision.set_result(None)
        self._decided(status)
        self.lose()

    def _over(self, code: int, reason: str) -> None:
        """What `receive` says from now on; the first one stays."""
        if self._disconnect is None:
            self._disconnect = code, reason

    def _close(self, code: int, reason: str) -> None:
        """Close the connection; the first one counts."""
        if not self._closing.done():
            self._closing.set_result((code, reason.encode()[:_REASON_LIMIT].decode(errors="ignore")))
