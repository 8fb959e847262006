"""A FastAPI application, hosted through the relay with TLS, used from a browser at its plain HTTPS address."""

from __future__ import annotations

import asyncio

import pytest

from browser.chromium import Chromium, Program, key_hash
from browser.page_app import make_app
from trunkline.sdk.asgi import AsgiHost
from trunkline.testing import relay_node


@pytest.mark.parametrize("address", ["path", "host"])
@pytest.mark.loop("uvloop")
async def test_browser_uses_a_hosted_application(chromium: Program, address: str) -> None:
    app = make_app()
    anonymous = {"web": {"requires_client_authorization": False}}
    async with relay_node(anonymous, tls=True, hosts=["relay.example"]) as node:
        context = node.client_context()
        assert context
        trusted = await key_hash("127.0.0.1", node.port, context)
        origin = f"https://{'web.relay.example' if address == 'host' else 'relay.example'}:{node.port}"
        root = "" if address == "host" else "/web"
        async with (
            AsgiHost(app, node.connection_string(rights=["Listen"]), ssl=context),
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
