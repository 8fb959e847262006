"""Listener and sender of our SDK against a real node: offers, refusals, and staying registered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from e2e.quiet_node import quiet_node
from trunkline.protocol.errors import (
    AccessDenied,
    AuthorizationFailed,
    ConnectionRejected,
    EndpointNotFound,
    NoListener,
    QuotaExceeded,
    RelayError,
    ServerBusy,
)
from trunkline.sdk import (
    Connection,
    HybridConnectionClient,
    HybridConnectionListener,
    IncomingConnection,
    Retry,
    SasTokenProvider,
    StaticToken,
)


async def echo(connection: Connection) -> None:
    async for message in connection:
        await connection.send(message)


async def exchange(client: HybridConnectionClient, text: str = "hello") -> None:
    async with await client.create_connection(retry=Retry(delays=(0.05,), attempts=100)) as connection:
        await connection.send(text)
        assert await connection.recv() == text


async def until(condition: Callable[[], bool], *, timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - a state that no event of this task tells
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_fifty_senders_at_once_each_get_their_own_answer(tls: bool) -> None:
    async with quiet_node(tls=tls, max_senders=50) as node, node.listener() as listener, asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(listener.serve(echo))
        client = node.client()
        await asyncio.gather(*(exchange(client, f"sender {number}") for number in range(50)))
        await listener.close()
        await serving


async def test_handler_sees_the_sender_and_chooses_the_subprotocol() -> None:
    seen: list[IncomingConnection] = []

    def choose(request: IncomingConnection) -> None:
        seen.append(request)
        request.subprotocol = request.subprotocols[-1]

    async with quiet_node("a/b") as node, node.listener(accept_handler=choose) as listener:
        connection = await node.client().create_connection(
            headers={"X-CaSe": 'a "quoted" [value] \\'},
            subprotocols=["chat", "mqtt"],
            path_suffix="/c%20d/E",
            query="x=%41&&y&sb-hc-x",
        )
        accepted = await listener.accept()
        assert accepted.request is seen[0]
        assert seen[0].headers["x-case"] == 'a "quoted" [value] \\'
        assert "X-CaSe" in list(seen[0].headers)
        assert "ServiceBusAuthorization" not in seen[0].headers
        assert (seen[0].suffix, seen[0].query) == ("c%20d/E", "x=%41&&y&sb-hc-x")
        assert seen[0].remote_address[0] == "127.0.0.1" and seen[0].remote_address[1] > 0
        assert connection.subprotocol == accepted.subprotocol == "mqtt"
        assert accepted.tracking_id.startswith(connection.tracking_id)
        await asyncio.gather(connection.close(), accepted.close())


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "Rejected by user code", ConnectionRejected),
        (202, "OK", ConnectionRejected),
        (451, "Not today: a%20b & c=d; 'é' " + "long " * 2000 + "end", ConnectionRejected),
        (503, "busy", ServerBusy),
    ],
)
async def test_rejection_reaches_the_sender_in_the_listeners_words(
    status: int, reason: str, kind: type[RelayError]
) -> None:
    def handler(request: IncomingConnection) -> None:
        request.reject(status, reason)

    async with quiet_node() as node, node.listener(accept_handler=handler):
        with pytest.raises(kind) as raised:
            await node.client().create_connection()
        assert (raised.value.status, raised.value.message) == (status, reason)


async def test_handler_that_refuses_or_fails_has_the_words_of_net() -> None:
    def handler(request: IncomingConnection) -> bool:
        if request.suffix == "fail":
            raise ZeroDivisionError
        return False

    async with quiet_node() as node, node.listener(accept_handler=handler):
        with pytest.raises(ConnectionRejected) as refused:
            await node.client().create_connection()
        assert (refused.value.status, refused.value.description) == (400, "Rejected by user code")
        with pytest.raises(RelayError) as failed:
            await node.client().create_connection(path_suffix="fail")
        assert failed.value.status == 502
        assert failed.value.message == (
            "The Listener's custom AcceptHandler threw an exception. See Listener logs for details."
        )


async def test_full_listener_rejects_with_503_until_there_is_room() -> None:
    async with quiet_node() as node, node.listener(max_connections=1) as listener:
        first = await node.client().create_connection()
        with pytest.raises(ServerBusy, match="overloaded"):
            await node.client().create_connection()
        await asyncio.gather(first.close(), (await listener.accept()).close())
        await until(lambda: not listener.connections)
        second = await node.client().create_connection()
        await asyncio.gather(second.close(), (await listener.accept()).close())


async def test_listener_reconnects_when_the_node_restarts() -> None:
    states: list[str] = []
    async with (
        quiet_node() as node,
        node.listener(
            on_connecting=lambda listener: states.append(listener.state),
            on_online=lambda listener: states.append(listener.state),
        ) as listener,
        asyncio.TaskGroup() as tasks,
    ):
        serving = tasks.create_task(listener.serve(echo))
        await exchange(node.client())
        for abrupt in (True, False):
            online = states.count("online")
            await node.restart(abrupt=abrupt)
            await until(lambda online=online: states.count("online") > online)  # type: ignore[misc]
            await exchange(node.client())
        assert listener.last_error is not None
        assert states[:3] == ["connecting", "online", "connecting"]
        await listener.close()
        await serving


@pytest.mark.slow  # tokens last whole seconds
async def test_token_is_renewed_without_a_gap() -> None:
    async with quiet_node(token_grace=0) as node:
        text = node.connection_string(rule="listen")
        key = text.partition("SharedAccessKey=")[2].partition(";")[0]
        states: list[str] = []
        listener = HybridConnectionListener(
            text,
            ssl=False,
            token_provider=SasTokenProvider("listen", key, lifetime=2),
            on_connecting=lambda listener: states.append(listener.state),
        )
        async with listener, asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(listener.serve(echo))
            for _ in range(6):
                await asyncio.sleep(0.9)
                await exchange(node.client())
            assert states == ["connecting"]
            await listener.close()
            await serving


async def test_listener_of_a_deleted_hybrid_connection_goes_offline() -> None:
    async with quiet_node(["orders", "other"]) as node, node.listener("orders") as listener:
        await node.remove_hybrid_connection("orders")
        async with asyncio.timeout(10):
            with pytest.raises(EndpointNotFound, match="orders"):
                await listener.accept()
        assert listener.state == "offline"


async def test_listener_whose_rule_is_gone_comes_back_with_the_next_key() -> None:
    async with quiet_node() as node:
        key = "SharedAccessKey="

        class Current:
            """Asks for the key each time, as a provider does that reads a vault."""

            async def get_token(self, audience: str) -> object:
                secret = node.connection_string(rule="listen").partition(key)[2].partition(";")[0]
                return await SasTokenProvider("listen", secret).get_token(audience)

        listener = HybridConnectionListener(node.connection_string(), ssl=False, token_provider=Current())
        async with listener, asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(listener.serve(echo))
            await node.add_rule("listen", ["Listen"])
            await until(lambda: listener.last_error is not None)
            await exchange(node.client())
            await listener.close()
            await serving


async def test_refusals_have_their_own_exceptions_on_both_sides() -> None:
    async with quiet_node({"orders": {}, "small": {"max_senders": 1}}) as node:

        async def listen(text: str) -> None:
            async with HybridConnectionListener(text, ssl=False):
                raise AssertionError("registered")

        async def send(text: str) -> None:
            await HybridConnectionClient(text, ssl=False).create_connection()

        for attempt in (listen, send):
            with pytest.raises(EndpointNotFound, match="missing") as not_found:
                await attempt(node.connection_string("missing"))
            assert not_found.value.tracking_id
            with pytest.raises(AuthorizationFailed, match="invalid signature"):
                await attempt(node.connection_string("orders").replace("SharedAccessKey=", "SharedAccessKey=x"))
        with pytest.raises(AccessDenied, match="'Listen'"):
            await listen(node.connection_string("orders", rule="send"))
        with pytest.raises(AccessDenied, match="'Send'"):
            await send(node.connection_string("orders", rule="listen"))
        with pytest.raises(AuthorizationFailed, match="MissingToken"):
            await HybridConnectionClient(f"{node.websocket_url}/orders").create_connection()
        with pytest.raises(AuthorizationFailed, match="ExpiredToken"):
            expired = StaticToken(node.token("orders", expires_in=-3600))
            await HybridConnectionClient(f"{node.websocket_url}/orders", token_provider=expired).create_connection()
        with pytest.raises(NoListener):
            await send(node.connection_string("orders"))
        async with node.listener("small") as listener:
            first = await node.client("small").create_connection()
            with pytest.raises(QuotaExceeded):
                await send(node.connection_string("small"))
            await asyncio.gather(first.close(), (await listener.accept()).close())


@pytest.mark.parametrize("preset", ["default", "azure"])
async def test_sender_finds_the_hybrid_connection_that_has_a_listener(preset: str) -> None:
    names = ["one", "two", "three"]
    async with quiet_node(names, preset=preset) as node:
        client = node.client("", entities=names)
        async with node.listener("two") as listener, asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(listener.serve(echo))
            for key in (None, "a", "b", "c"):
                async with await client.create_connection(key=key) as connection:
                    assert connection.entity_path == "two"
            await listener.close()
            await serving
        with pytest.raises(NoListener):
            await client.create_connection()


async def test_many_hybrid_connections_take_more_senders_than_one() -> None:
    names = ["one", "two"]
    async with quiet_node(names, max_senders=2) as node:
        client = node.client("", entities=names)
        async with node.listener("one") as one, node.listener("two") as two:
            senders = [await client.create_connection(key="the same for all") for _ in range(4)]
            assert sorted(sender.entity_path for sender in senders) == ["one", "one", "two", "two"]
            with pytest.raises(QuotaExceeded):
                await client.create_connection()
            accepted = [await listener.accept() for listener in (one, one, two, two)]
            await asyncio.gather(*(end.close() for end in (*senders, *accepted)))


async def test_sender_retries_until_a_listener_is_there() -> None:
    async with quiet_node() as node, asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(node.client().create_connection(retry=Retry(attempts=100, delays=(0.05,))))
        await asyncio.sleep(0.2)
        assert not connecting.done()
        async with node.listener() as listener:
            accepted = await listener.accept()
            await asyncio.gather((await connecting).close(), accepted.close())


async def test_closing_listener_lets_its_connections_end_in_peace() -> None:
    async with quiet_node() as node, node.listener() as listener:
        sender = await node.client().create_connection()
        accepted = await listener.accept()
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(listener.close(wait=5))
            await until(lambda: listener.state == "offline")
            await sender.send("still here")
            assert await accepted.recv() == "still here"
            assert not closing.done()
            await asyncio.gather(sender.close(), accepted.close())
