"""A node as a program of its own: prints how to reach it, and runs until its standard input ends."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from trunkline.testing import relay_node


async def main(options: dict[str, Any]) -> None:
    async with relay_node(**options) as node:
        print(json.dumps([node.connection_string(), str(node.ca_file)]), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    if sys.platform == "win32":
        asyncio.run(main(arguments))
    else:
        import uvloop

        uvloop.run(main(arguments))
