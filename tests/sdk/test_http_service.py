"""HTTP requests against a relay that does what the test says; time is the test's too."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sdk.fake_clock import FakeClock
from sdk.listening import RULE, online
from sdk.relay_stub import REQUEST_ID, WITHIN, Peer, RelayStub, until
from trunkline.protocol.errors import AccessDenied, ConnectionLost, HeadersTooLarge, InvalidSetting, MessageTooLarge
from trunkline.protocol.frames import Data, Opcode
from trunkline.sdk import HttpRequest, HttpResponse, HybridConnectionListener, http_service
from trunkline.sdk.http_service import FLUSH_AFTER

BIG = bytes(range(256)) * 1200  # more than the control channel takes, and than one piece


async def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, b"hello")


def address(relay: RelayStub) -> str:
    return f"{relay.base}/$hc/orders?sb-hc-action=request&sb-hc-id={REQUEST_ID}&sb-hc-rendezvous=secret"


async def arrived(relay: RelayStub) -> Peer:
    """The listener's WebSocket for a request."""
    leg = await relay.next()
    assert leg.target.action == "request"
    assert "servicebusauthorization" not in leg.headers
    await leg.upgrade()
    return leg


async def told(relay: RelayStub, control: Peer, **request: Any) -> Peer:
    """A request of which the control channel only tells; the leg on which it is given."""
    control.send_command("request", address=address(relay), id=REQUEST_ID)
    leg = await arrived(relay)
    leg.request(address(relay), **request)
    return leg


def phrases(response: dict[str, Any]) -> tuple[int, str | None]:
    return response["statusCode"], response.get("statusDescription")


# --- over the control channel ---------------------------------------------------------------------------------


async def test_handler_sees_the_request_and_its_answer_reaches_the_relay() -> None:
    seen: list[HttpRequest] = []

    async def handler(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        assert request.length == 10
        body = await request.read()
        assert await request.read() == b"" and request.length == 0
        return HttpResponse(201, body[::-1], headers={"X-A": "b"}, reason="Made\r\nso")

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        headers = {"Host": "relay", "X-Token": "t"}
        control.request(address(relay), method="POST", target="/orders/a b/?x=1&y", headers=headers, body=b"some bytes")
        response, body = await control.response()
        assert (response, body) == (
            {
                "requestId": REQUEST_ID,
                "statusCode": 201,
                "statusDescription": "Made  so",
                "responseHeaders": {"X-A": "b"},
                "body": True,
            },
            b"setyb emos",
        )
        [request] = seen
        assert (request.method, request.target, request.path) == ("POST", "/orders/a b/?x=1&y", "/orders/a b/")
        assert (request.suffix, request.query, request.entity) == ("a b/", "x=1&y", "orders")
        assert request.headers == headers and request.headers["x-token"] == "t"
        assert request.remote_address == ("192.0.2.7", 4711)
        assert request.tracking_id == REQUEST_ID
        assert repr(request) == f"<HttpRequest POST '/orders/a b/' id={REQUEST_ID}>"
        assert relay.idle()


@pytest.mark.parametrize(
    ("method", "answer", "headers"),
    [
        ("GET", HttpResponse(200), {}),
        ("GET", HttpResponse(204, b"dropped"), {}),
        ("GET", HttpResponse(304, b"dropped", headers={"ETag": "e"}), {"ETag": "e"}),
        ("HEAD", HttpResponse(200, b"12345"), {"Content-Length": "5"}),
        ("HEAD", HttpResponse(200, b"12345", headers={"content-length": "9"}), {"content-length": "9"}),
        ("HEAD", HttpResponse(200, BIG), {"Content-Length": str(len(BIG))}),
    ],
)
async def test_answer_without_a_body_announces_none(method: str, answer: HttpResponse, headers: dict[str, str]) -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        return answer

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay), method=method)
        response, body = await control.response()
        assert (response["statusCode"], response["responseHeaders"], body) == (answer.status, headers, None)
        control.request(address(relay), method=method)  # and nothing came behind it
        assert (await control.response())[0]["statusCode"] == answer.status


