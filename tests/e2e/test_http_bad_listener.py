"""Listeners that write what no client library writes: what they can do to senders, and what they cannot.

A listener answers the requests that the relay told it, and nothing else: not those of another listener, not one
twice, not with a head that says more than its own headers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from e2e.quiet_node import quiet_node
from e2e.raw_websocket import BINARY, CLOSE, CONTINUATION, TEXT, RawWebSocket, Refused
from http_cases import Relay
from http_sender import Answer, Cut, HttpSender
from trunkline.testing import RelayNode

pytestmark = pytest.mark.loop("uvloop")


@asynccontextmanager
async def listening(node: RelayNode, entity: str | None = None) -> AsyncIterator[RawWebSocket]:
    async with RawWebSocket(node.listen_url(entity), token=node.token(entity)) as control:
        yield control
        await control.send_close(1000)


async def told(control: RawWebSocket) -> dict[str, Any]:
    """The next `request`."""
    frame = await control.receive_answering_pings()
    assert frame.opcode == TEXT and frame.end, frame
    command = json.loads(frame.payload)
    assert list(command) == ["request"]
    return dict(command["request"])


def response(request: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A `response` to it, with anything in it."""
    plain = {"requestId": request["id"], "statusCode": 200, "statusDescription": "OK", "responseHeaders": {}}
    return {"response": {**plain, "body": False, **fields}}


async def answered(
    node: RelayNode, control: RawWebSocket, body: bytes | None = None, method: str = "GET", **fields: Any
) -> Answer:
    """What a sender gets when the listener answers so, and that the connection is good for one more request."""
    relay = Relay.of(node)
    async with relay.connect() as sender:
        relay.ask(sender, None, method)
        request = await told(control)
        await control.send_json(response(request, body=body is not None, **fields))
        if body is not None:
            await control.send(BINARY, body)
        answer = await sender.answer(method)
        await next_is_served(relay, sender, control)
        return answer


async def next_is_served(relay: Relay, sender: HttpSender, control: RawWebSocket) -> None:
    relay.ask(sender)
    request = await told(control)
    await control.send_json(response(request, body=True))
    await control.send(BINARY, b"the next one")
    assert (await sender.answer()).body == b"the next one"


BROKEN_LINES = ("\r\n", "\r", "\n", "\0", "\r\n\r\n", "\x85", "\u2028", "\v")


@pytest.mark.parametrize("end", BROKEN_LINES, ids=repr)
async def test_listener_cannot_put_lines_of_its_own_into_a_head(end: str) -> None:
    async with quiet_node() as node, listening(node) as control:
        smuggled = f"a{end}X-Smuggled: yes{end}"
        answer = await answered(
            node,
            control,
            b"body",
            statusDescription=smuggled,
            responseHeaders={"X-Value": smuggled, f"X-Name{end}X-Smuggled": "yes", "X-List": ["1", smuggled]},
        )
        assert answer.status == 200 and answer.body == b"body"
        assert not answer.all("x-smuggled")
        for name, value in answer.headers:
            assert not set("\r\n\0") & set(name + value)
        assert not set("\r\n\0") & set(answer.reason)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "1"},
        {"Content-Length": "1000"},
        {"Content-Length": "-1"},
        {"content-length": ["4", "5"]},
        {"Transfer-Encoding": "chunked"},
        {"transfer-encoding": "gzip, chunked", "Content-Length": "0"},
        {"Connection": "close, X-Gone", "X-Gone": "1"},
        {"Connection": "content-type, via, content-length"},
        {"Upgrade": "websocket", "Connection": "Upgrade"},
        {"Keep-Alive": "timeout=1"},
        {"Trailer": "X-T"},
        {"Content-Length ": "1", " Transfer-Encoding": "chunked", "Transfer-Encoding\t": "chunked"},
        {"": "empty", "A B": "space", "A:B": "colon", "Ä": "not ASCII"},
    ],
    ids=lambda headers: ", ".join(headers),
)
@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_listener_does_not_decide_where_its_answer_ends(
    headers: dict[str, Any], method: str, status: int
) -> None:
    async with quiet_node() as node, listening(node) as control:
        answer = await answered(node, control, b"body", method, statusCode=status, responseHeaders=headers)
        assert answer.status == status
        assert answer.body == (b"body" if method == "GET" and status == 200 else b"")
        assert not answer.all("transfer-encoding") and not answer.all("upgrade") and not answer.all("trailer")
        assert not {"x-gone", "content-length ", ""} & {name.lower() for name, _ in answer.headers}
        assert answer.get("via")


@pytest.mark.parametrize("status", [100, 101, 102, 103, 199])
async def test_listener_cannot_answer_with_a_status_that_ends_nothing(status: int) -> None:
    async with quiet_node() as node, listening(node) as control:
        answer = await answered(node, control, statusCode=status)
        assert answer.status == 502 and not answer.all("via")


