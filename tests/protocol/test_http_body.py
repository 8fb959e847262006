"""Which body a head announces, and its bytes out of what comes behind the head."""

from __future__ import annotations

from collections.abc import Iterator

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol import http_body
from trunkline.protocol.errors import HeadersTooLarge, InvalidRequest, RelayError, UnsupportedRequest
from trunkline.protocol.http_body import BodyDecoder, ChunkedDecoder, LengthDecoder, announced_length, decoder

CHUNKS = b"5\r\nhello\r\n6;name=value\r\n world\r\n0\r\nChecksum: abc\r\n\r\n"


def decoded(body: BodyDecoder, *pieces: bytes) -> tuple[bytes, bytes]:
    """The body out of these pieces, and what is behind it; `is_whole` says whether that is all."""
    got, rest = b"", b""
    for piece in pieces:
        rest += piece
        while rest:
            before = rest
            part, rest = body.decode(rest)
            got += part
            if body.is_whole or rest == before:
                break
    return got, rest


# -- what a head announces


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([("Host", "x")], 0),
        ([("Content-Length", "0")], 0),
        ([("content-length", "17")], 17),
        ([("CONTENT-LENGTH", "007")], 7),
        ([("Content-Length", "9" * 18)], int("9" * 18)),
        ([("Transfer-Encoding", "chunked")], None),
        ([("TRANSFER-encoding", "Chunked")], None),
    ],
)
def test_head_announces_a_length_or_chunks_or_nothing(headers: list[tuple[str, str]], length: int | None) -> None:
    assert announced_length(headers) == length


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "")],
        [("Content-Length", "+1")],
        [("Content-Length", "-1")],
        [("Content-Length", " 1")],
        [("Content-Length", "1 ")],
        [("Content-Length", "1_0")],
        [("Content-Length", "0x10")],
        [("Content-Length", "1.0")],
        [("Content-Length", "1, 1")],
        [("Content-Length", "\N{ARABIC-INDIC DIGIT ONE}")],
        [("Content-Length", "\N{SUPERSCRIPT TWO}")],
        [("Content-Length", "1" * 19)],
        [("Content-Length", "1"), ("Content-Length", "1")],
        [("Content-Length", "1"), ("content-length", "2")],
        [("Content-Length", "1"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "chunked"), ("Content-Length", "0")],
        [("Transfer-Encoding", "")],
        [("Transfer-Encoding", "identity")],
        [("Transfer-Encoding", "gzip")],
        [("Transfer-Encoding", "xchunked")],
        [("Transfer-Encoding", "chunked, identity")],
        [("Transfer-Encoding", "chunked, gzip")],
        [("Transfer-Encoding", "chunked, chunked")],
        [("Transfer-Encoding", "chunked,")],
        [("Transfer-Encoding", ", chunked")],
        [("Transfer-Encoding", "chunked;q=1")],
        [("Transfer-Encoding", "\x0bchunked")],
        [("Transfer-Encoding", "chunked\xa0")],
        [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")],
        [("Transfer-Encoding", "g zip, chunked")],
    ],
    ids=str,
)
def test_head_that_leaves_open_where_the_request_ends_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest):
        announced_length(headers)


@pytest.mark.parametrize("codings", [["gzip, chunked"], ["gzip", "chunked"], ["gzip , deflate,\tchunked"]])
def test_transfer_coding_that_nobody_decodes_is_501(codings: list[str]) -> None:
    with pytest.raises(UnsupportedRequest, match="No Transfer-Encoding but chunked"):
        announced_length([("Transfer-Encoding", coding) for coding in codings])


def test_http_1_0_has_lengths_and_no_chunks() -> None:
    assert announced_length([("Content-Length", "5")], "1.0") == 5
    with pytest.raises(InvalidRequest, match="HTTP/1.0 has no"):
        announced_length([("Transfer-Encoding", "chunked")], "1.0")


# -- decoders


def test_body_of_a_length_ends_there_and_leaves_the_rest() -> None:
    body = decoder(5)
    assert repr(body) == "<LengthDecoder left=5>"
    assert body.decode(b"he") == (b"he", b"")
    assert not body.is_whole
    assert body.decode(b"lloGET /") == (b"llo", b"GET /")
    assert body.is_whole
    assert decoder(0).is_whole
    exact = LengthDecoder(3)
    assert exact.decode(b"abc") == (b"abc", b"") and exact.is_whole


def test_chunks_are_joined_and_extensions_and_trailers_dropped() -> None:
    body = decoder(None)
    assert body.decode(CHUNKS + b"GET /") == (b"hello world", b"GET /")
    assert body.is_whole
    assert repr(body) == "<ChunkedDecoder whole left=0>"


@pytest.mark.parametrize("size", [b"A", b"a", b"0a", b"00000000000000a"])
def test_size_of_a_chunk_is_hexadecimal_in_any_case(size: bytes) -> None:
    assert decoder(None).decode(size + b"\r\n0123456789\r\n0\r\n\r\n") == (b"0123456789", b"")


