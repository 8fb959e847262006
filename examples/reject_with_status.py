"""A listener that looks at who comes, and rejects with a status and a reason."""

import asyncio

from relay import relay

from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.protocol.errors import ConnectionRejected
from trunkline.sdk import IncomingConnection


def judge(request: IncomingConnection) -> None:
    if request.headers.get("X-Badge") != "blue":
        request.reject(418, "No badge")


async def main() -> None:
    async with relay() as (connection_string, ssl):
        async with HybridConnectionListener(
            connection_string, entity_path="test", ssl=ssl, accept_handler=judge
        ) as listener:
            client = HybridConnectionClient(connection_string, entity_path="test", ssl=ssl)
            sender = await client.create_connection(headers={"X-Badge": "blue"})
            accepted = await listener.accept()
            print("with a badge: connected")
            await asyncio.gather(sender.close(), accepted.close())
            try:
                await client.create_connection()
            except ConnectionRejected as error:
                print("without one:", error.status, error.message)


asyncio.run(main())
