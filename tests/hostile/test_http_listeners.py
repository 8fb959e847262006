"""Listeners that mean no good to the senders of plain HTTP, or to the node: silent, deaf, endless, or everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from e2e.raw_websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawWebSocket, Refused, encode
from hostile.attackers import crowd, each
from hostile.besieged import ATTACKED, BesiegedNode, besieged_node

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.slow, pytest.mark.timeout(180)]

#: Everybody may send, and waits for little.
OPEN = {"requires_client_authorization": False, "response_timeout": 2.0, "body_idle_timeout": 2.0}


def request(node: BesiegedNode, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"POST /{ATTACKED} HTTP/1.1", f"Host: {node.host}:{node.port}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def listening(node: BesiegedNode, **options: Any) -> AsyncIterator[RawWebSocket]:
    async with node.websocket(node.listen_url(), **options) as control:
        yield control
        with contextlib.suppress(ConnectionError):
            await control.send_close(1000)


async def told(control: RawWebSocket) -> dict[str, Any]:
    """The next request, without its body."""
    while True:
        frame = await control.receive_answering_pings()
        if frame.opcode == TEXT:
            return dict(json.loads(frame.payload)["request"])


def response(asked: dict[str, Any], *, body: bool = True, **fields: Any) -> bytes:
    """A frame with the head of an answer."""
    head = {"requestId": asked["id"], "statusCode": 200, "responseHeaders": {}, "body": body, **fields}
    return encode(TEXT, json.dumps({"response": head}).encode())


@asynccontextmanager
async def rendezvous(node: BesiegedNode, asked: dict[str, Any]) -> AsyncIterator[RawWebSocket]:
    async with node.websocket(asked["address"], token=None) as leg:
        yield leg


async def test_listener_that_never_answers_costs_its_senders_their_time_and_nothing_else() -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("600 requests that nobody answers") as measured:
            async with listening(node) as control, crowd(node, 600, request(node, b"x" * 5_000)) as senders:
                assert await node.until(lambda counts: counts["http_requests"] == 600)
                assert Counter([await sender.first_status() for sender in senders]) == {504: 600}
                # It says so for each, too late, and twice.
                for _ in senders:
                    asked = await told(control)
                    await control.send_bytes(2 * (response(asked) + encode(BINARY, b"late")))
                assert (await node.counts())["http_requests"] == 0
            assert max(measured.memory) - measured.memory[0] < 40 * 2**20


@pytest.mark.parametrize("reads_head", [False, True])
async def test_listener_that_fetches_bodies_and_does_not_read_them(reads_head: bool) -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("100 uploads of 2 MiB to rendezvous that nobody reads") as measured:
            upload = request(node, b"x" * 2**21)
            async with listening(node) as control, crowd(node, 100) as senders, AsyncExitStack() as stack:
                for sender in senders:
                    sender.send(upload)
                for _ in senders:
                    leg = node.websocket((await told(control))["address"], token=None, receive_buffer=4_096)
                    await stack.enter_async_context(leg)
                    if reads_head:
                        await leg.receive()
                assert Counter([await sender.first_status() for sender in senders]) == {504: 100}
            assert max(measured.memory) - measured.memory[0] < 100 * 2**20


@pytest.mark.parametrize("piece", [1, 65_536])
async def test_response_body_without_end_on_the_control_channel_ends_it(piece: int) -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed(f"5 endless response bodies in pieces of {piece}") as measured:
            for _ in range(5):
                async with listening(node) as control, crowd(node, 1, request(node)) as [sender]:
                    await control.send_bytes(response(await told(control)) + encode(BINARY, b"", end=False))
                    many = encode(CONTINUATION, b"x" * piece, end=False) * (65_536 // piece)
                    with contextlib.suppress(ConnectionError, TimeoutError):
                        async with asyncio.timeout(1):
                            while True:
                                await control.send_bytes(many)
                    assert await sender.first_status() in (502, 504)
                    control.abort()
                # What was read of it is taken in first.
                await node.until(lambda counts: counts["listeners"] == 1)
            assert max(measured.memory) - measured.memory[0] < 30 * 2**20


async def test_responses_to_nothing_hold_up_nobody() -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("50,000 responses that nobody waits for") as measured:
            async with listening(node) as control:
                many = (response({"id": "x" * 200}) + encode(BINARY, b"y" * 100)) * 100
                for _ in range(500):
                    await control.send_bytes(many)
                await control.send(PING, b"all of it")
                while (await control.receive()).opcode != PONG:
                    pass
        assert measured.held < 0.1


@pytest.mark.parametrize(
    "fields",
    [
        {"responseHeaders": {f"x-{n}": "y" for n in range(12_000)}},
        {"responseHeaders": {"x": ["y"] * 40_000}},
        {"responseHeaders": {"connection": "x," * 60_000, **{f"x{n}": "" for n in range(6_000)}}},
        {"responseHeaders": {"Set-Cookie": "a=b," * 40_000}},
        {"responseHeaders": {"Set-Cookie": "Expires=Mon, " * 15_000}},
        {"statusDescription": "\r\n" * 40_000},
    ],
    ids=["12,000 headers", "40,000 values", "connection", "cookies", "dates", "phrase"],
)
async def test_heads_of_responses_that_are_bombs_hold_up_nobody(fields: dict[str, Any]) -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("20 response heads that are bombs") as measured:
            for way in ("control", "rendezvous") * 10:
                # A channel each: one on which such a thing came may be closed.
                async with listening(node) as control, crowd(node, 1, request(node)) as [sender]:
                    asked = await told(control)
                    head = response(asked, body=False, **fields)
                    if way == "control":
                        await control.send_bytes(head)
                        assert await sender.first_status() in (200, 502)
                    else:
                        async with rendezvous(node, asked) as leg:
                            await leg.send_bytes(head)
                            assert await sender.first_status() in (200, 502)
        assert measured.held < 0.25


async def test_address_that_is_opened_a_thousand_times_lets_in_once() -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("1,000 visits to one address"):
            async with listening(node) as control, crowd(node, 1, request(node)) as [sender]:
                asked = await told(control)
                refused = Counter[int]()
                async with rendezvous(node, asked) as leg:

                    async def visit(_: int) -> None:
                        try:
                            async with rendezvous(node, asked) as second:
                                assert (await second.receive()).opcode == CLOSE
                        except Refused as answer:
                            refused[answer.status] += 1

                    await each(range(1_000), visit, at_once=50)
                    assert sum(refused.values()) == 1_000 and all(400 <= status < 500 for status in refused), refused
                    await leg.send_bytes(response(asked) + encode(BINARY, b"its answer"))
                    assert await sender.first_status() == 200


@pytest.mark.parametrize("frame", ["one byte", "empty", "pings"])
async def test_rendezvous_that_is_flooded_holds_up_nobody(frame: str) -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed(f"a rendezvous flooded by frames: {frame}") as measured:
            async with listening(node) as control, crowd(node, 1, request(node)) as [sender]:
                asked = await told(control)
                async with rendezvous(node, asked) as leg:
                    await leg.send_bytes(response(asked) + encode(BINARY, b"", end=False))
                    flood = {
                        "one byte": encode(CONTINUATION, b"x", end=False),
                        "empty": encode(CONTINUATION, b"", end=False),
                        "pings": encode(PING, b""),
                    }[frame] * 10_000
                    with contextlib.suppress(TimeoutError, ConnectionError):
                        async with asyncio.timeout(4):
                            while True:
                                await leg.send_bytes(flood)
                                await asyncio.sleep(0)
                    del sender
            assert max(measured.memory) - measured.memory[0] < 30 * 2**20
        assert measured.held < 0.1


async def test_responses_that_trickle_are_passed_on_and_those_that_stop_are_cut() -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("100 responses of a byte a second that stop"):
            async with listening(node) as control, crowd(node, 100, request(node)) as senders:
                async with AsyncExitStack() as stack:
                    legs = []
                    for _ in senders:
                        asked = await told(control)
                        leg = await stack.enter_async_context(rendezvous(node, asked))
                        await leg.send_bytes(response(asked) + encode(BINARY, b"", end=False))
                        legs.append(leg)
                    for _ in range(3):
                        await asyncio.sleep(1)
                        for leg in legs:
                            await leg.send(CONTINUATION, b"x", end=False)
                    assert (await node.counts())["http_requests"] == 100
                    answers = await asyncio.gather(*(sender.told() for sender in senders))
                    assert {answer[-18:] for answer in answers} == {3 * b"1\r\nx\r\n"}
                    assert Counter([(await leg.receive()).opcode for leg in legs]) == {CLOSE: 100}


async def test_heads_of_answers_that_never_end_are_given_up() -> None:
    async with besieged_node(entity=OPEN) as node:
        async with node.unharmed("50 heads of answers that never end"):
            async with listening(node) as control, crowd(node, 50, request(node)) as senders:
                async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
                    answers = [tasks.create_task(sender.first_status()) for sender in senders]
                    legs = [await stack.enter_async_context(rendezvous(node, await told(control))) for _ in senders]
                    opcode = TEXT
                    while not all(answer.done() for answer in answers):
                        for leg in legs:
                            with contextlib.suppress(ConnectionError):
                                await leg.send(opcode, b" ", end=False)
                        opcode = CONTINUATION
                        await asyncio.sleep(0.2)
                    assert {answer.result() for answer in answers} == {504}
