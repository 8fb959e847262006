from __future__ import annotations

import ipaddress
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.server.relay.forwarded import TrustedProxies, parse_address, plain_address

PROXY = ("10.0.0.1", 50_000)
PROXIES = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")])


def client(forwarded_for: str | None, *, peer: tuple[str, int] = PROXY, proxies: TrustedProxies = PROXIES) -> str:
    (address, _), _ = proxies.client(peer, False, forwarded_for, None)
    return address


def secure(forwarded_proto: str | None, *, before: bool = False, peer: tuple[str, int] = PROXY) -> bool:
    return PROXIES.client(peer, before, None, forwarded_proto)[1]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "10.0.0.1"),
        ("", "10.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        # What a client writes itself stands on the left of what the proxy adds.
        ("198.51.100.9, 192.0.2.7", "192.0.2.7"),
        # Proxies in a row.
        ("192.0.2.7, 10.0.0.3, 10.0.0.2", "192.0.2.7"),
        ("192.0.2.7,2001:db8::5", "192.0.2.7"),
        # Everybody is a proxy: the first is the client.
        ("10.0.0.9, 10.0.0.2", "10.0.0.9"),
        # What cannot be read hides what is left of it.
        ("192.0.2.7, unknown", "10.0.0.1"),
        ("192.0.2.7, unknown, 10.0.0.3", "10.0.0.3"),
        ("192.0.2.7, ", "10.0.0.1"),
        ("192.0.2.7:4711", "192.0.2.7"),
        ("[2001:db9::7]:4711", "2001:db9::7"),
        ("2001:db9::7", "2001:db9::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
    ],
)
def test_client_is_the_rightmost_address_that_is_no_trusted_proxy(header: str | None, expected: str) -> None:
    assert client(header) == expected


def test_nobody_else_is_believed() -> None:
    assert client("192.0.2.7", peer=("192.0.2.1", 1)) == "192.0.2.1"
    assert not secure("https", peer=("192.0.2.1", 1))
    assert client("192.0.2.7", proxies=TrustedProxies()) == "10.0.0.1"
    assert client("192.0.2.7", peer=("/a/socket", 0)) == "/a/socket"


@pytest.mark.parametrize(
    ("header", "before", "expected"),
    [
        ("https", False, True),
        ("WSS", False, True),
        ("http", True, False),
        ("ws", True, False),
        ("http, https", False, True),
        ("https, http", True, False),
        ("gopher", True, True),
        ("", False, False),
        (None, True, True),
    ],
)
def test_the_nearest_proxy_says_whether_the_client_came_encrypted(
    header: str | None, before: bool, expected: bool
) -> None:
    assert secure(header, before=before) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 192.0.2.7 ", ("192.0.2.7", 0)),
        ("192.0.2.7:80", ("192.0.2.7", 80)),
        ("192.0.2.7:99999", ("192.0.2.7", 0)),
        ("192.0.2.7:http", ("192.0.2.7", 0)),
        ("[::1]", ("::1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("::1", ("::1", 0)),
        ("fe80::1%eth0", None),
        ("_hidden", None),
        ("", None),
        ('for="192.0.2.7"', None),
    ],
)
def test_addresses_are_read_as_they_are_written(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_address(text) == expected


def test_ipv4_is_ipv4_on_a_socket_for_both() -> None:
    assert plain_address("::ffff:192.0.2.7") == "192.0.2.7"
    assert plain_address("::FFFF:192.0.2.7") == "192.0.2.7"
    assert plain_address("::ffff:c000:207") == "192.0.2.7"
    assert plain_address("::ffff:1:2:3") == "::ffff:1:2:3"
    assert plain_address("192.0.2.7") == "192.0.2.7"


def test_it_says_whom_it_trusts() -> None:
    assert repr(PROXIES) == "<TrustedProxies 10.0.0.0/8, 2001:db8::/32>"
    assert PROXIES and not TrustedProxies()


@given(st.text(), st.text())
def test_whatever_a_proxy_writes_there_is_a_client(forwarded_for: str, forwarded_proto: str) -> None:
    (address, port), _ = PROXIES.client(PROXY, False, forwarded_for, forwarded_proto)
    ipaddress.ip_address(address)
    assert 0 <= port <= 65_535
