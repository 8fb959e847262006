"""Where senders find the hybrid connection, and whether they need a token."""

from __future__ import annotations

import asyncio

import pytest

from trunkline.expose.access import Information, ask, public_url, requires_token
from trunkline.sdk.endpoint import TLS, Endpoint, read_endpoint
from trunkline.sdk.proxy import ProxySetting
from trunkline.testing import RelayNode, relay_node


def endpoint(address: str, *, ssl: TLS = None, proxy: ProxySetting = False) -> Endpoint:
    return read_endpoint(address, entity_path=None, token_provider=None, key_name=None, key=None, ssl=ssl, proxy=proxy)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("sb://relay.example/orders", "https://relay.example/orders/"),
        ("sb://relay.example:8443/a/b", "https://relay.example:8443/a/b/"),
        ("http://localhost:80/orders", "http://localhost:80/orders/"),
        ("sb://[::1]:8443/orders", "https://[::1]:8443/orders/"),
        ("Endpoint=sb://relay.example/;EntityPath=orders", "https://relay.example/orders/"),
    ],
)
def test_public_address_is_that_of_the_connection_string(address: str, url: str) -> None:
    assert public_url(endpoint(address)) == url


def endpoint_of(node: RelayNode, entity: str, proxy: ProxySetting = False) -> Endpoint:
    return endpoint(node.connection_string(entity, rights=["Listen"]), ssl=node.client_context(), proxy=proxy)


@pytest.mark.parametrize("tls", [False, True])
async def test_relay_says_whether_senders_need_a_token(tls: bool) -> None:
    async with relay_node(["closed", "open"], tls=tls) as node:
        await node.change_hybrid_connection("open", requires_client_authorization=False)
        assert await requires_token(endpoint_of(node, "closed")) is True
        assert await requires_token(endpoint_of(node, "open")) is False
        # It is not asked through a proxy, and one that is not there is no failure.
        assert await requires_token(endpoint_of(node, "open", "http://127.0.0.1:1")) is None


async def test_relay_says_how_many_listen() -> None:
    async with relay_node("orders") as node:
        assert await ask(endpoint_of(node, "orders")) == Information(True, 0)
        async with node.listener(), node.listener():
            assert await ask(endpoint_of(node, "orders")) == Information(True, 2)


async def test_relay_that_does_not_say_is_none() -> None:
    answers = [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"?",
    ]

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop())
        writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        while answers:
            assert await requires_token(endpoint(f"http://127.0.0.1:{port}/orders")) is None
    assert await requires_token(endpoint(f"http://127.0.0.1:{port}/orders")) is None
