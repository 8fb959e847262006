"""Plain HTTP requests and listeners over real sockets: what each sees of the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from urllib.parse import quote

import pytest

from server.relay.http_peers import CHUNKED, LARGE, ORDERS, answered, begun, closed, refused, respond
from server.relay.peers import (
    GUID,
    HOST,
    Frame,
    Peer,
    Relay,
    http_request,
    hybrid_connection,
    namespace,
    target_of,
    token,
    until,
)
from trunkline.protocol import relayed_http
from trunkline.protocol.frames import Opcode
from trunkline.server.relay import http_relay
from trunkline.server.relay.listeners import LocalDirectory, Offer, Placement

# -- small ones


async def test_a_request_goes_to_the_listener_and_its_answer_comes_back() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask("/orders/a%20b?x=1&sb-hc-id=2", [("X-One", "1"), ("x-one", "2")])
        request, body = await listener.asked()
        own = sender.writer.get_extra_info("sockname")
        assert body is None
        assert request == {
            "address": request["address"],
            "id": request["id"],
            "requestTarget": "/orders/a b?x=1",
            "method": "GET",
            "requestHeaders": {"Host": HOST, "X-One": "1, 2", "Via": f"1.1 {HOST}"},
            "remoteEndpoint": {"address": own[0], "port": own[1]},
            "body": False,
        }
        listener.respond(request["id"], 201, b"made", headers={"X-Two": "2"}, statusDescription="Done, and well")
        answer, content = await sender.response()
        assert (answer.status, answer.phrase, content) == (201, "Done, and well", b"made")
        assert answer.all("X-Two") == ["2"]
        assert answer.all("Via") == [f"1.1 {HOST}"]
        assert answer.all("Content-Type") == ["application/octet-stream"]
        assert answer.all("Content-Length") == ["4"]
        assert relay.counts() == {"listeners": 1, "channels": 1, "handshakes": 1}


async def test_a_small_body_follows_its_request_on_the_control_channel() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        content = bytes(range(256)) * 256
        sender = await relay.ask(body=content, method="POST")
        request, body = await listener.asked()
        assert (request["method"], request["body"], body) == ("POST", True, content)
        listener.respond(request["id"], 200, content[::-1])
        answer, content_back = await sender.response()
        assert (answer.status, content_back) == (200, content[::-1])


async def test_one_connection_has_many_requests_and_their_answers_in_order() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask("/orders/0")
        signed = [("ServiceBusAuthorization", token())]
        sender.send(b"".join(http_request(f"/orders/{at}", signed, b"x" * at, method="PUT") for at in range(1, 20)))
        for at in range(20):
            request, body = await listener.asked()
            assert (request["requestTarget"], len(body or b"")) == (f"/orders/{at}", at)
            listener.respond(request["id"], 200, b"%d" % at)
            assert (await sender.response())[1] == b"%d" % at
        assert relay.counts() == {"listeners": 1, "channels": 1, "handshakes": 1}


async def test_answers_to_different_senders_come_in_any_order() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        senders = [await relay.ask(f"/orders/{at}") for at in range(5)]
        requests = [(await listener.asked())[0] for _ in senders]
        for request in reversed(requests):
            listener.respond(request["id"], 200, request["requestTarget"].encode())
        assert [(await sender.response())[1] for sender in senders] == [b"/orders/%d" % at for at in range(5)]


async def test_an_offer_of_http_2_is_ignored_and_goes_no_further() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        offer = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")]
        sender = await relay.ask(headers=offer)
        request, _ = await listener.asked()
        assert request["requestHeaders"].keys() == {"Host", "Via"}
        listener.respond(request["id"], 200, b"as ever")
        assert (await sender.response())[1] == b"as ever"


async def test_a_sender_of_http_1_0_is_served() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(version="1.0")
        request, _ = await listener.asked()
        assert request["requestHeaders"]["Via"] == f"1.0 {HOST}"
        leg = await relay.accept(request)
        leg.respond(request["id"], 200, LARGE)
        answer = await sender.answer()
        # It knows no chunks: the end of the connection is that of the body.
        assert answer.all("Transfer-Encoding") == [] and answer.all("Content-Length") == []
        assert await sender.to_end() == LARGE


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_an_answer_without_a_body_has_none_whatever_the_listener_sends(method: str, status: int) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(method=method)
        request, _ = await listener.asked()
        # As hyco-https does it: no body, and an empty message all the same.
        listener.respond(request["id"], status, headers={"Content-Length": "7", "Content-Type": "text/x"})
        listener.send_frame(Opcode.BINARY, b"")
        answer = await sender.answer()
        assert (answer.status, answer.all("Content-Type")) == (status, ["text/x"])
        assert answer.all("Content-Length") == ([] if status == 204 else ["7"])
        assert answer.all("Transfer-Encoding") == []
        sender.send(http_request("/orders", [("ServiceBusAuthorization", token())]))
        await answered(listener, sender)


async def test_every_cookie_has_a_header_of_its_own() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        joined = "a=1; Expires=Wed, 21 Oct 2015 07:28:00 GMT, b=2"
        for given in (joined, ["a=1; Expires=Wed, 21 Oct 2015 07:28:00 GMT", "b=2"]):
            sender = await relay.ask()
            request, _ = await listener.asked()
            listener.respond(request["id"], 200, headers={"Set-Cookie": given})
            answer, _ = await sender.response()
            assert answer.all("Set-Cookie") == ["a=1; Expires=Wed, 21 Oct 2015 07:28:00 GMT", "b=2"]
            assert answer.all("Content-Length") == ["0"]


async def test_the_token_is_never_passed_on() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        signature = token()
        mine = ("Authorization", "Bearer mine")
        for headers, query, kept in (
            ([("ServiceBusAuthorization", signature), mine], "", "Bearer mine"),
            ([("Authorization", signature)], "", None),
            ([mine, ("ServiceBusAuthorization", "x")], f"?sb-hc-token={quote(signature)}&a=1", "Bearer mine"),
        ):
            await relay.ask(f"/orders{query}", headers, signature=None)
            request, _ = await listener.asked()
            assert request["requestHeaders"].get("Authorization") == kept
            assert "sig" not in str(request) and "ServiceBusAuthorization" not in str(request)


async def test_a_host_of_the_entitys_own_takes_the_whole_path() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        for target in ("/", "/css/site.css?x"):
            await relay.ask(target, host=f"orders.{HOST}")
            request, _ = await listener.asked()
            assert request["requestTarget"] == f"/orders{target}"
            assert request["requestHeaders"]["X-Forwarded-Prefix"] == "/"


@pytest.mark.parametrize("target", ["/orders", "/orders/", "/orders/a/", "//orders//a"])
async def test_a_slash_at_the_end_stays(target: str) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        await relay.ask(target)
        assert (await listener.asked())[0]["requestTarget"] == "/" + target.lstrip("/")


@pytest.mark.parametrize("status", [100, 101, 199])
async def test_a_status_that_ends_no_request_is_a_bad_gateway(status: int) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask()
        listener.respond((await listener.asked())[0]["id"], status)
        await refused(sender, 502, f"The listener answered with status {status}")


# -- who is asked


async def test_nobody_listens() -> None:
    async with Relay() as relay:
        error = await refused(await relay.ask(), 504, "There are no listeners connected for the endpoint")
        assert error["code"] == "NoListener"
        relay.put(hybrid_connection(no_listener_status=404))
        await refused(await relay.ask(), 502, "There are no listeners connected for the endpoint")
        relay.put(hybrid_connection(no_listener_status=503))
        await refused(await relay.ask(), 503, "There are no listeners connected for the endpoint")
        await until(lambda: relay.counts() == {"handshakes": 3})


async def test_requests_in_flight_are_limited_and_are_no_senders() -> None:
    async with Relay(max_requests=2, max_senders=1) as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener)
        first, second = await relay.ask(), await relay.ask()
        requests = [(await listener.asked())[0] for _ in range(2)]
        await refused(await relay.ask(), 429, "QuotaExceeded: The endpoint has 2 requests in flight")
        listener.respond(requests[0]["id"], 200, b"")
        await first.response()
        await answered(listener, await relay.ask())
        assert relay.counts()["senders"] == 1
        await second.leave()


async def test_requests_count_as_load() -> None:
    async with Relay(listener_policy="balanced") as relay:
        listeners = [await relay.listener() for _ in range(2)]
        for _ in range(6):
            await relay.ask()
        for listener in listeners:
            for _ in range(3):
                await listener.asked()


async def test_a_sender_chooses_among_listeners() -> None:
    async with Relay() as relay:
        other = GUID.replace("1", "2")
        first = await relay.listener(id=GUID)
        second = await relay.listener(id=other)
        await answered(second, await relay.ask(headers=[("Microsoft-Relay-AllowedListeners", other)]))
        await answered(second, await relay.ask(headers=[("Microsoft-Relay-DisallowedListeners", GUID)]))
        await answered(first, await relay.ask())
        nobody = await relay.ask(headers=[("Microsoft-Relay-AllowedListeners", "x")])
        await refused(nobody, 404, "None of the connected listeners meet the AllowedListeners")


async def test_a_lost_listener_may_have_done_what_it_was_asked() -> None:
    async with Relay() as relay:
        first, second = await relay.listener(), await relay.listener()
        sender = await relay.ask(method="POST", body=b"pay")
        await first.asked()
        first.reset()
        await refused(sender, 502, "ConnectionLost: The listener's control channel was lost")
        # The other is asked for the next one, and for no other.
        sender.send(http_request("/orders/next", [("ServiceBusAuthorization", token())]))
        assert (await second.asked())[0]["requestTarget"] == "/orders/next"


async def test_an_address_that_nobody_opened_is_told_to_another_listener() -> None:
    async with Relay() as relay:
        first, second = await relay.listener(), await relay.listener()
        sender = await relay.ask(method="POST", body=LARGE)
        request, _ = await first.asked()
        first.reset()
        again, _ = await second.asked()
        assert again["address"] != request["address"] and again["id"] == request["id"]
        # The first address leads nowhere any more.
        late = await relay.dial(target_of(request["address"]))
        assert (await late.answer()).status == 400
        leg = await relay.accept(again)
        assert (await leg.asked())[1] == LARGE
        leg.respond(again["id"], 200, b"done")
        assert (await sender.response())[1] == b"done"


async def test_headers_that_no_client_could_read_are_refused() -> None:
    async with Relay() as relay:
        await relay.listener()
        headers = [("X-Long", "\xe4" * 12_000)]
        await refused(await relay.ask(headers=headers), 431, "The request with its address and headers is too long")
        await refused(await relay.ask(headers=headers, body=LARGE), 431, "The request with its address and headers")
        assert relay.counts()["listeners"] == 1 and "http_requests" not in relay.counts()


async def test_a_listener_that_does_not_read_delays_requests_and_loses_none() -> None:
    async with Relay(max_requests=0) as relay:
        listener = await relay.listener()
        listener.writer.transport.pause_reading()  # type: ignore[attr-defined]
        content = bytes(65_536)
        senders = [await relay.ask(f"/orders/{at}", body=content, method="PUT") for at in range(200)]
        (channel,) = relay.broker.channels
        await until(lambda: len(relay.broker.http) == 200)
        assert channel._transport is not None
        assert channel._transport.get_write_buffer_size() < 2 * 2**20
        listener.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in senders:
            request, body = await listener.asked()
            assert body == content
            listener.respond(request["id"], 200, request["requestTarget"].encode())
        for at, sender in enumerate(senders):
            assert (await sender.response())[1] == b"/orders/%d" % at


async def test_bodies_that_no_listener_takes_are_held_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_relay, "HELD_AT_MOST", 10 * 65_536)
    monkeypatch.setattr(http_relay, "HELD_ANYWAY", 65_536)
    async with Relay(max_requests=0) as relay:
        listener = await relay.listener()
        listener.writer.transport.pause_reading()  # type: ignore[attr-defined]
        senders = [await relay.ask(body=bytes(65_536), method="PUT") for _ in range(200)]
        answers = [asyncio.create_task(sender.response()) for sender in senders]  # noqa: TID251 - awaited below
        await until(lambda: len(relay.broker.http) + sum(answer.done() for answer in answers) == 200)
        assert relay.broker.http.held == 10 * 65_536
        # A request without a body can wait, whatever the others hold.
        senders.append(await relay.ask())
        answers.append(asyncio.create_task(senders[-1].response()))  # noqa: TID251 - awaited below
        await until(lambda: not answers[0].done() and relay.broker.http.waiting.total() == 11)
        listener.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(len(relay.broker.http)):
            request, _ = await listener.asked()
            listener.respond(request["id"], 200, b"")
        statuses = [(await answer)[0].status for answer in answers]
        assert set(statuses) == {200, 503} and statuses[-1] == 200
        assert relay.broker.http.held == 0


async def fetched_and_left(relay: Relay, listener: Peer, sender: Peer) -> None:
    """The listener fetches the sender's request, and the sender leaves."""
    leg = await relay.accept((await listener.asked())[0])
    sender.reset()
    assert await closed(leg) == 1001