async def test_listener_without_a_handler_answers_501_in_the_words_of_dot_net() -> None:
    async with RelayStub() as relay, online(relay) as (_, control):
        control.request(address(relay), body=b"body")
        response, body = await control.response()
        assert phrases(response) == (501, "RequestHandler has not been configured")
        assert body == f"RequestHandler has not been configured. TrackingId:{REQUEST_ID}\n".encode()
        control.request(address(relay), method="HEAD")
        response, body = await control.response()
        assert (response["statusCode"], body) == (501, None)


async def fails(request: HttpRequest) -> HttpResponse:
    raise ValueError("a fault of the application")


async def says_nothing(request: HttpRequest) -> None:
    return None


async def answers_twice(request: HttpRequest) -> HttpResponse:
    await request.respond(200)
    return HttpResponse()


async def sends_a_header_of_64_kib(request: HttpRequest) -> HttpResponse:
    return HttpResponse(headers={"A": "b" * 65_536})


async def fails_after_it_began(request: HttpRequest) -> None:
    answer = await request.respond(200)
    await answer.write(b"part")
    raise ValueError("a fault of the application")


async def is_cancelled_by_itself(request: HttpRequest) -> HttpResponse:
    raise asyncio.CancelledError


async def loses_a_connection_of_its_own(request: HttpRequest) -> HttpResponse:
    raise ConnectionLost


async def gets_too_long_a_message_elsewhere(request: HttpRequest) -> HttpResponse:
    raise MessageTooLarge


@pytest.mark.parametrize(
    "handler",
    [
        fails,
        says_nothing,
        answers_twice,
        sends_a_header_of_64_kib,
        fails_after_it_began,
        is_cancelled_by_itself,
        loses_a_connection_of_its_own,
        gets_too_long_a_message_elsewhere,
    ],
)
async def test_handler_that_fails_gives_500_and_harms_nobody_else(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def sometimes(request: HttpRequest) -> HttpResponse | None:
        result = await (hello if request.suffix == "good" else handler)(request)
        assert result is None or isinstance(result, HttpResponse)
        return result

    async with RelayStub() as relay, online(relay, http_handler=sometimes) as (_, control):
        control.request(address(relay))
        control.request(address(relay), target="/orders/good")
        answers = [await control.response(), await control.response()]
        # Where a task begins to run at once (Python 3.12), in their order.
        answers.sort(key=lambda answer: answer[0]["statusCode"])
        assert answers[0][1] == b"hello"
        assert answers[1][0]["statusCode"] == 500
        assert answers[1][1] == f"The request handler of the listener failed. TrackingId:{REQUEST_ID}\n".encode()
    assert [record.levelname for record in caplog.records if "handler" in record.getMessage()] == ["ERROR"]
    assert "secret" not in caplog.text


async def test_body_longer_than_a_handler_reads_gives_413() -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, await request.read(4))

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay), method="PUT", body=b"12345")
        assert (await control.response())[0]["statusCode"] == 413
        control.request(address(relay), method="PUT", body=b"1234")
        assert (await control.response())[1] == b"1234"


async def test_request_beyond_max_requests_gets_503_and_the_next_one_is_served() -> None:
    go = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse:
        await go.wait()
        return HttpResponse(200)

    async with RelayStub() as relay, online(relay, http_handler=handler, max_requests=1) as (_, control):
        control.request(address(relay), id=REQUEST_ID)
        control.request(address(relay), id="6d1a4a7c-9fd0-4a9c-a2f4-5e8b8b1f4c11")
        response, _ = await control.response()
        assert (response["requestId"][0], response["statusCode"]) == ("6", 503)
        leg = await told(relay, control, method="POST", body=b"x")
        response, _ = await leg.response()
        assert response["statusCode"] == 503
        assert (await leg.close_frame()).code == 1000
        leg.send_close()
        go.set()
        assert (await control.response())[0]["statusCode"] == 200
        control.request(address(relay))
        assert (await control.response())[0]["statusCode"] == 200


async def test_requests_of_a_relay_that_takes_no_answers_are_not_read() -> None:
    served = 0

    async def handler(request: HttpRequest) -> HttpResponse:
        nonlocal served
        served += 1
        return HttpResponse(200, bytes(60_000))

    async with RelayStub() as relay, online(relay, http_handler=handler) as (listener, control):
        control.pause()
        block = bytes(1_000)
        for _ in range(2_000):
            control.request(address(relay), method="PUT", body=block)
        await until(lambda: listener._channel is not None and listener._channel._held_back)
        for _ in range(1000):
            await asyncio.sleep(0)
        # What one read brought, and what the system's buffers hold of the answers.
        assert served < 1_000
        control.resume()
        for _ in range(2_000):
            assert (await control.response())[1] == bytes(60_000)


