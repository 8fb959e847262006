"""Payload counted by the heads of TLS records."""

from __future__ import annotations

from benchmarks.streams import Records
from hypothesis import given
from hypothesis import strategies as st


@given(
    st.lists(st.integers(0, 16_384), max_size=20),
    st.lists(st.integers(1, 40_000) | st.integers(1, 7), min_size=1),
)
def test_payload_is_counted_wherever_reads_end(sizes: list[int], reads: list[int]) -> None:
    stream = b"".join(b"\x17\x03\x03" + (size + 17).to_bytes(2, "big") + bytes(size + 17) for size in sizes)
    records, counted, position, turn = Records(), 0, 0, 0
    while position < len(stream):
        piece = stream[position : position + reads[turn % len(reads)]]
        # As a read leaves it: in a buffer that holds more.
        counted += records.payload(piece + b"\xff" * 10, len(piece))
        position, turn = position + len(piece), turn + 1

    assert counted == sum(sizes)
