"""The WebSocket by which a listener fetches a plain HTTP request or answers it, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest

from server.relay.peers import HOST, MASK, Peer, Relay, frame, until
from trunkline.protocol.frames import Opcode, encode_frame
from trunkline.server.relay.http_rendezvous import SLICE, SLICES, HttpLeg

LARGE = bytes(range(256)) * 1024


async def opened(relay: Relay, **request: Any) -> tuple[Peer, Peer, str]:
    """A sender, the rendezvous of its listener, and the id of its request; `body` is what it sends."""
    listener = await relay.listener()
    sender = await relay.ask(**request)
    asked, _ = await listener.asked()
    return sender, await relay.accept(asked), asked["id"]


async def test_a_listener_fetches_a_large_request() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask("/orders/x", body=LARGE, method="PUT")
        request, _ = await listener.asked()
        assert list(request) == ["address", "id"]
        leg = await relay.accept(request)
        whole, body = await leg.asked()
        assert whole == {
            "address": request["address"],
            "id": request["id"],
            "requestTarget": "/orders/x",
            "method": "PUT",
            "requestHeaders": {"Host": HOST, "Via": f"1.1 {HOST}"},
            "remoteEndpoint": whole["remoteEndpoint"],
            "body": True,
        }
        assert body == LARGE
        leg.respond(request["id"], 200, LARGE[::-1])
        answer, content = await sender.response()
        assert (answer.status, content) == (200, LARGE[::-1])
        assert (await leg.frame()).close.code == 1000


async def test_pieces_of_an_answer_pass_before_its_end() -> None:
    async with Relay() as relay:
        sender, leg, id = await opened(relay)
        leg.send_frame(Opcode.TEXT, b'{"response":{"requestId":"%b","statusCode":200,"body":true}}' % id.encode())
        assert (await sender.answer()).all("Transfer-Encoding") == ["chunked"]
        leg.send_frame(Opcode.BINARY, b"one", fin=False)
        assert await sender.chunk() == b"one"
        leg.send_frame(Opcode.PING, b"still there?")
        assert (await leg.frame()).payload == b"still there?"
        # A fragment that is itself in pieces does not wait for its end.
        two = frame(Opcode.CONTINUATION, b"two-three", fin=False)
        leg.send(two[:9])
        assert await sender.chunk() == b"two"
        leg.send(two[9:])
        assert await sender.chunk() == b"-three"
        leg.send_frame(Opcode.CONTINUATION, b"")
        assert await sender.chunk() == b""


async def test_many_small_frames_of_one_read_all_arrive() -> None:
    async with Relay() as relay:
        sender, leg, id = await opened(relay)
        leg.send_frame(Opcode.TEXT, b'{"response":{"requestId":"%b","statusCode":200,"body":true}}' % id.encode())
        pieces = [
            encode_frame(Opcode.CONTINUATION if at else Opcode.BINARY, b"%d" % (at % 10), fin=at == 19_999, mask=MASK)
            for at in range(20_000)
        ]
        leg.send(b"".join(pieces))
        answer, content = await sender.response()
        assert content == b"".join(b"%d" % (at % 10) for at in range(20_000))


@pytest.mark.parametrize(
    "violation", [b"\xc1\x80\x01\x02\x03\x04", frame(Opcode.TEXT, b"{"), frame(Opcode.BINARY, b"x")]
)
async def test_a_listener_that_breaks_the_rules_has_not_answered(violation: bytes) -> None:
    async with Relay() as relay:
        sender, leg, _ = await opened(relay)
        leg.send(violation)
        assert (await sender.response())[0].status == 502
        assert (await leg.frame()).close.code in (1002, 1007)
        await leg.leave()
        await until(lambda: not relay.broker.http.rendezvous)


async def test_a_flood_of_small_frames_holds_the_loop_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Relay() as relay:
        sender, leg, id = await opened(relay)
        (http_leg,) = relay.broker.http._legs
        machine = http_leg._machine
        turns: list[list[int]] = []
        receive, go_on = machine.receive, http_leg._go_on

        def counted(data: bytes, now: float) -> Any:
            turns[-1].append(len(data))
            return receive(data, now)

        def turn() -> None:
            turns.append([])
            go_on()

        monkeypatch.setattr(machine, "receive", counted)
        monkeypatch.setattr(HttpLeg, "_go_on", lambda self: turn())
        leg.send_frame(Opcode.TEXT, b'{"response":{"requestId":"%b","statusCode":200,"body":true}}' % id.encode())
        flood = frame(Opcode.PONG) * 20_000
        large = frame(Opcode.BINARY, LARGE, fin=False)
        leg.send(flood + large + frame(Opcode.CONTINUATION))
        assert (await sender.response())[1] == LARGE
        assert sum(map(sum, turns)) > len(flood + large)
        for sizes in turns:
            assert sum(size <= SLICE for size in sizes) <= SLICES or sizes[-1] < SLICE
        # What is one frame is taken in as it came.
        assert max(map(max, filter(None, turns))) > 2 * SLICE
