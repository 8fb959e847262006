"""Senders of plain HTTP that mean no good: slow, endless, deaf, or many requests at once on one connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hostile.attackers import Stranger, crowd, each
from hostile.besieged import ATTACKED, BesiegedNode, besieged_node
from trunkline.sdk import HttpRequest, HttpResponse, HybridConnectionListener

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.slow, pytest.mark.timeout(180)]

#: Everybody may send: what is attacked is behind the check of a token.
OPEN = {"requires_client_authorization": False, "body_idle_timeout": 2.0}

#: Bytes of one flood.
FLOOD = 4 * 2**20


def request(node: BesiegedNode, method: str = "GET", *headers: str, target: str = f"/{ATTACKED}") -> bytes:
    """A request head."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {node.host}:{node.port}", *headers, "", ""]
    return "\r\n".join(lines).encode()


@asynccontextmanager
async def listener(node: BesiegedNode, *, answer: int = 2) -> AsyncIterator[Counter[str]]:
    """One that reads every body and answers with so many bytes; counts what it was asked."""
    asked = Counter[str]()

    async def serve(request: HttpRequest) -> HttpResponse:
        asked["begun"] += 1
        async for _ in request:
            pass
        asked["whole"] += 1
        return HttpResponse(200, b"x" * answer)

    text, tls = node.connection_string(), node.tls
    async with HybridConnectionListener(text, ssl=tls or False, http_handler=serve, max_requests=2_000):
        await node.until(lambda counts: counts["listeners"] >= 1 + bool(node.bystander))
        yield asked