# --- over the rendezvous --------------------------------------------------------------------------------------


async def test_long_answer_goes_over_the_rendezvous() -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, BIG, headers={"A": "b"})

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        response, body = await leg.response()
        assert response == {
            "requestId": REQUEST_ID,
            "statusCode": 200,
            "responseHeaders": {"A": "b", "Content-Length": str(len(BIG))},
            "body": True,
        }
        assert body == BIG
        assert (await leg.close_frame()).code == 1000
        leg.send_close()
        await leg.eof()


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_streamed_answer_that_is_small_and_ends_soon_goes_over_the_control_channel() -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, pieces_of(b"a", b"", b"b"))

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=0) as (_, control):
        control.request(address(relay))
        assert (await control.response())[1] == b"ab"
        control.request(address(relay), method="HEAD")
        assert (await control.response())[1] is None
        clock.advance(FLUSH_AFTER)
        assert relay.idle()


async def test_answer_that_is_held_up_goes_out_as_it_comes() -> None:
    more: asyncio.Queue[bytes] = asyncio.Queue()
    held = asyncio.Event()

    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200, {"Content-Type": "text/event-stream"})
        await answer.write(b"first")
        assert repr(answer) == f"<ResponseWriter 200 HELD of {request!r}>"
        held.set()
        while event := await more.get():
            await answer.write(event)
        await answer.end()

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=0) as (_, control):
        control.request(address(relay))
        await held.wait()
        clock.advance(FLUSH_AFTER)
        leg = await arrived(relay)
        assert (await leg.command())["response"]["body"] is True
        assert await leg.piece() == Data(Opcode.BINARY, b"first", False)
        for event in (b"second", b"third"):
            more.put_nowait(event)
            assert await leg.piece() == Data(Opcode.BINARY, event, False)
        more.put_nowait(b"")
        assert await leg.piece() == Data(Opcode.BINARY, b"", True)
        assert (await leg.close_frame()).code == 1000
        leg.send_close()
        await leg.eof()


async def test_request_that_is_told_of_is_fetched_and_answered_on_its_own_leg() -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        assert request.method == "PUT" and request.suffix == "x" and request.length is None
        return HttpResponse(200, b"".join([piece async for piece in request]))

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        leg = await told(relay, control, method="PUT", target="/orders/x", body=BIG)
        response, body = await leg.response()
        assert (response["statusCode"], body) == (200, BIG)
        assert (await leg.close_frame()).code == 1000
        leg.send_close()
        await leg.eof()
        assert relay.idle()


async def test_early_answer_goes_out_before_the_body_was_read() -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(403, b"no")

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.send_command("request", address=address(relay), id=REQUEST_ID)
        leg = await arrived(relay)
        leg.request(address(relay), method="PUT", body=None)
        response, body = await leg.response()
        assert (response["statusCode"], body) == (403, b"no")
        assert (await leg.close_frame()).code == 1000


async def test_answer_whose_length_is_known_to_be_long_takes_the_rendezvous_at_once() -> None:
    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200, length=len(BIG))
        await answer.write(BIG[:10])
        await answer.end(BIG[10:])

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=0) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        response, body = await leg.response()
        assert (response["responseHeaders"], body) == ({"Content-Length": str(len(BIG))}, BIG)


async def test_writer_waits_while_its_rendezvous_opens() -> None:
    written: list[int] = []

    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200)
        for number in range(100):
            await answer.write(BIG)
            written.append(number)

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        leg = await relay.next()
        assert written == []
        await leg.upgrade()
        _, body = await leg.response()
        assert body == BIG * 100
        assert (await leg.close_frame()).code == 1000  # the handler returned without `end`


@pytest.mark.parametrize("fetched", [True, False])
async def test_head_has_no_body_on_either_way(fetched: bool) -> None:
    done = asyncio.Event()

    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200, {"A": "b"}, length=1_000_000)
        await answer.write(b"dropped")
        done.set()
        await asyncio.sleep(0)
        await answer.end(b"dropped")

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=0) as (_, control):
        if fetched:
            leg = await told(relay, control, method="HEAD")
        else:
            control.request(address(relay), method="HEAD")
            leg = control
        response, body = await leg.response()
        assert (response["responseHeaders"], body) == ({"A": "b", "Content-Length": "1000000"}, None)
        if fetched:
            assert (await leg.close_frame()).code == 1000