async def test_bodies_that_wait_to_be_fetched_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_relay, "HELD_AT_MOST", 150_000)
    monkeypatch.setattr(http_relay, "HELD_ANYWAY", 100_000)
    async with Relay([namespace(), hybrid_connection(), hybrid_connection("other")]) as relay:
        listener = await relay.listener()
        piece = b"13880\r\n" + b"x" * 80_000 + b"\r\n"
        sender = await relay.ask(headers=CHUNKED, method="POST", body=piece)
        request, _ = await listener.asked()
        assert 65_536 < relay.broker.http.held <= 80_000
        await refused(await relay.ask(headers=CHUNKED, method="POST", body=piece), 503, "ServerBusy: The relay holds")
        # What one hybrid connection holds shuts no other out.
        stranger = await relay.listener("other")
        of_other = await relay.ask("/other", CHUNKED, piece, method="POST", signature=token("other"))
        await fetched_and_left(relay, stranger, of_other)
        leg = await relay.accept(request)
        assert relay.broker.http.held == 0
        sender.reset()
        assert await closed(leg) == 1001
        again = await relay.ask(headers=CHUNKED, method="POST", body=piece)
        await listener.asked()
        again.reset()
        # A sender that is not read is looked after once a second.
        async with asyncio.timeout(5):
            while relay.broker.http.held or relay.broker.http.held_by_entity:
                relay.pass_time(0.01)
                await asyncio.sleep(0.01)


