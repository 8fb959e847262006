"""The same application on a port of its own, exposed through the relay, used from a browser."""

from __future__ import annotations

import pytest

from browser.chromium import Program
from browser.page_app import make_app
from browser.page_user import use_page
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
        await use_page(app, node, chromium, address)
