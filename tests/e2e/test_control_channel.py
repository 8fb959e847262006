"""What becomes of a listener's connections when its control channel ends, and what keeps it open."""

from __future__ import annotations

import asyncio
import time

import pytest

from e2e.echo_listener import echo_listener, who_answers
from e2e.quiet_node import look_at_clock, quiet_node
from e2e.raw_websocket import BINARY, CLOSE, PING, PONG, TEXT, RawPair, RawWebSocket, raw_pair, refusal
from trunkline.protocol import connection_string
from trunkline.protocol.errors import ConnectionLost
from trunkline.sdk import HybridConnectionListener, ListenerState, SasTokenProvider
from trunkline.testing import RelayNode

pytestmark = pytest.mark.loop("uvloop")

HOUR = 3600


async def expect_cut(pair: RawPair) -> None:
    """Both legs end in TCP alone: no Close frame pretends an end in order."""
    await pair.sender.ended()
    await pair.listener.ended()


async def expect_alive(pair: RawPair) -> None:
    await pair.sender.send(TEXT, b"there")
    assert (await pair.listener.receive()).payload == b"there"
    await pair.listener.send(BINARY, b"back")
    assert (await pair.sender.receive()).payload == b"back"


# --- lost


async def test_loss_of_the_control_channel_cuts_its_connections_and_refuses_senders_until_it_is_back() -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        await expect_alive(pair)
        pair.control.abort()
        await expect_cut(pair)
        assert (await refusal(node.connect_url(), token=node.token())).status == 504
        assert node.counts()["connections"] == node.counts()["senders"] == 0
        async with raw_pair(node) as again:
            await expect_alive(again)


async def test_loss_of_one_control_channel_leaves_the_connections_of_another_alone() -> None:
    async with quiet_node() as node, raw_pair(node) as first:
        # The first one is active until it is gone, so the second gets its sender by name.
        guid = "0f8fad5b-d9cb-469f-a165-70867728950e"
        sender = RawWebSocket(
            node.connect_url(), token=node.token(), headers=[("Microsoft-Relay-AllowedListeners", guid)]
        )
        control = RawWebSocket(node.listen_url(id=guid), token=node.token())
        async with raw_pair(node, sender=sender, control=control) as second:
            first.control.abort()
            await expect_cut(first)
            await expect_alive(second)


async def test_loss_of_the_control_channel_keeps_its_connections_under_azure() -> None:
    async with quiet_node(preset="azure") as node, raw_pair(node) as pair:
        pair.control.abort()
        await node.until(lambda counts: counts["control_channels"] == 0)
        await expect_alive(pair)
        assert (await refusal(node.connect_url(), token=node.token())).status == 404


async def test_listener_of_the_sdk_is_back_at_once_after_a_cut_and_its_sender_saw_the_end() -> None:
    async with quiet_node() as node, echo_listener(node):
        async with await node.client().create_connection() as sender:
            assert await sender.recv() == "listener"
            for channel in list(node.node.broker.channels):
                channel.abort()
            with pytest.raises(ConnectionLost):
                await sender.recv()
        await node.until(lambda counts: counts["listeners"] == 1)
        assert await who_answers(node.client()) == "listener"


@pytest.mark.parametrize("code", [1000, 1001, None])
async def test_listener_that_closes_in_order_keeps_its_connections(code: int | None) -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        await pair.control.send(CLOSE, b"" if code is None else code.to_bytes(2, "big"))
        assert (await pair.control.receive()).opcode == CLOSE
        await pair.control.ended()
        await expect_alive(pair)
        assert (await refusal(node.connect_url(), token=node.token())).status == 504


@pytest.mark.parametrize("code", [1008, 1011, 4000])
async def test_listener_that_closes_with_a_failure_is_lost(code: int) -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        await pair.control.send_close(code)
        await expect_cut(pair)


