"""Senders and listeners over real sockets: how they meet, and every way in which they do not."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from server.relay.peers import (
    GUID,
    HOST,
    ROOT,
    Answer,
    Frame,
    Peer,
    Relay,
    client_tls,
    frame,
    handshake,
    hybrid_connection,
    namespace,
    server_tls,
    target_of,
    token,
    until,
)
from trunkline.protocol.errors import ServerBusy
from trunkline.protocol.frames import Opcode
from trunkline.protocol.limits import FAILURES_ANSWERED, HELD_FOR, HELD_PER_ADDRESS, Limits
from trunkline.protocol.sas import Right
from trunkline.server.entities.model import Rule
from trunkline.server.relay import listeners
from trunkline.server.relay.frontend import Exchange, FrontendProtocol
from trunkline.server.relay.listeners import Listener, LocalDirectory, Offer, Placement, Registration
from trunkline.server.relay.request_head import parse_head

ORDERS = hybrid_connection().id


async def refused(peer: Peer, status: int, words: str) -> Answer:
    """The peer is refused by the relay, with the id by which to find it in the log, and leaves."""
    answer = await peer.answer()
    await peer.leave()
    assert (answer.status, answer.phrase[: len(words)]) == (status, words)
    assert "TrackingId:" in answer.phrase
    return answer


async def can_talk(sender: Peer, leg: Peer) -> None:
    """Messages pass both ways."""
    sender.send_frame(Opcode.TEXT, b"question")
    assert await leg.frame() == Frame(Opcode.TEXT, b"question")
    leg.send_frame(Opcode.BINARY, b"answer")
    assert await sender.frame() == Frame(Opcode.BINARY, b"answer")


# -- accepted


async def test_a_sender_and_a_listener_are_joined() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener)
        await can_talk(sender, leg)
        assert relay.counts() == {"listeners": 1, "senders": 1, "channels": 1, "connections": 1}
        sender.send_close(1000, "done")
        assert (await leg.frame()).close.code == 1000
        leg.send_close(1000, "done too")
        assert (await sender.frame()).close.reason == "done too"
        assert await sender.to_end() == b"" and await leg.to_end() == b""
        await until(lambda: "senders" not in relay.counts())
        await sender.leave()
        await leg.leave()
        await listener.leave()
        await relay.quiet()


async def test_what_is_known_of_both_ends_is_kept_and_is_no_secret() -> None:
    async with Relay() as relay:
        listener = await relay.listener(headers=[("Relay-User-Agent", ".NET 3.0.1")])
        sender, _ = await relay.pair(listener, headers=[("User-Agent", "curl/8")])
        (channel,) = relay.broker.channels
        (connection,) = relay.splicing
        facts = connection.facts
        assert (channel.facts.user_agent, facts.user_agent) == (".NET 3.0.1", "curl/8")
        assert facts.listener == channel.id
        assert facts.id != channel.id
        assert "secret" not in facts.id + channel.id
        assert facts.remote == sender.writer.get_extra_info("sockname")
        assert facts.began_at == relay.wall_clock()
        assert facts.grant is not None and facts.grant.rule == "Root"
        assert facts.id in repr(connection) and channel.id in repr(channel)


async def test_a_listener_is_told_all_of_a_sender() -> None:
    async with Relay() as relay:
        listener = await relay.listener(host="relay.local:8443")
        sender = await relay.dial_sender(
            "orders/a%20b", [("X-Custom", "1"), ("x-custom", "2")], query="q=1&", host="other:1"
        )
        offer = await listener.offer()
        own = sender.writer.get_extra_info("sockname")
        assert offer["remoteEndpoint"] == {"address": own[0], "port": own[1]}
        assert offer["connectHeaders"] == {
            "Host": "other:1",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "X-Custom": "1, 2",
        }
        # By the name and port that the listener used, not the sender.
        parts = urlsplit(offer["address"])
        assert (parts.scheme, parts.netloc, parts.path) == ("ws", "relay.local:8443", "/$hc/orders/a%20b")
        assert parse_qs(parts.query)["q"] == ["1"]
        assert parse_qs(parts.query)["sb-hc-id"] == [offer["id"]]


async def test_a_node_with_a_public_address_gives_that_one() -> None:
    async with Relay(public_url="wss://public.example:443") as relay:
        listener = await relay.listener()
        await relay.dial_sender()
        assert (await listener.offer())["address"].startswith("wss://public.example:443/$hc/orders?")


async def test_a_sender_has_no_answer_before_the_listener_has_decided() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender()
        offer = await listener.offer()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not sender.reader._buffer  # type: ignore[attr-defined]
        await relay.accept(offer)
        assert (await sender.answer()).status == 101


@pytest.mark.parametrize("size", [1, 100_000])
async def test_bytes_behind_the_handshakes_reach_the_other_side(size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender(early=frame(Opcode.BINARY, payload[:size]))
        leg = await relay.accept(await listener.offer(), early=frame(Opcode.TEXT, b"early too"))
        assert (await sender.answer()).status == 101
        assert await leg.message() == payload[:size]
        assert await sender.message() == b"early too"
        await can_talk(sender, leg)


async def test_many_senders_at_once_get_each_its_own_leg() -> None:
    async with Relay(max_senders=0) as relay:
        listener = await relay.listener()
        senders = [await relay.dial_sender(query=f"n={n}&") for n in range(100)]
        legs: dict[str, Peer] = {}
        for _ in senders:
            offer = await listener.offer()
            legs[parse_qs(urlsplit(offer["address"]).query)["n"][0]] = await relay.accept(offer)
        for n, sender in enumerate(senders):
            assert (await sender.answer()).status == 101
            sender.send_frame(Opcode.TEXT, b"%d" % n)
            assert await legs[str(n)].message() == b"%d" % n
        for peer in (*senders, *legs.values(), listener):
            await peer.leave()
        await relay.quiet()


# -- rejected

REJECTIONS = {
    ".NET": ("&sb-hc-statusCode=401&sb-hc-statusDescription=No+way%2C+%22you%22", 401, 'No way, "you"'),
    "hyco-websocket": ("&statusCode=503&statusDescription=Busy%20now%3B%20100%25", 503, "Busy now; 100%"),
    "any case": ("&SB-HC-STATUSCODE=418&sb-hc-statusdescription=Teapot", 418, "Teapot"),
    "success": ("&sb-hc-statusCode=202&sb-hc-statusDescription=OK", 202, "OK"),
    "no words": ("&sb-hc-statusCode=201", 201, "Created"),
    "unknown code": ("&sb-hc-statusCode=450", 450, "Unknown"),
    "two sentences": (
        "&sb-hc-statusCode=502&sb-hc-statusDescription=The+Listener%27s+handler+threw.+See+its+log.",
        502,
        "The Listener's handler threw. See its log.",
    ),
    "too high": ("&sb-hc-statusCode=600&sb-hc-statusDescription=x", 400, "x"),
    "101": ("&sb-hc-statusCode=101&sb-hc-statusDescription=x", 400, "x"),
    "no number": ("&sb-hc-statusCode=abc", 400, "Bad Request"),
    "two lines": ("&sb-hc-statusCode=403&sb-hc-statusDescription=a%0D%0ASet-Cookie%3A+b", 403, "a  Set-Cookie: b"),
    "long": ("&sb-hc-statusCode=403&sb-hc-statusDescription=" + "x" * 5_000, 403, "x" * 5_000),
}


@pytest.mark.parametrize("name", REJECTIONS)
@pytest.mark.loop("uvloop")
async def test_a_listener_says_no_in_its_own_words(name: str) -> None:
    more, status, words = REJECTIONS[name]
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender()
        no = await relay.dial_accept(await listener.offer(), more=more)
        gone = await no.answer()
        assert (gone.status, gone.phrase) == (410, "Gone")
        answer = await sender.answer()
        assert (answer.status, answer.phrase) == (status, words)
        assert {each for each, _ in answer.headers} == {"Date", "Content-Length", "Content-Type", "Connection"}
        for peer in (no, sender, listener):
            await peer.leave()
        await relay.quiet()


@pytest.mark.loop("uvloop")
async def test_a_senders_own_status_code_is_no_rejection() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener, query="statusCode=5&statusDescription=mine&")
        await can_talk(sender, leg)


# -- addresses that are no good


async def test_an_address_is_good_for_one_listener() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender()
        offer = await listener.offer()
        leg = await relay.accept(offer)
        await refused(await relay.dial_accept(offer), 403, "The rendezvous does not exist or has expired")
        assert (await sender.answer()).status == 101
        await can_talk(sender, leg)


async def test_a_guessed_address_is_no_good() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender()
        offer = await listener.offer()
        for wrong in ("x", "secret-99"):
            guess = await relay.dial(f"/$hc/orders?sb-hc-action=accept&sb-hc-id={GUID}&sb-hc-rendezvous={wrong}")
            await refused(guess, 403, "The rendezvous does not exist or has expired")
        await relay.accept(offer)
        assert (await sender.answer()).status == 101


async def test_a_listener_that_comes_too_late_is_refused() -> None:
    async with Relay(rendezvous_timeout=30) as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender()
        offer = await listener.offer()
        relay.pass_time(29.9)
        assert relay.broker.waiting_senders == 1
        relay.pass_time(0.1)
        await refused(sender, 504, "ConnectionNotEstablished: None of the connected listeners accepted")
        await refused(await relay.dial_accept(offer), 403, "The rendezvous does not exist or has expired")
        assert relay.directory.counts()["senders"] == 0


async def test_a_listener_that_comes_for_a_sender_that_has_left_is_refused() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender()
        offer = await listener.offer()
        await sender.leave()
        await until(lambda: not relay.broker.waiting_senders and not relay.directory.counts()["senders"])
        await refused(await relay.dial_accept(offer), 403, "The rendezvous does not exist or has expired")


async def test_a_sender_that_leaves_before_anybody_was_told_disturbs_nobody() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        head = parse_head(handshake("/$hc/orders", [("Authorization", token())]))
        exchange = Exchange(FrontendProtocol(relay.frontend), head, ("192.0.2.1", 1), False)
        relay.broker.serve(exchange)
        # In the same turn of the loop, before any task has run.
        exchange.left()
        sender = await relay.dial_sender(query="next=1&")
        assert "next=1" in (await listener.offer())["address"]
        await sender.leave()
        await listener.leave()
        await relay.quiet()


@pytest.mark.parametrize("action", ["request", "REQUEST"])
@pytest.mark.loop("uvloop")
async def test_the_address_of_a_request_is_not_recognised(action: str) -> None:
    async with Relay() as relay:
        peer = await relay.dial(f"/$hc/orders?sb-hc-action={action}&sb-hc-rendezvous=x")
        await refused(peer, 400, "The rendezvous is not recognised")


# -- subprotocols


@pytest.mark.parametrize(
    ("offered", "requested", "expected"),
    [
        ("a, b", "b", ["b"]),
        ("a, b", "x, a", ["a"]),
        ("a, b", None, []),
        (None, None, []),
    ],
)
@pytest.mark.loop("uvloop")
async def test_the_listener_chooses_the_subprotocol(
    offered: str | None, requested: str | None, expected: list[str]
) -> None:
    name = "Sec-WebSocket-Protocol"
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender(headers=[(name, offered)] if offered else [])
        leg = await relay.dial_accept(await listener.offer(), [(name, requested)] if requested else [])
        for peer in (sender, leg):
            answer = await peer.answer()
            assert (answer.status, answer.all(name)) == (101, expected)


@pytest.mark.parametrize("offered", ["a, b", None])
@pytest.mark.loop("uvloop")
async def test_a_subprotocol_that_the_sender_did_not_offer_fails_both(offered: str | None) -> None:
    name = "Sec-WebSocket-Protocol"
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender(headers=[(name, offered)] if offered else [])
        leg = await relay.dial_accept(await listener.offer(), [(name, "c")])
        assert (await leg.answer()).status == 400
        await refused(sender, 502, "The listener chose a subprotocol that the sender did not offer")


@pytest.mark.loop("uvloop")
async def test_a_control_channel_gets_the_first_subprotocol_it_asks_for_and_no_extension() -> None:
    async with Relay() as relay:
        peer = await relay.dial_listener(
            headers=[("Sec-WebSocket-Protocol", "a, b"), ("Sec-WebSocket-Extensions", "permessage-deflate")]
        )
        answer = await peer.answer()
        assert (answer.all("Sec-WebSocket-Protocol"), answer.all("Sec-WebSocket-Extensions")) == (["a"], [])
        plain = await (await relay.dial_listener()).answer()
        assert plain.all("Sec-WebSocket-Protocol") == []


# -- listeners that go or do not come


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_when_the_listener_goes_the_waiting_sender_is_offered_to_the_next(how: str) -> None:
    async with Relay() as relay:
        first, second = await relay.listener(), await relay.listener()
        sender = await relay.dial_sender()
        await first.offer()
        if how == "reset":
            first.reset()
        else:
            first.send_close(1000)
        leg = await relay.accept(await second.offer())
        assert (await sender.answer()).status == 101
        await can_talk(sender, leg)
        for peer in (sender, leg, second):
            await peer.leave()
        first.writer.transport.abort()
        await relay.quiet()


async def test_when_the_last_listener_goes_the_waiting_sender_gets_502() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender()
        await listener.offer()
        listener.reset()
        await refused(sender, 502, "ConnectionLost: The listener's control channel was lost before it accepted")
        await sender.leave()
        await relay.quiet()


async def test_a_wedged_active_listener_is_replaced_and_its_second_sender_offered_to_the_next() -> None:
    async with Relay(rendezvous_timeout=30, ping_interval=0, control_idle_timeout=0) as relay:
        wedged, standby = await relay.listener(), await relay.listener()
        first = await relay.dial_sender()
        await wedged.offer()
        relay.pass_time(30)
        await refused(first, 504, "ConnectionNotEstablished")
        second = await relay.dial_sender()
        given_up = await wedged.offer()
        relay.pass_time(30)
        offer = await standby.offer()
        # The wedged one wakes up: the address that it has leads nowhere, and does the next one no harm.
        await refused(await relay.dial_accept(given_up), 403, "The rendezvous does not exist or has expired")
        leg = await relay.accept(offer)
        assert (await second.answer()).status == 101
        await can_talk(second, leg)
        await relay.pair(standby)


@pytest.mark.loop("uvloop")
async def test_a_listener_that_comes_in_between_is_not_replaced() -> None:
    async with Relay(rendezvous_timeout=30, ping_interval=0, control_idle_timeout=0, idle_timeout=0) as relay:
        slow, _ = await relay.listener(), await relay.listener()
        for _ in range(2):
            in_vain = await relay.dial_sender()
            await slow.offer()
            relay.pass_time(30)
            await refused(in_vain, 504, "ConnectionNotEstablished")
            await relay.pair(slow)


@pytest.mark.loop("uvloop")
async def test_every_refusal_names_the_id_that_the_sender_gave_itself() -> None:
    async with Relay() as relay:
        answer = await refused(await relay.dial_sender(query=f"sb-hc-id={GUID}&"), 504, "There are no listeners")
        assert f"TrackingId:{GUID}, " in answer.phrase


async def test_a_sender_waits_for_each_listener_that_it_is_offered_to() -> None:
    async with Relay(rendezvous_timeout=30, ping_interval=0, control_idle_timeout=0) as relay:
        first, second = await relay.listener(), await relay.listener()
        sender = await relay.dial_sender()
        await first.offer()
        relay.pass_time(20)
        first.reset()
        offer = await second.offer()
        relay.pass_time(29)
        await relay.accept(offer)
        assert (await sender.answer()).status == 101


# -- control channels that are lost


@pytest.mark.parametrize("policy", ["teardown", "keep"])
@pytest.mark.parametrize("how", ["reset", "silence", "bad close"])
async def test_connections_of_a_lost_listener_are_cut_or_kept(policy: str, how: str) -> None:
    async with Relay(on_listener_loss=policy, idle_timeout=0) as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener)
        if how == "reset":
            listener.reset()
        elif how == "bad close":
            listener.send_close(1011, "I fell over")
        else:
            for _ in range(62):
                relay.pass_time(1)
        await until(lambda: not relay.directory.counts()["listeners"])
        if policy == "keep":
            await can_talk(sender, leg)
            assert relay.directory.counts()["senders"] == 1
        else:
            assert await sender.is_cut() and await leg.is_cut()
            await until(lambda: not relay.directory.counts()["senders"])
        await refused(await relay.dial_sender(), 504, "There are no listeners connected")


@pytest.mark.parametrize("code", [1000, 1001, None])
async def test_connections_outlive_a_listener_that_closes_in_order(code: int | None) -> None:
    async with Relay(on_listener_loss="teardown") as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener)
        listener.send_close(code)
        assert (await listener.frame()).close.code == (1000 if code is None else code)
        assert await listener.to_end() == b""
        await listener.leave()
        await until(lambda: "channels" not in relay.counts())
        await can_talk(sender, leg)


# -- tokens of control channels


async def test_a_token_that_ran_out_closes_the_channel_after_the_grace() -> None:
    async with Relay(token_grace=30, ping_interval=0, control_idle_timeout=0, idle_timeout=0) as relay:
        listener = await relay.dial_listener(signature=token(lifetime=100), id=GUID)
        await listener.answer()
        sender, leg = await relay.pair(listener)
        relay.pass_time(129)
        assert relay.directory.counts()["listeners"] == 1
        relay.pass_time(2)
        close = (await listener.frame()).close
        assert close.code == 1008
        assert close.reason.endswith(f"TrackingId:{GUID}")
        # An expired token is a loss.
        assert await sender.is_cut() and await leg.is_cut()


def renewal(text: str) -> bytes:
    return b'{"renewToken":{"token":"%s"}}' % text.encode()


async def test_a_renewed_token_keeps_the_channel() -> None:
    async with Relay(token_grace=30, ping_interval=0, control_idle_timeout=0) as relay:
        listener = await relay.dial_listener(signature=token(lifetime=100))
        await listener.answer()
        relay.pass_time(110)  # in its grace
        listener.send_frame(Opcode.TEXT, renewal(token(lifetime=1_000)))
        (channel,) = relay.broker.channels
        await until(lambda: channel.facts.grant.expires_at == relay.wall_clock() - 110 + 1_000)
        relay.pass_time(800)
        assert relay.directory.counts()["listeners"] == 1
        relay.pass_time(121)
        assert (await listener.frame()).close.code == 1008


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "com.microsoft.azure.relay.SharedAccessSignatureToken@1f2e3d",
        token(key="guessed"),
        token("another"),
        token(lifetime=-100),
        token("orders", "Send", "send-key"),
    ],
)
@pytest.mark.loop("uvloop")
async def test_a_renewal_that_is_no_good_closes_the_channel_with_1008(text: str) -> None:
    send = Rule("Send", frozenset({Right.SEND}), "send-key", "send-key-2")
    async with Relay((namespace(rules=(ROOT, send)), hybrid_connection())) as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener)
        listener.send_frame(Opcode.TEXT, renewal(text))
        close = (await listener.frame()).close
        assert close.code == 1008
        assert "sig=" not in close.reason
        assert await sender.is_cut() and await leg.is_cut()


# -- entities, rules and keys that go


async def test_a_deleted_entity_ends_everything_on_it_and_nothing_else() -> None:
    async with Relay((namespace(), hybrid_connection(), hybrid_connection("other"))) as relay:
        listener, other = await relay.listener(), await relay.listener("other")
        sender, leg = await relay.pair(listener)
        other_sender, other_leg = await relay.pair(other, "other")
        waiting = await relay.dial_sender()
        offer = await listener.offer()
        relay.remove(ORDERS)
        close = (await listener.frame()).close
        assert (close.code, close.reason[:24]) == (1001, "Endpoint does not exist.")
        assert (await sender.frame()).close.code == 1001
        assert (await leg.frame()).close.code == 1001
        await refused(waiting, 404, "Endpoint does not exist")
        await refused(await relay.dial_accept(offer), 403, "The rendezvous")
        await refused(await relay.dial_listener(), 404, "Endpoint does not exist: orders")
        await refused(await relay.dial_sender(), 404, "Endpoint does not exist: orders")
        await can_talk(other_sender, other_leg)
        for peer in (listener, sender, leg, other, other_sender, other_leg):
            await peer.leave()
        await relay.quiet()


async def test_a_deleted_namespace_ends_its_entities() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, _ = await relay.pair(listener)
        relay.remove(namespace().id)
        assert (await listener.frame()).close.code == 1001
        assert (await sender.frame()).close.code == 1001


async def test_a_disabled_entity_ends_what_is_on_it_and_refuses_with_403() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, _ = await relay.pair(listener)
        waiting = await relay.dial_sender()
        await listener.offer()
        relay.put(hybrid_connection(enabled=False))
        close = (await listener.frame()).close
        assert (close.code, close.reason[:20]) == (1001, "Endpoint is disabled")
        assert (await sender.frame()).close.code == 1001
        await refused(waiting, 403, "Endpoint is disabled")
        await refused(await relay.dial_listener(), 403, "Endpoint is disabled")


def rule(name: str, *rights: Right, key: str = "") -> Rule:
    return Rule(name, frozenset(rights), key or f"{name}-key", f"{name}-key-2")


L, S, OTHER = rule("L", Right.LISTEN), rule("S", Right.SEND), rule("Other", Right.LISTEN, Right.SEND)

LOST_LISTEN = {
    "removed": (),
    "new keys": (Rule("L", frozenset({Right.LISTEN}), "new", "new-2"),),
    "right taken": (Rule("L", frozenset({Right.SEND}), L.primary_key, L.secondary_key),),
}


@pytest.mark.parametrize("policy", ["teardown", "keep"])
@pytest.mark.parametrize("what", LOST_LISTEN)
@pytest.mark.parametrize("scope", ["entity", "namespace"])
@pytest.mark.loop("uvloop")
async def test_a_listener_whose_key_is_gone_is_closed_with_1008_at_once(policy: str, what: str, scope: str) -> None:
    def entities(*rules: Rule) -> tuple[Any, Any]:
        here = (rules, ()) if scope == "namespace" else ((), rules)
        return namespace(rules=(ROOT, *here[0])), hybrid_connection(rules=here[1], on_listener_loss=policy)

    async with Relay(entities(L, S, OTHER)) as relay:
        listener = await relay.listener(signature=token(rule="L", key="L-key"))
        untouched = await relay.listener(signature=token(rule="Other", key="Other-key-2"))
        sender, leg = await relay.pair(listener, signature=token(rule="S", key="S-key"))
        for entity in entities(*LOST_LISTEN[what], S, OTHER):
            relay.put(entity)
        close = (await listener.frame()).close
        assert close.code == 1008
        assert "The key or rule of the token was removed" in close.reason
        if policy == "teardown":
            assert await sender.is_cut() and await leg.is_cut()
        else:
            await can_talk(sender, leg)
        await relay.pair(untouched)


@pytest.mark.loop("uvloop")
async def test_a_sender_whose_key_is_gone_is_closed_with_1008_and_no_other() -> None:
    async with Relay((namespace(), hybrid_connection(rules=(S, OTHER)))) as relay:
        listener = await relay.listener()
        gone, gone_leg = await relay.pair(listener, signature=token(rule="S", key="S-key"))
        second_key, second_leg = await relay.pair(listener, signature=token(rule="S", key="S-key-2"))
        other, other_leg = await relay.pair(listener, signature=token(rule="Other", key="Other-key"))
        waiting = await relay.dial_sender(signature=token(rule="S", key="S-key"))
        offer = await listener.offer()
        relay.put(hybrid_connection(rules=(Rule("S", S.rights, "regenerated", S.secondary_key), OTHER)))
        for peer in (gone, gone_leg):
            assert (await peer.frame()).close.code == 1008
        await refused(waiting, 401, "AuthorizationFailed: The key or rule of the token was removed")
        await refused(await relay.dial_accept(offer), 403, "The rendezvous")
        await can_talk(second_key, second_leg)
        await can_talk(other, other_leg)
        await relay.pair(listener)


@pytest.mark.loop("uvloop")
async def test_a_channel_hangs_on_the_key_of_its_newest_token() -> None:
    async with Relay((namespace(), hybrid_connection(rules=(L, OTHER)))) as relay:
        listener = await relay.listener(signature=token(rule="L", key="L-key"))
        listener.send_frame(Opcode.TEXT, renewal(token(rule="Other", key="Other-key")))
        (channel,) = relay.broker.channels
        await until(lambda: channel.facts.grant.rule == "Other")
        relay.put(hybrid_connection(rules=(OTHER,)))
        await relay.pair(listener)
        relay.put(hybrid_connection())
        assert (await listener.frame()).close.code == 1008


@pytest.mark.loop("uvloop")
async def test_other_changes_end_nothing() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener)
        relay.put(hybrid_connection(max_senders=1, rules=(L,)))
        relay.put(namespace(rules=(ROOT, OTHER)))
        await can_talk(sender, leg)
        await refused(await relay.dial_sender(), 429, "QuotaExceeded: The endpoint has 1 sender connections")
        relay.put(hybrid_connection(max_senders=2))
        await relay.pair(listener)


# -- quotas


async def test_the_26th_sender_is_refused_and_every_ending_frees_a_place() -> None:
    async with Relay(max_senders=25, idle_timeout=0) as relay:
        listener = await relay.listener()
        pairs = [await relay.pair(listener) for _ in range(25)]

        async def is_full() -> None:
            answer = await refused(await relay.dial_sender(), 429, "QuotaExceeded: The endpoint has 25 sender")
            assert "max_senders" in answer.phrase

        await is_full()
        pairs[0][0].reset()
        pairs[1][1].reset()
        pairs[2][0].send_close()
        pairs[2][1].send_close()
        await until(lambda: relay.directory.counts()["senders"] == 22)
        rejected = await relay.dial_sender()
        await relay.dial_accept(await listener.offer(), more="&sb-hc-statusCode=403")
        assert (await rejected.answer()).status == 403
        left = await relay.dial_sender()
        await listener.offer()
        await left.leave()
        await until(lambda: relay.directory.counts()["senders"] == 22)
        late = await relay.dial_sender()
        await listener.offer()
        relay.pass_time(30)
        assert (await late.answer()).status == 504
        assert relay.directory.counts()["senders"] == 22
        for _ in range(3):
            await relay.pair(listener)
        await is_full()


async def test_of_concurrent_senders_exactly_as_many_as_there_is_room_for_are_offered() -> None:
    async with Relay(max_senders=5) as relay:
        listener = await relay.listener()
        senders = [await relay.dial_sender() for _ in range(20)]
        for _ in range(5):
            await relay.accept(await listener.offer())
        answers = [(await sender.answer()).status for sender in senders]
        assert (answers.count(101), answers.count(429)) == (5, 15)


async def test_a_listener_more_is_refused_or_parked_and_takes_over_when_there_is_room() -> None:
    async with Relay(max_listeners=1) as relay:
        first = await relay.listener(id=GUID)
        other = "22222222-2222-3333-4444-555555555555"
        await refused(await relay.dial_listener(id=other), 403, "QuotaExceeded: The endpoint has 1 listeners")
        parked = await relay.listener(id=f"{GUID}_G2")
        assert relay.directory.counts()["parked_listeners"] == 1
        first.send_close()
        await relay.pair(parked)
        assert relay.directory.counts()["parked_listeners"] == 0


@pytest.fixture
def nobody_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "PARKED_PER_CLIENT", 0)


async def test_a_listener_without_any_place_waits_for_its_answer(nobody_is_parked: None) -> None:
    async with Relay(max_listeners=1) as relay:
        first = await relay.listener()
        gives_up, waits = await relay.dial_listener(), await relay.dial_listener()
        await until(lambda: relay.directory.counts()["waiting_listeners"] == 2)
        await gives_up.leave()
        await until(lambda: relay.directory.counts()["waiting_listeners"] == 1)
        first.send_close()
        assert (await waits.answer()).status == 101
        await relay.pair(waits)


async def test_a_listener_that_waited_is_checked_again(nobody_is_parked: None) -> None:
    async with Relay(max_listeners=1) as relay:
        first = await relay.listener()
        waits = await relay.dial_listener()
        await until(lambda: relay.directory.counts()["waiting_listeners"] == 1)
        relay.remove(ORDERS)
        assert (await first.frame()).close.code == 1001
        await refused(waits, 404, "Endpoint does not exist: orders")
        await first.leave()
        await waits.leave()
        await relay.quiet()


async def test_no_time_counts_for_a_listener_while_it_waits_for_its_place(nobody_is_parked: None) -> None:
    # The strict rule: whoever says nothing is lost.
    async with Relay(max_listeners=1, ping_interval=0, control_idle_timeout=60) as relay:
        first = await relay.listener()
        waits = await relay.dial_listener()
        await until(lambda: relay.directory.counts()["waiting_listeners"] == 1)
        relay.pass_time(60)
        assert (await first.frame()).close.code == 1011
        assert (await waits.answer()).status == 101
        relay.pass_time(59)
        await relay.pair(waits)


async def test_a_listener_whose_turn_comes_while_the_node_drains_is_held(nobody_is_parked: None) -> None:
    async with Relay(max_listeners=1) as relay:
        first = await relay.listener()
        waits = await relay.dial_listener()
        await until(lambda: relay.directory.counts()["waiting_listeners"] == 1)
        relay.broker.draining = True
        await relay.broker.close_channels(ServerBusy(), timeout=0)
        await first.frame()
        await first.leave()
        await until(lambda: relay.counts() == {"handshakes": 1})
        await waits.leave()
        await relay.quiet()


# -- draining


async def test_a_draining_relay_takes_nothing_new_and_keeps_what_it_has() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener)
        waiting = await relay.dial_sender()
        offer = await listener.offer()
        relay.broker.draining = True
        await refused(await relay.dial_sender(), 503, "ServerBusy: ")
        held = await relay.dial_listener()
        await until(lambda: "handshakes" in relay.counts() and relay.frontend.connections)
        # Who waits already may still be accepted.
        await relay.accept(offer)
        assert (await waiting.answer()).status == 101
        await can_talk(sender, leg)
        closing = asyncio.get_running_loop().create_task(relay.broker.close_channels(ServerBusy(), timeout=5))
        assert (await listener.frame()).close.code == 1001
        listener.send_close(1001)
        assert await listener.to_end() == b""
        await listener.leave()
        async with asyncio.timeout(1):
            await closing
        await can_talk(sender, leg)
        assert not held.reader._buffer  # type: ignore[attr-defined]


async def test_senders_that_wait_when_the_channels_close_are_told_to_come_again() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        waiting = await relay.dial_sender()
        await listener.offer()
        relay.broker.draining = True
        await relay.broker.close_channels(ServerBusy(), timeout=0)
        await refused(waiting, 503, "ServerBusy: ")


async def test_closing_channels_waits_no_longer_than_it_may() -> None:
    async with Relay() as relay:
        await relay.listener()
        async with asyncio.timeout(1):
            await relay.broker.close_channels(ServerBusy(), timeout=0.01)
        assert len(relay.broker.channels) == 1


# -- what can go wrong inside


@pytest.mark.loop("uvloop")
async def test_headers_that_make_too_long_a_command_are_431_and_the_listener_hears_nothing() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        # Quotes are escaped in a URL: three bytes for each.
        await refused(await relay.dial_sender(query="q=" + '"' * 22_000 + "&"), 431, "The request with its address")
        assert relay.directory.counts()["senders"] == 0
        await relay.pair(listener, headers=[("X-Quotes", '"' * 30_000)])


class Broken(LocalDirectory):
    """Fails at everything."""

    async def register(self, entity: str, listener: Listener, limits: Limits) -> Registration:
        raise OSError("the engine is gone")

    async def place(self, offer: Offer, exclude: frozenset[str]) -> Placement:
        raise OSError("the engine is gone")


@pytest.mark.loop("uvloop")
async def test_a_fault_inside_is_a_500_that_says_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async with Relay() as relay:
        relay.directory = relay.broker.directory = Broken(clock=relay.clock, chance=None)  # type: ignore[arg-type]
        for peer in (await relay.dial_listener(), await relay.dial_sender()):
            answer = await refused(peer, 500, "The relay met an unexpected condition")
            assert "engine" not in answer.phrase
        await relay.quiet()
        causes = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
        assert causes == ["the engine is gone"] * 2


@pytest.mark.loop("uvloop")
async def test_a_fault_while_a_request_is_read_is_a_500(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Relay() as relay:
        monkeypatch.setattr(relay.catalog, "find", lambda *_: 1 / 0)
        await refused(await relay.dial_sender(), 500, "The relay met an unexpected condition")
        assert "ZeroDivisionError" in caplog.text


# -- secrets


@pytest.mark.loop("uvloop")
async def test_no_secret_is_in_the_log_or_in_what_objects_show(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Relay() as relay:
        listener = await relay.listener()
        await relay.pair(listener)
        waiting = await relay.dial_sender(headers=[("Authorization", "Basic private")])
        offer = await listener.offer()
        await refused(await relay.dial("/$hc/orders?sb-hc-token=SharedAccessSignature%20sig%3Dprivate"), 401, "Invalid")
        await refused(await relay.dial(target_of(offer["address"]) + "x"), 403, "The rendezvous")
        shown = [
            repr(each)
            for each in (
                relay.broker,
                relay.frontend,
                relay.splicing,
                *relay.broker.channels,
                *relay.splicing,
                *(leg for each in relay.splicing for leg in each.legs),
                *relay.broker._meetings.values(),
                *(each.offer for each in relay.broker._meetings.values()),
                *relay.frontend.connections,
            )
        ]
        listener.send_frame(Opcode.TEXT, renewal(token(key="private")))
        assert (await listener.frame()).close.code == 1008
        secret = parse_qs(urlsplit(offer["address"]).query)["sb-hc-rendezvous"][0]
        await refused(waiting, 502, "ConnectionLost")
        text = caplog.text + "".join(shown)
        for hidden in ("sig=", "root-key", "private", f"rendezvous={secret}", "SharedAccessSignature"):
            assert hidden not in text, hidden
        assert "refused sender at sb://myRelayNS/orders from 127.0.0.1: 401 InvalidSignature" in text


@pytest.mark.loop("uvloop")
async def test_a_peer_cannot_write_lines_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Relay() as relay:
        target = f"/$hc/x%0aFORGED/y?sb-hc-id={GUID}%0aFORGED"
        await refused(await relay.dial(target, signature=token("")), 404, "Endpoint does not exist: x")
        await refused(await relay.dial(target, host=f"{HOST},x"), 404, "The host")
    assert caplog.records
    assert all("\n" not in record.getMessage() for record in caplog.records)


# -- other limits


async def test_control_channels_take_over_the_limits_of_their_entity_that_are_others() -> None:
    async with Relay(ping_interval=30, on_listener_loss="teardown") as relay:
        relay.put(hybrid_connection("bills"))
        listener, other = await relay.listener(), await relay.listener("bills")
        sender, leg = await relay.pair(listener)
        relay.put(hybrid_connection(ping_interval=5, on_listener_loss="keep"))
        relay.pass_time(6)
        assert (await listener.frame()).opcode is Opcode.PING
        # Nobody else was pinged, and what the listener leaves behind lives on.
        other.send_frame(Opcode.PING, b"?")
        assert (await other.frame()).opcode is Opcode.PONG
        listener.reset()
        await until(lambda: relay.counts()["listeners"] == 1)
        await can_talk(sender, leg)


async def test_control_channels_take_over_the_limits_of_namespace_and_node_that_are_others() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        relay.put(namespace(limits={"ping_interval": 5}))
        relay.pass_time(6)
        assert (await listener.frame()).opcode is Opcode.PING
        listener.send_frame(Opcode.PONG)
        relay.catalog.take_settings(node_limits={"ping_interval": 1, "token_grace": 1})
        (channel,) = relay.broker.channels
        assert channel.machine.limits.token_grace == 30
        relay.broker.limits_changed()
        assert (channel.machine.limits.ping_interval, channel.machine.limits.token_grace) == (5, 1)
        relay.pass_time(6)
        assert (await listener.frame()).opcode is Opcode.PING


async def test_listeners_that_are_parked_get_the_places_that_a_higher_limit_brings() -> None:
    async with Relay(max_listeners=1) as relay:
        for _ in range(3):
            await relay.listener()
        assert relay.counts()["parked_listeners"] == 2
        relay.put(hybrid_connection(max_listeners=3))
        await until(lambda: "parked_listeners" not in relay.counts())
        assert relay.counts()["listeners"] == 3


async def test_a_listener_that_waited_for_its_place_has_the_limits_of_the_moment(nobody_is_parked: None) -> None:
    async with Relay(max_listeners=1) as relay:
        first, second = await relay.listener(), await relay.dial_listener()
        await until(lambda: relay.counts().get("waiting_listeners"))
        relay.put(hybrid_connection(max_listeners=1, token_grace=7))
        await first.leave()
        assert (await second.answer()).status == 101
        await until(lambda: [each.machine.limits.token_grace for each in relay.broker.channels] == [7])


async def test_the_public_url_counts_for_the_next_sender_of_a_listener_that_is_there() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        relay.broker.public_url = "wss://relay.example.com:444"
        await relay.dial_sender()
        assert (await listener.offer())["address"].startswith("wss://relay.example.com:444/$hc/orders?")


# -- refusals that are held


async def fails(relay: Relay, **more: Any) -> Peer:
    """A peer with a wrong token."""
    return await relay.dial("/$hc/orders", signature=token(key="wrong"), **more)


async def fail_often(relay: Relay, **more: Any) -> None:
    for _ in range(FAILURES_ANSWERED):
        await refused(await fails(relay, **more), 401, "InvalidSignature")


@pytest.mark.parametrize("tls", [False, True])
async def test_peer_that_fails_often_is_told_so_later_and_a_good_token_is_never_held(tls: bool) -> None:
    more: dict[str, Any] = {"tls": client_tls()} if tls else {}
    async with Relay(tls=server_tls() if tls else None) as relay:
        await fail_often(relay, **more)
        peer = await fails(relay, early=b"x" * 100_000, **more)
        await until(lambda: relay.broker.held_refusals == 1)
        # What came behind the head is not kept.
        assert all(not each._buffer for each in relay.frontend.connections)
        listener = await relay.listener(**more)
        sender, leg = await relay.pair(listener, **more)
        await can_talk(sender, leg)
        relay.pass_time(HELD_FOR - 0.1)
        assert relay.broker.held_refusals == 1
        relay.pass_time(0.1)
        answer = await refused(peer, 401, "InvalidSignature")
        assert f"sb://{HOST}/orders" in answer.phrase
        assert not relay.broker.held_refusals
        # The good token of another behind the same address was no pardon.
        await fails(relay, **more)
        await until(lambda: relay.broker.held_refusals == 1)


@pytest.mark.loop("uvloop")
async def test_listener_of_what_does_not_exist_is_held_and_a_sender_is_not() -> None:
    async with Relay() as relay:
        for _ in range(FAILURES_ANSWERED + 1):
            await refused(await relay.dial_sender("none"), 404, "Endpoint does not exist")
        for _ in range(FAILURES_ANSWERED):
            await refused(await relay.dial_listener("none"), 404, "Endpoint does not exist")
        peer = await relay.dial_listener("none")
        await until(lambda: relay.broker.held_refusals == 1)
        await refused(await relay.dial_sender("none"), 404, "Endpoint does not exist")
        relay.pass_time(HELD_FOR)
        await refused(peer, 404, "Endpoint does not exist: none")


async def test_peer_that_leaves_while_its_refusal_is_held_is_forgotten() -> None:
    async with Relay() as relay:
        await fail_often(relay)
        for early in (b"", b"x" * 100_000):
            peer = await fails(relay, early=early)
            await until(lambda: relay.broker.held_refusals == 1)
            peer.reset()
            await asyncio.sleep(0.01)
            relay.pass_time(0.1)
            await until(lambda: not relay.broker.held_refusals)
        await relay.quiet()


@pytest.mark.loop("uvloop")
async def test_those_held_when_the_relay_stops_are_answered() -> None:
    async with Relay() as relay:
        await fail_often(relay)
        peer = await fails(relay)
        await until(lambda: relay.broker.held_refusals == 1)
        await relay.broker.close_channels(ServerBusy(), timeout=0)
        await refused(peer, 401, "InvalidSignature")


@pytest.mark.loop("uvloop")
@pytest.mark.parametrize("tls", [False, True])
async def test_surplus_of_failures_is_answered_and_let_go_at_once(tls: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    more: dict[str, Any] = {"tls": client_tls()} if tls else {}
    async with Relay(tls=server_tls() if tls else None) as relay:
        await fail_often(relay, **more)
        held = [await fails(relay, **more) for _ in range(HELD_PER_ADDRESS)]
        await until(lambda: relay.broker.held_refusals == HELD_PER_ADDRESS)
        before = len(caplog.records)
        for _ in range(3):
            surplus = await fails(relay, **more)
            assert (await surplus.answer()).status == 401
            assert (await surplus.to_end()).startswith(b"InvalidSignature")
            # It has not closed, and is nobody's concern any more.
            await until(lambda: len(relay.frontend.connections) == HELD_PER_ADDRESS)
        assert len(caplog.records) == before
        relay.pass_time(HELD_FOR)
        assert "3 more who failed to authenticate were refused at once" in caplog.text
        for peer in held:
            await refused(peer, 401, "InvalidSignature")


# -- senders that come before the listeners are back


async def test_a_sender_waits_for_the_first_listener_while_all_of_them_are_about_to_come_back() -> None:
    async with Relay() as relay:
        relay.broker.patient_until = relay.clock.now + 5
        sender = await relay.dial_sender()
        await until(lambda: relay.broker.waiting_senders == 1)
        listener = await relay.listener()
        leg = await relay.accept(await listener.offer())
        assert (await sender.answer()).status == 101
        await can_talk(sender, leg)


async def test_a_sender_that_nobody_came_for_is_told_so_when_that_time_is_over() -> None:
    async with Relay() as relay:
        relay.broker.patient_until = relay.clock.now + 5
        sender, left = await relay.dial_sender(), await relay.dial_sender()
        await until(lambda: relay.broker.waiting_senders == 2)
        await left.leave()
        await until(lambda: relay.broker.waiting_senders == 1)
        relay.pass_time(5)
        await refused(sender, 504, "There are no listeners")
        await relay.quiet()