async def test_end_of_an_answer_that_is_long_with_its_last_piece_takes_the_rendezvous() -> None:
    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200)
        await answer.write(BIG[:60_000])
        await answer.end(BIG[60_000:])

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=0) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        assert (await leg.response())[1] == BIG


async def test_silent_answer_is_pinged_at_each_heartbeat() -> None:
    begun = asyncio.Event()

    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200, length=1_000_000)
        await answer.write(b"first")
        begun.set()
        await asyncio.Event().wait()

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=30) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        await begun.wait()
        await leg.command()
        assert await leg.piece() == Data(Opcode.BINARY, b"first", False)
        for _ in range(2):
            clock.advance(29)
            clock.advance(2)
            await leg.control(Opcode.PING)


async def test_head_of_nearly_64_kib_is_sent() -> None:
    value = "b" * 60_000

    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, headers={"A": value})

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        assert (await control.response())[0]["responseHeaders"] == {"A": value}


async def test_head_of_an_answer_without_a_body_is_not_held_for_ever() -> None:
    go = asyncio.Event()

    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(204)
        begun.set()
        await go.wait()
        await answer.end()

    clock = FakeClock()
    begun = asyncio.Event()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=0) as (_, control):
        control.request(address(relay))
        await begun.wait()
        clock.advance(FLUSH_AFTER)
        assert (await control.response())[0]["statusCode"] == 204
        go.set()
        control.request(address(relay))
        assert (await control.response())[0]["statusCode"] == 204


async def test_answers_that_are_held_share_one_timer_and_each_waits_as_long() -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()

    async def handler(request: HttpRequest) -> None:
        await request.respond(200)
        begun.put_nowait(request.suffix)
        await asyncio.Event().wait()

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=0) as (_, control):
        for name in ("a", "b"):
            control.request(address(relay), target=f"/orders/{name}")
            assert await begun.get() == name
            assert relay.idle()
            clock.advance(FLUSH_AFTER / 2)
        await arrived(relay)
        assert relay.idle()
        clock.advance(FLUSH_AFTER / 2)
        await arrived(relay)


async def test_requests_that_are_fetched_only_to_be_refused_are_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "_REFUSED_AT_A_TIME", 2)

    async with RelayStub() as relay, online(relay) as (_, control):
        for _ in range(5):
            control.send_command("request", address=address(relay), id=REQUEST_ID)
        for leg in [await arrived(relay), await arrived(relay)]:
            leg.request(address(relay), method="PUT", body=b"body")
            assert phrases((await leg.response())[0]) == (501, "RequestHandler has not been configured")
            assert (await leg.close_frame()).code == 1000
            leg.send_close()
            await leg.eof()
        assert relay.idle()
        control.send_command("request", address=address(relay), id=REQUEST_ID)
        await arrived(relay)


# --- ends before the end --------------------------------------------------------------------------------------


async def test_sender_that_leaves_is_told_to_the_handler_and_nothing_more_can_be_written() -> None:
    told_so: list[str] = []

    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200, length=1_000_000)
        await answer.write(b"part")
        assert not request.disconnected.done()
        await request.disconnected
        told_so.append("left")
        assert "disconnected" in repr(request)
        with pytest.raises(ConnectionLost):
            await answer.write(b"more")
        with pytest.raises(ConnectionLost):
            await answer.end()
        told_so.append("refused")
        await request.disconnected

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        await leg.command()
        leg.send_close(1001, "The sender has left")
        await until(lambda: told_so == ["left", "refused"])


async def test_request_that_is_watched_hears_of_a_sender_that_leaves_before_the_answer() -> None:
    heard = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse:
        request.watch()
        if request.suffix == "stays":
            return HttpResponse(200, b"answered")
        assert not request.is_disconnected
        await request.disconnected
        assert request.is_disconnected
        request.watch()
        heard.set()
        return HttpResponse(200, b"nobody hears this")

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        leg.send_close(1001, "The sender has left")
        await heard.wait()
        control.request(address(relay), target="/orders/stays")
        assert (await control.response())[1] == b"answered"
        assert relay.idle()  # it was not needed any more