def test_part_of_a_chunk_is_given_as_it_comes() -> None:
    body = decoder(None)
    assert body.decode(b"a\r\n0123") == (b"0123", b"")
    assert body.decode(b"4") == (b"4", b"")
    assert repr(body) == "<ChunkedDecoder data left=5>"


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\nz\r\n",
        b" 1\r\nz\r\n",
        b"1 \r\nz\r\n",
        b"1 ;a=b\r\nz\r\n",
        b"1\nz\r\n",
        b"1\r\rz",
        b"1_0\r\n",
        b"1" * 16 + b"\r\n",
        b";a=b\r\n",
        b"1;a=\x00\r\nz\r\n",
        b"1;a=\nb\r\nz\r\n",
        b"1;a=\rb\r\nz\r\n",
        b"1\r\nzz\r\n",
        b"1\r\nz\n",
        b"1\r\nz\r0\r\n",
        b"1\r\nz0\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n: x\r\n\r\n",
        b"0\r\nA : x\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\nA: x\r\n folded\r\n\r\n",
        b"0\r\nA: \x00\r\n\r\n",
        b"0\r\nA: b\nC: d\r\n\r\n",
        b"0\r\nA: b\rC: d\r\n\r\n",
        b"0\r\n\n",
        b"0\r\n\rx",
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_malformed_chunks_are_refused_however_they_come(data: bytes, whole: bool) -> None:
    pieces = [data] if whole else [bytes((byte,)) for byte in data]
    with pytest.raises(InvalidRequest):
        decoded(decoder(None), *pieces)


def test_malformed_size_is_refused_before_its_line_has_ended() -> None:
    with pytest.raises(InvalidRequest, match="a chunk has no size"):
        decoder(None).decode(b"hello")
    with pytest.raises(InvalidRequest, match="longer than it says"):
        decoder(None).decode(b"1\r\nzz")


@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_line_with_the_size_of_a_chunk_is_bounded(end: bytes) -> None:
    most = http_body.CHUNK_LINE_LIMIT - len(b"5;\r\n")
    assert decoder(None).decode(b"5;" + b"x" * most + b"\r\nhello") == (b"hello", b"")
    with pytest.raises(InvalidRequest, match="takes more than 256 bytes"):
        decoder(None).decode(b"5;" + b"x" * (most + 3) + end)


def test_extensions_of_all_chunks_together_are_bounded() -> None:
    chunk = b"1;" + b"x" * 99 + b"\r\nz\r\n"
    body = decoder(None)
    fit = http_body.EXTENSIONS_LIMIT // 100
    assert body.decode(chunk * fit) == (b"z" * fit, b"")
    with pytest.raises(InvalidRequest, match="extensions take more than"):
        body.decode(chunk)


def test_trailers_are_bounded_one_and_all_together() -> None:
    trailer = b"A: " + b"x" * 95 + b"\r\n"
    body = decoder(None)
    fit = http_body.TRAILERS_LIMIT // 100
    assert body.decode(b"0\r\n" + trailer * fit + b"\r\n") == (b"", b"")
    for endless in (trailer * (fit + 1), b"A: " + b"x" * http_body.TRAILERS_LIMIT):
        with pytest.raises(HeadersTooLarge):
            decoder(None).decode(b"0\r\n" + endless)
        with pytest.raises(HeadersTooLarge):
            decoded(decoder(None), b"0\r\n", *(bytes((byte,)) for byte in endless))


def test_many_small_chunks_are_decoded_in_parts() -> None:
    chunks = b"1\r\nz\r\n" * (http_body.CHUNKS_AT_ONCE + 10) + b"0\r\n\r\nnext"
    body = decoder(None)
    first, rest = body.decode(chunks)
    assert first == b"z" * http_body.CHUNKS_AT_ONCE and not body.is_whole
    assert body.decode(rest) == (b"z" * 10, b"next")


# -- any input

PARTS = st.sampled_from(
    [
        b"0",
        b"1",
        b"5",
        b"a",
        b"F",
        b"\r\n",
        b"\r",
        b"\n",
        b"\r\n\r\n",
        b"hello",
        b";a=b",
        b"A: b",
        b"A:",
        b" ",
        b"x",
        b"\x00",
    ]
)
MESSY = st.lists(PARTS, max_size=30).map(b"".join)
GOOD = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return (data[start:end] for start, end in zip(edges, edges[1:], strict=False))


@given(GOOD, st.binary(max_size=10), st.lists(st.integers(min_value=0), max_size=10))
def test_chunks_give_what_was_put_in_however_they_are_cut(
    pieces: list[bytes], behind: bytes, places: list[int]
) -> None:
    body = ChunkedDecoder()
    assert decoded(body, *cut(chunked(pieces) + behind, places)) == (b"".join(pieces), behind)
    assert body.is_whole


def outcome(data: bytes, places: list[int]) -> tuple[bytes, bytes] | str:
    body = ChunkedDecoder()
    try:
        got, rest = decoded(body, *cut(data, places))
    except RelayError as error:
        return type(error).__name__
    return got, rest if body.is_whole else b"not whole"


@given(MESSY, st.lists(st.integers(min_value=0), max_size=10))
def test_any_bytes_mean_the_same_however_they_are_cut(data: bytes, places: list[int]) -> None:
    assert outcome(data, places) == outcome(data, [])


@given(st.one_of(MESSY, GOOD.map(chunked)), st.binary(max_size=10))
def test_body_ends_where_h11_says_or_is_refused(data: bytes, behind: bytes) -> None:
    body = ChunkedDecoder()
    try:
        got, rest = decoded(body, data + behind)
    except RelayError:
        return
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + data + behind)
    theirs, is_whole = b"", False
    assert isinstance(peer.next_event(), h11.Request)
    while (event := peer.next_event()) is not h11.NEED_DATA and event is not h11.PAUSED:
        if isinstance(event, h11.Data):
            theirs += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            is_whole = True
            break
    assert (theirs, is_whole) == (got, body.is_whole)
    if is_whole:
        assert peer.trailing_data[0] == rest
