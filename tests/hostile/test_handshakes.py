"""Strangers at the door, who never get as far as a token: half heads, slow heads, half TLS handshakes."""

from __future__ import annotations

import asyncio

import pytest

from hostile.attackers import client_hello, crowd
from hostile.besieged import besieged_node

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.timeout(180)]

HALF_A_HEAD = b"GET /$hc/attacked?sb-hc-action=connect HTTP/1.1\r\nHost: localhost\r\nUpgrade: websock"


@pytest.mark.slow
async def test_2000_half_open_upgrades_are_refused_when_their_time_is_over() -> None:
    async with besieged_node() as node, node.unharmed("2,000 half-open upgrades"):
        async with crowd(node, 2_000, HALF_A_HEAD) as strangers:
            await node.until(lambda counts: counts["handshakes"] >= 2_000)
            assert set(await asyncio.gather(*(each.status() for each in strangers))) == {408}


@pytest.mark.slow
async def test_2000_tls_handshakes_that_never_end_are_cut_when_their_time_is_over() -> None:
    async with besieged_node(tls=True) as node, node.unharmed("2,000 TLS handshakes that never end"):
        async with crowd(node, 2_000, client_hello()) as strangers:
            await node.until(lambda counts: counts["handshakes"] >= 2_000)
            await asyncio.gather(*(each.told() for each in strangers))


@pytest.mark.slow
async def test_500_heads_that_trickle_are_refused_when_their_time_is_over() -> None:
    async with besieged_node() as node, node.unharmed("500 heads of one byte a second"):
        async with crowd(node, 500) as strangers, asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(each.status()) for each in strangers]
            for byte in HALF_A_HEAD:
                for each in strangers:
                    each.send(bytes([byte]))
                done, _ = await asyncio.wait(answers, timeout=1)
                if len(done) == len(answers):
                    break
            assert {each.result() for each in answers} == {408}
