"""A listener that answers HTTP requests; any HTTP client reaches it, here httpx."""

import asyncio
import json

import httpx
from relay import relay

from trunkline import HybridConnectionListener
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.sdk.httpx_auth import RelayAuth

ORDERS = {"17": {"customer": 4711, "pieces": 3}}


async def handle(request: HttpRequest) -> HttpResponse:
    if request.method == "PUT":
        ORDERS[request.suffix] = json.loads(await request.read(limit=10_000))
        return HttpResponse(201, reason="Order taken")
    if request.suffix not in ORDERS:
        return HttpResponse(404, f"There is no order {request.suffix!r}\n")
    return HttpResponse(200, json.dumps(ORDERS[request.suffix]), headers={"Content-Type": "application/json"})


async def main() -> None:
    async with relay() as (connection_string, ssl):
        async with HybridConnectionListener(connection_string, entity_path="test", ssl=ssl, http_handler=handle):
            auth = RelayAuth(connection_string, entity_path="test")
            async with httpx.AsyncClient(base_url=auth.base_url, auth=auth, verify=ssl or True) as client:
                put = await client.put("18", json={"customer": 1, "pieces": 1})
                print(put.status_code, put.reason_phrase)
                print((await client.get("18")).json(), (await client.get("19")).status_code)


asyncio.run(main())
