"""What is shown of listeners and connections."""

from __future__ import annotations

import json

import pytest

from server.relay.peers import EPOCH, GUID, Peer, Relay, frame, token, until
from server.relay.requests_made import begun
from trunkline.protocol.frames import Opcode
from trunkline.server.admin.rows import _address, connection_row, listener_row, request_row
from trunkline.server.relay.listeners import Standing

LIBRARY = [("User-Agent", "library/1.0")]


async def listener_rows(relay: Relay) -> list[dict[str, object]]:
    standings = await relay.directory.standings()
    return [listener_row(each, now=relay.clock.now, wall_now=relay.wall_clock()) for each in standings]


def connection_rows(relay: Relay) -> list[dict[str, object]]:
    channels = {channel.id: channel for channel in relay.broker.channels}
    return [connection_row(each, channels.get(each.facts.listener), now=relay.clock.now) for each in relay.splicing]


def remote_of(peer: Peer) -> str:
    return "127.0.0.1:{}".format(peer.writer.get_extra_info("sockname")[1])


async def test_row_of_a_listener_says_who_it_is_and_how_it_does() -> None:
    async with Relay(ping_interval=0, control_idle_timeout=0) as relay:
        listener = await relay.listener(headers=LIBRARY, id=GUID, signature=token(lifetime=3600))
        await relay.pair(listener)
        relay.pass_time(60)
        [row] = await listener_rows(relay)
        channel = next(iter(relay.broker.channels))
        assert row == {
            "id": channel.id,
            "namespace": "myRelayNS",
            "entity": "orders",
            "state": "active",
            "since": "2023-11-14T22:30:00Z",
            "seconds": 60.0,
            "remote": remote_of(listener),
            "client": "library/1.0",
            "rule": "Root",
            "token_expires": "2023-11-14T23:30:00Z",
            "token_seconds": 3540.0,
            "last_heard_seconds": 60.0,
            "connections": 1,
            "offers": 1,
            "guid": GUID,
            "tracking_id": channel.facts.tracking_id,
        }


async def test_token_expiry_is_told_on_the_clock_that_closes_the_channel() -> None:
    async with Relay() as relay:
        await relay.listener(signature=token(lifetime=3600))
        [standing] = await relay.directory.standings()
        row = listener_row(standing, now=relay.clock.now, wall_now=relay.wall_clock() + 86_400)
        assert row["token_seconds"] == 3600.0
        row = listener_row(standing, now=relay.clock.now, wall_now=relay.wall_clock() - 86_400)
        assert row["seconds"] == 0.0


async def test_listener_that_waits_has_said_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.server.relay.listeners.PARKED_PER_CLIENT", 1)
    async with Relay(max_listeners=1) as relay:
        await relay.listener()
        await relay.listener()
        await relay.dial_listener(headers=LIBRARY)
        await until(lambda: relay.directory.counts()["waiting_listeners"])
        rows = await listener_rows(relay)
        assert [row["state"] for row in rows] == ["active", "parked", "waiting"]
        assert rows[2]["client"] == "library/1.0" and rows[2]["last_heard_seconds"] is None
        assert rows[2]["token_seconds"] == 3600.0


async def test_listener_elsewhere_is_shown_as_far_as_it_is_known() -> None:
    class Elsewhere:
        id = "7-other"
        guid = GUID
        client = ("192.0.2.1", "rule", GUID)

        def deliver(self, offer: object) -> bool:
            return False

    row = listener_row(Standing("entity", Elsewhere(), "active", 2, 3), now=0.0, wall_now=EPOCH)
    assert {name: value for name, value in row.items() if value is not None} == {
        "id": "7-other",
        "state": "active",
        "remote": "192.0.2.1",
        "rule": "rule",
        "connections": 2,
        "offers": 3,
        "guid": GUID,
    }


