"""Hosts of a hybrid connection's own, over TLS that the client checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx
import pytest
import websockets

from e2e.quiet_node import quiet_node
from trunkline.protocol import sas
from trunkline.sdk import HttpRequest, HttpResponse, HybridConnectionListener
from trunkline.testing import RelayNode


async def exchanged(
    node: RelayNode, listener: HybridConnectionListener, host: str, target: str
) -> tuple[str | bytes | None, str, str, Mapping[str, str]]:
    """A message that reached the listener, with the suffix, the query and the headers that it saw."""
    dial = websockets.connect(
        f"wss://{host}:{node.port}{target}",
        host="127.0.0.1",
        port=node.port,
        ssl=node.client_context() or None,
        additional_headers={"X-Forwarded-Prefix": "/theirs"},
        proxy=None,
    )
    async with asyncio.timeout(10), dial as sender:
        connection = await listener.accept()
        await sender.send("hello")
        message, request = await connection.recv(), connection.request
        await connection.close()
        assert request is not None
        return message, request.suffix, request.query, request.headers


@pytest.mark.loop("uvloop")
async def test_browser_reaches_a_listener_by_a_host_of_its_own_with_every_path() -> None:
    anonymous = {"requires_client_authorization": False}
    async with quiet_node({"orders": anonymous, "shop": anonymous}, tls=True) as node:
        async with node.listener("orders") as orders, node.listener("shop") as shop:
            # In front of a host of the namespace, by its name alone.
            came = await exchanged(node, orders, "orders.testing.localhost", "/live/1?a=b")
            assert came[:3] == ("hello", "live/1", "a=b") and came[3]["X-Forwarded-Prefix"] == "/"
            # By the path, from any other.
            came = await exchanged(node, orders, "localhost", "/orders/live/2")
            assert came[:3] == ("hello", "live/2", "") and came[3]["X-Forwarded-Prefix"] == "/theirs"
            # By a name that it gets while the node runs, also in the certificate.
            await node.change_hybrid_connection("shop", hosts=["shop.example.com"])
            came = await exchanged(node, shop, "shop.example.com", "/orders")
            assert came[:3] == ("hello", "orders", "") and came[3]["X-Forwarded-Prefix"] == "/"


@pytest.mark.loop("uvloop")
async def test_web_application_has_a_host_for_itself() -> None:
    async def handle(request: HttpRequest) -> HttpResponse:
        return HttpResponse(
            body=f"{request.target} {request.headers.get('X-Forwarded-Prefix')} {request.headers['Via']}"
        )

    options = {"requires_client_authorization": False, "hosts": ["shop.example.com"]}
    async with quiet_node({"shop": options}, tls=True) as node, node.listener("shop", http_handler=handle):
        async with httpx.AsyncClient(verify=node.client_context() or False, trust_env=False) as client:

            async def asked(host: str, path: str) -> str:
                url = f"https://127.0.0.1:{node.port}{path}"
                headers = {"Host": f"{host}:{node.port}", "x-forwarded-prefix": "/theirs"}
                response = await client.get(url, headers=headers, extensions={"sni_hostname": host})
                assert response.status_code == 200, response.text
                return response.text

            # The certificate is good for each of them, or the client would have gone.
            for host in ("shop.example.com", "shop.testing.localhost", "Shop.Testing.localhost"):
                assert await asked(host, "/static/app.js?v=1") == f"/shop/static/app.js?v=1 / 1.1 {host.lower()}"
                assert await asked(host, "/") == f"/shop/ / 1.1 {host.lower()}"
                assert await asked(host, "/shop") == f"/shop/shop / 1.1 {host.lower()}"
            assert await asked("localhost", "/shop/static") == "/shop/static /theirs 1.1 localhost"


@pytest.mark.loop("uvloop")
async def test_listener_that_speaks_http_only_never_hears_of_a_websocket() -> None:
    async with quiet_node({"web": {"accepts": ["http"]}}) as node, node.listener("web") as listener:
        for target in ("/web", "/$hc/web?sb-hc-action=connect"):
            with pytest.raises(websockets.InvalidStatus) as refused:
                headers = {"ServiceBusAuthorization": node.token("web")}
                await websockets.connect(f"ws://127.0.0.1:{node.port}{target}", additional_headers=headers, proxy=None)
            assert refused.value.response.status_code == 400
            assert "web takes plain HTTP requests only" in refused.value.response.reason_phrase
        await node.change_hybrid_connection("web", accepts=["http", "websocket"])
        sender = await node.client("web").create_connection()
        accepted = await listener.accept()
        await sender.send("now")
        assert await accepted.recv() == "now"
        await asyncio.gather(sender.close(), accepted.close())


@pytest.mark.loop("uvloop")
async def test_token_of_the_connection_string_is_good_for_a_host_of_its_own() -> None:
    async def handle(request: HttpRequest) -> HttpResponse:
        return HttpResponse(body=request.target)

    async with quiet_node(["orders", "shop"]) as node, node.listener("orders", http_handler=handle):
        [rule] = [rule for rule in node.node.catalog.namespaces[0].rules if rule.name == "send"]
        # `localhost` is the domain of the node, which its connection strings name; `elsewhere` is another relay.
        statuses = {}
        for audience in ("localhost/orders", "localhost", "localhost/shop", "elsewhere/orders"):
            token = sas.sign(f"http://{audience}", rule.name, rule.primary_key, expires_at=int(time.time()) + 60)
            headers = {"Host": "orders.testing.localhost", "ServiceBusAuthorization": token}
            async with httpx.AsyncClient(trust_env=False) as client:
                statuses[audience] = (await client.get(f"{node.url}/x", headers=headers)).status_code
        assert statuses == {
            "localhost/orders": 200,
            "localhost": 200,
            "localhost/shop": 401,
            "elsewhere/orders": 401,
        }
