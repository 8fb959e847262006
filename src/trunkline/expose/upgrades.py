"""Forwards WebSockets: to the target first, so that its subprotocol and its refusals are the sender's.

accept handler   dials the target            refused -> the sender gets the target's status
rendezvous       made by the SDK             with the subprotocol that the target chose
serve            messages both ways          a Close passes with its code, an abnormal end as one
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientWebSocketResponse, WSMsgType

from trunkline.expose import answers
from trunkline.expose.answers import Refused
from trunkline.expose.headers import HeaderRules
from trunkline.expose.paths import leaves_root, target_path
from trunkline.expose.pool import CLOSE_TIMEOUT, Pool
from trunkline.expose.report import Kind, Record, Watcher
from trunkline.protocol.errors import ConnectionLost, InvalidMessage, MessageTooLarge
from trunkline.protocol.frames import is_valid_close_code

if TYPE_CHECKING:
    from trunkline.sdk import Connection, IncomingConnection

#: Seconds that a WebSocket of the target waits for its sender: a little more than the SDK takes for the rendezvous.
UNTAKEN = 35.0
#: Seconds that a sender has for its Close when the whole program ends.
LAST_WORDS = 1.0
#: Code for a target whose sender is gone without a Close (RFC 6455 section 7.4.1).
GOING_AWAY = 1001


class Upgrades:
    """Forwards WebSockets. `accept` is the ``accept_handler`` of a listener, `serve` the handler of its connections.

    Args:
        pool: makes the WebSockets to the target.
        rules: of the headers.
        entity: path of the hybrid connection.
        watcher: gets a record of each when it opens, when it ends, and when the target refuses it.
        clock: seconds, for the records.
    """

    def __init__(
        self,
        pool: Pool,
        rules: HeaderRules,
        entity: str,
        watcher: Watcher,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._rules = rules
        self._entity = entity
        self._watcher = watcher
        self._clock = clock
        # By request: the target has taken it, and the sender is on its way.
        self._untaken: dict[IncomingConnection, tuple[ClientWebSocketResponse, asyncio.TimerHandle]] = {}
        # Those that end because their sender never came.
        self._ending: set[asyncio.Task[bool]] = set()

    async def accept(self, incoming: IncomingConnection) -> None:
        """Ask the target; sets the subprotocol of `incoming`, or rejects it."""
        started = self._clock()
        path = self._path_of(incoming)
        status, error = 101, ""
        try:
            websocket = await self._ask(incoming, path)
        except Refused as refused:
            status, error = refused.refusal.status, refused.refusal.error
            incoming.reject(status, refused.refusal.message.format(entity=self._entity))
        else:
            incoming.subprotocol = websocket.protocol
            timer = asyncio.get_running_loop().call_later(UNTAKEN, self._drop, incoming)
            self._untaken[incoming] = (websocket, timer)
        kind = Kind.OPENED if status == 101 else Kind.REQUEST
        self._watcher.record(self._record(kind, incoming, status, started, 0, 0, error))

    async def _ask(self, incoming: IncomingConnection, path: str) -> ClientWebSocketResponse:
        if self._rules.is_loop(incoming.headers):
            raise Refused(answers.LOOP)
        if self._pool.target.base_path and leaves_root(path):
            raise Refused(answers.OUTSIDE)
        headers = self._rules.request(
            incoming.headers,
            remote=incoming.remote_address[0],
            public_path=self._rules.public_path(incoming.headers, self._entity),
        )
        return await self._pool.websocket(path, headers, incoming.subprotocols)

    def _path_of(self, incoming: IncomingConnection) -> str:
        query = f"?{incoming.query}" if incoming.query else ""
        prefix = f"/{self._entity}" if self._rules.keep_path else ""
        return target_path(f"{prefix}/{incoming.suffix}{query}", self._entity, keep=True)

    async def serve(self, connection: Connection) -> None:
        """Relay the messages of one connection, until both sides have ended."""
        incoming = connection.request
        assert incoming is not None
        if incoming not in self._untaken:  # it took too long: the target has been told that nobody came
            connection.abort()
            return
        websocket, timer = self._untaken.pop(incoming)
        timer.cancel()
        splice = _Splice(connection, websocket)
        started = self._clock()
        try:
            await splice.run()
        except asyncio.CancelledError:
            splice.ended(GOING_AWAY, "trunkline expose ended")
            await connection.close(GOING_AWAY, "trunkline expose ended", timeout=LAST_WORDS)
            raise
        finally:
            code = splice.close_code
            self._watcher.record(
                self._record(Kind.CLOSED, incoming, code, started, splice.received, splice.sent, splice.error)
            )

    async def close(self) -> None:
        """End what the target has taken and nobody came for."""
        for incoming in list(self._untaken):
            self._untaken[incoming][1].cancel()
            self._drop(incoming)
        if self._ending:
            await asyncio.wait(self._ending)

    def _drop(self, incoming: IncomingConnection) -> None:
        websocket, _ = self._untaken.pop(incoming)
        # Kept in self._ending, and awaited by `close`.
        task = asyncio.create_task(websocket.close(code=GOING_AWAY))  # noqa: TID251
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _record(
        self,
        kind: Kind,
        incoming: IncomingConnection,
        status: int,
        started: float,
        received: int,
        sent: int,
        error: str,
    ) -> Record:
        path = self._path_of(incoming).partition("?")[0]
        seconds = self._clock() - started
        return Record(
            kind, "GET", path, status, seconds, received, sent, incoming.remote_address[0], incoming.tracking_id, error
        )


class _Splice:
    """The two ends of one WebSocket."""

    def __init__(self, connection: Connection, websocket: ClientWebSocketResponse) -> None:
        self._connection = connection
        self._websocket = websocket
        self.received = 0
        self.sent = 0
        #: Of the side that closed first; 1006 for an abnormal end.
        self.close_code = 0
        self.error = ""

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as directions:
                sending = directions.create_task(self._to_target())
                await self._from_target()
                sending.cancel()
        finally:
            if not self._websocket.closed:
                await self._websocket.close(code=self._code_to_send(GOING_AWAY))

    async def _to_target(self) -> None:
        """Until the sender closes: its Close goes to the target, whose messages still pass until it answers."""
        from trunkline.sdk import ConnectionClosed

        code, reason = 1000, ""
        try:
            while True:
                message = await self._connection.recv()
                if isinstance(message, str):
                    self.received += len(message.encode())
                    await self._websocket.send_str(message)
                else:
                    self.received += len(message)
                    await self._websocket.send_bytes(message)
        except ConnectionClosed as closed:
            code, reason = closed.code or 1000, closed.reason
            self.ended(code, "")
        except (MessageTooLarge, InvalidMessage) as error:
            code = error.close_code
            self.ended(code, error.message)
        except ConnectionLost as error:
            close_code = self._connection.close_code
            code, reason = close_code or GOING_AWAY, self._connection.close_reason
            self.ended(close_code or 1006, "" if close_code else error.message)
        except ClientError:
            return  # the target is gone: `_from_target` sees it too
        payload = (code if is_valid_close_code(code) else GOING_AWAY).to_bytes(2, "big") + reason.encode()
        try:
            await self._websocket.send_frame(payload, WSMsgType.CLOSE)
            await asyncio.sleep(CLOSE_TIMEOUT)
        except ClientError:
            pass
        await self._websocket.close()

    async def _from_target(self) -> None:
        """Until the target closes, or is gone."""
        while True:
            message = await self._websocket.receive()
            try:
                if message.type is WSMsgType.TEXT:
                    self.sent += len(message.data.encode())
                    await self._connection.send(message.data)
                elif message.type is WSMsgType.BINARY:
                    self.sent += len(message.data)
                    await self._connection.send(message.data)
                elif message.type is WSMsgType.CLOSE:
                    code = message.data or 1000
                    self.ended(code, "")
                    await self._connection.close(code if is_valid_close_code(code) else 1011, message.extra or "")
                    return
                else:
                    self.ended(1006, "the target ended the WebSocket without a Close")
                    self._connection.abort()
                    return
            except (ConnectionLost, EOFError):
                # The sender has closed, or is gone; what the target still says is for nobody.
                continue

    def ended(self, code: int, error: str) -> None:
        """Why it ends; the first reason stays."""
        if not self.close_code:
            self.close_code, self.error = code, error

    def _code_to_send(self, otherwise: int) -> int:
        return self.close_code if is_valid_close_code(self.close_code) else otherwise
