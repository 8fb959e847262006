"""What a request head says, and which are none. How it arrives is in test_frontend."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.relay.peers import ACCEPT, KEY, handshake
from trunkline.protocol.errors import HeadersTooLarge, RelayError
from trunkline.server.relay.request_head import MOST_HEADERS, RequestHead, accept_key, parse_head


def test_websocket_is_found_in_lists_and_in_any_case() -> None:
    head = handshake("/").replace(b"Upgrade: websocket", b"Upgrade: h2c, WebSocket")
    head = head.replace(b"Connection: Upgrade", b"Connection: keep-alive, upgrade")
    assert parse_head(head).is_websocket
    assert not parse_head(head.replace(b"keep-alive, upgrade", b"keep-alive")).is_websocket


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([], "unknown"),
        ([("User-Agent", "")], "unknown"),
        ([("User-Agent", "Go-http-client/1.1")], "Go-http-client/1.1"),
        ([("User-Agent", "Mozilla"), ("Relay-User-Agent", ".NET 3.0.1")], ".NET 3.0.1"),
        ([("User-Agent", "red \x1b[31m\x85\xa0line")], "red ?[31m  line"),
        ([("User-Agent", "x" * 5_000)], "x" * 120),
    ],
)
def test_client_is_known_by_what_it_calls_itself_printable_and_short(headers: list[tuple[str, str]], name: str) -> None:
    assert RequestHead("GET", "/", tuple(headers)).user_agent == name


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Upgrade, CLOSE", False),
        ("1.1", "keep-alive, x", True),
        ("1.0", None, False),
        ("1.0", "x, Keep-Alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_client_says_whether_another_request_follows(version: str, connection: str | None, stays: bool) -> None:
    headers = () if connection is None else (("CONNECTION", connection),)
    assert RequestHead("GET", "/", headers, version).wants_to_stay is stays


@pytest.mark.parametrize(
    ("version", "expect", "waits"),
    [("1.1", None, False), ("1.1", "100-Continue", True), ("1.1", "a, 100-continue", True), ("1.1", "200-ok", False)]
    + [("1.0", "100-continue", False)],
)
def test_client_waits_for_a_100_where_it_says_so(version: str, expect: str | None, waits: bool) -> None:
    headers = () if expect is None else (("Expect", expect),)
    assert RequestHead("POST", "/", headers, version).expects_continue is waits


def test_head_says_which_body_follows() -> None:
    assert parse_head(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").body_length == 0
    assert parse_head(b"GET / HTTP/1.1\r\nHost: x\r\ncontent-length: 7\r\n\r\n").body_length == 7
    assert parse_head(b"GET / HTTP/1.1\r\nHost: x\r\nTRANSFER-ENCODING: Chunked\r\n\r\n").body_length is None
    assert parse_head(b"GET / HTTP/1.0\r\n\r\n").version == "1.0"


def test_repeated_header_is_found_whatever_its_case_and_joined() -> None:
    head = RequestHead("GET", "/", (("A", "1"), ("b", "2"), ("a", "3")))
    assert (head.get("a"), head.get("B"), head.get("c"), head.tokens("A")) == ("1, 3", "2", None, ("1", "3"))
    assert head.has("x", "b") and not head.has("x")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_an_error_of_ours(data: bytes) -> None:
    for head in (
        data,
        b"GET /" + data,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + data,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + data,
    ):
        try:
            parsed = parse_head(head + b"\r\n\r\n")
        except RelayError as error:
            assert 400 <= error.status < 500 or error.status in (501, 505)
        else:
            assert not any(char in "\r\n\0" for text in (parsed.target, *sum(parsed.headers, ())) for char in text)


def test_a_head_shows_nothing_that_may_hold_a_token() -> None:
    head = parse_head(handshake("/$hc/a?sb-hc-token=hidden", [("ServiceBusAuthorization", "hidden")]))
    assert repr(head) == "RequestHead(method='GET')"


def test_head_of_too_many_headers_is_refused() -> None:
    # Five are there already; the request line and the empty one count too.
    head = parse_head(handshake("/", [("x", "")] * (MOST_HEADERS - 7)))
    assert len(head.headers) == MOST_HEADERS - 2
    with pytest.raises(HeadersTooLarge, match="more than 1000 headers"):
        parse_head(handshake("/", [("x", "")] * (MOST_HEADERS - 6)))


def test_key_of_a_handshake_is_answered_as_in_the_example_of_the_standard() -> None:
    assert accept_key(KEY) == ACCEPT
