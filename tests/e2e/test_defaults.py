"""The numbers that hold when nothing is set, each one on a node that nobody configured, and beside it what the preset
`azure` makes of it.

What needs minutes is not waited for: the node looks at a clock that is ahead (`look_at_clock`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.echo_listener import echo_listener, who_answers
from e2e.quiet_node import look_at_clock, quiet_node
from e2e.raw_websocket import BINARY, PING, RawWebSocket, raw_pair, refusal
from e2e.sdk_pair import sdk_pair
from sdk.fake_clock import FakeClock
from trunkline.protocol.errors import (
    AuthorizationFailed,
    ConnectionLost,
    EntityQuotaExceeded,
    InvalidSetting,
    NoListener,
    QuotaExceeded,
)
from trunkline.protocol.limits import Preset
from trunkline.sdk import HybridConnectionClient, SasTokenProvider
from trunkline.sdk.reconnect import Backoff
from trunkline.server.config import declarative, settings
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.node import Node
from trunkline.testing import RelayNode

pytestmark = pytest.mark.loop("uvloop")

HOUR = 3600
PRESETS: tuple[Preset, ...] = ("default", "azure")


# --- senders: 25 at a time


async def test_26th_sender_is_refused_with_429_until_one_of_the_25_has_ended() -> None:
    async with quiet_node() as node, echo_listener(node), AsyncExitStack() as open_connections:
        client = node.client()
        first = await client.create_connection()
        for _ in range(24):
            await open_connections.enter_async_context(await client.create_connection())
        with pytest.raises(QuotaExceeded, match="25 sender connections"):
            await client.create_connection()
        refused = await refusal(node.connect_url(), token=node.token())
        assert refused.status == 429 and refused.phrase.startswith("QuotaExceeded: ")
        assert "TrackingId:" in refused.phrase and "\n" not in refused.phrase
        assert node.counts()["senders"] == node.counts()["connections"] == 25
        await first.close()
        assert await who_answers(client) == "listener"


async def test_26th_sender_and_more_are_welcome_under_azure() -> None:
    async with quiet_node(preset="azure") as node, echo_listener(node), AsyncExitStack() as open_connections:
        for _ in range(40):
            connection = await open_connections.enter_async_context(await node.client().create_connection())
            assert await connection.recv() == "listener"
        assert node.counts()["senders"] == node.counts()["connections"] == 40


async def test_25_senders_of_one_hybrid_connection_take_no_room_from_another() -> None:
    async with quiet_node(["orders", "parts"]) as node, AsyncExitStack() as stack:
        await stack.enter_async_context(echo_listener(node, entity="orders"))
        await stack.enter_async_context(echo_listener(node, entity="parts"))
        for _ in range(25):
            await stack.enter_async_context(await node.client("orders").create_connection())
        assert await who_answers(node.client("parts")) == "listener"


# --- hybrid connections: 100 in a namespace


async def test_101st_hybrid_connection_is_refused_while_the_node_runs() -> None:
    async with quiet_node([f"entity-{n}" for n in range(100)]) as node:
        with pytest.raises(EntityQuotaExceeded, match="has 100 hybrid connections and may have 100"):
            await node.add_hybrid_connection("one-more")
        # The refused one left no trace, and one that goes makes room.
        assert (await refusal(node.connect_url("one-more"), token=node.token("one-more"))).status == 404
        await node.remove_hybrid_connection("entity-7")
        await node.add_hybrid_connection("one-more")
        assert (await refusal(node.connect_url("one-more"), token=node.token("one-more"))).status == 504


async def test_101st_hybrid_connection_is_welcome_under_azure() -> None:
    async with quiet_node([f"entity-{n}" for n in range(100)], preset="azure") as node:
        await node.add_hybrid_connection("one-more")
        async with echo_listener(node, entity="one-more"):
            assert await who_answers(node.client("one-more")) == "listener"


def node_of(file: Path, store: SqliteStore) -> Node:
    declaration = declarative.read(file)
    return Node(settings.load(declaration), declaration, store=store)


@pytest.mark.parametrize("preset", PRESETS)
async def test_101st_hybrid_connection_of_a_file_is_refused_at_start(tmp_path: Path, preset: str) -> None:
    file = tmp_path / "trunkline.toml"
    head = f'[node]\nport = 0\nadmin_port = 0\ntls = "off"\npreset = "{preset}"\n[[namespace]]\nname = "namespace"\n'
    entities = [f'[[namespace.hybrid_connection]]\nname = "entity-{n}"\n' for n in range(101)]
    file.write_text(head + "".join(entities[:100]))
    async with node_of(file, SqliteStore(":memory:")) as node:
        [namespace] = node.catalog.namespaces
        assert len(node.catalog.hybrid_connections(namespace)) == 100
    file.write_text(head + "".join(entities))
    if preset == "azure":
        async with node_of(file, SqliteStore(":memory:")):
            return
    with pytest.raises(EntityQuotaExceeded, match="would hold 101 hybrid connections, and it may have 100"):
        async with node_of(file, SqliteStore(":memory:")):
            pass


# --- a silent connection: 60 seconds


async def test_silent_connection_ends_after_60_seconds() -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        look_at_clock(node, ahead=59)
        assert node.counts()["connections"] == 1
        look_at_clock(node, ahead=60)
        for end in (pair.sender, pair.listener):
            frame = await end.receive()
            assert frame.close_code == 1001 and frame.close_reason.startswith("IdleTimeout: ")
            assert "TrackingId:" in frame.close_reason


async def test_silent_connection_stays_under_azure() -> None:
    async with quiet_node(preset="azure") as node, raw_pair(node) as pair:
        look_at_clock(node, ahead=24 * HOUR)
        await pair.sender.send(BINARY, b"still here")
        assert (await pair.listener.receive()).payload == b"still here"


@pytest.mark.parametrize("who", ["sender", "listener"])
async def test_heartbeat_of_either_side_keeps_a_connection_that_is_silent_otherwise(who: str) -> None:
    idle = 0.4
    beats = {"sender": 0.0, "listener": 0.0, who: idle / 4}
    async with (
        quiet_node(idle_timeout=idle) as node,
        sdk_pair(
            node,
            client=node.client(heartbeat=beats["sender"]),
            listener=node.listener(heartbeat=beats["listener"]),
        ) as pair,
    ):
        await asyncio.sleep(4 * idle)
        await pair.sender.send("still here")
        assert await pair.listener.recv() == "still here"


async def test_connection_without_a_heartbeat_is_dropped_after_the_same_time() -> None:
    async with (
        quiet_node(idle_timeout=0.4) as node,
        sdk_pair(node, client=node.client(heartbeat=0), listener=node.listener(heartbeat=0)) as pair,
    ):
        begun = time.monotonic()
        for end in pair:
            with pytest.raises(ConnectionLost, match="IdleTimeout"):
                await end.read()
            assert end.close_code == 1001
        assert 0.3 < time.monotonic() - begun < 3


# --- frames: 64 KiB


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("direction", ["to the listener", "to the sender"])
@pytest.mark.parametrize(
    ("size", "frames"), [(0, 1), (65_535, 1), (65_536, 1), (65_537, 2), (1_048_576, 16), (1_048_577, 17)]
)
async def test_frame_over_64_kib_leaves_in_fragments(preset: Preset, direction: str, size: int, frames: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    async with quiet_node(preset=preset) as node, raw_pair(node) as pair:
        origin, target = (
            (pair.sender, pair.listener) if direction == "to the listener" else (pair.listener, pair.sender)
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(origin.send(BINARY, payload))
            received = await target.receive_message()
        assert b"".join(frame.payload for frame in received) == payload
        assert [frame.opcode for frame in received] == [BINARY] + [0] * (len(received) - 1)
        assert all(len(frame.payload) <= 65_536 for frame in received)
        assert len(received) == frames


async def test_frame_over_64_kib_is_closed_with_1009_where_the_entity_says_reject() -> None:
    async with quiet_node(oversize_frames="reject") as node, raw_pair(node) as pair:
        await pair.sender.send(BINARY, bytes(65_536))
        assert len((await pair.listener.receive()).payload) == 65_536
        await pair.sender.send(BINARY, bytes(65_537))
        frame = await pair.sender.receive()
        assert frame.close_code == 1009 and "65537 bytes" in frame.close_reason and "TrackingId:" in frame.close_reason
        assert (await pair.listener.receive()).close_code == 1001


async def test_sdk_sends_no_frame_over_64_kib() -> None:
    payload = bytes(range(256)) * 800
    async with (
        quiet_node(oversize_frames="reject") as node,
        echo_listener(node),
        await node.client().create_connection() as sender,
    ):
        assert await sender.recv() == "listener"
        await sender.send(payload)
        assert await sender.recv() == payload


# --- tokens: an hour unless told otherwise, 24 hours at most


async def test_token_of_the_sdk_lasts_an_hour_unless_told_otherwise() -> None:
    async with quiet_node() as node, echo_listener(node):
        [channel] = node.node.broker.channels
        assert channel.facts.grant.expires_at - time.time() == pytest.approx(HOUR, abs=5)


def test_token_of_the_sdk_lasts_24_hours_at_most() -> None:
    SasTokenProvider("rule", "key", lifetime=24 * HOUR)
    with pytest.raises(InvalidSetting, match="24 hours"):
        SasTokenProvider("rule", "key", lifetime=24 * HOUR + 1)


@pytest.mark.parametrize("action", ["listen", "connect"])
async def test_token_for_25_hours_is_refused_with_a_reason_and_one_for_24_is_accepted(action: str) -> None:
    async with quiet_node() as node, echo_listener(node):
        url = node.listen_url() if action == "listen" else node.connect_url()
        async with RawWebSocket(url, token=node.token(expires_in=24 * HOUR)):
            pass
        refused = await refusal(url, token=node.token(expires_in=25 * HOUR))
        assert refused.status == 401 and refused.phrase.startswith("TokenLifetimeExceeded: ")
        assert "25 h" in refused.phrase and "24 h" in refused.phrase and "max_token_lifetime" in refused.phrase


@pytest.mark.parametrize("hours", [25, 24 * 365])
async def test_token_for_any_time_is_accepted_under_azure(hours: int) -> None:
    async with quiet_node(preset="azure") as node:
        async with RawWebSocket(node.listen_url(), token=node.token(expires_in=hours * HOUR)):
            assert node.listener_count() == 1


async def test_token_that_has_expired_is_refused_on_both_sides() -> None:
    async with quiet_node() as node, echo_listener(node):
        for url in (node.listen_url(), node.connect_url()):
            refused = await refusal(url, token=node.token(expires_in=-120))
            assert refused.status == 401 and refused.phrase.startswith("ExpiredToken: ")


# --- nobody listens: 504


async def test_sender_gets_504_while_nobody_listens() -> None:
    async with quiet_node() as node:
        refused = await refusal(node.connect_url(), token=node.token())
        assert refused.status == 504
        assert refused.phrase.startswith("There are no listeners connected for the endpoint. TrackingId:")
        with pytest.raises(NoListener):
            await node.client().create_connection()
        async with echo_listener(node):
            assert await who_answers(node.client()) == "listener"
        assert (await refusal(node.connect_url(), token=node.token())).status == 504


async def test_sender_gets_404_and_the_words_of_azure_while_nobody_listens_under_azure() -> None:
    async with quiet_node(preset="azure") as node:
        refused = await refusal(node.connect_url(), token=node.token())
        assert refused.status == 404
        assert refused.phrase.startswith("There are no listeners connected for the endpoint. TrackingId:")
        assert f"SystemTracker:sb://127.0.0.1:{node.port}/test" in refused.phrase and "Timestamp:" in refused.phrase
        with pytest.raises(NoListener):
            await node.client().create_connection()


# --- an expired token closes the control channel


@pytest.mark.parametrize(("preset", "grace"), [("default", 30), ("azure", 120)])
async def test_control_channel_is_closed_when_its_token_expired_and_the_grace_is_over(
    preset: Preset, grace: float
) -> None:
    async with (
        quiet_node(preset=preset, ping_interval=0, control_idle_timeout=0) as node,
        RawWebSocket(node.listen_url(), token=node.token(expires_in=HOUR)) as listener,
    ):
        look_at_clock(node, ahead=HOUR + grace - 2)
        assert node.listener_count() == 1
        look_at_clock(node, ahead=HOUR + grace + 1)
        frame = await listener.receive()
        assert frame.close_code == 1008 and frame.close_reason.startswith("ExpiredToken: ")
        assert "TrackingId:" in frame.close_reason
        await node.until(lambda counts: counts["listeners"] == 0)


# --- the node pings every 30 seconds and gives up after 60


async def test_control_channel_is_pinged_every_30_seconds_and_given_up_after_60_without_an_answer() -> None:
    async with quiet_node() as node, RawWebSocket(node.listen_url(), token=node.token()) as listener:
        look_at_clock(node, ahead=30)
        assert (await listener.receive()).opcode == PING
        look_at_clock(node, ahead=59)
        assert node.listener_count() == 1
        look_at_clock(node, ahead=61)
        while (frame := await listener.receive()).opcode == PING:
            pass
        assert frame.close_code == 1011 and "Nothing was received" in frame.close_reason
        await listener.ended()


# --- 25 listeners


async def listen_25_times(node: RelayNode, stack: AsyncExitStack) -> list[RawWebSocket]:
    url = node.listen_url()
    return [await stack.enter_async_context(RawWebSocket(url, token=node.token())) for _ in range(25)]


@pytest.mark.parametrize("preset", PRESETS)
async def test_26th_listener_of_another_client_is_refused_with_403(preset: Preset) -> None:
    async with quiet_node(preset=preset) as node, AsyncExitStack() as stack:
        await listen_25_times(node, stack)
        url = node.listen_url(id="7f8d9c6e-1111-2222-3333-444455556666")
        refused = await refusal(url, token=node.token())
        assert refused.status == 403 and refused.phrase.startswith("QuotaExceeded: ")
        assert "25 listeners" in refused.phrase and "max_listeners" in refused.phrase
        assert node.listener_count() == 25 and node.counts()["parked_listeners"] == 0


async def test_26th_listener_of_the_same_client_is_parked_and_takes_the_next_place() -> None:
    async with quiet_node() as node, AsyncExitStack() as stack:
        listeners = await listen_25_times(node, stack)
        surplus = await stack.enter_async_context(RawWebSocket(node.listen_url(), token=node.token()))
        assert node.listener_count() == 25 and node.counts()["parked_listeners"] == 1
        # As long as it is parked, no sender is offered to it; once it has a place, it is one like the others.
        for listener in listeners:
            await listener.send_close(1000)
        await node.until(lambda counts: counts["listeners"] == 1 and counts["parked_listeners"] == 0)
        sender = RawWebSocket(node.connect_url(), token=node.token())
        await sender.connect()
        async with RawWebSocket((await surplus.offer())["address"]):
            await sender.upgraded()
        sender.abort()


# --- reconnecting: never more than 30 seconds


@given(
    chances=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=200),
    online=st.lists(st.floats(0, 1e6), max_size=20),
)
def test_listener_never_waits_longer_than_30_seconds(chances: list[float], online: list[float]) -> None:
    chance = iter(chances)
    backoff = Backoff(lambda: next(chance))
    lasted = iter(online)
    for n in range(len(chances)):
        assert 0 <= backoff.next_delay() <= 30
        if n % 7 == 6:
            backoff.was_online(next(lasted, 0.0))


@pytest.mark.parametrize("chance", [0.0, 0.999_999])
async def test_listener_is_back_with_delays_of_at_most_30_seconds(chance: float) -> None:
    clock = FakeClock(chance=chance)
    async with quiet_node() as node, echo_listener(node, _clock=clock) as listener:
        await node.stop()
        delays = [await clock.wake() for _ in range(12)]
        shortened = (1 + chance) / 2
        assert delays == pytest.approx([step * shortened for step in (0, 1, 2, 5, 10, *[30] * 7)])
        assert max(delays) <= 30 and listener.state == "connecting"
        await node.start()
        await clock.wake()
        await node.until(lambda counts: counts["listeners"] == 1)
        assert await who_answers(node.client()) == "listener"


# --- who may


async def test_rule_for_one_side_does_not_serve_the_other() -> None:
    async with quiet_node() as node, echo_listener(node):
        for url, right, missing in (
            (node.listen_url(), "Send", "Listen"),
            (node.connect_url(), "Listen", "Send"),
        ):
            refused = await refusal(url, token=node.token(rights=[right]))
            assert refused.status == 403 and f"'{missing}' claim(s) are required" in refused.phrase
        for url, right in ((node.listen_url(), "Listen"), (node.connect_url(), "Send")):
            async with RawWebSocket(url, token=node.token(rights=[right])):
                pass


async def test_sender_needs_a_token_unless_the_entity_says_otherwise() -> None:
    async with quiet_node() as node, echo_listener(node):
        refused = await refusal(node.connect_url())
        assert refused.status == 401 and refused.phrase.startswith("MissingToken: ")
        with pytest.raises(AuthorizationFailed):
            await HybridConnectionClient(f"{node.websocket_url}/test").create_connection()
