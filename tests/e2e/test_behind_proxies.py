"""A node behind real proxy servers, configured as docs/behind-a-proxy.md shows them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.front_proxy import Certificate, blocks, configured, free_port, front_proxy
from e2e.raw_websocket import RawWebSocket
from trunkline.protocol import connection_string, sas
from trunkline.protocol.errors import InvalidSignature, RelayError
from trunkline.protocol.splice import Side
from trunkline.sdk import HybridConnectionClient, HybridConnectionListener
from trunkline.server.config.declarative import parse
from trunkline.server.config.settings import load
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.node import Node

pytestmark = [
    pytest.mark.loop("uvloop"),
    pytest.mark.skipif(sys.platform != "linux", reason="every address of 127.0.0.0/8 is there on Linux alone"),
]

ENTITIES = """
[[namespace]]
name = "myRelayNS"
[[namespace.rule]]
name = "Root"
rights = ["Listen", "Send", "Manage"]
primary_key = "secretkey"
[[namespace.hybrid_connection]]
name = "orders"
"""

#: The settings of the guide: trusted proxies, those with a public URL, and those with the PROXY protocol.
PLAIN, PUBLIC, PROXY_PROTOCOL, PASSED_THROUGH = blocks("toml")
CADDY, NGINX = blocks("caddyfile")[0], blocks("nginx")[0]
HAPROXY, HAPROXY_TCP, HAPROXY_THROUGH = blocks("haproxy")

CASES = {
    "caddy": ("caddyfile", CADDY, PLAIN),
    "nginx": ("nginx", NGINX, PLAIN),
    "haproxy": ("haproxy", HAPROXY, PLAIN),
    "haproxy with a public url": ("haproxy", HAPROXY, PUBLIC),
    "haproxy send-proxy-v2": ("haproxy", HAPROXY_TCP, PROXY_PROTOCOL),
    "haproxy send-proxy": ("haproxy", HAPROXY_TCP.replace("send-proxy-v2", "send-proxy"), PROXY_PROTOCOL),
    "haproxy send-proxy-v2 ahead of TLS": ("haproxy", HAPROXY_THROUGH, PASSED_THROUGH),
    "haproxy send-proxy ahead of TLS": (
        "haproxy",
        HAPROXY_THROUGH.replace("send-proxy-v2", "send-proxy"),
        PASSED_THROUGH,
    ),
}


@dataclass
class Fronted:
    """A node and the proxy in front of it."""

    node: Node
    certificate: Certificate
    #: Where clients find them.
    authority: str

    def url(self, action: str) -> str:
        return f"wss://{self.authority}/$hc/orders?sb-hc-action={action}"

    @property
    def token(self) -> str:
        return sas.sign(sas.audience("localhost", "orders"), "Root", "secretkey", expires_at=int(time.time()) + 600)

    @property
    def connection_string(self) -> str:
        host, _, port = self.authority.partition(":")
        return connection_string.build(host, port=int(port), key_name="Root", key="secretkey", entity_path="orders")

    def client(self, text: str | None = None) -> HybridConnectionClient:
        return HybridConnectionClient(text or self.connection_string, ssl=self.certificate.client)


@asynccontextmanager
async def fronted(case: str, folder: Path) -> AsyncIterator[Fronted]:
    language, text, settings = CASES[case]
    certificate = Certificate.issue(folder)
    port = free_port()
    settings = settings.replace("relay.example.com", f"localhost:{port}")
    declaration = parse(configured(settings, certificate) + ENTITIES, "trunkline.toml")
    flags = {"port": "0", "admin_port": "0", "admin_socket": "off", "data": str(folder)}
    async with Node(load(declaration, flags), declaration, store=SqliteStore(":memory:")) as node:
        async with front_proxy(language, text, folder, port=port, node=node.port, certificate=certificate):
            yield Fronted(node, certificate, f"localhost:{port}")


@pytest.mark.parametrize("case", CASES)
async def test_node_behind_a_proxy_relays_and_knows_its_clients(case: str, tmp_path: Path) -> None:
    async with fronted(case, tmp_path) as front:
        client = front.certificate.client
        control = RawWebSocket(front.url("listen"), token=front.token, ssl=client, local_address="127.0.0.3")
        async with control:
            [channel] = front.node.broker.channels
            assert channel.facts.remote[0] == "127.0.0.3"
            lie = [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "http")]
            sender = RawWebSocket(
                front.url("connect"), token=front.token, ssl=client, headers=lie, local_address="127.0.0.2"
            )
            await sender.connect()
            offer = await control.offer()
            assert offer["address"].startswith(f"wss://{front.authority}/$hc/orders?")
            assert offer["remoteEndpoint"]["address"] == "127.0.0.2"
            if "send-proxy" in case:
                _, writer = sender.streams
                assert offer["remoteEndpoint"]["port"] == writer.get_extra_info("sockname")[1]
                assert offer["connectHeaders"]["X-Forwarded-For"] == "203.0.113.9"
            async with RawWebSocket(offer["address"], ssl=client) as leg:
                await sender.upgraded()
                await sender.send(2, b"behind a proxy")
                assert (await leg.receive()).payload == b"behind a proxy"
            sender.abort()
        async with HybridConnectionListener(front.connection_string, ssl=client) as listener:
            connection = await front.client().create_connection()
            accepted = await listener.accept()
            there, back = os.urandom(1_000_000), os.urandom(1_000_000)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(connection.send(there))
                tasks.create_task(accepted.send(back))
                received = tasks.create_task(accepted.recv())
                assert await connection.recv() == back
                assert await received == there
            await asyncio.gather(connection.close(), accepted.close())


@pytest.mark.parametrize("case", [case for case in CASES if "public" not in case])
async def test_refusal_reaches_the_client_through_a_proxy(case: str, tmp_path: Path) -> None:
    async with fronted(case, tmp_path) as front:
        with pytest.raises(RelayError) as caught:
            await front.client().create_connection()
        assert caught.value.status == 504
        wrong = front.client(front.connection_string.replace("secretkey", "wrongkey"))
        with pytest.raises(RelayError) as caught:
            await wrong.create_connection()
        assert caught.value.status == 401
        # Also through Caddy, which puts another phrase in place of the node's.
        assert isinstance(caught.value, InvalidSignature) and caught.value.tracking_id
        host, _, port = front.authority.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=front.certificate.client)
        writer.write(f"GET /$hc/orders HTTP/1.1\r\nHost: {front.authority}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(5):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"This endpoint is only for web-socket requests. TrackingId:" in body


@pytest.mark.parametrize("closes", ["sender", "listener"])
async def test_all_that_was_sent_ahead_of_a_close_arrives_where_tls_begins_behind_a_header(
    closes: str, tmp_path: Path
) -> None:
    """The transports are others there than those of a port with TLS."""
    # More than all sockets on the way hold.
    data = os.urandom(40_000_000)
    async with fronted("haproxy send-proxy-v2 ahead of TLS", tmp_path) as front:
        client = front.certificate.client
        async with HybridConnectionListener(front.connection_string, ssl=client) as listener:
            sender = await front.client().create_connection()
            accepted = await listener.accept()
            writing, reading = (sender, accepted) if closes == "sender" else (accepted, sender)

            async def write_and_close() -> None:
                for start in range(0, len(data), 1_000_000):
                    await writing.send(data[start : start + 1_000_000])
                await writing.close()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(write_and_close())
                # A reader that takes nothing until everything waits for it.
                [connection] = front.node.splicing
                leg = connection.legs[Side.SENDER if closes == "sender" else Side.LISTENER]
                async with asyncio.timeout(20):
                    while repr(leg) != f"<Leg {leg.side.name} paused>":  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                received = bytearray()
                while part := await reading.read(65_536):
                    received += part
                await reading.close()
            assert received == data
