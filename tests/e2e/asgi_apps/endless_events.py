"""Server-sent events without end, which know when they were ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator


class EndlessEvents:
    """For one application."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    async def tell(self) -> AsyncIterator[str]:
        """Numbers from 0."""
        number = 0
        try:
            while True:
                yield f"data: {number}\n\n"
                number += 1
                await asyncio.sleep(0.02)
        finally:
            self._ended.set()

    async def ended(self) -> str:
        """Returns once the framework has ended one of them."""
        async with asyncio.timeout(20):
            await self._ended.wait()
        self._ended.clear()
        return "ended"
