"""A listener of the SDK whose handlers do everything wrong, while channels are cut and senders leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter

import pytest

from e2e.quiet_node import quiet_node
from e2e.test_http_disorder import left_over
from http_cases import Relay
from http_echo import content
from http_sender import Cut
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.sdk.listener import HybridConnectionListener
from trunkline.testing import RelayNode

SIZES = (0, 10, 65_536, 65_537, 300_000)
DEEDS = ("answer", "pieces", "early", "raise", "raise late", "give up", "forget", "nothing", "abort", "twice", "slow")


class Mess:
    """The handler, and senders that know what it does."""

    def __init__(self, chance: random.Random, relay: Relay) -> None:
        self.chance = chance
        self.relay = relay
        self.faults: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.number = 0

    async def handle(self, request: HttpRequest) -> HttpResponse | None:
        plan = json.loads(request.headers["X-Plan"])
        deed, key, answer = plan["deed"], plan["key"], content(plan["size"], "answer" + plan["key"])
        headers = {"X-Key": key}
        if deed == "raise":
            raise ValueError("as planned")
        if deed == "give up":
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        if deed == "early":
            return HttpResponse(200, answer, headers=headers)
        body = await request.read()
        if body != content(plan["sent"], key):
            self.faults.append(f"{plan}: the handler got {len(body)} bytes")
        if deed == "slow":
            await asyncio.sleep(0.2)
        if deed == "nothing":
            return None
        if deed in ("answer", "slow"):
            return HttpResponse(200, answer, headers=headers)
        writer = await request.respond(200, headers)
        half = len(answer) // 2
        await writer.write(answer[:half])
        if deed == "raise late":
            raise ValueError("as planned")
        if deed == "abort":
            writer.abort()
            return None
        if deed == "twice":
            return HttpResponse(200, answer, headers=headers)
        if deed == "pieces":
            await asyncio.sleep(0.05)
        await writer.write(answer[half:])
        if deed != "forget":
            await writer.end()
        return None

    async def send(self, requests: int) -> None:
        for _ in range(requests):
            async with self.relay.connect() as sender:
                self.number += 1
                key = f"key-{self.number}"
                plan = {
                    "key": key,
                    "deed": self.chance.choice(DEEDS),
                    "size": self.chance.choice(SIZES),
                    "sent": self.chance.choice(SIZES),
                }
                body = content(int(str(plan["sent"])), key)
                chunks = [1000] if self.chance.random() < 0.5 else None
                self.relay.ask(sender, plan, "POST", body=body, chunks=chunks)
                if self.chance.random() < 0.15:
                    await asyncio.sleep(self.chance.random() * 0.1)
                    continue
                with contextlib.suppress(ConnectionError, RuntimeError):
                    await sender.drain()
                try:
                    async with asyncio.timeout(20):
                        answer = await sender.answer("POST")
                except Cut:
                    self.outcomes["cut"] += 1
                    continue
                except TimeoutError:
                    self.faults.append(f"{plan}: no end")
                    continue
                self.outcomes[str(answer.status)] += 1
                if answer.status == 200 and (
                    answer.get("x-key") != key or answer.body != content(int(str(plan["size"])), "answer" + key)
                ):
                    self.faults.append(f"{plan}: {len(answer.body)} bytes, of {answer.get('x-key')}")
                if answer.status == 200 and plan["deed"] in ("raise", "raise late", "give up", "nothing", "abort"):
                    self.faults.append(f"{plan}: a clean end")


async def disturb(node: RelayNode, chance: random.Random) -> None:
    """Cut a control channel or a rendezvous now and then, by the node or by the network."""
    while True:
        await asyncio.sleep(chance.random() * 0.4)
        broker = node.node.broker
        if (channels := list(broker.channels)) and chance.random() < 0.5:
            chance.choice(channels).abort()
        elif legs := list(broker.http._legs):
            chance.choice(legs).abort()


def in_hand(listener: HybridConnectionListener) -> dict[str, int]:
    """What the listener keeps of requests."""
    http = listener._http
    return {
        "in hand": http._in_hand,
        "refusing": http._refusing,
        "requests": len(http._requests),
        "tasks": len(http._tasks),
        "legs": len(http._legs),
        "held": len(http._held),
    }


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_handlers_in_disorder_answer_their_own_request_and_leave_nothing(tls: bool) -> None:
    chance = random.Random(int(tls))
    async with quiet_node(tls=tls, listener_policy="round-robin", tick=0.1, response_timeout=5) as node:
        mess = Mess(chance, Relay.of(node))
        async with contextlib.AsyncExitStack() as stack:
            listeners = [await stack.enter_async_context(node.listener(http_handler=mess.handle)) for _ in range(3)]
            async with asyncio.TaskGroup() as tasks:
                disturbing = tasks.create_task(disturb(node, chance))
                async with asyncio.TaskGroup() as senders:
                    for _ in range(20):
                        senders.create_task(mess.send(12))
                disturbing.cancel()
            await node.until(
                lambda _: not any(value for each in listeners for value in in_hand(each).values()), timeout=15
            )
            await node.until(lambda counts: not any({**left_over(node), "connections": 0}.values()), timeout=15)
        assert not mess.faults, "\n".join(mess.faults[:10])
        assert mess.outcomes["200"] and mess.outcomes["500"] and mess.outcomes["cut"], mess.outcomes