async def test_second_answer_to_a_request_goes_nowhere() -> None:
    async with quiet_node() as node, listening(node) as control:
        relay = Relay.of(node)
        async with relay.connect() as sender:
            relay.ask(sender)
            first = await told(control)
            for words in (b"once", b"twice", b"three times"):
                await control.send_json(response(first, body=True))
                await control.send(BINARY, words)
            assert (await sender.answer()).body == b"once"
            relay.ask(sender)
            second = await told(control)
            assert second["id"] != first["id"]
            await control.send_json(response(first, body=True))
            await control.send(BINARY, b"four times")
            await control.send_json(response(second, body=True))
            await control.send(BINARY, b"the second")
            assert (await sender.answer()).body == b"the second"


async def test_listener_cannot_answer_for_another_one() -> None:
    async with (
        quiet_node(["test", "other"]) as node,
        listening(node) as active,
        listening(node) as standby,
        listening(node, "other") as stranger,
    ):
        relay = Relay.of(node)
        async with relay.connect() as sender:
            relay.ask(sender)
            request = await told(active)
            for thief in (standby, stranger):
                await thief.send_json(response(request, body=True))
                await thief.send(BINARY, b"stolen")
                # What it said has been read when its ping is answered.
                await thief.send(9, b"read")
                assert (await thief.receive()).payload == b"read"
            await active.send_json(response(request, body=True))
            await active.send(BINARY, b"its own")
            assert (await sender.answer()).body == b"its own"


async def test_sender_cannot_choose_an_id_that_another_request_has() -> None:
    async with quiet_node() as node, listening(node) as control:
        relay = Relay.of(node)
        target = f"/{relay.entity}?sb-hc-id=7b1c2d3e-0000-4000-8000-123456789abc"
        async with relay.connect() as one, relay.connect() as two:
            requests = []
            for sender in (one, two):
                sender.write_request("GET", target, relay.request_headers())
                requests.append(await told(control))
            assert requests[0]["id"] != requests[1]["id"]
            assert requests[0]["address"] != requests[1]["address"]
            for sender, request, words in ((two, requests[1], b"two"), (one, requests[0], b"one")):
                await control.send_json(response(request, body=True))
                await control.send(BINARY, words)
                assert (await sender.answer()).body == words


async def test_rendezvous_answers_once_and_its_address_is_used_once() -> None:
    async with quiet_node() as node, listening(node) as control:
        relay = Relay.of(node)
        async with relay.connect() as sender:
            relay.ask(sender)
            request = await told(control)
            async with RawWebSocket(request["address"]) as rendezvous:
                await rendezvous.send_json(response(request, body=True))
                await rendezvous.send(BINARY, b"a", end=False)
                assert (await sender.head()).status == 200
                assert await sender.piece() == b"a"
                # On the control channel too, and by a second one who knows the address.
                await control.send_json(response(request, body=True))
                await control.send(BINARY, b"again")
                async with asyncio.timeout(5):
                    try:
                        async with RawWebSocket(request["address"]) as second:
                            assert (await second.receive()).opcode == CLOSE
                    except Exception as refused:
                        assert "40" in str(refused) or isinstance(refused, asyncio.IncompleteReadError), refused
                await rendezvous.send(CONTINUATION, b"b", end=True)
                got = b""
                while piece := await sender.piece():
                    got += piece
                assert got == b"b"
                await rendezvous.send_json(response(request, body=True))
                await rendezvous.send(BINARY, b"more")
                await next_is_served(relay, sender, control)


@pytest.mark.parametrize("fault", ["not JSON", "two texts", "binary first", "too long", "unmasked", "accept"])
async def test_rendezvous_that_breaks_the_rules_is_a_bad_gateway_and_harms_nobody_else(fault: str) -> None:
    async with quiet_node() as node, listening(node) as control:
        relay = Relay.of(node)
        async with relay.connect() as sender, relay.connect() as bystander:
            relay.ask(sender)
            request = await told(control)
            async with RawWebSocket(request["address"]) as rendezvous:
                match fault:
                    case "not JSON":
                        await rendezvous.send(TEXT, b"{")
                    case "two texts":
                        await rendezvous.send_json({"renewToken": {"token": "t"}})
                        await rendezvous.send_json({"renewToken": {"token": "t"}})
                    case "binary first":
                        await rendezvous.send(BINARY, b"body")
                    case "too long":
                        await rendezvous.send(TEXT, b" " * 300_000)
                    case "unmasked":
                        await rendezvous.send_bytes(b"\x81\x02{}")
                    case "accept":
                        await rendezvous.send_json({"accept": {}})
                        await rendezvous.send_close(1000)
                answer = await sender.answer()
                assert answer.status == 502 and not answer.all("via"), answer
            await next_is_served(relay, sender, control)
            await next_is_served(relay, bystander, control)