# -- slow and large bodies


async def test_a_slow_body_is_fetched() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(headers=CHUNKED, method="POST")
        sender.send(b"3\r\none\r\n")
        request, _ = await listener.asked()
        assert list(request) == ["address", "id"]
        leg = await relay.accept(request)
        assert json.loads((await leg.frame()).payload)["request"]["body"] is True
        assert await leg.frame() == Frame(Opcode.BINARY, b"one", False)
        sender.send(b"3\r\ntwo\r\n")
        assert await leg.frame() == Frame(Opcode.CONTINUATION, b"two", False)
        sender.send(b"0\r\nTrailer: x\r\n\r\n")
        assert await leg.frame() == Frame(Opcode.CONTINUATION, b"", True)


async def test_a_chunked_body_that_is_there_at_once_goes_with_its_request() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(headers=CHUNKED, method="POST", body=b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        request, body = await listener.asked()
        assert body == b"onetwo"
        listener.respond(request["id"], 200, b"")
        await sender.response()
        sender.send(http_request("/orders", [("ServiceBusAuthorization", token()), *CHUNKED], b"0\r\n\r\n"))
        request, body = await listener.asked()
        assert (request["body"], body) == (False, None)


async def test_a_sender_is_asked_for_its_large_body_when_a_listener_has_come_for_it() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        headers = [("Expect", "100-continue"), ("Content-Length", str(len(LARGE)))]
        sender = await relay.ask(headers=headers, method="PUT")
        request, _ = await listener.asked()
        assert relay.counts()["http_requests"] == 1
        leg = await relay.accept(request)
        assert (await sender.answer()).status == 100
        sender.send(LARGE)
        whole, body = await leg.asked()
        assert body == LARGE and "Expect" not in whole["requestHeaders"]


async def test_an_early_answer_arrives_before_the_body_was_read() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(headers=[("Content-Length", str(2**30))], method="PUT")
        request, _ = await listener.asked()
        leg = await relay.accept(request)
        await leg.frame()
        leg.respond(request["id"], 413, b"too much", statusDescription="No")
        answer, body = await sender.response()
        assert (answer.status, answer.phrase, body) == (413, "No", b"too much")
        # It has to go: the rest of its body would be taken for a request.
        assert answer.all("Connection") == ["close"]
        assert await closed(leg) == 1000
        await until(lambda: "http_requests" not in relay.counts())


async def test_a_refusal_before_the_body_was_read_says_that_the_connection_ends() -> None:
    async with Relay(response_timeout=5, body_idle_timeout=0) as relay:
        listener = await relay.listener()
        for fetches in (False, True):
            sender = await relay.ask(headers=CHUNKED, method="POST", body=b"1\r\na\r\n")
            request, _ = await listener.asked()
            if fetches:
                await (await relay.accept(request)).leave()
            relay.pass_time(5)
            answer, _ = await sender.response()
            assert answer.status == (502 if fetches else 504)
            assert answer.all("Connection") == ["close"]


async def test_both_bodies_pass_at_the_same_time() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(headers=CHUNKED, method="POST", body=b"")
        request, _ = await listener.asked()
        leg = await relay.accept(request)
        await leg.frame()
        respond(leg, request["id"])
        assert (await sender.answer()).status == 200
        for at in range(5):
            sender.send(b"1\r\n%d\r\n" % at)
            piece = await leg.frame()
            assert piece.payload == b"%d" % at
            leg.send_frame(Opcode.CONTINUATION if at else Opcode.BINARY, piece.payload * 2, fin=False)
            assert await sender.chunk() == b"%d%d" % (at, at)
        sender.send(b"0\r\n\r\n")
        assert (await leg.frame()).fin
        leg.send_frame(Opcode.CONTINUATION, b"")
        assert await sender.chunk() == b""
        assert await closed(leg) == 1000


async def test_a_malformed_body_is_refused_and_its_listener_told() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(headers=CHUNKED, method="POST", body=b"zz\r\n")
        await refused(sender, 400, "")
        sender = await relay.ask(headers=CHUNKED, method="POST", body=b"1\r\na\r\n")
        request, _ = await listener.asked()
        leg = await relay.accept(request)
        await leg.frame()
        sender.send(b"zz\r\n")
        await refused(sender, 400, "")
        assert await closed(leg) == 1001


async def test_a_sender_that_sends_faster_than_the_listener_reads_is_held_up() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        size = 64 * 2**20
        sender = await relay.ask(headers=[("Content-Length", str(size))], method="PUT")
        request, _ = await listener.asked()
        leg = await relay.accept(request)
        leg.writer.transport.pause_reading()  # type: ignore[attr-defined]
        piece = bytes(2**20)
        for _ in range(64):
            sender.send(piece)
        await held_up(sender)
        (http_leg,) = relay.broker.http._legs
        assert http_leg._transport is not None
        assert http_leg._transport.get_write_buffer_size() < 2 * 2**20
        leg.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert json.loads(await leg.message())["request"]["method"] == "PUT"
        got = 0
        while not (piece_of_it := await leg.frame()).fin:
            got += len(piece_of_it.payload)
        assert got + len(piece_of_it.payload) == size


async def test_a_listener_that_sends_faster_than_the_sender_reads_is_held_up() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg, _ = await begun(relay, listener)
        sender.writer.transport.pause_reading()  # type: ignore[attr-defined]
        piece = bytes(2**20)
        for at in range(64):
            leg.send_frame(Opcode.CONTINUATION, piece, fin=at == 63)
        await held_up(leg)
        (protocol,) = relay.frontend.connections
        assert protocol._transport is not None
        assert protocol._transport.get_write_buffer_size() < 2 * 2**20
        # That is not idle.
        relay.pass_time(20)
        sender.writer.transport.resume_reading()  # type: ignore[attr-defined]
        size = 0
        while chunk := await sender.chunk():
            size += len(chunk)
        assert size == 64 * 2**20


async def test_a_listener_is_heard_to_the_end_when_the_sender_that_held_it_up_left() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg, _ = await begun(relay, listener)
        sender.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    leg.send_frame(Opcode.CONTINUATION, LARGE, fin=False)
                    await leg.writer.drain()
        sender.reset()
        await until(lambda: "http_requests" not in relay.counts())
        assert await closed(leg) == 1001
        # The answer to that was read, behind all that had come before it.
        assert await leg.to_end() == b""
        await leg.leave()
        await until(lambda: not relay.broker.http.rendezvous)


async def held_up(peer: Peer) -> None:
    """What a peer still has to send has become no less for a while: nobody reads it."""
    left, same = -1, 0
    async with asyncio.timeout(5):
        while same < 20:
            now = peer.writer.transport.get_write_buffer_size()
            left, same = now, same + 1 if now == left else 0
            await asyncio.sleep(0.005)
    assert left > 2**20


# -- answers by rendezvous


async def test_a_listener_answers_a_small_request_by_its_address() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(method="POST", body=b"small")
        request, body = await listener.asked()
        assert body == b"small"
        leg = await relay.accept(request)
        leg.respond(request["id"], 200, LARGE, headers={"Content-Length": "3", "X": "1"})
        answer, content = await sender.response()
        assert (content, answer.all("X"), answer.all("Content-Length")) == (LARGE, ["1"], [])
        assert await closed(leg) == 1000
        await leg.leave()
        await until(lambda: relay.counts() == {"listeners": 1, "channels": 1, "handshakes": 1})


async def test_a_stray_empty_message_at_the_rendezvous_is_no_violation() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(method="HEAD")
        request, _ = await listener.asked()
        leg = await relay.accept(request)
        leg.respond(request["id"], 200)
        leg.send_frame(Opcode.BINARY, b"")
        assert (await sender.answer()).status == 200
        assert await closed(leg) == 1000


async def test_a_close_in_the_middle_of_the_body_is_its_end() -> None:
    """Java sends no last fragment."""
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg, _ = await begun(relay, listener)
        leg.send_close(1000)
        assert await sender.chunk() == b""
        sender.send(http_request("/orders", [("ServiceBusAuthorization", token())]))
        await answered(listener, sender)


@pytest.mark.parametrize("end", ["reset", "close with an error", "leave"])
async def test_a_listener_that_is_gone_within_its_answer_cuts_the_sender(end: str) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg, _ = await begun(relay, listener)
        if end == "reset":
            leg.reset()
        elif end == "leave":
            await leg.leave()
        else:
            leg.send_close(1011, "failed")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await sender.chunk()


async def test_a_listener_that_closes_the_rendezvous_without_an_answer() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask()
        leg = await relay.accept((await listener.asked())[0])
        leg.send_close(1000)
        await refused(sender, 502, "ConnectionLost: The listener closed the rendezvous")


async def test_an_address_is_good_once() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg, id = await begun(relay, listener)
        again = await relay.dial(f"/$hc/orders?sb-hc-action=request&sb-hc-id={id}&sb-hc-rendezvous={secret_of(relay)}")
        assert (await again.answer()).status == 403
        leg.send_frame(Opcode.CONTINUATION, b"")
        assert await sender.chunk() == b""


def secret_of(relay: Relay) -> str:
    (secret,) = relay.broker.http._by_secret
    return secret


async def test_a_subprotocol_that_the_listener_asks_for_is_granted() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        await relay.ask()
        request, _ = await listener.asked()
        leg = await relay.dial_accept(request, [("Sec-WebSocket-Protocol", "one, two")])
        assert (await leg.answer()).all("Sec-WebSocket-Protocol") == ["one"]


async def test_a_listener_without_its_control_channel_may_finish_its_answer() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg, _ = await begun(relay, listener)
        listener.reset()
        await until(lambda: not relay.broker.channels)
        leg.send_frame(Opcode.CONTINUATION, b"rest")
        assert [await sender.chunk(), await sender.chunk()] == [b"rest", b""]


# -- time


async def test_a_listener_that_does_not_answer_in_time() -> None:
    async with Relay(response_timeout=5) as relay:
        listener = await relay.listener()
        sender = await relay.ask()
        request, _ = await listener.asked()
        relay.pass_time(4.9)
        assert relay.counts()["http_requests"] == 1
        relay.pass_time(0.2)
        words = "The request was routed to the listener but the listener did not respond in the required time"
        error = await refused(sender, 504, words)
        assert error["code"] == "GatewayTimeout"
        listener.respond(request["id"], 200, b"late")
        sender.send(http_request("/orders", [("ServiceBusAuthorization", token())]))
        await answered(listener, sender)


async def test_without_a_limit_a_listener_has_all_the_time() -> None:
    async with Relay(response_timeout=0, control_idle_timeout=0) as relay:
        listener = await relay.listener()
        sender = await relay.ask()
        request, _ = await listener.asked()
        relay.pass_time(2_000)
        listener.respond(request["id"], 200, b"at last")
        assert (await sender.response())[1] == b"at last"


async def test_a_listener_that_lets_two_addresses_expire_is_passed_over() -> None:
    async with Relay(response_timeout=5) as relay:
        first, second = await relay.listener(), await relay.listener()
        one = await relay.ask(body=LARGE)
        await first.asked()
        relay.pass_time(5)
        await refused(one, 504, "The request was routed to the listener")
        two = await relay.ask(body=LARGE)
        await first.asked()
        relay.pass_time(5)
        request, _ = await second.asked()
        leg = await relay.accept(request)
        assert (await leg.asked())[1] == LARGE
        leg.respond(request["id"], 200, b"done")
        assert (await two.response())[1] == b"done"


async def test_a_body_that_stops_coming_is_given_up() -> None:
    async with Relay(body_idle_timeout=5) as relay:
        listener = await relay.listener()
        sender = await relay.ask(headers=[("Content-Length", "100000")], body=b"x", method="PUT")
        leg = await relay.accept((await listener.asked())[0])
        await leg.frame()
        await leg.frame()
        relay.pass_time(5)
        await refused(sender, 408, "Nothing of the request body arrived for 5 s")
        assert await closed(leg) == 1001


async def test_a_response_that_stops_coming_is_cut() -> None:
    async with Relay(body_idle_timeout=5) as relay:
        listener = await relay.listener()
        sender, leg, _ = await begun(relay, listener)
        relay.pass_time(4)
        leg.send_frame(Opcode.CONTINUATION, b"more", fin=False)
        assert await sender.chunk() == b"more"
        relay.pass_time(4)
        relay.pass_time(1)
        assert await closed(leg) == 1001
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await sender.chunk()


async def test_a_rendezvous_on_which_nothing_is_said_is_pinged() -> None:
    async with Relay(ping_interval=10, response_timeout=0) as relay:
        listener = await relay.listener()
        await relay.ask()
        leg = await relay.accept((await listener.asked())[0])
        relay.pass_time(10)
        assert (await leg.frame()).opcode is Opcode.PING


async def test_after_a_restart_a_request_waits_for_the_listeners_on_their_way_back() -> None:
    async with Relay() as relay:
        relay.broker.patient_until = relay.clock() + 5
        sender = await relay.ask()
        await until(lambda: relay.counts().get("http_requests"))
        listener = await relay.listener()
        await answered(listener, sender)
        await listener.leave()
        await until(lambda: not relay.broker.channels)
        other = await relay.ask()
        await until(lambda: relay.counts().get("http_requests"))
        relay.clock.now += 6
        await refused(other, 504, "There are no listeners connected for the endpoint")


async def test_a_sender_that_leaves_while_its_request_waits_is_forgotten() -> None:
    async with Relay() as relay:
        relay.broker.patient_until = relay.clock() + 5
        sender = await relay.ask()
        await until(lambda: relay.counts().get("http_requests"))
        sender.reset()
        await until(lambda: not relay.counts())


async def test_a_small_body_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_relay, "BODY_PATIENCE", 60.0)
    assert relayed_http.BODY_PATIENCE < 1
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask(headers=[("Content-Length", "6")], body=b"one", method="PUT")
        await until(lambda: relay.counts().get("http_requests"))
        sender.send(b"two")
        assert (await listener.asked())[1] == b"onetwo"


