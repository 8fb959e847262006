"""The relay of the examples: that of TRUNKLINE_CONNECTION_STRING, or one in this process that is gone afterwards.

The first is a connection string with the rights Listen and Send, and TRUNKLINE_CA_FILE the authority to trust.
"""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from trunkline.testing import relay_node


class Relay(NamedTuple):
    connection_string: str
    ssl: ssl.SSLContext | None


@asynccontextmanager
async def relay() -> AsyncIterator[Relay]:
    """Where an example listens and connects; `entity_path` chooses among ``test``, ``test-1`` and ``test-2``."""
    if text := os.environ.get("TRUNKLINE_CONNECTION_STRING"):
        yield Relay(text, ssl.create_default_context(cafile=os.environ.get("TRUNKLINE_CA_FILE")))
        return
    async with relay_node(["test", "test-1", "test-2"], tls=True) as node:
        context = node.client_context()
        assert context
        yield Relay(node.connection_string(""), context)
