"""Tokens for plain requests: kept, renewed in time, and for the relay alone."""

from __future__ import annotations

import asyncio

import pytest

from trunkline.protocol import sas
from trunkline.protocol.errors import InvalidSetting
from trunkline.sdk import StaticToken, Token
from trunkline.sdk.sender_token import RENEW_MARGIN, SenderToken, http_url

STRING = "Endpoint=sb://ns.example.com:8443/;SharedAccessKeyName=send;SharedAccessKey=key;EntityPath=orders/eu"


class Clock:
    """The wall clock of a test."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class CountedTokens:
    """Tokens that last as long as they are told to, numbered."""

    def __init__(self, clock: Clock, lifetime: float | None) -> None:
        self._clock = clock
        self._lifetime = lifetime
        self.made = 0

    async def get_token(self, audience: str) -> Token:
        await asyncio.sleep(0)  # as one that asks somebody does
        self.made += 1
        return Token(f"token {self.made}", None if self._lifetime is None else self._clock.now + self._lifetime)


def test_the_address_of_a_hybrid_connection_as_an_http_client_takes_it() -> None:
    assert http_url(STRING) == "https://ns.example.com:8443/orders/eu"
    assert http_url("sb://ns.example.com", entity_path="a b") == "https://ns.example.com/a%20b"
    assert http_url("ws://localhost:8080/orders") == "http://localhost:8080/orders"
    assert (
        http_url(STRING, ssl=False) == SenderToken(STRING, ssl=False).base_url == "http://ns.example.com:8443/orders/eu"
    )
    assert http_url("sb://[::1]:8443/orders") == "https://[::1]:8443/orders"


async def test_the_token_is_for_the_hybrid_connection() -> None:
    signature = sas.parse(await SenderToken(STRING).token())
    assert signature.covers(["ns.example.com"], "orders/eu")
    assert sas.signed_by(signature, "key")
    whole = sas.parse(await SenderToken("sb://ns.example.com", key_name="send", key="key").token())
    assert whole.covers(["ns.example.com"], "orders/eu") and whole.covers(["ns.example.com"], "other")


@pytest.mark.parametrize(("lifetime", "kept"), [(3_600, 3_600 - RENEW_MARGIN), (60, 30)])
async def test_it_is_kept_until_a_while_before_its_end(lifetime: float, kept: float) -> None:
    clock = Clock()
    provider = CountedTokens(clock, lifetime)
    token = SenderToken("sb://ns.example.com/orders", token_provider=provider, _time=clock)
    assert await token.token() == "token 1"
    clock.now += kept - 1
    assert await token.token() == token.token_blocking() == "token 1"
    clock.now += 1
    assert await token.token() == "token 2"


async def test_one_whose_end_is_not_known_is_asked_for_each_time() -> None:
    provider = CountedTokens(Clock(), None)
    token = SenderToken("sb://ns.example.com/orders", token_provider=provider)
    assert [await token.token(), await token.token()] == ["token 1", "token 2"]


def test_a_thread_without_a_loop_gets_one_too() -> None:
    provider = CountedTokens(Clock(), 60)
    assert SenderToken("sb://ns.example.com/orders", token_provider=provider).token_blocking() == "token 1"


async def test_a_thread_with_a_loop_may_wait_as_well() -> None:
    provider = CountedTokens(Clock(), 60)
    assert SenderToken("sb://ns.example.com/orders", token_provider=provider).token_blocking() == "token 1"


def test_what_the_provider_raises_is_raised() -> None:
    class Fails:
        async def get_token(self, audience: str) -> Token:
            raise RuntimeError("the identity provider is away")

    with pytest.raises(RuntimeError, match="is away"):
        SenderToken("sb://ns.example.com/orders", token_provider=Fails()).token_blocking()


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://ns.example.com:8443/orders/eu/17", True),
        ("https://NS.example.com:8443/", True),
        ("https://shop.ns.example.com:8443/", True),  # an entity's own host
        ("http://ns.example.com:8443/orders/eu", False),
        ("https://ns.example.com/orders/eu", False),
        ("https://evilns.example.com:8443/", False),
        ("https://ns.example.com.evil.org:8443/", False),
        ("https://user@evil.org:8443/ns.example.com", False),
        ("https://ns.example.com:99999/", False),
        ("https://[ns.example.com:8443/", False),
        ("/orders", False),
        ("", False),
    ],
)
def test_only_the_relay_gets_it(url: str, wanted: bool) -> None:
    assert SenderToken(STRING).is_for(url) is wanted


def test_the_port_may_be_left_out_where_it_is_the_usual_one() -> None:
    token = SenderToken("sb://ns.example.com/orders", key_name="send", key="key")
    assert token.is_for("https://ns.example.com:443/orders") and token.is_for("https://ns.example.com/orders")
    assert not token.is_for("https://ns.example.com:8443/orders")


def test_without_a_key_there_is_no_token() -> None:
    with pytest.raises(InvalidSetting, match="give key_name and key"):
        SenderToken("sb://ns.example.com/orders")


async def test_it_is_not_shown() -> None:
    token = SenderToken("sb://ns.example.com/orders", token_provider=StaticToken("the secret"))
    assert await token.token() == "the secret"
    assert "secret" not in repr(token) and "https://ns.example.com/orders" in repr(token)
