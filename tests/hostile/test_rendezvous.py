"""Senders and listeners that do not play their part, and addresses that are used twice, guessed, or late."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections import Counter

import pytest

from e2e.raw_websocket import BINARY, RawWebSocket, Refused, raw_pair
from hostile.attackers import Stranger, crowd, each, handshake, pairs
from hostile.besieged import BesiegedNode, besieged_node

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.slow, pytest.mark.timeout(180)]


async def status_of(node: BesiegedNode, url: str, token: str | None = None) -> int:
    """The status with which a handshake is answered."""
    async with await Stranger.dial(node, handshake(url, token=token)) as stranger:
        return await stranger.status()


# --- addresses


async def test_address_of_a_rendezvous_lets_in_once_and_nobody_guesses_it() -> None:
    async with besieged_node() as node, node.unharmed("5,000 guessed addresses, and used ones again"):
        async with raw_pair(node) as pair:
            sender = node.websocket(node.connect_url())
            await sender.connect()
            waiting = (await pair.control.offer())["address"]
            base, _, _ = waiting.rpartition("=")
            statuses = Counter[int]()

            async def guess(n: int) -> None:
                statuses[await status_of(node, f"{base}={secrets.token_urlsafe(24)}")] += 1

            await each(range(5_000), guess, at_once=50)
            assert statuses == {403: 5_000}
            # Used: the one of the pair. Late: one whose sender has left.
            assert await status_of(node, pair.address) == 403
            async with node.websocket(waiting, token=None) as leg:
                await sender.upgraded()
                await sender.send(BINARY, b"still there")
                assert (await leg.receive()).payload == b"still there"
            sender.abort()
            late = node.websocket(node.connect_url())
            await late.connect()
            address = (await pair.control.offer())["address"]
            late.abort()
            await node.until(lambda counts: counts["waiting_senders"] == 0)
            assert await status_of(node, address) == 403
            # Untouched by all of it.
            await pair.sender.send(BINARY, b"and this one")
            assert (await pair.listener.receive()).payload == b"and this one"


async def test_listener_that_was_passed_over_cannot_take_the_sender_of_another() -> None:
    async with besieged_node(entity={"rendezvous_timeout": 0.3}) as node:
        async with node.unharmed("a listener that answers for another"):
            async with node.websocket(node.listen_url()) as idle, node.websocket(node.listen_url()) as other:
                sender = node.websocket(node.connect_url())
                addresses = []
                # It lets two senders in a row wait in vain, so the second one is offered to the other listener.
                for _ in range(2):
                    sender.abort()
                    sender = node.websocket(node.connect_url())
                    await sender.connect()
                    addresses.append((await idle.offer())["address"])
                    if len(addresses) == 1:
                        with pytest.raises(Refused, match="504"):
                            await sender.upgraded()
                theirs = (await other.offer())["address"]
                assert [await status_of(node, address) for address in addresses] == [403, 403]
                async with node.websocket(theirs, token=None) as leg:
                    await sender.upgraded()
                    await leg.send(BINARY, b"mine")
                    assert (await sender.receive()).payload == b"mine"
                sender.abort()


# --- senders


async def test_5000_connections_that_are_closed_at_once_leave_nothing() -> None:
    async with besieged_node() as node:
        request = handshake(node.connect_url(), token=node.token())
        for what, data in (("that say nothing", b""), ("with a request", request), ("with half of one", request[:-2])):

            async def come_and_go(_: int, data: bytes = data) -> None:
                (await Stranger.dial(node, data)).leave()

            async with node.unharmed(f"5,000 connections {what} that are cut at once"):
                await each(range(5_000), come_and_go, at_once=50)


async def test_3000_senders_that_leave_before_they_are_accepted_leave_nothing() -> None:
    async with besieged_node(entity={"max_senders": 0}) as node:
        request = handshake(node.connect_url(), token=node.token())
        async with node.unharmed("3,000 senders that leave before they are accepted"):
            async with node.websocket(node.listen_url()) as control, asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(control.discard())
                for _ in range(6):
                    async with crowd(node, 500, request):
                        await node.until(lambda counts: counts["waiting_senders"] == 500)
                    await node.until(lambda counts: counts["waiting_senders"] == 0)
                reading.cancel()


# --- listeners


async def test_listener_that_never_accepts_costs_its_senders_their_time_and_nothing_else() -> None:
    async with besieged_node(entity={"max_senders": 0, "rendezvous_timeout": 2}) as node:
        request = handshake(node.connect_url(), token=node.token())
        async with node.unharmed("a listener that never accepts 500 senders"):
            async with node.websocket(node.listen_url()) as control, crowd(node, 500, request) as senders:
                assert await node.until(lambda counts: counts["waiting_senders"] == 500)
                assert {await sender.status() for sender in senders} == {504}
                assert len([await control.offer() for _ in senders]) == 500


async def test_listener_that_reads_no_offers_is_told_of_no_more_and_costs_a_megabyte() -> None:
    async with besieged_node(entity={"max_senders": 0}) as node:
        headers = ("X-Large", "x" * 20_000)
        request = handshake(node.connect_url(), headers, token=node.token())
        async with node.unharmed("a listener that reads none of its offers of 20 KB"):
            async with node.websocket(node.listen_url(), receive_buffer=4_096), crowd(node, 400, request) as senders:
                # The others are told that there is no listener.
                refused = await asyncio.wait_for(senders[-1].status(), 10)
                assert refused == 504


async def test_listener_that_accepts_and_never_reads_stops_its_sender_and_nobody_else() -> None:
    async with besieged_node(entity={"max_senders": 0}) as node:
        async with node.unharmed("20 listeners' legs that never read, and senders that send all they can") as measured:
            async with pairs(node, 20) as many:

                async def send_all(sender: RawWebSocket) -> None:
                    for _ in range(256):
                        await sender.send(BINARY, bytes(65_536))

                sending = [asyncio.ensure_future(send_all(pair.sender)) for pair in many]  # noqa: TID251 - ended below
                done, _ = await asyncio.wait(sending, timeout=2)
                assert not done
                for task in sending:
                    task.cancel()
                await asyncio.gather(*sending, return_exceptions=True)
            # What each leg may hold, and a read.
            assert max(measured.memory) - measured.memory[0] < 20 * 2**20


async def test_one_token_cannot_take_all_places_by_calling_itself_by_ever_new_ids() -> None:
    async with besieged_node(entity={"max_listeners": 2}) as node:
        async with node.unharmed("2,000 listeners with an id of their own each"):
            token = node.token()
            statuses = Counter[int]()

            async def listen(n: int) -> Stranger:
                url = node.listen_url(id=str(uuid.UUID(int=n)))
                return await Stranger.dial(node, handshake(url, token=token))

            kept = [await listen(n) for n in range(2)]
            await node.until(lambda counts: counts["listeners"] == 3)

            async def refused(n: int) -> None:
                async with await listen(n) as stranger:
                    statuses[await stranger.status()] += 1

            await each(range(2, 2_000), refused, at_once=50)
            assert statuses == {403: 1_998}
            for stranger in kept:
                stranger.leave()


async def test_storm_of_one_listener_is_parked_and_held_and_its_end_leaves_nothing() -> None:
    async with besieged_node(entity={"max_listeners": 1}) as node:
        request = handshake(node.listen_url(), token=node.token())

        async def storm() -> None:
            async with crowd(node, 1_600, request):
                await node.until(
                    lambda counts: counts["parked_listeners"] == 64 and counts["waiting_listeners"] == 1_535
                )

        # Python keeps whole MiB of which it uses a few bytes, so the first storm is not measured: no other adds to it.
        await storm()
        async with node.unharmed("one listener that comes 1,600 times"):
            await storm()
