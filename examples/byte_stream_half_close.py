"""A connection as a byte stream: the sender ends its direction, the listener answers all of it."""

import asyncio
import hashlib

from relay import relay

from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.sdk import Connection


async def digest(connection: Connection) -> None:
    data = await connection.read()  # to the end
    connection.write(hashlib.sha256(data).hexdigest().encode())


async def main() -> None:
    async with relay() as (connection_string, ssl), asyncio.TaskGroup() as tasks:
        async with HybridConnectionListener(connection_string, entity_path="test", ssl=ssl) as listener:
            tasks.create_task(listener.serve(digest))
            client = HybridConnectionClient(connection_string, entity_path="test", ssl=ssl)
            async with await client.create_connection() as sender:
                for _ in range(16):
                    sender.write(bytes(65_536))
                    await sender.drain()
                sender.write_eof()  # nothing more comes from here, and the answer is still read
                print("sha256 of a megabyte of zeros:", (await sender.read()).decode())


asyncio.run(main())
