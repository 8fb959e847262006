"""Our SDK on one side, hyco-ws on the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from trunkline.sdk import HybridConnectionClient, HybridConnectionListener
from trunkline.testing import relay_node
from wire.addresses import Addresses
from wire.node_script import NodeScript, content

SIZES = [0, 1_024, 65_536, 65_537, 4 << 20, pytest.param(64 << 20, marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_sdk_sender_gets_back_from_hyco_listener_what_it_sent(
    node_script: Callable[..., NodeScript], kind: str, size: int
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        data = await asyncio.to_thread(content, kind, size, "sdk")
        message = data.decode() if kind == "text" else data
        async with node_script(
            "listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()
        ) as listener:
            await listener.expect("listening")
            client = HybridConnectionClient(node.connection_string(), ssl=node.client_context())
            async with await client.create_connection() as connection:
                await connection.send(message)
                assert await connection.recv() == message


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_hyco_sender_gets_back_from_sdk_listener_what_it_sent(
    node_script: Callable[..., NodeScript], kind: str, size: int
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        data = await asyncio.to_thread(content, kind, size, "hyco")
        async with (
            HybridConnectionListener(node.connection_string(), ssl=node.client_context()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            connection = await anext(aiter(listener))
            async with connection:
                sender.tell("send", n=1, kind=kind, size=size, seed="hyco")
                message = await connection.recv()
                assert message == (data.decode() if kind == "text" else data)
                await connection.send(message)
                sent = await sender.expect("sent", n=1)
                echo = await sender.expect("message", n=1, within=50)
                assert (echo["kind"], echo["sha256"]) == (kind, sent["sha256"])


async def test_sdk_listener_sees_what_hyco_sender_asked_for(node_script: Callable[..., NodeScript]) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            HybridConnectionListener(node.connection_string(), ssl=node.client_context()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            sender.tell(
                "open",
                n=1,
                url=f"{at.base}/rooms/7?city=K%C3%B6ln&sb-hc-action=connect",
                token=at.token(),
                headers={"X-Room": 'kitchen "east"'},
            )
            connection = await anext(aiter(listener))
            async with connection:
                request = connection.request
                assert request is not None
                assert request.headers["X-Room"] == 'kitchen "east"'
                assert "ServiceBusAuthorization" not in request.headers
                assert request.suffix == "rooms/7"
                assert request.query == "city=K%C3%B6ln"
                assert request.remote_address[0] == "127.0.0.1"


async def test_sdk_sender_and_hyco_listener_end_with_each_others_close(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with node_script(
            "listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()
        ) as listener:
            await listener.expect("listening")
            client = HybridConnectionClient(node.connection_string(), ssl=node.client_context())
            async with await client.create_connection() as connection:
                await listener.expect("opened", n=1)
                listener.tell("close", n=1, code=3333, reason="from hyco")
                assert await connection.read() == b""
                assert (connection.close_code, connection.close_reason) == (3333, "from hyco")
            async with await client.create_connection() as connection:
                await listener.expect("opened", n=2)
                await connection.close(4444, "from the SDK")
                closed = await listener.expect("closed", n=2)
                assert (closed["code"], closed["reason"]) == (4444, "from the SDK")
