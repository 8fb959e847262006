"""What senders of plain HTTP and their listeners do in many tests, over the peers of `peers`."""

from __future__ import annotations

import json
from typing import Any

from server.relay.peers import (
    Peer,
    Relay,
    hybrid_connection,
)
from trunkline.protocol.frames import Opcode

ORDERS = hybrid_connection().id
LARGE = bytes(range(256)) * 1024
CHUNKED = [("Transfer-Encoding", "chunked")]


async def refused(sender: Peer, status: int, words: str) -> dict[str, str]:
    """The relay's own answer: its status, words and tracking id, and nothing that looks like a listener's."""
    answer, body = await sender.response()
    error = json.loads(body)["error"]
    assert (answer.status, answer.phrase[: len(words)]) == (status, words)
    assert error["message"] == answer.phrase and "TrackingId:" in answer.phrase
    assert answer.all("Content-Type") == ["application/json"]
    assert answer.all("Via") == []
    assert isinstance(error, dict)
    return error


async def answered(listener: Peer, sender: Peer) -> None:
    """The listener gets the sender's request, which is small, and the sender its answer."""
    request, _ = await listener.asked()
    listener.respond(request["id"], 200, b"answer")
    answer, body = await sender.response()
    assert (answer.status, body) == (200, b"answer")


async def begun(relay: Relay, listener: Peer, **request: Any) -> tuple[Peer, Peer, str]:
    """A sender that has had a part of its answer, the rendezvous, and the id of the request."""
    sender = await relay.ask(**request)
    asked, _ = await listener.asked()
    leg = await relay.accept(asked)
    respond(leg, asked["id"])
    leg.send_frame(Opcode.BINARY, b"part", fin=False)
    assert (await sender.answer()).status == 200
    assert await sender.chunk() == b"part"
    return sender, leg, asked["id"]


def respond(leg: Peer, id: str, status: int = 200) -> None:
    """The head of a response whose body follows."""
    leg.send_frame(
        Opcode.TEXT, json.dumps({"response": {"requestId": id, "statusCode": status, "body": True}}).encode()
    )


async def closed(leg: Peer) -> int | None:
    """The code of the Close that comes next, which is answered."""
    while (got := await leg.frame()).opcode is not Opcode.CLOSE:
        pass
    leg.send_close(1000)
    return got.close.code
