"""Tokens from elsewhere: the program that listens never holds the key."""

import asyncio
import time

from relay import relay

from trunkline import HybridConnectionListener
from trunkline.protocol import connection_string, sas
from trunkline.sdk import Token


class TokenDesk:
    """Stands for a service that keeps the key; a credential of azure-identity can be given instead."""

    def __init__(self, text: str) -> None:
        self._rule = connection_string.parse(text)

    async def get_token(self, audience: str) -> Token:
        assert self._rule.key_name and self._rule.key
        expires_at = int(time.time()) + 600
        print("a token for", audience.rpartition("/")[2])
        return Token(sas.sign(audience, self._rule.key_name, self._rule.key, expires_at=expires_at), expires_at)


async def main() -> None:
    async with relay() as (text, ssl):
        address = f"{connection_string.parse(text).endpoint}test"
        async with HybridConnectionListener(address, token_provider=TokenDesk(text), ssl=ssl) as listener:
            print("listener is", listener.state)


asyncio.run(main())
