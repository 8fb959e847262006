"""Request heads that are bombs, riddles, or followed by what was not asked for."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from e2e.raw_websocket import BINARY, encode
from hostile.attackers import Stranger, crowd, each, handshake
from hostile.besieged import BesiegedNode, besieged_node
from trunkline.server.relay.frontend import HANDSHAKES_LIMIT

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.slow, pytest.mark.timeout(180)]


def bombs(node: BesiegedNode) -> dict[str, tuple[bytes, int]]:
    """Heads of up to 32 KiB that cost as much as they can, and the status of each."""
    url = node.connect_url("nowhere")
    return {
        "8,000 headers": (handshake(url, *[("a", "")] * 6_000), 431),
        "900 headers": (handshake(url, *[(f"x-{n}", "") for n in range(900)]), 401),
        "one header of 31 KiB": (handshake(url, ("x", "y" * 31_000)), 401),
        "a header of 31,000 commas": (handshake(url, ("Upgrade", "," * 31_000)), 401),
        "a query of 31 KiB": (handshake(url + "&" + "%41=&" * 6_200), 401),
        "a query of our own names": (handshake(url + "&" + "sb-hc-a=b&" * 3_100), 401),
        "a path of 8,000 segments": (handshake(url.replace("nowhere", "%41/" * 7_900)), 401),
        "a path that is encoded over and over": (handshake(url.replace("nowhere", "%252541/" * 3_900)), 401),
        "a token of 31 KiB": (handshake(url, token="SharedAccessSignature sr=" + "%41" * 10_300), 401),
        "a token of 15,000 fields": (handshake(url, token="SharedAccessSignature " + "&a" * 15_000), 401),
        "a head that never ends": (handshake(url, ("x", "y" * 33_000))[:-2], 431),
        "a target that never ends": (b"GET /" + b"x" * 33_000, 414),
    }


async def test_heads_that_are_bombs_are_refused_each_for_little() -> None:
    async with besieged_node() as node:
        for what, (head, status) in bombs(node).items():
            statuses = Counter[int]()

            async def throw(_: int, head: bytes = head, statuses: Counter[int] = statuses) -> None:
                async with await Stranger.dial(node, head) as stranger:
                    statuses[await stranger.status()] += 1

            async with node.unharmed(f"100 heads with {what}") as measured:
                # One address fails often, so some of them are held.
                await each(range(100), throw, at_once=70)
                assert statuses == {status: 100}, what
            assert measured.cpu < 2


async def test_large_heads_of_all_peers_together_are_bounded() -> None:
    """Each stops a byte before its head is whole."""
    async with besieged_node() as node:
        almost = handshake(node.connect_url(), ("x", "y" * 32_000))[:-1]
        async with node.unharmed("3,000 heads of 32 KiB that stop before their end") as measured:
            async with crowd(node, 3_000, almost) as strangers:
                # The last ones find no room.
                async with asyncio.timeout(10):
                    assert await strangers[-1].status() == 503
                grown = max(measured.memory) - measured.memory[0]
                assert grown < 1.5 * HANDSHAKES_LIMIT
                # A usual one does.
                async with await Stranger.dial(node, handshake(node.connect_url(), token=node.token())) as usual:
                    assert await usual.status() == 504


async def test_what_is_pipelined_behind_an_upgrade_is_no_second_request() -> None:
    async with besieged_node(entity={"max_listeners": 1}) as node:
        listen = handshake(node.listen_url(), token=node.token())
        async with node.unharmed("requests and garbage behind handshakes that wait"):
            # The second of them waits for its place unanswered, behind the 64 that are parked.
            async with crowd(node, 65, listen), crowd(node, 50, listen + b"\xff" * 500_000) as greedy:
                await node.until(lambda counts: counts["waiting_listeners"] == 50)
                assert len(greedy) == 50
            async with await Stranger.dial(node, handshake(node.connect_url("nowhere")) + listen) as stranger:
                told = await stranger.told()
                assert told.startswith(b"HTTP/1.1 401 ") and told.count(b"HTTP/1.1 ") == 1


async def test_host_that_is_a_riddle_leads_nowhere() -> None:
    async with besieged_node() as node, node.unharmed("hosts that are riddles"):
        token = node.token()
        good = handshake(node.connect_url(), token=token)
        host = f"Host: {node.host}:{node.port}".encode()
        riddles = {
            # Nobody's name: it is served by the only namespace, and the token is for another host.
            b"Host: evil.example": 401,
            host + b"\r\n" + host: 400,
            b"Host: a, b": 404,
            b"Host: " + b"a" * 30_000: 404,
            b"Host: user:secret@" + node.host.encode(): 404,
            b"Host: [::1": 404,
            b"Host: " + node.host.encode() + b":99999": 404,
            b"Host:": 404,
            b"X: y": 400,
            b"Host: a\r\n b": 400,
            b"Host: a\0b": 400,
            host + b"\r\nTransfer-Encoding: chunked": 400,
            host + b"\r\nContent-Length: 5": 400,
            host + b"\nX: y": 400,
        }
        answered = {}
        for riddle in riddles:
            async with await Stranger.dial(node, good.replace(host, riddle)) as stranger:
                answered[riddle] = await stranger.status()
        assert answered == riddles


async def test_frames_ahead_of_the_101_reach_the_listener_and_no_more_than_it_reads() -> None:
    async with besieged_node() as node, node.unharmed("a sender that sends 4 MiB ahead of its 101"):
        frames = encode(BINARY, b"x" * 65_536) * 64
        async with node.websocket(node.listen_url()) as control:
            request = handshake(node.connect_url(), token=node.token())
            async with await Stranger.dial(node, request + frames):
                address = (await control.offer())["address"]
                async with node.websocket(address, token=None) as leg:
                    for _ in range(64):
                        assert (await leg.receive()).payload == b"x" * 65_536