class Distant(LocalDirectory):
    """Takes a while for everything, as the directory of a cluster does."""

    #: Whoever was placed hears of it when this is set.
    gate: asyncio.Event | None = None

    async def place(self, offer: Offer, exclude: frozenset[str]) -> Placement:
        await asyncio.sleep(0)
        placement = await super().place(offer, exclude)
        if self.gate is not None:
            await self.gate.wait()
        return placement

    async def release(self, ticket: str, entity: str) -> None:
        await asyncio.sleep(0)
        await super().release(ticket, entity)


class Broken(LocalDirectory):
    """Fails, at once or later."""

    later = False

    async def place(self, offer: Offer, exclude: frozenset[str]) -> Placement:
        if self.later:
            await asyncio.sleep(0)
        raise OSError("the engine is gone")


def replace(relay: Relay, kind: type[LocalDirectory]) -> LocalDirectory:
    directory = kind(clock=relay.clock, chance=random.Random(1))
    relay.directory = relay.broker.directory = directory
    return directory


async def test_a_directory_may_take_its_time() -> None:
    async with Relay() as relay:
        replace(relay, Distant)
        await refused(await relay.ask(), 504, "There are no listeners connected for the endpoint")
        listener = await relay.listener()
        await answered(listener, await relay.ask())
        sender = await relay.ask(body=LARGE)
        request, _ = await listener.asked()
        listener.reset()
        await refused(sender, 502, "ConnectionLost")
        await until(lambda: relay.counts().keys() == {"handshakes"})


