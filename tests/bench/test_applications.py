"""What answers in the HTTP cases: the bare listener, and the content of large bodies."""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from hashlib import sha256
from typing import Any

import pytest
from benchmarks.applications import ANSWER, BLOCK, BareListener, application, content
from benchmarks.streams import Stream
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.frames import Control, Message, MessageDecoder, Opcode, encode_frame
from trunkline.protocol.messages import RemoteEndpoint, Request, Response, encode, parse_from_listener


class NoStream(Stream):
    """Nothing is read from it."""

    def __init__(self) -> None:
        pass


def _request(id: str, body: bytes) -> bytes:
    request = Request(
        "wss://localhost/$hc/a?sb-hc-action=request&sb-hc-id=other",
        id,
        "/a",
        "POST" if body else "GET",
        {"id": 'x","id":"no'},
        RemoteEndpoint("127.0.0.1", 1),
        bool(body),
    )
    text = encode_frame(Opcode.TEXT, encode(request).encode())
    return text + encode_frame(Opcode.BINARY, body) if body else text


@given(
    st.lists(st.tuples(st.uuids(), st.sampled_from((b"", b"b", bytes(70_000))))),
    st.lists(st.integers(1, 500) | st.just(100_000), min_size=1),
)
def test_bare_listener_answers_each_request_wherever_reads_end(requests: list[Any], reads: list[int]) -> None:
    data = b"".join(_request(str(id), body) for id, body in requests) + encode_frame(Opcode.PING, b"ping")
    listener, written, position, turn = BareListener(NoStream()), b"", 0, 0
    while position < len(data):
        written += listener.answers_to(data[position : position + reads[turn % len(reads)]])
        position, turn = position + reads[turn % len(reads)], turn + 1

    items = list(MessageDecoder(masked=True, text_limit=1_000, binary_limit=1_000).feed(written))
    assert items.pop() == Control(Opcode.PONG, b"ping")
    for id, _ in requests:
        text, body = items.pop(0), items.pop(0)
        assert isinstance(text, Message) and body == Message(Opcode.BINARY, ANSWER)
        response = parse_from_listener(text.payload.decode())
        assert isinstance(response, Response) and response.request_id == str(id)
    assert not items


def test_bare_listener_ends_with_its_control_channel() -> None:
    with pytest.raises(ConnectionError, match="closed the control channel"):
        BareListener(NoStream()).answers_to(encode_frame(Opcode.CLOSE))


@pytest.mark.parametrize("size", [0, 1, 8, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_content_has_its_size_and_no_block_twice(size: int) -> None:
    blocks = list(content(size))

    assert sum(map(len, blocks)) == size
    assert len(set(blocks)) == len(blocks)


async def _ask(method: str, path: str, *parts: bytes) -> bytes:
    incoming = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    came = b""

    async def receive() -> MutableMapping[str, Any]:
        return incoming.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal came
        came += message.get("body", b"")

    await application({"type": "http", "method": method, "path": path}, receive, send)
    assert not incoming
    return came


async def test_application_answers_by_the_end_of_the_path() -> None:
    parts = [os.urandom(10), os.urandom(10)]

    assert await _ask("GET", "/any/small") == ANSWER
    assert await _ask("POST", "/small", *parts) == ANSWER
    assert await _ask("POST", "/hash", *parts) == sha256(b"".join(parts)).hexdigest().encode()
    assert await _ask("GET", "/any/stream/100000") == b"".join(content(100_000))


def test_request_of_the_test_is_what_a_node_sends() -> None:
    text = MessageDecoder(masked=False, text_limit=1_000, binary_limit=1_000).feed(_request("i", b""))

    (message,) = text
    assert isinstance(message, Message) and json.loads(message.payload)["request"]["id"] == "i"
