"""Scale out: one sender for several hybrid connections, in turn or by key, without one that nobody listens on."""

import asyncio

from relay import relay

from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.sdk import Connection


async def tell_path(connection: Connection) -> None:
    await connection.send(connection.entity_path)


async def main() -> None:
    async with relay() as (connection_string, ssl), asyncio.TaskGroup() as tasks:
        client = HybridConnectionClient(connection_string, entities=["test", "test-1", "test-2"], ssl=ssl)
        async with (
            HybridConnectionListener(connection_string, entity_path="test-1", ssl=ssl) as one,
            HybridConnectionListener(connection_string, entity_path="test-2", ssl=ssl) as two,
        ):
            for listener in (one, two):
                tasks.create_task(listener.serve(tell_path))
            for key in (None, None, None, "customer 7", "customer 7"):
                async with await client.create_connection(key=key) as connection:
                    print(f"{key}:", await connection.recv())


asyncio.run(main())
