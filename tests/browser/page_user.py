"""Uses the application of `page_app` in a browser, by either of its addresses, and says what must be seen."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI

from browser.chromium import Chromium, Program, key_hash
from trunkline.testing import RelayNode


async def use_page(app: FastAPI, node: RelayNode, chromium: Program, address: str) -> None:
    """Open the page by the path of the hybrid connection `web` or by its own host, and compare what its script saw."""
    context = node.client_context()
    assert context
    trusted = await key_hash("127.0.0.1", node.port, context)
    origin = f"https://{'web.relay.example' if address == 'host' else 'relay.example'}:{node.port}"
    root = "" if address == "host" else "/web"
    async with (
        Chromium(chromium, trusted=trusted, hosts={"*.example": "127.0.0.1"}) as browser,
        browser.open(f"{origin}{root}/") as page,
    ):
        assert await page.evaluate("document.title") == "hosted"
        outcome = await page.evaluate("window.outcome")
        async with asyncio.timeout(20):
            ended = await app.state.chat_ended
    assert outcome == {
        "events": ["0", "1", "2", "3", "4"],
        "chat": {"got": ["hello in 7", [255, 2, 1]], "protocol": "v2", "code": 4000},
        "form": "A=1",
        "home": f"{origin}{root}/",
        "script": f"{origin}{root}/static/script.js",
    }
    assert ended == (4000, "done")