async def flood(stranger: Stranger, data: bytes, times: int, *, within: float = 5) -> None:
    """Send `data` so often, or until the node ends it, or takes no more."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(within):
            for _ in range(times):
                stranger.send(data)
                await stranger.sent()


async def test_heads_that_are_bombs_cost_little_on_the_plain_path_too() -> None:
    async with besieged_node(entity=OPEN) as node:
        bombs = {
            "2,000 headers": (request(node, "GET", *["a:"] * 2_000), 431),
            "900 headers": (request(node, "GET", *[f"x-{n}: y" for n in range(900)]), 200),
            "a header of 31,000 commas": (request(node, "GET", "Connection: " + "," * 31_000), 200),
            "a Transfer-Encoding of 15,000 codings": (
                request(node, "POST", "Transfer-Encoding: " + "a," * 15_000),
                400,
            ),
            "a query of 31 KiB": (request(node, target=f"/{ATTACKED}?" + "%41=&" * 6_200), 200),
            "a path of 8,000 segments": (request(node, target=f"/{ATTACKED}/" + "%41/" * 7_900), 200),
            "a target that never ends": (b"GET /" + b"x" * 40_000, 414),
        }
        for what, (head, status) in bombs.items():
            statuses = Counter[int]()
            head = head.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost") if b"commas" not in head else head

            async def throw(_: int, head: bytes = head, statuses: Counter[int] = statuses) -> None:
                async with await Stranger.dial(node, head) as stranger:
                    statuses[await stranger.first_status()] += 1

            async with node.unharmed(f"100 requests with {what}") as measured, listener(node) as asked:
                await each(range(100), throw, at_once=20)
                assert statuses == {status: 100}, what
                assert asked["begun"] == (100 if status == 200 else 0)
            assert measured.cpu < 3


async def test_heads_that_trickle_on_connections_that_are_kept_alive_are_refused_in_time() -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("300 kept-alive connections whose next head is one byte a second"), listener(node):
            async with crowd(node, 300, request(node)) as strangers, asyncio.TaskGroup() as tasks:
                for stranger in strangers:
                    assert await stranger.first_status() == 200
                answers = [tasks.create_task(stranger.status()) for stranger in strangers]
                for byte in request(node, "GET", "X: " + "y" * 50):
                    for stranger in strangers:
                        stranger.send(bytes([byte]))
                    done, _ = await asyncio.wait(answers, timeout=1)
                    if len(done) == len(answers):
                        break
                assert {answer.result() for answer in answers} == {408}


async def test_2000_connections_that_are_kept_alive_cost_little() -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("2,000 connections that are kept alive behind a request") as measured, listener(node):
            async with crowd(node, 2_000) as strangers:

                async def ask(stranger: Stranger) -> None:
                    stranger.send(request(node))
                    assert await stranger.first_status() == 200

                await each(strangers, ask, at_once=50)
            assert max(measured.memory) - measured.memory[0] < 40 * 2**20


@pytest.mark.parametrize("framing", ["Content-Length: 100000000000000000", "Transfer-Encoding: chunked"])
async def test_bodies_that_are_announced_and_never_come_are_given_up(framing: str) -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed(f"300 requests with {framing} and no body") as measured, listener(node) as asked:
            async with crowd(node, 300, request(node, "POST", framing)) as strangers:
                answers = await asyncio.gather(*(stranger.status() for stranger in strangers))
            # Told by a status where no answer had begun.
            assert set(answers) <= {0, 408}
            assert asked["whole"] == 0
            assert max(measured.memory) - measured.memory[0] < 60 * 2**20


async def test_bodies_that_trickle_hold_nothing_but_their_place() -> None:
    async with besieged_node(entity=OPEN) as node:
        head = request(node, "POST", "Content-Length: 1000")
        async with node.unharmed("200 bodies of one byte each half a second") as measured, listener(node):
            async with crowd(node, 200, head) as strangers:
                for _ in range(8):
                    for stranger in strangers:
                        stranger.send(b"x")
                    await asyncio.sleep(0.5)
            assert max(measured.memory) - measured.memory[0] < 60 * 2**20


#: What a chunked body may be made of without end, and whether it is refused.
ENDLESS = {
    "chunks of one byte": (b"1\r\nz\r\n", False),
    "chunk extensions": (b"1;" + b"x" * 200 + b"\r\nz\r\n", True),
    "one chunk extension": (b"1;" + b"x" * 65_536, True),
    "zeros of a size": (b"0" * 65_536, True),
    "trailers": (b"0\r\n" + b"a: b\r\n" * 10_000, True),
    "one trailer": (b"0\r\na: " + b"b" * 65_536, True),
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_bodies_in_chunks_without_end_hold_up_nobody(tls: bool) -> None:
    async with besieged_node(entity=OPEN, tls=tls) as node:
        head = request(node, "POST", "Transfer-Encoding: chunked")
        for what, (piece, is_refused) in ENDLESS.items():
            async with node.unharmed(f"20 bodies of endless {what}") as measured, listener(node):
                async with crowd(node, 20, head, tls=tls) as strangers:
                    data = piece * max(1, 65_536 // len(piece))
                    await asyncio.gather(*(flood(each, data, FLOOD // 20 // len(data) + 1) for each in strangers))
                    if is_refused:
                        statuses = await asyncio.gather(*(stranger.first_status() for stranger in strangers))
                        assert set(statuses) <= {400, 431}, what
                assert measured.held < 0.5


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
async def test_floods_of_pipelined_requests_hold_up_nobody(reads: bool) -> None:
    async with besieged_node(entity=OPEN) as node:
        for what, one in {
            "good requests": request(node),
            "requests for nothing": request(node, target="/none"),
        }.items():
            async with (
                node.unharmed(f"10 floods of pipelined {what}{'' if reads else ', unread'}") as measured,
                listener(node) as asked,
            ):
                async with crowd(node, 10) as strangers, asyncio.TaskGroup() as tasks:
                    readers = [tasks.create_task(stranger.told()) for stranger in strangers if reads]
                    await asyncio.gather(*(flood(each, one * 600, 10_000, within=3) for each in strangers))
                    for reader in readers:
                        reader.cancel()
                assert measured.held < 0.5
                assert max(measured.memory) - measured.memory[0] < 60 * 2**20
                assert bool(asked["whole"]) == (what == "good requests")


async def test_senders_that_read_no_answer_hold_little_of_it() -> None:
    async with besieged_node(entity=OPEN) as node:
        async with (
            node.unharmed("20 senders that read nothing of answers of 8 MiB") as measured,
            listener(node, answer=8 * 2**20),
        ):
            async with crowd(node, 20, request(node)) as strangers:
                await asyncio.sleep(3)
                # 160 MiB are theirs to read.
                assert max(measured.memory) - measured.memory[0] < 40 * 2**20
                async with await Stranger.dial(node, request(node)) as good:
                    assert await good.first_status() == 200
                assert len(strangers) == 20


async def test_senders_that_leave_in_the_middle_leave_nothing() -> None:
    async with besieged_node(entity=OPEN) as node:
        moments = {
            "ahead of their answer": request(node),
            "in the middle of a body": request(node, "POST", "Content-Length: 1000000") + b"x" * 200_000,
            "in the middle of a chunk": request(node, "POST", "Transfer-Encoding: chunked") + b"fffff\r\nx",
        }
        for what, data in moments.items():
            async with node.unharmed(f"600 senders that leave {what}"), listener(node, answer=2**20):

                async def leave(n: int, data: bytes = data) -> None:
                    async with await Stranger.dial(node, data) as stranger:
                        await stranger.sent()
                        await asyncio.sleep(0.002 * (n % 100))

                await each(range(600), leave, at_once=50)
