"""Fuzz targets for what proxies say: ahead of a connection, in the headers of a request, in answer to our own; and for
the URL by which a user names one."""

from __future__ import annotations

import ipaddress

from fuzz.text_targets import SECRET, hides_secret, text_of
from trunkline.protocol import proxy_protocol
from trunkline.protocol.errors import InvalidRequest, InvalidSetting
from trunkline.sdk import proxy
from trunkline.server.relay.forwarded import TrustedProxies

_TRUSTED = TrustedProxies([ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32")])
_PROXY = proxy.Proxy("http", "proxy.example", 3128, "user", SECRET)


def proxy_header(data: bytes) -> None:
    """The PROXY protocol: as much is taken as was needed, and no beginning of a header means something else."""
    try:
        header = proxy_protocol.read(data)
    except InvalidRequest as error:
        hides_secret(error)
        return
    if header is None:
        assert len(data) < 16 + proxy_protocol.LONGEST_2
        return
    assert 0 < header.size <= len(data)
    assert proxy_protocol.read(data[: header.size]) == header
    assert proxy_protocol.read(bytearray(data[: header.size]) + b"GET / HTTP/1.1") == header
    for size in (*range(min(header.size, 20)), header.size - 1):
        assert proxy_protocol.read(data[:size]) is None
    if header.source is not None:
        address, port = header.source
        assert str(ipaddress.ip_address(address)) == address and 0 <= port <= 65_535


def forwarded(data: bytes) -> None:
    """X-Forwarded-For and X-Forwarded-Proto, one a line: nobody but a trusted proxy is believed."""
    forwarded_for, _, forwarded_proto = data.decode("latin-1").partition("\n")
    stranger = ("198.51.100.7", 40_000)
    assert _TRUSTED.client(stranger, True, forwarded_for, forwarded_proto) == (stranger, True)
    trusted = ("192.0.2.1", 40_000)
    client, _ = _TRUSTED.client(trusted, False, forwarded_for, forwarded_proto)
    if client != trusted:
        address, port = client
        assert str(ipaddress.ip_address(address)) == address and 0 <= port <= 65_535
    # What a client writes itself stands on the left, and moves nothing that stands right of it.
    nearest, _ = _TRUSTED.client(trusted, False, "203.0.113.9", None)
    assert _TRUSTED.client(trusted, False, f"{forwarded_for}, 203.0.113.9", None)[0] == nearest == ("203.0.113.9", 0)


def proxy_url(data: bytes) -> None:
    """The URL of a proxy; its credentials are not shown, and its request cannot hold lines of anybody else."""
    text = text_of(data)
    is_password = text.count(SECRET) == text.count(f":{SECRET}@")
    try:
        read = proxy.read_proxy(text, origin="HTTPS_PROXY")
    except InvalidSetting as error:
        if is_password:
            hides_secret(error)
        return
    if is_password:
        assert SECRET not in repr(read) + str(read)
    if read.scheme == "http":
        request = proxy._connect_request(read, "relay.example", 443)
        assert request.count(b"\r\n") == request.count(b"\n") == 3 + (read.username is not None)
        assert request.isascii()


def proxy_answer(data: bytes) -> None:
    """What a proxy answers to CONNECT, with the end of its head."""
    head, _, behind = data.partition(b"\r\n\r\n")
    try:
        proxy._check_answer(_PROXY, head + b"\r\n\r\n" + behind, "relay.example", 443)
    except proxy.ProxyError as error:
        hides_secret(error)
        assert str(error).isprintable()
    else:
        assert head.startswith(b"HTTP/1.") and not behind