async def test_a_sender_that_leaves_while_its_listener_is_told_is_forgotten() -> None:
    async with Relay() as relay:
        directory = replace(relay, Distant)
        assert isinstance(directory, Distant)
        directory.gate = asyncio.Event()
        listener = await relay.listener()
        sender = await relay.ask()
        await listener.asked()
        sender.reset()
        await until(lambda: "http_requests" not in relay.counts())
        directory.gate.set()
        await until(lambda: relay.counts().keys() == {"listeners", "channels"})
        (registration,) = directory._rosters[ORDERS.lower()].registered
        assert registration.load == 0


@pytest.mark.parametrize("later", [False, True])
async def test_a_fault_inside_is_a_500_that_says_nothing_of_it(later: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with Relay() as relay:
        directory = replace(relay, Broken)
        assert isinstance(directory, Broken)
        directory.later = later
        error = await refused(await relay.ask(), 500, "The relay met an unexpected condition")
        assert "engine" not in str(error)
        assert "the engine is gone" in caplog.text


async def test_an_ipv6_address_has_brackets_in_via() -> None:
    async with Relay([namespace(hosts=("::1",)), hybrid_connection()]) as relay:
        listener = await relay.listener(host="[::1]", signature=token(host="[::1]"))
        sender = await relay.ask(host="[::1]", signature=token(host="[::1]"))
        request, _ = await listener.asked()
        assert request["requestHeaders"]["Via"] == "1.1 [::1]"
        listener.respond(request["id"], 200)
        assert (await sender.response())[0].all("Via") == ["1.1 [::1]"]
