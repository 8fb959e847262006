"""Senders and a listener that break off at any moment: nothing is left behind, and nobody gets another's answer."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import Any

import pytest

from e2e.quiet_node import quiet_node
from http_cases import Relay
from http_echo import content
from http_sdk_echo import SdkEcho
from http_sender import Cut


def some_plan(chance: random.Random) -> dict[str, Any]:
    """What a listener shall do: whole answers, streams, early ones, broken ones."""
    size = chance.choice((0, 10, 70_000, 300_000))
    plan: dict[str, Any] = {"body": [["bytes", size, "a"]] * chance.randint(0, 3)}
    if chance.random() < 0.1:
        plan["body"].append(["abort"])
    if chance.random() < 0.3:
        plan["read"] = chance.choice(("none", "echo"))
    return plan


async def test_requests_that_are_broken_off_at_any_moment_leave_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chance = random.Random(1)
    ends = Counter[str]()

    async def one(relay: Relay) -> None:
        async with relay.connect() as sender:
            for _ in range(chance.randint(1, 5)):
                plan, chunks = some_plan(chance), chance.choice((None, [5, 70_000], [1]))
                body = content(chance.choice((0, 10, 65_536, 65_537, 400_000)), "u")
                relay.ask(sender, plan, "POST", body=body, chunks=chunks)
                fate = chance.random()
                if fate < 0.15:
                    for _ in range(chance.randint(0, 20)):
                        await asyncio.sleep(0)
                    ends["left before the answer"] += 1
                    return
                if fate < 0.25:
                    await sender.head()
                    ends["left in the answer"] += 1
                    return
                answer = await sender.answer()
                ends[str(answer.status)] += 1
                if answer.status == 200 and "read" not in plan:
                    assert answer.body == b"".join(content(*step[1:]) for step in plan["body"])

    async def many(relay: Relay) -> None:
        for _ in range(8):
            try:
                await one(relay)
            except (Cut, ConnectionError):
                ends["cut"] += 1

    async with quiet_node() as node, node.listener(http_handler=SdkEcho()):
        relay = Relay.of(node)
        async with asyncio.TaskGroup() as senders:
            for _ in range(15):
                senders.create_task(many(relay))
        await relay.once()
        await node.until(lambda counts: counts["http_requests"] == 0)
        assert node.listener_count() == 1
    # An answer that is broken off before anything of it went out is a 502.
    assert ends["200"] > 50 and set(ends) <= {"200", "502", "cut", "left before the answer", "left in the answer"}, ends
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
