"""Where tokens come from."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import pytest

from trunkline.protocol import sas
from trunkline.protocol.errors import InvalidSetting
from trunkline.sdk import EntraTokenProvider, SasTokenProvider, StaticToken, Token
from trunkline.sdk.tokens import ENTRA_SCOPE, token_provider_of

AUDIENCE = "http://relay.example/orders"


class AccessToken(NamedTuple):
    """As azure-core has it."""

    token: str
    expires_on: int


async def test_sas_is_made_for_its_audience_and_an_hour() -> None:
    token = await SasTokenProvider("rule", "key", _time=lambda: 1_700_000_000.25).get_token(AUDIENCE)
    signature = sas.parse(token.text)
    assert token.expires_at == signature.expires_at == 1_700_003_601
    assert signature.key_names()[0] == "rule"
    assert sas.signed_by(signature, "key") and signature.covers(["relay.example"], "orders")
    assert token.text not in repr(token)


@pytest.mark.parametrize("lifetime", [0, -1, 86_401, float("nan"), float("inf")])
def test_sas_lifetime_is_at_most_24_hours(lifetime: float) -> None:
    with pytest.raises(InvalidSetting, match="24 hours"):
        SasTokenProvider("rule", "key", lifetime=lifetime)
    assert "secret" not in repr(SasTokenProvider("rule", "secret", lifetime=86_400))


@pytest.mark.parametrize(("name", "key"), [("", "key"), ("rule", "")])
def test_sas_needs_name_and_key(name: str, key: str) -> None:
    with pytest.raises(InvalidSetting):
        SasTokenProvider(name, key)


async def test_static_token_knows_its_expiry_when_it_can_be_read() -> None:
    text = sas.sign(AUDIENCE, "rule", "key", expires_at=1_700_000_000)
    assert await StaticToken(text).get_token("any") == Token(text, 1_700_000_000)
    assert await StaticToken(text, expires_at=5).get_token("any") == Token(text, 5)
    assert await StaticToken("eyJ.a.b").get_token("any") == Token("eyJ.a.b", None)
    assert "sig=" not in repr(StaticToken(text))


async def test_credential_of_azure_identity_is_asked_for_the_scope_of_azure_relay() -> None:
    threads = []

    class Credential:
        def get_token(self, *scopes: str, claims: str | None = None, **kwargs: Any) -> AccessToken:
            threads.append(threading.current_thread())
            return AccessToken(f"jwt for {scopes}", 1_700_000_000)

    provider = token_provider_of(Credential())
    assert await provider.get_token(AUDIENCE) == Token(f"jwt for {(ENTRA_SCOPE,)}", 1_700_000_000)
    assert threads != [threading.main_thread()]  # it talks to the network
    assert repr(provider) == "<EntraTokenProvider Credential>"


async def test_async_credential_is_awaited() -> None:
    class Credential:
        async def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken:
            return AccessToken("jwt", 1)

    class Wrapper:
        def get_token(self, *scopes: str) -> Any:
            return Credential().get_token(*scopes)

    for credential in (Credential(), Wrapper()):
        assert await EntraTokenProvider(credential).get_token(AUDIENCE) == Token("jwt", 1.0)


async def test_provider_of_ones_own_is_asked_for_the_audience() -> None:
    class Provider:
        async def get_token(self, audience: str) -> Token:
            return Token(audience, None)

    provider = Provider()
    assert token_provider_of(provider) is provider


@pytest.mark.parametrize("given", [object(), "SharedAccessSignature sr=x", type("T", (), {"get_token": 7})()])
def test_what_gives_no_tokens_is_refused(given: object) -> None:
    with pytest.raises(InvalidSetting, match="get_token"):
        token_provider_of(given)
