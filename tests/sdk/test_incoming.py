"""What an accept handler sees of an offer, whatever relay wrote it."""

from __future__ import annotations

import pytest

from trunkline.protocol.messages import Accept, RemoteEndpoint
from trunkline.sdk.incoming import CaseInsensitiveHeaders, IncomingConnection


def incoming(address: str, entity: str = "a/b", **headers: str) -> IncomingConnection:
    return IncomingConnection(Accept(address, "id", headers, RemoteEndpoint("", 0)), entity)


@pytest.mark.parametrize(
    ("address", "suffix", "query"),
    [
        ("wss://g3-prod.servicebus.windows.net/$hc/a/b?sb-hc-action=accept&sb-hc-id=1", "", ""),
        ("wss://host:443/$hc/A/B/c%2Fd?x=1&sb-hc-action=accept", "c%2Fd", "x=1"),
        ("wss://host/$hc/elsewhere?x&sb-hc-action=accept", "", "x"),
        ("wss://host/$hc/a/b?sb-hc-action=unheard-of", "", ""),
        ("nonsense", "", ""),
    ],
)
def test_suffix_and_query_come_from_the_address(address: str, suffix: str, query: str) -> None:
    request = incoming(address)
    assert (request.suffix, request.query) == (suffix, query)


def test_headers_are_found_in_any_case_and_keep_their_own() -> None:
    headers = CaseInsensitiveHeaders({"X-One": "1", "authorization": "secret"})
    assert headers["x-ONE"] == "1" and "AUTHORIZATION" in headers and headers.get("other") is None
    assert list(headers) == ["X-One", "authorization"] and len(headers) == 2
    assert dict(headers) == {"X-One": "1", "authorization": "secret"}
    assert repr(headers) == "<Headers X-One, authorization>"
    with pytest.raises(KeyError):
        headers["other"]


def test_repr_tells_the_state() -> None:
    request = incoming("wss://host/$hc/a/b/c?x")
    assert repr(request) == "<IncomingConnection from= suffix='c' id=id>"
    request.reject(503, "busy")
    assert repr(request).endswith("rejected=503>")
    assert request.rejection == (503, "busy")
