"""The receive buffer: a stream and messages out of the same pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import InvalidMessage, MessageTooLarge
from trunkline.protocol.frames import Data, Opcode
from trunkline.sdk.receive_buffer import PIECE_COST, ReceiveBuffer

MESSAGES = st.lists(
    st.tuples(st.sampled_from([Opcode.TEXT, Opcode.BINARY]), st.lists(st.text(max_size=5).map(str.encode), min_size=1)),
    max_size=8,
)


def pieces(messages: list[tuple[Opcode, list[bytes]]]) -> list[Data]:
    return [
        Data(opcode, payload, number == len(parts) - 1)
        for opcode, parts in messages
        for number, payload in enumerate(parts)
    ]


@given(MESSAGES, st.lists(st.integers(0, 7)), st.data())
def test_stream_is_the_same_however_it_is_added_and_taken(
    messages: list[tuple[Opcode, list[bytes]]], limits: list[int], data: st.DataObject
) -> None:
    buffer = ReceiveBuffer(max_message_size=None)
    taken = b""
    for piece in pieces(messages):
        buffer.add(piece)
        if data.draw(st.booleans()):
            buffer.gather()
            assert buffer.size == 0
        if limits:
            limit = limits.pop()
            length = len(buffer)
            part = buffer.take(limit)
            assert len(part) == min(limit, length)
            taken += part
    length = len(buffer)
    rest = buffer.take(length)
    assert len(rest) == length and len(buffer) == 0
    assert taken + rest == b"".join(part for _, parts in messages for part in parts)


@given(MESSAGES)
def test_messages_are_the_same_however_they_are_cut(messages: list[tuple[Opcode, list[bytes]]]) -> None:
    buffer = ReceiveBuffer(max_message_size=None)
    received: list[str | bytes] = []
    for piece in pieces(messages):
        buffer.add(piece)
        while (message := buffer.take_message()) is not None:
            received.append(message)
        assert buffer.size == 0
        assert buffer.in_message is not piece.end
    assert received == [
        b"".join(parts).decode() if opcode is Opcode.TEXT else b"".join(parts) for opcode, parts in messages
    ]
    assert not buffer.in_message and len(buffer) == 0


def test_message_after_part_of_it_was_read_is_its_rest() -> None:
    buffer = ReceiveBuffer(max_message_size=None)
    buffer.add(Data(Opcode.TEXT, b"hello", False))
    assert buffer.take(2) == b"he"
    assert buffer.take_message() is None
    assert buffer.in_message
    buffer.add(Data(Opcode.TEXT, b" world", True))
    assert buffer.take_message() == "llo world"


def test_size_counts_each_piece_so_that_empty_ones_are_bounded() -> None:
    buffer = ReceiveBuffer(max_message_size=None)
    for _ in range(3):
        buffer.add(Data(Opcode.BINARY, b"", True))
    assert (buffer.size, len(buffer)) == (3 * PIECE_COST, 0)
    buffer.add(Data(Opcode.BINARY, b"abc", True))
    buffer.take(1)
    buffer.clear()
    assert (buffer.size, len(buffer), buffer.take(9)) == (0, 0, b"")
    assert repr(buffer) == "<ReceiveBuffer 0 bytes>"


def test_message_over_the_limit_is_refused_before_it_is_whole() -> None:
    buffer = ReceiveBuffer(max_message_size=3)
    buffer.add(Data(Opcode.BINARY, b"abc", True))
    assert buffer.take_message() == b"abc"
    buffer.add(Data(Opcode.BINARY, b"ab", False))
    assert buffer.take_message() is None
    buffer.add(Data(Opcode.BINARY, b"cd", False))
    with pytest.raises(MessageTooLarge):
        buffer.take_message()


def test_text_is_checked() -> None:
    buffer = ReceiveBuffer(max_message_size=None)
    buffer.add(Data(Opcode.TEXT, b"\xc3", True))
    with pytest.raises(InvalidMessage):
        buffer.take_message()


def test_separator_is_found_in_the_front() -> None:
    buffer = ReceiveBuffer(max_message_size=None)
    buffer.add(Data(Opcode.BINARY, b"ab\r", True))
    buffer.add(Data(Opcode.BINARY, b"\ncd", True))
    buffer.gather()
    assert buffer.find(b"\r\n", 0, 10) == 2
    assert buffer.find(b"\r\n", 0, 3) == -1
