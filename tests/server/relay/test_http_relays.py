"""Which request a response or a rendezvous is for, and which of them must end, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from server.relay.http_peers import LARGE, ORDERS, answered, begun, closed, refused
from server.relay.peers import (
    Relay,
    http_request,
    hybrid_connection,
    namespace,
    token,
    until,
)
from trunkline.protocol.errors import ServerBusy
from trunkline.protocol.relayed_http import Command, RelayedRequest
from trunkline.protocol.sas import Right
from trunkline.server.entities.model import Rule
from trunkline.server.relay import http_relays
from trunkline.server.relay.exchange import Exchange
from trunkline.server.relay.http_relay import HttpRelay
from trunkline.server.relay.http_rendezvous import HttpLeg

# -- responses that answer nothing


async def test_responses_that_nobody_waits_for_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    async with Relay([namespace(), hybrid_connection(), hybrid_connection("other")]) as relay:
        listener, stranger = await relay.listener(), await relay.listener("other")
        sender = await relay.ask()
        request, _ = await listener.asked()
        with caplog.at_level(logging.DEBUG, "trunkline.relay"):
            listener.respond("nobody", 200, b"unknown")
            stranger.respond(request["id"], 200, b"not its own")
            await until(lambda: sum("ignored the response" in record.message for record in caplog.records) == 2)
        listener.respond(request["id"], 200, b"first")
        listener.respond(request["id"], 200, b"second")
        assert (await sender.response())[1] == b"first"
        sender.send(http_request("/orders", [("ServiceBusAuthorization", token())]))
        await answered(listener, sender)


@pytest.mark.parametrize("at", ["the machine", "the answer", "the clock"])
async def test_a_request_on_which_the_relay_fails_ends_and_no_other(
    at: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with Relay() as relay:
        listener = await relay.listener()
        failing, other = await relay.ask(), await relay.ask()
        requests = [(await listener.asked())[0] for _ in range(2)]
        with monkeypatch.context() as patch:
            where = {
                "the machine": (RelayedRequest, "responded"),
                "the answer": (Exchange, "respond"),
                "the clock": (RelayedRequest, "tick"),
            }[at]
            if at == "the answer":
                patch.setattr(*where, fail)
                listener.respond(requests[0]["id"], 200, b"answer")
                await until(lambda: relay.counts()["http_requests"] == 1)
                assert await failing.is_cut()
            elif at == "the machine":
                patch.setattr(*where, fail)
                listener.respond(requests[0]["id"], 200, b"answer")
                await refused(failing, 500, "")
            else:
                whole = RelayedRequest.tick

                def tick(machine: RelayedRequest, now: float) -> list[Command]:
                    if machine.tracking_id == requests[0]["id"]:
                        raise ZeroDivisionError
                    return whole(machine, now)

                patch.setattr(*where, tick)
                relay.pass_time(0.1)
                await refused(failing, 500, "")
        assert "the relay failed on <HttpRelay" in caplog.text
        listener.respond(requests[1]["id"], 200, b"of the other")
        assert (await other.response())[1] == b"of the other"
        assert "http_requests" not in relay.counts() and not relay.broker.journal.requests


async def test_a_sender_that_leaves_harms_nobody() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask()
        request, _ = await listener.asked()
        sender.reset()
        await until(lambda: "http_requests" not in relay.counts())
        listener.respond(request["id"], 200, b"too late")
        await answered(listener, await relay.ask())


def looked(relay: Relay) -> bool:
    """The relay has looked after senders that it does not read, as it does once a second."""
    relay.pass_time(0.01)
    return True


async def test_a_listener_that_comes_too_late_is_let_in_and_told_so() -> None:
    """A refused handshake ends the process of a hyco-https listener."""
    async with Relay() as relay:
        listener = await relay.listener()
        for body in (b"", LARGE):
            sender = await relay.ask(body=body)
            request, _ = await listener.asked()
            sender.reset()
            await until(lambda: looked(relay) and "http_requests" not in relay.counts())
            leg = await relay.accept(request)
            leg.respond(request["id"], 200, b"too late")
            assert await closed(leg) == 1001
            await leg.leave()
            again = await relay.dial_accept(request)
            assert (await again.answer()).status == 400
        await until(lambda: not relay.broker.http.rendezvous)


async def test_only_so_many_addresses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_relays, "REMEMBERED", 3)
    async with Relay() as relay:
        listener = await relay.listener()
        requests = []
        for _ in range(5):
            sender = await relay.ask()
            requests.append((await listener.asked())[0])
            sender.reset()
            await until(lambda: "http_requests" not in relay.counts())
        answers = [(await (await relay.dial_accept(request)).answer()).status for request in requests]
        assert answers == [400, 400, 101, 101, 101]


@pytest.mark.parametrize("when", ["upload", "answer"])
async def test_a_listener_at_the_rendezvous_is_told_that_the_sender_left(when: str) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        if when == "answer":
            sender, leg, _ = await begun(relay, listener)
        else:
            sender = await relay.ask(headers=[("Content-Length", "100000")], body=b"x", method="PUT")
            leg = await relay.accept((await listener.asked())[0])
            await leg.frame()
        sender.reset()
        assert await closed(leg) == 1001
        await leg.leave()
        await until(lambda: relay.counts() == {"listeners": 1, "channels": 1})


# -- when its ground goes


async def test_requests_end_with_their_entity() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        waiting = await relay.ask()
        await listener.asked()
        sender, leg, _ = await begun(relay, listener)
        relay.remove(ORDERS)
        await refused(waiting, 404, "Endpoint does not exist")
        assert await closed(leg) == 1001
        assert await sender.is_cut()
        await until(lambda: "http_requests" not in relay.counts())


async def test_requests_end_with_the_rule_that_let_them_in() -> None:
    sends = Rule("Sends", frozenset({Right.SEND}), primary_key="send-key", secondary_key="other")
    async with Relay([namespace(), hybrid_connection(rules=(sends,))]) as relay:
        listener = await relay.listener()
        mine = await relay.ask(signature=token(rule="Sends", key="send-key"))
        other = await relay.ask()
        await listener.asked()
        request, _ = await listener.asked()
        relay.put(hybrid_connection())
        await refused(mine, 401, "AuthorizationFailed: The key or rule of the token was removed")
        listener.respond(request["id"], 200, b"still here")
        assert (await other.response())[1] == b"still here"


async def test_requests_in_flight_finish_while_the_node_drains() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask()
        request, _ = await listener.asked()
        relay.broker.draining = True
        await refused(await relay.ask(), 503, "ServerBusy: The relay is shutting down")
        leg = await relay.accept(request)
        leg.respond(request["id"], 200, LARGE)
        assert (await sender.response())[1] == LARGE
        assert await closed(leg) == 1000


async def test_requests_are_refused_when_their_listeners_are_sent_away() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask()
        await listener.asked()
        async with asyncio.TaskGroup() as group:
            group.create_task(relay.broker.close_channels(ServerBusy(), timeout=5.0))
            await refused(sender, 503, "ServerBusy: The relay is shutting down")
            assert (await listener.frame()).close.code == 1001
            listener.send_close(1001)
            await listener.leave()


async def test_what_is_known_of_a_request_is_shown_without_its_content() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        await relay.ask("/orders/secret?secret", [("Cookie", "secret")], body=b"secret")
        await listener.asked()
        (relayed,) = relay.broker.http._in_flight.values()
        assert "TOLD" in repr(relayed) and "secret" not in repr(relayed)
        assert repr(relay.broker.http) == "<HttpRelays in_flight=1 rendezvous=0>"
        assert relay.broker.http.by_entity() == {ORDERS.lower(): 1}


async def test_only_requests_of_the_listener_that_is_lost_hear_of_it() -> None:
    async with Relay(listener_policy="round-robin") as relay:
        listeners = [await relay.listener() for _ in range(2)]
        senders = [await relay.ask() for _ in range(4)]
        requests = [[(await listener.asked())[0]["id"] for _ in range(2)] for listener in listeners]
        listeners[0].reset()
        await until(lambda: relay.counts()["http_requests"] == 2)
        for id in requests[1]:
            listeners[1].respond(id, 200, b"here")
        answers = sorted([(await sender.response())[0].status for sender in senders])
        assert answers == [200, 200, 502, 502]
        assert not relay.broker.http._told


@pytest.mark.loop("uvloop")
async def test_requests_leave_nothing_for_the_garbage_collector() -> None:
    """Collections take time from all others, the longer the more a node holds."""
    async with Relay() as relay:
        listener = await relay.listener()
        signed = [("ServiceBusAuthorization", token())]
        sender = await relay.ask()
        gc.collect()
        gc.disable()
        try:
            for body in (b"", b"small", LARGE) * 5:
                request, _ = await listener.asked()
                if list(request) == ["address", "id"]:
                    leg = await relay.accept(request)
                    await leg.asked()
                    leg.respond(request["id"], 200, LARGE)
                    await sender.response()
                    assert await closed(leg) == 1000
                    await leg.leave()
                else:
                    listener.respond(request["id"], 200, b"small")
                    await sender.response()
                sender.send(http_request("/orders", signed, body, method="POST"))
            await listener.asked()
            await until(lambda: not relay.broker.http.rendezvous)
            kept = [each for each in gc.get_objects() if isinstance(each, HttpRelay | Exchange | HttpLeg)]
        finally:
            gc.enable()
        # The one that is in flight.
        assert [type(each) for each in kept if not isinstance(each, Exchange)] == [HttpRelay]
        assert sum(isinstance(each, Exchange) for each in kept) == 1
