"""A listener that sends every message back; one sender tries it."""

import asyncio

from relay import relay

from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.sdk import Connection


async def echo(connection: Connection) -> None:
    async for message in connection:
        await connection.send(message)


async def main() -> None:
    async with relay() as (connection_string, ssl), asyncio.TaskGroup() as tasks:
        async with HybridConnectionListener(connection_string, entity_path="test", ssl=ssl) as listener:
            tasks.create_task(listener.serve(echo))  # a listener that is all of a program awaits it
            client = HybridConnectionClient(connection_string, entity_path="test", ssl=ssl)
            async with await client.create_connection() as sender:
                await sender.send("hello")
                print("echoed:", await sender.recv())


asyncio.run(main())
