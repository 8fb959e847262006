"""Guesses: tokens, and addresses of rendezvous."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from hostile.attackers import Stranger, each, handshake
from hostile.besieged import besieged_node
from trunkline.protocol.limits import FAILURES_ANSWERED, HELD_FOR, HELD_PER_ADDRESS

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.timeout(180)]


@pytest.mark.slow
async def test_10000_wrong_tokens_are_refused_and_a_good_one_from_the_same_address_is_not_held() -> None:
    async with besieged_node() as node, node.unharmed("10,000 wrong tokens from one address") as measured:
        statuses = Counter[int]()
        slow = 0

        async def guess(n: int) -> None:
            nonlocal slow
            began = time.monotonic()
            async with await Stranger.dial(
                node, handshake(node.connect_url(), token=node.token(key=f"guess {n}"))
            ) as stranger:
                statuses[await stranger.status()] += 1
            slow += time.monotonic() - began >= HELD_FOR

        await each(range(10_000), guess, at_once=200)
        assert statuses == {401: 10_000}
        # Almost all of the time, as many were held as may be.
        assert slow >= HELD_PER_ADDRESS
        print(f"{slow} of 10,000 were held; {10_000 / measured.since():.0f} a second")
        assert slow <= 10_000 - FAILURES_ANSWERED
