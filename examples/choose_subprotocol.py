"""A listener that chooses among the WebSocket subprotocols that a sender offers."""

import asyncio

from relay import relay

from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.sdk import IncomingConnection


def choose(request: IncomingConnection) -> None:
    if "chat.v2" in request.subprotocols:
        request.subprotocol = "chat.v2"  # else the first one


async def main() -> None:
    async with relay() as (connection_string, ssl):
        async with HybridConnectionListener(
            connection_string, entity_path="test", ssl=ssl, accept_handler=choose
        ) as listener:
            client = HybridConnectionClient(connection_string, entity_path="test", ssl=ssl)
            sender = await client.create_connection(subprotocols=["chat.v1", "chat.v2"])
            accepted = await listener.accept()
            print("both speak:", sender.subprotocol, accepted.subprotocol)
            await asyncio.gather(sender.close(), accepted.close())


asyncio.run(main())
