"""A host from its start to its end, on a node."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from trunkline.protocol.errors import EndpointNotFound, InvalidSetting
from trunkline.sdk.asgi import AsgiHost, LifespanFailed, Served, http_exchange, serve
from trunkline.sdk.asgi.scopes import Receive, Scope, Send
from trunkline.testing import RelayNode, relay_node

ADDRESS = "Endpoint=sb://relay.example/;SharedAccessKeyName=a;SharedAccessKey=secret;EntityPath=orders"


class Application:
    """Tells what happens to it. WebSockets: echo; /wait accepts when `go` is set. HTTP: "ok" when `go` is set."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.go = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "lifespan":
                for phase in ("startup", "shutdown"):
                    assert (await receive())["type"] == f"lifespan.{phase}"
                    self.steps.append(phase)
                    await send({"type": f"lifespan.{phase}.complete"})
            case "websocket":
                await self._echo(scope, receive, send)
            case "http":
                self.begun.set()
                await self.go.wait()
                self.steps.append("answered")
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b"ok"})

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        self.begun.set()
        if scope["path"].endswith("/wait"):
            await self.go.wait()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        self.steps.append(f"disconnected {message['code']}")


async def test_websockets_are_served_one_beside_the_other() -> None:
    app, served = Application(), list[Served]()
    async with (
        relay_node() as node,
        AsgiHost(app, node.connection_string(), ssl=False, on_served=served.append) as host,
    ):
        client = node.client()
        first = await client.create_connection(path_suffix="a", query="x=1")
        second = await client.create_connection()
        for connection, text in ((first, "one"), (second, "two"), (first, "three")):
            await connection.send(text)
            assert await connection.recv() == text
        assert "websockets=2" in repr(host)
        await first.close(4001)
        await second.close()
        await node.until(lambda now: now["connections"] == 0)
    assert app.steps == ["startup", "disconnected 4001", "disconnected 1000", "shutdown"]
    assert [(one.method, one.path, one.status, one.remote) for one in served] == [
        ("WEBSOCKET", "/test/a", 101, "127.0.0.1"),
        ("WEBSOCKET", "/test/", 101, "127.0.0.1"),
    ]


async def test_closing_tells_websockets_and_waits_for_the_application() -> None:
    app = Application()
    async with relay_node() as node:
        async with AsgiHost(app, node.connection_string(), ssl=False) as host:
            connection = await node.client().create_connection()
            await connection.send("hello")
            assert await connection.recv() == "hello"
            async with asyncio.TaskGroup() as group:
                group.create_task(host.close())
                await connection.wait_closed()
            assert connection.close_code == 1001
    assert app.steps == ["startup", "disconnected 1001", "shutdown"]


async def test_sender_that_waits_for_a_decision_goes_to_another_host_when_this_one_closes() -> None:
    app, other = Application(), Application()
    async with relay_node() as node:
        async with AsgiHost(app, node.connection_string(), ssl=False, shutdown_timeout=0.1) as host:
            async with asyncio.TaskGroup() as group:
                connecting = group.create_task(node.client().create_connection(path_suffix="wait"))
                await app.begun.wait()
                other.go.set()
                async with AsgiHost(other, node.connection_string(), ssl=False):
                    await host.close()
                    connection = await connecting
                    await connection.send("hello")
                    assert await connection.recv() == "hello"
                    await connection.close()
    assert app.steps == ["startup", "shutdown"]
    assert other.steps == ["startup", "disconnected 1000", "shutdown"]


async def test_request_in_hand_is_answered_before_the_application_is_stopped() -> None:
    app, served = Application(), list[Served]()
    async with (
        relay_node() as node,
        AsgiHost(app, node.connection_string(), ssl=False, on_served=served.append) as host,
    ):
        async with asking(node) as http, asyncio.TaskGroup() as group:
            answer = group.create_task(http.get("/test/x?y=1"))
            await app.begun.wait()
            assert "requests=1" in repr(host)
            group.create_task(host.close())
            await node.until(lambda now: now["listeners"] == 0)
            app.go.set()
        assert (answer.result().status_code, answer.result().text) == (200, "ok")
    assert app.steps == ["startup", "answered", "shutdown"]
    assert [(one.method, one.path, one.status, one.sent) for one in served] == [("GET", "/test/x", 200, 2)]


async def test_request_that_takes_longer_than_the_shutdown_timeout_is_cut() -> None:
    app, served = Application(), list[Served]()
    async with relay_node() as node:
        host = AsgiHost(app, node.connection_string(), ssl=False, on_served=served.append, shutdown_timeout=0.05)
        async with asking(node) as http, asyncio.TaskGroup() as group:
            async with host:
                answer = group.create_task(http.get("/test"))
                await app.begun.wait()
        assert answer.result().status_code in (502, 503)
    assert app.steps == ["startup", "shutdown"]
    assert [(one.status, one.sent) for one in served] == [(0, 0)]


