"""Strangers at the door: connections without a whole request head, and heads that are bombs."""

from __future__ import annotations

import asyncio
import socket

import pytest

from hostile.besieged import BesiegedNode, besieged_node

pytestmark = pytest.mark.loop("uvloop")

HALF_A_HEAD = b"GET /$hc/attacked?sb-hc-action=connect HTTP/1.1\r\nHost: localhost\r\nUpgrade: websock"


async def dial(node: BesiegedNode, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP connection that has sent `data`."""
    reader, writer = await asyncio.open_connection(node.host, node.port)
    writer.write(data)
    return reader, writer


async def ends(reader: asyncio.StreamReader) -> bytes:
    """All that it says until it ends."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.slow
async def test_2000_half_open_upgrades_are_refused_when_their_time_is_over() -> None:
    async with besieged_node() as node, node.unharmed("2,000 half-open upgrades"):
        peers = [await dial(node, HALF_A_HEAD) for _ in range(2_000)]
        await node.until(lambda counts: counts["handshakes"] >= 2_000)
        answers = await asyncio.gather(*(ends(reader) for reader, _ in peers))
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
        for _, writer in peers:
            writer.close()


@pytest.mark.slow
async def test_2000_tls_handshakes_that_never_end_are_cut_when_their_time_is_over() -> None:
    async with besieged_node(tls=True) as node, node.unharmed("2,000 TLS handshakes that never end"):
        hello = client_hello()
        peers = [await dial(node, hello) for _ in range(2_000)]
        await asyncio.gather(*(ends(reader) for reader, _ in peers))
        for _, writer in peers:
            writer.close()


def client_hello() -> bytes:
    """The first flight of a TLS client."""
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
