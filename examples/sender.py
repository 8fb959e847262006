"""A sender with a header, a path and a query of its own, that tries again for a while."""

import asyncio

from relay import relay

from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.sdk import Connection, Retry


async def answer(connection: Connection) -> None:
    request = connection.request
    assert request
    await connection.send(f"{request.headers['X-Room']} {request.suffix} {request.query}")


async def main() -> None:
    async with relay() as (connection_string, ssl), asyncio.TaskGroup() as tasks:
        async with HybridConnectionListener(connection_string, entity_path="test", ssl=ssl) as listener:
            tasks.create_task(listener.serve(answer))
            client = HybridConnectionClient(connection_string, entity_path="test", ssl=ssl)
            connection = await client.create_connection(
                headers={"X-Room": "7"}, path_suffix="rooms/7", query="since=5", timeout=20, retry=Retry(attempts=3)
            )
            async with connection:
                print("the listener saw:", await connection.recv())


asyncio.run(main())
