"""A node as a program of its own that measures how long its loop is held.

Prints one line of JSON that says how to reach it. Answers each line on its standard input with one line: the longest
time that its loop was held since the last one. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from trunkline.testing import relay_node

#: Seconds between two looks at how much the loop has worked.
PROBE = 0.002


class Held:
    """The longest that the loop was held between two looks, in seconds of processor time.

    Processor time of its thread and not of the clock on the wall: other programs on the machine are not its fault.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worked = time.thread_time()
        self._longest = 0.0
        self._again()

    def _again(self) -> None:
        self._look()
        self._loop.call_later(PROBE, self._again)

    def _look(self) -> None:
        worked = time.thread_time()
        self._longest = max(self._longest, worked - self._worked)
        self._worked = worked

    def take(self) -> float:
        """The longest since the last call."""
        self._look()
        longest, self._longest = self._longest, 0.0
        return longest


async def main(options: dict[str, Any]) -> None:
    async with relay_node(**options) as node:
        said = {
            "connection_string": node.connection_string(""),
            "admin_url": node.admin_url,
            "ca_file": str(node.ca_file) if node.ca_file else None,
        }
        print(json.dumps(said), flush=True)
        held = Held()
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(held.take()), flush=True)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    if sys.platform == "win32":
        asyncio.run(main(arguments))
    else:
        import uvloop

        uvloop.run(main(arguments))