async def test_answer_that_begins_while_its_rendezvous_opens_takes_it() -> None:
    go, begun = asyncio.Event(), asyncio.Event()

    async def handler(request: HttpRequest) -> None:
        request.watch()
        await go.wait()
        answer = await request.respond(200)
        await answer.write(b"first ")
        begun.set()
        await asyncio.sleep(0)
        await until(lambda: request._leg is not None)
        await answer.end(b"last")

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock, heartbeat=0) as (_, control):
        control.request(address(relay))
        leg = await relay.next()
        go.set()
        await begun.wait()
        await leg.upgrade()
        assert (await leg.response())[1] == b"first last"


async def test_sender_that_leaves_while_the_beginning_is_sent_is_told_to_the_writer() -> None:
    errors: list[Exception] = []

    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200)
        try:
            for _ in range(1000):
                await answer.write(BIG)
        except ConnectionLost as error:
            errors.append(error)
            raise

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        leg.pause()
        leg.send_close(1001, "The sender has left")
        await until(lambda: bool(errors))


async def test_stream_that_waits_is_ended_when_the_sender_leaves() -> None:
    ended: list[str] = []

    async def events() -> AsyncIterator[bytes]:
        try:
            yield BIG
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, events())

    async with RelayStub() as relay, online(relay, http_handler=handler, max_requests=1) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        await leg.command()
        leg.abort()
        await until(lambda: ended == ["cleaned up"])
        await _is_served(relay, control)


async def _is_served(relay: RelayStub, control: Peer) -> None:
    """The next request gets its slot: what came before was let go."""
    control.request(address(relay), method="HEAD")
    assert (await control.response())[0]["statusCode"] == 200


async def test_stream_that_fails_is_broken_off() -> None:
    async def events() -> AsyncIterator[bytes]:
        yield BIG
        raise ValueError("a fault of the application")

    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, events())

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        leg = await arrived(relay)
        assert (await leg.command())["response"]["body"] is True
        size = 0
        while isinstance(piece := await leg.piece(), Data):
            assert not piece.end
            size += len(piece.payload)
        assert size in (0, len(BIG))  # the fault may come before the rendezvous is open
        assert piece.opcode is Opcode.CLOSE and piece.payload[:2] == b"\x03\xf3"  # 1011


async def test_answer_that_is_aborted_gives_502_or_a_break() -> None:
    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200)
        if request.suffix == "streams":
            await answer.write(BIG)
            await request._writer._opened()  # type: ignore[union-attr]
        answer.abort()
        answer.abort()
        with pytest.raises(RuntimeError, match="has ended"):
            await answer.write(b"more")

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        response, body = await control.response()
        assert (response["statusCode"], body) == (502, f"The answer was broken off. TrackingId:{REQUEST_ID}\n".encode())
        control.request(address(relay), target="/orders/streams")
        leg = await arrived(relay)
        await leg.command()
        while isinstance(piece := await leg.piece(), Data):
            assert not piece.end
        assert piece.payload[:2] == b"\x03\xf3"


async def test_handler_that_fails_on_a_fetched_request_answers_500_there() -> None:
    async with RelayStub() as relay, online(relay, http_handler=fails) as (_, control):
        leg = await told(relay, control, method="PUT", body=b"body")
        assert (await leg.response())[0]["statusCode"] == 500
        assert (await leg.close_frame()).code == 1000


async def test_rendezvous_that_cannot_be_reached_gives_502_and_the_handler_is_told() -> None:
    errors: list[Exception] = []

    async def handler(request: HttpRequest) -> None:
        answer = await request.respond(200)
        try:
            await answer.write(BIG)
        except ConnectionLost as error:
            errors.append(error)
        with pytest.raises(ConnectionLost, match="cannot be reached"):
            await answer.end()
        assert request.disconnected.done()

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        await (await relay.next()).refuse(403, "The rendezvous is gone")
        response, body = await control.response()
        assert response["statusCode"] == 502
        await until(lambda: bool(errors))
        assert isinstance(errors[0].__cause__, AccessDenied)
        assert body is not None and REQUEST_ID.encode() in body


