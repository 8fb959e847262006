"""What addresses and connection strings say."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from trunkline.protocol import sas
from trunkline.protocol.errors import InvalidConnectionString, InvalidSetting, InvalidUrl
from trunkline.sdk import SasTokenProvider, StaticToken
from trunkline.sdk.endpoint import Endpoint, read_endpoint

NOTHING: dict[str, Any] = {
    "entity_path": None,
    "token_provider": None,
    "key_name": None,
    "key": None,
    "ssl": None,
}
STRING = "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=rule;SharedAccessKey=secret"


def read(address: str, **given: Any) -> Endpoint:
    return read_endpoint(address, **{**NOTHING, **given})


@pytest.mark.parametrize(
    ("address", "base", "path"),
    [
        ("sb://ns.servicebus.windows.net/orders", "wss://ns.servicebus.windows.net", "orders"),
        ("sb://relay.example:8443/a/b/", "wss://relay.example:8443", "a/b"),
        ("wss://relay.example/$hc/a", "wss://relay.example", "a"),
        ("https://relay.example/a", "wss://relay.example", "a"),
        ("ws://127.0.0.1:9000/a", "ws://127.0.0.1:9000", "a"),
        ("http://[::1]:9000/a", "ws://[::1]:9000", "a"),
        (f"{STRING};EntityPath=orders", "wss://ns.servicebus.windows.net", "orders"),
        ("endpoint = sb://relay.example:8443/; EntityPath=/x/", "wss://relay.example:8443", "x"),
    ],
)
def test_address_is_read(address: str, base: str, path: str) -> None:
    endpoint = read(address)
    assert (endpoint.base, endpoint.path) == (base, path)
    assert str(endpoint) == f"{base}/{path}"


def test_tls_can_be_left_out_where_the_address_does_not_decide() -> None:
    assert read(f"{STRING};EntityPath=a", ssl=False).base == "ws://ns.servicebus.windows.net"
    assert read("sb://localhost:9000/a", ssl=False).base == "ws://localhost:9000"
    assert read("ws://localhost:9000/a", ssl=False).base == "ws://localhost:9000"
    context = ssl.create_default_context()
    assert read("sb://localhost/a", ssl=context).ssl is context
    assert read("ws://localhost/a").ssl is None


@pytest.mark.parametrize(
    ("address", "given"),
    [
        ("wss://localhost/a", {"ssl": False}),
        ("ws://localhost/a", {"ssl": ssl.create_default_context()}),
        ("sb://localhost/a", {"entity_path": "b"}),
        ("sb://localhost/a", {"key": "x"}),
        ("sb://localhost/a", {"key_name": "x"}),
        ("sb://localhost/a", {"key_name": "x", "key": ""}),
        ("sb://localhost/a", {"key_name": "x", "key": "y", "token_provider": StaticToken("t")}),
        ("sb://localhost/a", {"token_provider": "t"}),
    ],
)
def test_contradiction_is_refused(address: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        read(address, **given)


def test_what_cannot_be_read_is_refused_without_showing_a_key() -> None:
    with pytest.raises(InvalidUrl):
        read("relay.example/orders")
    with pytest.raises(InvalidConnectionString) as raised:
        read("Endpoint=sb://x/;SharedAccessKey=secret")
    assert "secret" not in str(raised.value)
    with pytest.raises(InvalidConnectionString, match="token_provider"):
        read("Endpoint=sb://x/;EntityPath=a;Authentication=Managed Identity")


def test_entity_path_may_be_repeated_in_any_case() -> None:
    assert read("sb://localhost/Orders", entity_path="/orders").path == "orders"


async def test_token_provider_is_the_nearest() -> None:
    assert isinstance(read(f"{STRING};EntityPath=a").token_provider, SasTokenProvider)
    assert isinstance(
        read("Endpoint=sb://x/;EntityPath=a;SharedAccessSignature=SharedAccessSignature sr=x").token_provider,
        StaticToken,
    )
    own = StaticToken("mine")
    endpoint = read("Endpoint=sb://x/;EntityPath=a;Authentication=Managed Identity", token_provider=own)
    assert endpoint.token_provider is own
    assert read("sb://localhost/a").token_provider is None
    assert await read("sb://localhost/a").token() is None


@pytest.mark.parametrize(
    ("address", "host"), [("sb://Relay.example:8443/a/b", "relay.example"), ("ws://[::1]:9/a/b", "::1")]
)
async def test_token_is_for_the_hybrid_connection_without_the_port(address: str, host: str) -> None:
    token = await read(address, key_name="rule", key="secret").token()
    assert token is not None
    signature = sas.parse(token.text)
    assert signature.covers([host], "a/b") and not signature.covers([host], "a")
    assert "8443" not in token.text