async def test_application_is_served_again_after_the_relay_was_away() -> None:
    app = Application()
    app.go.set()
    async with relay_node() as node, AsgiHost(app, node.connection_string(), ssl=False):
        await node.restart()
        await node.until(lambda now: now["listeners"] == 1, timeout=20)
        async with asking(node) as http:
            assert (await http.get("/test")).text == "ok"


async def test_application_hears_of_a_sender_that_leaves_before_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "WATCH_AFTER", 0.01)
    heard, served = asyncio.Event(), list[Served]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        assert await receive() == {"type": "http.disconnect"}
        heard.set()

    async with relay_node() as node, AsgiHost(app, node.connection_string(), ssl=False, on_served=served.append):
        async with asking(node) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.get("/test", timeout=0.3)
        async with asyncio.timeout(20):
            await heard.wait()
    assert [(one.status, one.sent) for one in served] == [(0, 0)]


async def test_application_waits_while_the_sender_takes_nothing() -> None:
    sent = 0
    stuck = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        try:
            while sent < 256 << 20:
                async with asyncio.timeout(0.3):
                    await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
                sent += 65_536
        except TimeoutError:
            stuck.set()

    async with relay_node() as node, AsgiHost(app, node.connection_string(), ssl=False):
        async with asking(node) as http, http.stream("GET", "/test") as answer:
            assert answer.status_code == 200
            async with asyncio.timeout(20):
                await stuck.wait()
    assert sent < 32 << 20  # what sockets and buffers hold


async def test_application_that_cannot_start_never_registers() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async with relay_node() as node:
        with pytest.raises(LifespanFailed, match="no database"):
            await serve(app, node.connection_string(), ssl=False)
        assert node.counts()["listeners"] == 0


async def test_application_is_stopped_when_the_listener_cannot_register() -> None:
    app = Application()
    async with relay_node() as node:
        with pytest.raises(EndpointNotFound):
            await AsgiHost(app, node.connection_string("nowhere"), ssl=False).open()
    assert app.steps == ["startup", "shutdown"]


async def test_hybrid_connection_that_goes_ends_serving() -> None:
    app = Application()
    async with relay_node() as node:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            online = asyncio.Event()
            serving = group.create_task(
                _outcome(serve(app, node.connection_string(), ssl=False, on_online=lambda _: online.set()))
            )
            await online.wait()
            await node.remove_hybrid_connection("test")
        assert isinstance(serving.result(), EndpointNotFound)
    assert app.steps == ["startup", "shutdown"]


async def test_cancelling_ends_serving() -> None:
    app = Application()
    async with relay_node() as node:
        online = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            work = serve(app, node.connection_string(), ssl=False, on_online=lambda _: online.set())
            serving = group.create_task(work)
            await online.wait()
            serving.cancel()
    assert app.steps == ["startup", "shutdown"]


async def test_callback_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: Served) -> None:
        raise ValueError("in the callback")

    app = Application()
    async with relay_node() as node, AsgiHost(app, node.connection_string(), ssl=False, on_served=fails):
        async with await node.client().create_connection() as connection:
            await connection.send("hello")
            assert await connection.recv() == "hello"
    assert "on_served failed" in caplog.text


async def test_closing_again_and_before_opening_does_nothing() -> None:
    host = AsgiHost(Application(), ADDRESS)
    await host.close()
    await host.wait_closed()


@pytest.mark.parametrize("root_path", ["/", "x", "/x/"])
def test_root_path_that_makes_wrong_links_is_refused(root_path: str) -> None:
    with pytest.raises(InvalidSetting, match="root_path is"):
        AsgiHost(Application(), ADDRESS, root_path=root_path)


def test_host_tells_where_it_is_and_no_key() -> None:
    host = AsgiHost(Application(), ADDRESS)
    assert host.url == "https://relay.example/orders/"
    assert repr(host) == "<AsgiHost https://relay.example/orders/ offline requests=0 websockets=0>"
    assert host.listener.state == "offline"
    assert AsgiHost(Application(), ADDRESS, root_path="").url == "https://relay.example/orders/"


def asking(node: RelayNode) -> httpx.AsyncClient:
    """A client with the right to send."""
    headers = {"ServiceBusAuthorization": node.token(rights=["Send"])}
    return httpx.AsyncClient(base_url=node.url, headers=headers, timeout=20, trust_env=False)


async def _outcome(work: Any) -> object:
    """What comes of it: its result, or its exception."""
    try:
        return await work
    except Exception as error:
        return error
