"""Where the SDK gets its tokens from.

A listener and a client ask a `TokenProvider` for a token before every connection, and a listener again before the
token expires. Three kinds are here; any object with the same method will do, and so will the credentials of
azure-identity.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from trunkline.protocol import sas
from trunkline.protocol.errors import InvalidSetting, InvalidToken
from trunkline.protocol.limits import DEFAULT_TOKEN_LIFETIME, LONGEST_TOKEN_LIFETIME

#: What a Microsoft Entra ID token for Azure Relay is asked for. The resource is "https://relay.azure.net/", whose
#: own slash comes before that of "/.default" (Microsoft's .NET library and samples write it so too).
ENTRA_SCOPE = "https://relay.azure.net//.default"


@dataclass(frozen=True, slots=True)
class Token:
    """A token and when it ends."""

    #: What goes into the header ``ServiceBusAuthorization``: a whole shared access signature, or a bare JWT.
    text: str = field(repr=False)
    #: Seconds since the epoch; None when it is not known, and then it is never renewed.
    expires_at: float | None


class TokenProvider(Protocol):
    """Gives tokens."""

    async def get_token(self, audience: str) -> Token:
        """A token that is valid now.

        Args:
            audience: URL of the hybrid connection, ``http://host/path``: what a shared access signature is made for.
        """


class SasTokenProvider:
    """Makes shared access signatures from the key of an authorization rule.

    Args:
        key_name: name of the rule.
        key: its primary or secondary key.
        lifetime: seconds that each token lasts; at most 24 hours.

    Raises:
        InvalidSetting: a name or key is missing, or `lifetime` is not between one second and 24 hours.
    """

    def __init__(
        self,
        key_name: str,
        key: str,
        *,
        lifetime: float = DEFAULT_TOKEN_LIFETIME,
        _time: Callable[[], float] = time.time,
    ) -> None:
        if not key_name or not key:
            raise InvalidSetting("A shared access signature needs both the name of a rule and its key")
        if not 1 <= lifetime <= LONGEST_TOKEN_LIFETIME:
            raise InvalidSetting(
                f"lifetime is {lifetime} s; a token may last from 1 s to {LONGEST_TOKEN_LIFETIME} s (24 hours)"
            )
        self._key_name = key_name
        self._key = key
        self._lifetime = lifetime
        self._time = _time

    def __repr__(self) -> str:
        return f"<SasTokenProvider rule={self._key_name!r} lifetime={self._lifetime:g}>"

    async def get_token(self, audience: str) -> Token:
        """A new token for `audience`."""
        # Whole seconds, upwards: a token that is made for one second must not be born expired.
        expires_at = math.ceil(self._time() + self._lifetime)
        return Token(sas.sign(audience, self._key_name, self._key, expires_at=expires_at), float(expires_at))


class StaticToken:
    """A token that somebody else made, for example the CLI or an operator who keeps the key.

    It cannot be renewed: when it expires, the relay closes the control channel and refuses it from then on.

    Args:
        text: a shared access signature or a JWT.
        expires_at: seconds since the epoch; read from a shared access signature when not given.
    """

    def __init__(self, text: str, *, expires_at: float | None = None) -> None:
        if expires_at is None:
            try:
                expires_at = sas.parse(text).expires_at
            except InvalidToken:  # a JWT, or something that the relay will refuse in its own words
                expires_at = None
        self._token = Token(text, expires_at)

    def __repr__(self) -> str:
        return f"<StaticToken expires_at={self._token.expires_at}>"

    async def get_token(self, audience: str) -> Token:
        """The token, whatever the audience."""
        return self._token


class EntraTokenProvider:
    """Asks a credential of azure-identity, or of the same shape, for Microsoft Entra ID tokens.

    Args:
        credential: has ``get_token(*scopes)``, sync or async, which gives an object with ``token`` and
            ``expires_on``. A sync one runs in a thread, because it talks to the network.
    """

    def __init__(self, credential: Any) -> None:
        self._credential = credential

    def __repr__(self) -> str:
        return f"<EntraTokenProvider {type(self._credential).__name__}>"

    async def get_token(self, audience: str) -> Token:
        """A token for Azure Relay as a whole; `audience` plays no part."""
        get_token = self._credential.get_token
        if inspect.iscoroutinefunction(get_token):
            found = await get_token(ENTRA_SCOPE)
        else:
            found = await asyncio.to_thread(get_token, ENTRA_SCOPE)
            if inspect.isawaitable(found):  # an async credential behind a plain wrapper
                found = await found
        return Token(found.token, float(found.expires_on))


def token_provider_of(given: Any) -> TokenProvider:
    """`given` as a `TokenProvider`: itself, or wrapped when it is a credential of azure-identity.

    The two are told apart by their ``get_token``: a credential's takes any number of scopes (``*scopes``, so
    declared by azure-core's own protocol), a provider's takes one audience.

    Raises:
        InvalidSetting: it is neither.
    """
    get_token = getattr(given, "get_token", None)
    if not callable(get_token):
        raise InvalidSetting(
            f"token_provider is {type(given).__name__!r}, which has no get_token method; "
            "give a TokenProvider or a credential of azure-identity"
        )
    try:
        parameters = inspect.signature(get_token).parameters.values()
    except (TypeError, ValueError):  # written in C: nothing is known, so it is taken for what it should be
        parameters = ()  # type: ignore[assignment]
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return EntraTokenProvider(given)
    return given  # type: ignore[no-any-return]
