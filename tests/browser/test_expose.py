"""The same application on a port of its own, exposed through the relay, used from a browser."""

from __future__ import annotations

import asyncio

import pytest

from browser.chromium import Chromium, Program, key_hash
from browser.page_app import make_app
from expose.exposed_server import application, exposed
from trunkline.testing import relay_node


@pytest.mark.parametrize("address", ["path", "host"])
@pytest.mark.loop("uvloop")
async def test_browser_uses_an_exposed_server(chromium: Program, address: str) -> None:
    """Links of the application's own: of the host and scheme that it is told, and of the path where it has one."""
    app = make_app()
    root = "" if address == "host" else "/web"
    anonymous = {"web": {"requires_client_authorization": False}}
    node = relay_node(anonymous, tls=True, hosts=["relay.example"])
    async with (
        application(app, root_path=root, ws="websockets-sansio") as target,
        exposed(target, node=node, preserve_host=True),
    ):
        context = node.client_context()
        assert context
        trusted = await key_hash("127.0.0.1", node.port, context)
        origin = f"https://{'web.relay.example' if address == 'host' else 'relay.example'}:{node.port}"
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
