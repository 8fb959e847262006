"""The sender against a relay that does what the test says."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import pytest

from sdk.fake_clock import FakeClock
from sdk.relay_stub import Peer, RelayStub
from trunkline.protocol import sas
from trunkline.protocol.errors import (
    AccessDenied,
    AuthorizationFailed,
    ConnectionNotEstablished,
    ConnectionRejected,
    EndpointNotFound,
    InternalError,
    InvalidSetting,
    NoListener,
    QuotaExceeded,
    RelayError,
    ServerBusy,
)
from trunkline.protocol.frames import Opcode
from trunkline.protocol.urls import Action
from trunkline.sdk import Connection, HybridConnectionClient, Retry

NO_LISTENER = "There are no listeners connected for the endpoint. TrackingId:x"


async def connect(client: HybridConnectionClient, relay: RelayStub, **arguments: Any) -> tuple[Connection, Peer]:
    """A connection that the relay grants."""
    async with asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(client.create_connection(**arguments))
        peer = await relay.next()
        await peer.upgrade()
    return connecting.result(), peer


async def entities_asked(
    client: HybridConnectionClient, relay: RelayStub, refusals: dict[str, tuple[int, str]], **arguments: Any
) -> tuple[list[str], Connection | Exception]:
    """The hybrid connections that one call tries, in order, and what comes of it."""
    asked: list[str] = []

    async def serve() -> None:
        while True:
            peer = await relay.next()
            entity = "/".join(peer.target.segments)
            asked.append(entity)
            if entity in refusals:
                await peer.refuse(*refusals[entity])
            else:
                await peer.upgrade()

    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve())
        result: Connection | Exception
        try:
            result = await client.create_connection(**arguments)
            result.abort()
        except RelayError as error:
            result = error
        serving.cancel()
    return asked, result


async def test_sender_says_what_it_wants_and_who_it_is() -> None:
    async with RelayStub() as relay:
        client = HybridConnectionClient(relay.address, key_name="send", key="secret")
        assert repr(client) == f"<HybridConnectionClient {relay.address}>"
        connection, peer = await connect(
            client,
            relay,
            headers={"X-CamelCase": "1"},
            subprotocols=["chat"],
            path_suffix="a%20b/c",
            query="q=%41&&r&sb-hc-action=listen",
        )
        assert peer.target.action is Action.CONNECT
        assert peer.request_line.startswith("GET /$hc/orders/a%20b/c?q=%41&&r&sb-hc-action=connect&sb-hc-id=")
        assert peer.target.id == connection.tracking_id
        assert ("X-CamelCase", "1") in peer.raw_headers
        assert peer.headers["sec-websocket-protocol"] == "chat"
        token = sas.parse(peer.headers["servicebusauthorization"])
        assert sas.signed_by(token, "secret") and token.covers(["localhost"], "orders")
        assert connection.request is None and connection.subprotocol is None
        assert repr(connection) == f"<Connection 'orders' open unread=0 id={connection.tracking_id}>"
        connection.abort()


async def test_sender_without_a_rule_is_anonymous() -> None:
    async with RelayStub() as relay:
        connection, peer = await connect(HybridConnectionClient(relay.address), relay)
        assert "servicebusauthorization" not in peer.headers
        connection.abort()


async def test_sender_uses_a_connection_string() -> None:
    async with RelayStub() as relay:
        text = f"Endpoint=sb://localhost:{relay.port}/;SharedAccessKeyName=send;SharedAccessKey=secret"
        client = HybridConnectionClient(text, entity_path="/orders/", ssl=False)
        connection, peer = await connect(client, relay, headers=[("A", "1"), ("A", "2")])
        assert [value for name, value in peer.raw_headers if name == "A"] == ["1", "2"]
        assert connection.entity_path == "orders" and client.entity_paths == ("orders",)
        connection.abort()


@pytest.mark.parametrize(
    ("status", "phrase", "kind"),
    [
        (401, "InvalidSignature: The token has an invalid signature. TrackingId:abc_G1", AuthorizationFailed),
        (403, "Unauthorized access. 'Send' claim(s) are required to perform this operation", AccessDenied),
        (404, "Endpoint does not exist. TrackingId:abc_G1", EndpointNotFound),
        (404, NO_LISTENER, NoListener),
        (504, NO_LISTENER, NoListener),
        (504, "ConnectionNotEstablished: None of the connected listeners ...", ConnectionNotEstablished),
        (429, "QuotaExceeded: ...", QuotaExceeded),
        (500, "Internal", InternalError),
        (503, "ServerBusy", ServerBusy),
        (418, "the listener's own words", ConnectionRejected),
        (400, "Rejected by user code", ConnectionRejected),
    ],
)
async def test_refusal_has_a_class_and_keeps_its_words(status: int, phrase: str, kind: type[RelayError]) -> None:
    async with RelayStub() as relay:
        _, error = await entities_asked(HybridConnectionClient(relay.address), relay, {"orders": (status, phrase)})
        assert isinstance(error, kind)
        assert (error.status, error.message, error.entity) == (status, phrase, "orders")
        assert error.tracking_id == ("abc_G1" if "abc_G1" in phrase else "x" if ":x" in phrase else error.tracking_id)
        assert error.tracking_id


async def test_nobody_there_and_nobody_answering() -> None:
    async with RelayStub() as relay:
        client = HybridConnectionClient(relay.address)
        with pytest.raises(TimeoutError, match="within 0.05 s"):
            await client.create_connection(timeout=0.05)
    with pytest.raises(ConnectionRefusedError):
        await client.create_connection()


async def test_retry_waits_and_tries_what_may_pass() -> None:
    clock = FakeClock(chance=0.5)
    async with RelayStub() as relay:
        client = HybridConnectionClient(relay.address, _clock=clock)
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(client.create_connection(retry=Retry(attempts=4, delays=(2, 4))))
            await (await relay.next()).refuse(503, "ServerBusy")
            assert await clock.wake() == 1.5
            (await relay.next()).abort()
            assert await clock.wake() == 3
            await (await relay.next()).refuse(504, NO_LISTENER)
            assert await clock.wake() == 3
            await (await relay.next()).upgrade()
        connecting.result().abort()


async def test_retry_ends_with_its_attempts_with_what_will_not_pass_and_with_the_timeout() -> None:
    clock = FakeClock()
    async with RelayStub() as relay:
        client = HybridConnectionClient(relay.address, _clock=clock)

        async def refuse(*statuses: int) -> None:
            for status in statuses[:-1]:
                await (await relay.next()).refuse(status, "no")
                await clock.wake()
            await (await relay.next()).refuse(statuses[-1], "no")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse(503, 503))
            with pytest.raises(ServerBusy):
                await client.create_connection(retry=Retry(attempts=2))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse(503, 401))
            with pytest.raises(AuthorizationFailed):
                await client.create_connection(retry=Retry())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse(503))
            with pytest.raises(TimeoutError, match="within 0.2 s: no") as raised:
                await client.create_connection(retry=Retry(), timeout=0.2)
            assert isinstance(raised.value.__cause__, ServerBusy)


async def test_several_hybrid_connections_are_used_in_turn() -> None:
    async with RelayStub() as relay:
        client = HybridConnectionClient(relay.base, entities=["a", "b/c", "d"])
        assert client.entity_paths == ("a", "b/c", "d")
        asked = [(await entities_asked(client, relay, {}))[0] for _ in range(4)]
        assert asked == [["a"], ["b/c"], ["d"], ["a"]]


@pytest.mark.parametrize(
    ("status", "phrase"),
    [(404, NO_LISTENER), (504, NO_LISTENER), (502, "x"), (504, "x"), (503, "x"), (429, "x")],
)
async def test_hybrid_connection_without_a_listener_or_room_is_skipped(status: int, phrase: str) -> None:
    async with RelayStub() as relay:
        client = HybridConnectionClient(relay.base, entities=["a", "b", "c"])
        asked, connection = await entities_asked(client, relay, {"a": (status, phrase), "b": (status, phrase)})
        assert asked == ["a", "b", "c"]
        assert isinstance(connection, Connection) and connection.entity_path == "c"


async def test_refusal_that_concerns_all_is_not_skipped_and_the_last_one_is_told() -> None:
    async with RelayStub() as relay:
        client = HybridConnectionClient(relay.base, entities=["a", "b"])
        asked, error = await entities_asked(client, relay, {"a": (401, "no")})
        assert asked == ["a"] and isinstance(error, AuthorizationFailed)
        asked, error = await entities_asked(client, relay, {"a": (404, NO_LISTENER), "b": (429, "full")})
        assert asked == ["b", "a"] and isinstance(error, NoListener)


async def test_key_always_comes_to_the_same_hybrid_connection_and_goes_on_from_there() -> None:
    async with RelayStub() as relay:
        names = ["a", "b", "c"]
        client = HybridConnectionClient(relay.base, entities=names)
        other = HybridConnectionClient(relay.base, entities=names[::-1])
        all_refuse = dict.fromkeys(names, (503, "busy"))
        first, _ = await entities_asked(client, relay, all_refuse, key="user-7")
        again, _ = await entities_asked(other, relay, all_refuse, key="user-7")
        assert first == again and sorted(first) == names


def test_keys_spread_evenly_and_move_only_when_they_must() -> None:
    before = HybridConnectionClient("sb://localhost", entities=["a", "b", "c"])
    after = HybridConnectionClient("sb://localhost", entities=["a", "b", "c", "d"])
    keys = [f"key-{number}" for number in range(3000)]
    place = {key: before._order(key)[0].path for key in keys}
    assert all(800 < count < 1200 for count in collections.Counter(place.values()).values())
    moved = {key: after._order(key)[0].path for key in keys}
    assert {moved[key] for key in keys if moved[key] != place[key]} == {"d"}


async def test_several_addresses_may_be_different_relays() -> None:
    async with RelayStub() as first, RelayStub() as second:
        client = HybridConnectionClient([first.address, f"{second.base}/other"])
        for relay in (first, second):
            connection, peer = await connect(client, relay)
            await connection.send("x")
            assert await peer.message() == (Opcode.TEXT, b"x")
            connection.abort()


@pytest.mark.parametrize(
    ("address", "settings"),
    [
        ("sb://localhost", {}),
        ("sb://localhost/a", {"entities": ["a", "b"]}),
        ("sb://localhost", {"entities": "ab"}),
        ("sb://localhost", {"entities": []}),
        ("sb://localhost", {"entities": ["a", ""]}),
        ("sb://localhost", {"entities": ["a"], "entity_path": "a"}),
        ([], {"entity_path": "a"}),
        ("sb://localhost/a", {"heartbeat": -1}),
    ],
)
def test_settings_that_make_no_sense_are_refused(address: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        HybridConnectionClient(address, **settings)


def test_retry_that_makes_no_sense_is_refused() -> None:
    for arguments in ({"attempts": 0}, {"delays": ()}, {"delays": (-1.0,)}):
        with pytest.raises(InvalidSetting):
            Retry(**arguments)