@pytest.mark.parametrize("violation", [b"\x82\x00", b"\xf0\x80\0\0\0\0"], ids=["not masked", "unknown opcode"])
async def test_listener_that_breaks_the_protocol_is_lost(violation: bytes) -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        await pair.control.send_bytes(violation)
        frame = await pair.control.receive()
        assert frame.close_code == 1002 and "TrackingId:" in frame.close_reason
        await expect_cut(pair)


# --- tokens


async def test_expired_token_is_a_loss() -> None:
    async with quiet_node(ping_interval=0, control_idle_timeout=0, idle_timeout=0) as node, raw_pair(node) as pair:
        look_at_clock(node, ahead=HOUR + 31)
        assert (await pair.control.receive()).close_code == 1008
        await expect_cut(pair)


async def test_expired_token_keeps_the_connections_under_azure() -> None:
    async with quiet_node(preset="azure", ping_interval=0, control_idle_timeout=0) as node, raw_pair(node) as pair:
        look_at_clock(node, ahead=HOUR + 121)
        assert (await pair.control.receive()).close_code == 1008
        await expect_alive(pair)


async def test_token_that_really_expires_closes_the_channel_after_the_grace_and_not_before() -> None:
    async with quiet_node(token_grace=0.5) as node:
        token = node.token(expires_in=1)
        # Tokens are made for whole seconds.
        expires_at = int(token.partition("se=")[2].partition("&")[0])
        async with RawWebSocket(node.listen_url(), token=token) as listener:
            frame = await listener.receive()
            assert frame.close_code == 1008 and frame.close_reason.startswith("ExpiredToken: ")
            assert 0.5 <= time.time() - expires_at < 3


async def test_renewed_token_keeps_the_channel_also_within_the_grace() -> None:
    async with (
        quiet_node(ping_interval=0, control_idle_timeout=0) as node,
        RawWebSocket(node.listen_url(), token=node.token(expires_in=HOUR)) as listener,
    ):
        [channel] = node.node.broker.channels
        look_at_clock(node, ahead=HOUR + 29)
        first = channel.facts.grant.expires_at
        await listener.send_json({"renewToken": {"token": node.token(expires_in=2 * HOUR)}})
        await node.until(lambda counts: channel.facts.grant.expires_at > first)
        look_at_clock(node, ahead=2 * HOUR + 29)
        assert node.listener_count() == 1
        look_at_clock(node, ahead=2 * HOUR + 31)
        assert (await listener.receive()).close_code == 1008


@pytest.mark.parametrize("fault", ["nonsense", "of another key", "expired", "without Listen", "for 25 hours"])
async def test_refused_token_closes_the_channel_at_once_and_is_a_loss(fault: str) -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        token = {
            "nonsense": "trunkline.SharedAccessSignatureToken@1f2e3d",  # what the Java client sends
            "of another key": node.token(rule="send").replace("skn=send", "skn=listen"),
            "expired": node.token(expires_in=-120),
            "without Listen": node.token(rights=["Send"]),
            "for 25 hours": node.token(expires_in=25 * HOUR),
        }[fault]
        await pair.control.send_json({"renewToken": {"token": token}})
        frame = await pair.control.receive()
        assert frame.close_code == 1008 and "TrackingId:" in frame.close_reason
        await expect_cut(pair)


async def test_listener_of_the_sdk_renews_its_token_in_time_and_senders_are_served_all_the_while() -> None:
    states: list[ListenerState] = []
    async with quiet_node(token_grace=0) as node:
        rule = connection_string.parse(node.connection_string())
        assert rule.key_name is not None and rule.key is not None
        listener = HybridConnectionListener(
            f"{node.websocket_url}/{node.entity}",
            token_provider=SasTokenProvider(rule.key_name, rule.key, lifetime=1),
            on_connecting=lambda listener: states.append(listener.state),
            on_online=lambda listener: states.append(listener.state),
        )
        async with listener, asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(listener.serve(lambda connection: connection.send("served")))
            [channel] = node.node.broker.channels
            first_expiry = channel.facts.grant.expires_at
            while time.time() < first_expiry + 1:
                assert await who_answers(node.client()) == "served"
            assert channel.facts.grant.expires_at > first_expiry + 0.5
            assert list(node.node.broker.channels) == [channel]
            assert states == [ListenerState.CONNECTING, ListenerState.ONLINE] and listener.last_error is None
            await listener.close()
            await serving