async def test_listener_that_ends_its_rendezvous_in_the_middle_cuts_the_sender() -> None:
    async with quiet_node() as node, listening(node) as control:
        relay = Relay.of(node)
        for close in (1001, 1011, None):
            async with relay.connect() as sender:
                relay.ask(sender)
                request = await told(control)
                async with RawWebSocket(request["address"]) as rendezvous:
                    await rendezvous.send_json(response(request, body=True))
                    await rendezvous.send(BINARY, b"half", end=False)
                    assert (await sender.head()).status == 200
                    assert await sender.piece() == b"half"
                    if close is not None:
                        await rendezvous.send_close(close)
                    else:
                        rendezvous.abort()
                    with pytest.raises(Cut):
                        await sender.piece()


async def test_close_1000_in_the_middle_of_a_body_is_its_end_as_java_does_it() -> None:
    async with quiet_node() as node, listening(node) as control:
        relay = Relay.of(node)
        async with relay.connect() as sender:
            relay.ask(sender)
            request = await told(control)
            async with RawWebSocket(request["address"]) as rendezvous:
                await rendezvous.send_json(response(request, body=True))
                await rendezvous.send(BINARY, b"all ", end=False)
                await rendezvous.send(CONTINUATION, b"of it", end=False)
                await rendezvous.send_close(1000)
                assert (await sender.answer()).body == b"all of it"
            await next_is_served(relay, sender, control)


async def test_answer_of_a_listener_that_announces_a_body_and_is_lost_is_no_answer() -> None:
    async with quiet_node() as node:
        relay = Relay.of(node)
        async with relay.connect() as sender:
            # One that closes in order is waited for: it may come to the rendezvous with its answer.
            async with RawWebSocket(node.listen_url(), token=node.token()) as control:
                relay.ask(sender)
                request = await told(control)
                await control.send_json(response(request, body=True))
            answer = await sender.answer()
            assert answer.status == 502 and not answer.all("via")


async def test_late_visitor_of_a_request_that_is_over_is_told_so_by_a_close() -> None:
    # hyco-https dies of a handshake that is refused here; see wire/test_http.py.
    async with quiet_node() as node, listening(node) as control:
        relay = Relay.of(node)
        async with relay.connect() as sender:
            relay.ask(sender)
            request = await told(control)
            sender.abort()
            await control.send(9, b"")
            await control.receive()
        await node.until(lambda counts: counts.get("requests", 0) == 0)
        async with RawWebSocket(request["address"]) as rendezvous:
            frame = await rendezvous.receive()
            assert frame.close_code == 1001
            await rendezvous.send_close(1001)


async def test_requests_for_a_listener_that_does_not_read_wait_in_a_bounded_number() -> None:
    # The system takes some 4 MiB for the listener, and the node one more, before it is known not to read.
    most, number = 120, 400
    async with quiet_node(max_requests=most, response_timeout=0) as node:
        relay = Relay.of(node)
        async with (
            RawWebSocket(node.listen_url(), token=node.token(), receive_buffer=4096) as control,
            AsyncExitStack() as senders,
        ):
            statuses: list[int] = []

            async def ask(sender: HttpSender) -> None:
                relay.ask(sender, None, "POST", body=b"x" * 65_000)
                statuses.append((await sender.answer()).status)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(number):
                    tasks.create_task(ask(await senders.enter_async_context(relay.connect())))
                # So many that it was told of, and so many that wait: the others have their answer.
                counts = await node.until(lambda counts: 0 < counts["http_requests"] == number - len(statuses))
                assert most < counts["http_requests"] <= 2 * most
                assert set(statuses) == {503}
                # It reads: those that waited are told in their turn.
                for _ in range(counts["http_requests"]):
                    request = await told(control)
                    await control.receive_message()
                    await control.send_json(response(request))
            assert statuses.count(200) == counts["http_requests"]
            await control.send_close(1000)


async def test_address_of_a_request_opens_nothing_else() -> None:
    async with quiet_node(["test", "other"]) as node, listening(node) as control:
        relay = Relay.of(node)
        async with relay.connect() as sender:
            relay.ask(sender)
            request = await told(control)
            address: str = request["address"]
            for wrong, status in (
                (address.replace("sb-hc-action=request", "sb-hc-action=accept"), 403),
                (address.replace("sb-hc-action=request", "sb-hc-action=listen"), 401),
                (address.replace("sb-hc-action=request", "sb-hc-action=connect"), 401),
                (address[:-4] + "AAAA", 400),
            ):
                with pytest.raises(Refused) as refused:
                    async with RawWebSocket(wrong):
                        pass
                assert refused.value.status == status, wrong
            # It is as good as before.
            async with RawWebSocket(address) as rendezvous:
                await rendezvous.send_json(response(request, body=True))
                await rendezvous.send(BINARY, b"here")
                assert (await sender.answer()).body == b"here"
        # Nor does that of a WebSocket lead to a request.
        waiting = RawWebSocket(node.connect_url(), token=node.token())
        await waiting.connect()
        offer = await control.offer()
        with pytest.raises(Refused) as refused:
            async with RawWebSocket(offer["address"].replace("sb-hc-action=accept", "sb-hc-action=request")):
                pass
        assert refused.value.status == 400
        waiting.abort()
