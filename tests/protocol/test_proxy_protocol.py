from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import InvalidRequest
from trunkline.protocol.proxy_protocol import LONGEST_1, LONGEST_2, SIGNATURE_2, ProxyHeader, read, wanted

ports = st.integers(0, 65_535)


def version_1(source: str, destination: str, source_port: int = 40_000, destination_port: int = 443) -> bytes:
    family = "TCP6" if ":" in source else "TCP4"
    return f"PROXY {family} {source} {destination} {source_port} {destination_port}\r\n".encode()


def version_2(
    source: str | None, source_port: int = 40_000, *, command: int = 0x21, family: int | None = None, more: bytes = b""
) -> bytes:
    """`more` stands behind the addresses: TLVs, or whatever else."""
    addresses = b""
    if source is not None:
        kind = socket.AF_INET6 if ":" in source else socket.AF_INET
        packed = socket.inet_pton(kind, source)
        addresses = packed + packed + struct.pack(">HH", source_port, 443)
        family = (0x21 if ":" in source else 0x11) if family is None else family
    body = addresses + more
    return SIGNATURE_2 + bytes([command, family or 0]) + struct.pack(">H", len(body)) + body


# -- what is right


def test_version_1_names_the_client() -> None:
    header = version_1("192.0.2.7", "198.51.100.1")
    assert read(header + b"GET / HTTP/1.1\r\n") == ProxyHeader(len(header), ("192.0.2.7", 40_000))


def test_version_1_that_knows_no_address_has_none() -> None:
    # The second as in section 2.1: whatever follows is to be ignored.
    for header in (
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
    ):
        assert read(header + b"GET") == ProxyHeader(len(header), None)


def test_version_2_names_the_client_and_what_it_says_more_is_passed_over() -> None:
    for more in (b"", b"\x04\x00\x03abc", bytes(3_000)):
        header = version_2("192.0.2.7", more=more)
        assert read(header + b"GET / HTTP/1.1\r\n") == ProxyHeader(len(header), ("192.0.2.7", 40_000))


@pytest.mark.parametrize(
    "header",
    [
        version_2(None, command=0x20),
        version_2("192.0.2.7", command=0x20),
        version_2(None, command=0x20, family=0x12),
        version_2(None, family=0x00),
        version_2(None, family=0x00, more=b"\x04\x00\x00"),
        version_2(None, family=0x31, more=bytes(216)),
    ],
    ids=["LOCAL", "LOCAL with an address", "LOCAL of anything", "UNSPEC", "UNSPEC with more", "Unix"],
)
def test_version_2_of_no_client_with_an_address_has_none(header: bytes) -> None:
    assert read(header) == ProxyHeader(len(header), None)


@given(st.ip_addresses(), ports, ports, st.binary(max_size=200), st.binary(max_size=40))
def test_any_address_and_port_is_read_as_it_was_written(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, other: int, more: bytes, behind: bytes
) -> None:
    for header in (
        version_1(str(address), str(address), port, other),
        version_2(str(address), port, more=more),
    ):
        assert read(bytearray(header + behind)) == ProxyHeader(len(header), (str(address), port))
        # Whatever part of it has come, nothing is known before it is whole.
        for end in range(len(header)):
            assert read(header[:end]) is None


# -- what is not


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXYTCP4 ",
        b"proxy TCP4 192.0.2.7",
        b"\r\n\r\nGET ",
        b"\x16\x03\x01",
    ],
)
def test_what_begins_otherwise_is_no_header(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="The proxy sent no PROXY header ahead of the request"):
        read(data)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 3\r\n",
        b"PROXY TCP4  192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 65536\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 01 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1_0 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 x 2\r\n",
        b"PROXY TCP4 \xff 192.0.2.1 1 2\r\n",
    ],
)
def test_version_1_with_a_mistake_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidRequest, match="does not name two addresses and two ports"):
        read(line)


def test_version_1_that_does_not_end_is_refused_as_soon_as_it_is_too_long() -> None:
    endless = b"PROXY UNKNOWN ".ljust(LONGEST_1, b"x")
    assert read(endless[:-1]) is None
    for data in (endless, endless + b"\r\n"):
        with pytest.raises(InvalidRequest, match="longer than 107 bytes"):
            read(data)
    longest = b"PROXY UNKNOWN ".ljust(LONGEST_1 - 2, b"x") + b"\r\n"
    assert read(longest) == ProxyHeader(LONGEST_1, None)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (version_2("192.0.2.7", command=0x11), "unknown version or command (0x11)"),
        (version_2("192.0.2.7", command=0x22), "unknown version or command (0x22)"),
        (version_2("192.0.2.7", family=0x12), "a connection that is not TCP (0x12)"),
        (version_2("192.0.2.7", family=0x41), "a connection that is not TCP (0x41)"),
        (version_2(None, family=0x11, more=bytes(11)), "shorter than its addresses"),
        (version_2(None, family=0x21, more=bytes(35)), "shorter than its addresses"),
        (version_2(None, more=bytes(LONGEST_2 + 1)), "longer than 4096 bytes"),
    ],
)
def test_version_2_with_a_mistake_is_refused_before_it_is_whole(header: bytes, problem: str) -> None:
    for data in (header, header[:16]):
        with pytest.raises(InvalidRequest) as caught:
            read(data)
        assert problem in caught.value.message


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: SIGNATURE_2 + data))
def test_anything_is_a_header_or_none_or_not_yet_one(data: bytes) -> None:
    try:
        found = read(data)
    except InvalidRequest:
        return
    if found is None:
        return
    assert 0 < found.size <= len(data)
    if found.source is not None:
        ipaddress.ip_address(found.source[0])
        assert 0 <= found.source[1] <= 65_535


# -- no byte more than the header


def taken_exactly(data: bytes) -> int:
    """How many bytes were taken when the header is whole, by somebody who takes what is wanted and no more."""
    taken = b""
    while read(taken) is None:
        taken = data[: len(taken) + wanted(taken)]
    return len(taken)


@given(st.ip_addresses(), ports, ports, st.binary(max_size=200), st.binary(min_size=1, max_size=40))
def test_whoever_takes_what_is_wanted_takes_the_header_and_nothing_behind_it(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, other: int, more: bytes, behind: bytes
) -> None:
    for header in (
        version_1(str(address), str(address), port, other),
        version_2(str(address), port, more=more),
        version_2(None, command=0x20, more=more),
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN a\rb c\r\n",
    ):
        assert taken_exactly(header + behind) == len(header)


@given(st.binary(max_size=40))
def test_something_is_always_wanted(data: bytes) -> None:
    for start in (b"", b"PROXY ", SIGNATURE_2):
        assert wanted(start + data) >= 1
