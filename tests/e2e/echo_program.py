"""A listener as a program of its own: prints "online" and echoes until it is killed or its standard input ends."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys

from trunkline.sdk import Connection, HybridConnectionListener
from trunkline.sdk.endpoint import TLS


async def main(connection_string: str, name: str, ca_file: str | None) -> None:
    async def answer(connection: Connection) -> None:
        await connection.send(name)
        async for message in connection:
            await connection.send(message)

    context: TLS = ssl.create_default_context(cafile=ca_file) if ca_file else False
    async with HybridConnectionListener(connection_string, ssl=context) as listener, asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(listener.serve(answer))
        print("online", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        serving.cancel()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