async def test_row_of_a_connection_counts_each_way() -> None:
    async with Relay(idle_timeout=0, ping_interval=0, control_idle_timeout=0) as relay:
        listener = await relay.listener(headers=LIBRARY)
        sender, leg = await relay.pair(listener, headers=[("User-Agent", "sender/2")])
        [connection] = relay.splicing
        sender.send_frame(Opcode.BINARY, b"x" * 100)
        assert await leg.message() == b"x" * 100
        leg.send_frame(Opcode.TEXT, b"yes")
        assert await sender.message() == b"yes"
        relay.pass_time(2)
        [row] = connection_rows(relay)
        to_listener, to_sender = connection.splice.lanes
        assert to_listener.bytes >= 100 and to_sender.bytes >= 3
        assert row == {
            "id": connection.facts.id,
            "namespace": "myRelayNS",
            "entity": "orders",
            "state": "open",
            "since": "2023-11-14T22:30:00Z",
            "seconds": 2.0,
            "method": None,
            "idle_seconds": 2.0,
            "sender": {"remote": remote_of(sender), "client": "sender/2", "rule": "Root"},
            "listener": {
                "id": connection.facts.listener,
                "remote": remote_of(listener),
                "client": "library/1.0",
            },
            "to_listener": {
                "messages": 1,
                "bytes": to_listener.bytes,
                "bytes_per_second": round(to_listener.bytes / 2),
            },
            "to_sender": {"messages": 1, "bytes": to_sender.bytes, "bytes_per_second": round(to_sender.bytes / 2)},
            "tracking_id": connection.facts.tracking_id,
        }
        relay.pass_time(1)
        [row] = connection_rows(relay)
        assert row["to_listener"] == {"messages": 1, "bytes": to_listener.bytes, "bytes_per_second": 0}


async def test_connection_that_one_side_has_closed_is_half_closed_and_may_outlive_its_listener() -> None:
    async with Relay(on_listener_loss="keep", requires_client_authorization=False) as relay:
        listener = await relay.listener()
        sender = await relay.dial("/$hc/orders?sb-hc-action=connect")
        leg = await relay.accept(await listener.offer())
        assert (await sender.answer()).status == 101
        sender.send(frame(Opcode.CLOSE))
        assert (await leg.frame()).opcode is Opcode.CLOSE
        await listener.leave()
        await until(lambda: not relay.broker.channels)
        [row] = connection_rows(relay)
        assert row["state"] == "half-closed"
        assert row["sender"] == {"remote": remote_of(sender), "client": "unknown", "rule": None}
        assert isinstance(row["listener"], dict) and row["listener"]["remote"] is None


async def test_no_secret_is_in_a_row() -> None:
    async with Relay() as relay:
        signature = token()
        listener = await relay.listener(signature=signature)
        offer_secrets = []
        sender = await relay.dial_sender(signature=signature)
        offer = await listener.offer()
        offer_secrets.append(next(iter(relay.broker._meetings)))
        await relay.accept(offer)
        assert (await sender.answer()).status == 101
        text = json.dumps([*await listener_rows(relay), *connection_rows(relay)])
        for secret in (signature, signature.partition("sig=")[2][:20], "root-key", *offer_secrets):
            assert secret not in text


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        (("192.0.2.7", 40_000), "192.0.2.7:40000"),
        (("2001:db8::7", 40_000), "[2001:db8::7]:40000"),
        (("192.0.2.7", 0), "192.0.2.7"),
        (("2001:db8::7", 0), "2001:db8::7"),
    ],
)
def test_address_is_shown_without_a_port_that_a_proxy_did_not_say(remote: tuple[str, int], shown: str) -> None:
    assert _address(remote) == shown


async def test_row_of_a_request_says_what_is_asked_and_not_where() -> None:
    async with Relay() as relay:
        listener = await relay.listener(headers=LIBRARY)
        [channel] = relay.broker.channels
        record = begun(relay, method="PUT")
        relay.clock.now += 3
        row = request_row(record, None, seconds=3.0, wall_now=relay.wall_clock())
        assert (row["state"], row["listener"]) == ("seeking", {"id": None, "remote": None, "client": None})
        relay.journal.request_told(record, channel.id)
        record.to_listener = 70_000
        row = request_row(record, channel, seconds=3.0, wall_now=relay.wall_clock())
        assert row == {
            "id": "id-9",
            "namespace": "myRelayNS",
            "entity": "orders",
            "state": "asked",
            "method": "PUT",
            "since": "2023-11-14T22:30:00Z",
            "seconds": 3.0,
            "idle_seconds": None,
            "sender": {"remote": "192.0.2.1:4711", "client": "library/1.0", "rule": "Root"},
            "listener": {"id": channel.id, "remote": remote_of(listener), "client": "library/1.0"},
            "to_listener": {"messages": None, "bytes": 70_000, "bytes_per_second": None},
            "to_sender": {"messages": None, "bytes": 0, "bytes_per_second": None},
            "tracking_id": record.admitted.tracking_id,
        }
        assert "secret" not in json.dumps(row)
        relay.journal.request_left(record)
