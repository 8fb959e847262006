"""One WebSocket: accepted or denied, its messages, and its end on either side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from sdk.asgi.asked import endpoint, incoming
from trunkline.protocol.errors import ConnectionLost, InvalidMessage
from trunkline.sdk.asgi.scopes import Application, Message, Mount, Receive, Scope, Send
from trunkline.sdk.asgi.websocket_session import SenderGone, WebSocketSession
from trunkline.sdk.connection import Connection, ConnectionClosed

ACCEPT: Message = {"type": "websocket.accept"}
CONNECT: Message = {"type": "websocket.connect"}


class Line:
    """Stands for a `Connection`: what arrives on it is put in by the test."""

    def __init__(self) -> None:
        # Messages, and exceptions that `recv` raises.
        self.arriving: asyncio.Queue[str | bytes | Exception] = asyncio.Queue()
        self.sent: list[str | bytes] = []
        self.closed_with: tuple[int, str] | None = None
        self.aborted = False
        self.close_code: int | None = None
        self.close_reason = ""
        self.lost = False

    async def recv(self) -> str | bytes:
        item = await self.arriving.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def send(self, message: str | bytes) -> None:
        if self.lost:
            raise ConnectionLost("lost")
        self.sent.append(message)

    def at_eof(self) -> bool:
        return False

    async def close(self, code: int, reason: str) -> None:
        self.closed_with = code, reason

    def abort(self) -> None:
        self.aborted = True


class Ran:
    """A session that was run to its end."""

    def __init__(self, **headers: str) -> None:
        self.incoming = incoming("/chat", headers=headers)
        self.decided: list[int] = []
        self.line = Line()
        self.session = WebSocketSession(self.incoming, self.decided.append)

    async def run(self, work: Callable[[Receive, Send], Awaitable[None]]) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await work(receive, send)

        await self.run_application(app)

    async def run_application(self, app: Application) -> None:
        scope = Mount(endpoint()).websocket_scope(self.incoming, {})
        async with asyncio.TaskGroup() as group:
            group.create_task(self.session.run(app, scope))
            await self.session.decide()
            if self.incoming.rejection is None:
                await self.session.attend(cast(Connection, self.line))

    @property
    def rejection(self) -> tuple[int, str] | None:
        rejection = self.incoming.rejection
        return None if rejection is None else (rejection.status, rejection.reason)


async def accept(receive: Receive, send: Send) -> None:
    assert await receive() == CONNECT
    await send(ACCEPT)


async def test_messages_go_both_ways_as_they_are() -> None:
    ran = Ran(**{"Sec-WebSocket-Protocol": "v1, v2"})

    async def work(receive: Receive, send: Send) -> None:
        assert await receive() == CONNECT
        await send({"type": "websocket.accept", "subprotocol": "v2"})
        for item in ("text", b"bytes"):
            ran.line.arriving.put_nowait(item)
        assert await receive() == {"type": "websocket.receive", "text": "text"}
        assert await receive() == {"type": "websocket.receive", "bytes": b"bytes"}
        await send({"type": "websocket.send", "text": "a"})
        await send({"type": "websocket.send", "bytes": b"b", "text": None})
        await send({"type": "websocket.send", "bytes": None, "text": "c"})
        await send({"type": "websocket.close", "code": 4001, "reason": "é" * 100})

    await ran.run(work)
    assert ran.incoming.subprotocol == "v2" and ran.decided == [101]
    assert ran.line.sent == ["a", b"b", "c"]
    assert ran.line.closed_with == (4001, "é" * 61)


async def test_no_subprotocol_is_chosen_for_the_application() -> None:
    ran = Ran(**{"Sec-WebSocket-Protocol": "v1, v2"})
    await ran.run(accept)
    assert ran.incoming.subprotocol is None


async def test_subprotocol_that_is_not_offered_is_an_error_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran()

    async def work(receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept", "subprotocol": "v9"})

    await ran.run(work)
    assert ran.rejection == (500, "Internal Server Error")
    assert "does not offer the subprotocol 'v9'" in caplog.text


async def test_headers_of_the_accept_are_said_to_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran()

    async def work(receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept", "headers": [(b"set-cookie", b"secret")]})

    await ran.run(work)
    assert "do not reach the sender" in caplog.text and "secret" not in caplog.text


@pytest.mark.parametrize(
    ("messages", "rejection"),
    [
        ([{"type": "websocket.close"}], (403, "Forbidden")),
        ([{"type": "websocket.close", "code": 1008, "reason": "No badge"}], (403, "No badge")),
        (
            [
                {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x", b"y")]},
                {"type": "websocket.http.response.body", "body": b"no", "more_body": True},
                {"type": "websocket.http.response.body", "body": b"body"},
            ],
            (401, "Unauthorized"),
        ),
        (
            [{"type": "websocket.http.response.start", "status": 444}, {"type": "websocket.http.response.body"}],
            (444, "Rejected"),
        ),
    ],
)
async def test_denial_is_status_and_reason(messages: list[Message], rejection: tuple[int, str]) -> None:
    ran = Ran()
    after: list[Message] = []

    async def work(receive: Receive, send: Send) -> None:
        assert await receive() == CONNECT
        for message in messages:
            await send(message)
        after.append(await receive())
        with pytest.raises(RuntimeError):
            await send({"type": "websocket.send", "text": "late"})

    await ran.run(work)
    assert ran.rejection == rejection and ran.decided == [rejection[0]]
    assert after == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


@pytest.mark.parametrize(
    ("end", "closed", "told", "answer"),
    [
        (ConnectionClosed("", 1000, "done"), None, (1000, "done"), 1000),
        (ConnectionClosed("", 4001, "mine"), None, (4001, "mine"), 4001),
        (ConnectionClosed("", None, ""), None, (1005, ""), 1000),
        (ConnectionLost("the network"), None, (1006, ""), 1000),
        (ConnectionLost("left the page"), (1001, "away"), (1001, "away"), 1000),
        (InvalidMessage("no UTF-8"), None, (1007, "no UTF-8"), 1000),
    ],
)
async def test_end_of_the_sender_is_told_with_its_code(
    end: Exception, closed: tuple[int, str] | None, told: tuple[int, str], answer: int
) -> None:
    ran = Ran()

    async def work(receive: Receive, send: Send) -> None:
        await accept(receive, send)
        if closed is not None:
            ran.line.close_code, ran.line.close_reason = closed
        ran.line.arriving.put_nowait(end)
        for _ in range(2):
            assert await receive() == {"type": "websocket.disconnect", "code": told[0], "reason": told[1]}
        with pytest.raises(SenderGone):
            await send({"type": "websocket.send", "text": "late"})
        await send({"type": "websocket.close"})  # of one that is closed: nothing is wrong with that

    await ran.run(work)
    assert ran.line.sent == []
    assert ran.line.closed_with == (answer, "")


async def test_send_fails_once_the_sender_has_gone() -> None:
    """The application need not be receiving: the Close is seen by the next send."""
    ran = Ran()

    async def lost(receive: Receive, send: Send) -> None:
        await accept(receive, send)
        ran.line.lost = True
        await send({"type": "websocket.send", "text": "x"})

    async def closed(receive: Receive, send: Send) -> None:
        await accept(receive, send)
        ran.line.close_code = 1000
        await send({"type": "websocket.send", "text": "x"})

    for work in (lost, closed):
        ran = Ran()
        await ran.run(work)  # SenderGone is no failure of the application
        assert ran.line.sent == [] and ran.line.closed_with == (1000, "")


async def test_application_that_fails_gives_500_or_1011(caplog: pytest.LogCaptureFixture) -> None:
    async def before(receive: Receive, send: Send) -> None:
        raise ValueError("before")

    async def after(receive: Receive, send: Send) -> None:
        await accept(receive, send)
        raise ValueError("after")

    async def nothing(receive: Receive, send: Send) -> None:
        return

    for work, rejection, closed in (
        (before, (500, "Internal Server Error"), None),
        (nothing, (500, "Internal Server Error"), None),
        (after, None, (1011, "")),
    ):
        ran = Ran()
        await ran.run(work)
        assert (ran.rejection, ran.line.closed_with) == (rejection, closed)
    assert "ValueError: before" in caplog.text and "ValueError: after" in caplog.text
    assert "returned without accepting or closing" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        {"type": "websocket.send", "text": "early"},
        {"type": "http.response.start", "status": 200},
        {"type": "websocket.http.response.body"},
    ],
)
async def test_message_out_of_order_is_an_error_of_the_application(message: Message) -> None:
    ran = Ran()

    async def work(receive: Receive, send: Send) -> None:
        await send(message)

    await ran.run(work)
    assert ran.rejection == (500, "Internal Server Error")


@pytest.mark.parametrize("message", [ACCEPT, {"type": "websocket.close", "code": 1006}])
async def test_message_that_cannot_be_sent_is_an_error_of_the_application(message: Message) -> None:
    ran = Ran()

    async def work(receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send(message)

    await ran.run(work)
    assert ran.line.closed_with == (1011, "")


async def test_sender_that_is_lost_before_the_rendezvous_is_told() -> None:
    ran = Ran()
    got: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == CONNECT
        with pytest.raises(SenderGone):
            await send(ACCEPT)
        got.append(await receive())

    async with asyncio.TaskGroup() as group:
        group.create_task(ran.session.run(app, {}))
        await ran.session.decide()
        ran.session.lose()
    assert got == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    await ran.session.attend(cast(Connection, ran.line))  # the connection comes after all
    assert ran.line.aborted


async def test_decision_that_takes_too_long_is_a_loss() -> None:
    ran = Ran()
    got: list[Any] = []
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        got.append(await receive())
        over.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(ran.session.run(app, {}))
        deciding = group.create_task(ran.session.decide())
        await asyncio.sleep(0)
        deciding.cancel()
        await over.wait()
    assert got == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


async def test_host_that_stops_closes_with_1001() -> None:
    ran = Ran()
    got: list[Any] = []

    async def work(receive: Receive, send: Send) -> None:
        await accept(receive, send)
        ran.session.go_away()
        got.append(await receive())

    await ran.run(work)
    assert ran.line.closed_with == (1001, "")
    assert got == [{"type": "websocket.disconnect", "code": 1001, "reason": ""}]
