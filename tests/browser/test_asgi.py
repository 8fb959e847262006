"""A FastAPI application, hosted through the relay with TLS, used from a browser at its plain HTTPS address."""

from __future__ import annotations

import pytest

from browser.chromium import Program
from browser.page_app import make_app
from browser.page_user import use_page
from trunkline.sdk.asgi import AsgiHost
from trunkline.testing import relay_node


@pytest.mark.parametrize("address", ["path", "host"])
@pytest.mark.loop("uvloop")
async def test_browser_uses_a_hosted_application(chromium: Program, address: str) -> None:
    app = make_app()
    anonymous = {"web": {"requires_client_authorization": False}}
    async with relay_node(anonymous, tls=True, hosts=["relay.example"]) as node:
        host = AsgiHost(app, node.connection_string(rights=["Listen"]), ssl=node.client_context())
        async with host:
            await use_page(app, node, chromium, address)