async def test_request_that_cannot_be_fetched_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with RelayStub() as relay, online(relay, http_handler=hello, max_requests=1) as (_, control):
        control.send_command("request", address=address(relay), id=REQUEST_ID)
        await (await relay.next()).refuse(403, "The rendezvous is gone")
        await until(lambda: "cannot be fetched" in caplog.text)
        control.send_command("request", address=address(relay), id=REQUEST_ID)
        leg = await arrived(relay)
        leg.send_close(1001, "The sender has left")
        await until(lambda: "ended with 1001" in caplog.text)
        # Senders leave: no warning.
        assert [record.levelno for record in caplog.records if "cannot be fetched" in record.message] == [
            logging.WARNING,
            logging.INFO,
        ]
        await _is_served(relay, control)


async def test_loss_of_the_control_channel_ends_what_has_no_rendezvous() -> None:
    seen: dict[str, HttpRequest] = {}
    go = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse | None:
        seen[request.suffix] = request
        if request.suffix == "small":
            await request.disconnected
            return HttpResponse(200, b"nobody hears this")
        answer = await request.respond(200, length=1_000_000)
        await go.wait()
        await answer.end(b"heard")
        return None

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay), target="/orders/small")
        control.request(address(relay), target="/orders/large")
        leg = await arrived(relay)
        await until(lambda: len(seen) == 2)
        control.abort()
        await seen["small"].disconnected
        assert not seen["large"].disconnected.done()
        go.set()
        assert (await leg.response())[1] == b"heard"


async def test_closing_listener_finishes_its_requests_over_their_rendezvous() -> None:
    go = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse | None:
        if request.suffix == "begun":
            answer = await request.respond(200)
            await answer.write(b"be")
            await go.wait()
            await answer.end(b"gun")
            return None
        await go.wait()
        return HttpResponse(200, b"whole")

    clock = FakeClock()
    async with RelayStub() as relay, online(relay, http_handler=handler, _clock=clock) as (listener, control):
        control.request(address(relay), target="/orders/begun")
        control.request(address(relay), target="/orders/whole")
        control.send(Opcode.PING)
        await control.control(Opcode.PONG)
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(listener.close(wait=WITHIN))
            legs = [await arrived(relay), await arrived(relay)]
            assert (await control.close_frame()).code == 1000
            control.send_close()
            control.close()
            for _ in range(100):
                await asyncio.sleep(0)
            assert not closing.done()
            go.set()
            assert {(await leg.response())[1] for leg in legs} == {b"begun", b"whole"}
            for leg in legs:
                assert (await leg.close_frame()).code == 1000
                leg.send_close()
                await leg.eof()


async def test_request_that_is_answered_while_the_listener_leaves_is_answered_once() -> None:
    go = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse:
        await go.wait()
        return HttpResponse(200, b"whole")

    async with RelayStub() as relay, online(relay, http_handler=handler) as (listener, control):
        control.request(address(relay))
        control.send(Opcode.PING)
        await control.control(Opcode.PONG)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listener.close(wait=WITHIN))
            leg = await relay.next()
            go.set()
            assert (await control.response())[1] == b"whole"
            await leg.upgrade()
            assert (await leg.close_frame()).code == 1000
            leg.send_close()
            assert (await control.close_frame()).code == 1000
            control.send_close()
            control.close()


async def test_request_on_its_way_to_a_listener_that_leaves_is_answered_over_its_rendezvous() -> None:
    async with RelayStub() as relay, online(relay, http_handler=hello) as (listener, control):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listener.close(wait=WITHIN))
            assert (await control.close_frame()).code == 1000
            control.request(address(relay))
            leg = await arrived(relay)
            assert (await leg.response())[1] == b"hello"
            assert (await leg.close_frame()).code == 1000
            leg.send_close()
            control.send_close()
            control.close()


async def test_request_that_is_read_as_the_listener_leaves_is_not_given_up() -> None:
    given_up: list[bool] = []

    async def handler(request: HttpRequest) -> HttpResponse:
        given_up.append(request.is_disconnected)
        return HttpResponse(200, "hello")

    async with RelayStub() as relay, online(relay, http_handler=handler) as (listener, control):

        async def rest() -> None:
            assert (await control.close_frame()).code == 1000
            leg = await arrived(relay)
            assert (await leg.response())[1] == b"hello"
            assert (await leg.close_frame()).code == 1000
            leg.send_close()
            control.send_close()
            control.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(rest())
            control.request(address(relay))  # in the listener's socket, before it has looked there
            await listener.close(wait=WITHIN)
    assert given_up == [False]