# --- silence


async def test_listener_that_answers_pings_stays_however_silent_it_is() -> None:
    async with (
        quiet_node(ping_interval=0.2, control_idle_timeout=0.4) as node,
        RawWebSocket(node.listen_url(), token=node.token()) as listener,
    ):
        for _ in range(8):  # four times as long as it may be silent
            frame = await listener.receive()
            assert frame.opcode == PING
            await listener.send(PONG, frame.payload)
        assert node.listener_count() == 1


async def test_listener_of_the_sdk_stays_however_silent_it_is() -> None:
    async with (
        quiet_node(ping_interval=0.5, control_idle_timeout=1) as node,
        echo_listener(node, heartbeat=0) as listener,
    ):
        await asyncio.sleep(2.5)
        assert listener.state == "online" and listener.last_error is None
        assert await who_answers(node.client()) == "listener"


async def test_listener_that_does_not_answer_pings_is_lost() -> None:
    async with quiet_node(ping_interval=0.2, control_idle_timeout=0.4) as node, raw_pair(node) as pair:
        while (frame := await pair.control.receive()).opcode == PING:
            pass
        assert frame.close_code == 1011 and "TrackingId:" in frame.close_reason
        await pair.control.ended()
        await expect_cut(pair)


async def test_silent_listener_is_lost_where_the_node_sends_no_pings() -> None:
    async with (
        quiet_node(ping_interval=0, control_idle_timeout=0.4) as node,
        RawWebSocket(node.listen_url(), token=node.token()) as listener,
    ):
        begun = time.monotonic()
        frame = await listener.receive()
        assert frame.close_code == 1011
        assert 0.3 < time.monotonic() - begun < 3


async def test_heartbeat_of_the_listener_keeps_its_channel_where_the_node_sends_no_pings() -> None:
    async with quiet_node(ping_interval=0, control_idle_timeout=0.4) as node, echo_listener(node, heartbeat=0.1) as it:
        await asyncio.sleep(1.6)
        assert it.state == "online" and it.last_error is None


async def test_ping_of_a_listener_is_answered_with_its_own_words() -> None:
    async with quiet_node() as node, RawWebSocket(node.listen_url(), token=node.token()) as listener:
        for words in (b"", b"are you there?", bytes(125)):
            await listener.send(PING, words)
            frame = await listener.receive()
            assert frame.opcode == PONG and frame.payload == words


async def test_listener_of_the_sdk_finds_a_dead_link_within_two_heartbeats() -> None:
    """Nothing arrives, and TCP says nothing."""
    heartbeat = 0.3
    async with quiet_node() as node:
        offline = asyncio.Event()
        forwarder = await Forwarder.to(node)
        rule = connection_string.parse(node.connection_string())
        listener = HybridConnectionListener(
            f"ws://127.0.0.1:{forwarder.port}/{node.entity}",
            key_name=rule.key_name,
            key=rule.key,
            heartbeat=heartbeat,
            on_connecting=lambda listener: offline.set(),
        )
        async with listener:
            offline.clear()
            forwarder.hold()
            begun = time.monotonic()
            async with asyncio.timeout(5):
                await offline.wait()
            assert time.monotonic() - begun < 3 * heartbeat
        await forwarder.close()


class Forwarder:
    """Passes TCP on to a node until told to keep everything to itself."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()

    @classmethod
    async def to(cls, node: RelayNode) -> Forwarder:
        self = cls()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            upstream, to_node = await asyncio.open_connection("127.0.0.1", node.port)
            self._writers |= {writer, to_node}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, to_node))
                tasks.create_task(self._pass(upstream, writer))

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return self

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._flowing.wait()
            writer.write(data)
        writer.close()

    def hold(self) -> None:
        self._flowing.clear()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._flowing.set()
        for writer in self._writers:
            writer.transport.abort()