@pytest.mark.parametrize("streamed", [False, True], ids=["returned", "written"])
async def test_answer_that_is_there_before_its_rendezvous_waits_for_it(
    streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_service, "_LEAVE_WITHIN", 0)
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse | None:
        begun.set()
        await go.wait()
        if not streamed:
            return HttpResponse(200, "late")
        await (await request.respond(200)).end(b"late")
        return None

    async with RelayStub() as relay, online(relay, http_handler=handler) as (listener, control):
        control.request(address(relay))
        await begun.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listener.close(wait=WITHIN))
            assert (await control.close_frame()).code == 1000
            go.set()
            while listener._http._requests:  # noqa: ASYNC110, the handler has no end that could be waited for
                await asyncio.sleep(0)
            leg = await arrived(relay)
            assert (await leg.response())[1] == b"late"
            assert (await leg.close_frame()).code == 1000
            leg.send_close()
            control.send_close()
            control.close()
    assert not listener._http._answers and not listener._http._moving


async def test_close_without_a_wait_answers_503_and_cancels_the_handlers() -> None:
    ended: list[str] = []
    begun = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return HttpResponse()

    async with RelayStub() as relay, online(relay, http_handler=handler) as (listener, control):
        control.request(address(relay))
        await begun.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listener.close())
            response, body = await control.response()
            assert (response["statusCode"], body) == (503, f"The listener closes. TrackingId:{REQUEST_ID}\n".encode())
            assert (await control.close_frame()).code == 1000
            control.request(address(relay))
            control.send_close()
            control.close()
        assert ended == ["cancelled"]
        assert relay.idle()


async def test_handler_may_close_its_own_listener() -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        await listener.close(wait=WITHIN)
        return HttpResponse(200, b"closed")

    async with RelayStub() as relay, online(relay, http_handler=handler) as (listener, control):
        control.request(address(relay))
        leg = await arrived(relay)
        assert (await control.close_frame()).code == 1000
        control.send_close()
        control.close()
        assert (await leg.response())[1] == b"closed"
        assert (await leg.close_frame()).code == 1000


async def test_request_is_answered_once() -> None:
    faults: list[str] = []

    async def handler(request: HttpRequest) -> None:
        with pytest.raises(HeadersTooLarge):
            await request.respond(headers={"A": "b" * 65_536})
        answer = await request.respond(200)
        with pytest.raises(RuntimeError, match="answered once"):
            await request.respond(200)
        await answer.end(b"once")
        with pytest.raises(RuntimeError, match="has ended"):
            await answer.end()
        faults.append("none")

    async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
        control.request(address(relay))
        assert (await control.response())[1] == b"once"
        await until(lambda: faults == ["none"])


@pytest.mark.parametrize("fetched", [False, True])
@pytest.mark.parametrize("way", ["whole", "pushed", "long", "streamed"])
async def test_request_that_is_over_leaves_nothing_to_the_garbage_collector(way: str, fetched: bool) -> None:
    requests: list[weakref.ref[HttpRequest]] = []

    async def handler(request: HttpRequest) -> HttpResponse | None:
        requests.append(weakref.ref(request))
        await request.read()
        match way:
            case "whole":
                return HttpResponse(200, b"whole")
            case "long":
                return HttpResponse(200, BIG)
            case "streamed":
                return HttpResponse(200, pieces_of(BIG, b"", b"more"))
        answer = await request.respond(200)
        await answer.write(b"pushed")
        await answer.end()
        return None

    gc.disable()
    try:
        async with RelayStub() as relay, online(relay, http_handler=handler) as (_, control):
            if fetched:
                leg = await told(relay, control, method="PUT", body=BIG)
            else:
                control.request(address(relay), method="PUT", body=b"small")
                leg = await arrived(relay) if way in ("long", "streamed") else control
            assert (await leg.response())[1]
            if leg is not control:
                assert (await leg.close_frame()).code == 1000
                leg.send_close()
                await leg.eof()
            [request] = requests
            await until(lambda: request() is None)
    finally:
        gc.enable()


def test_max_requests_must_be_at_least_one() -> None:
    with pytest.raises(InvalidSetting, match="max_requests is 0"):
        HybridConnectionListener("ws://localhost/orders", **RULE, max_requests=0)
