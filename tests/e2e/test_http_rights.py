"""Who may send a plain HTTP request, what of the token reaches the listener, and how it is refused."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote_plus
from xml.etree import ElementTree

import httpx
import pytest

from e2e.quiet_node import quiet_node
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.testing import RelayNode

ENTITIES: dict[str, Any] = {
    "orders": {"rules": {"orders-sender": ["Send"]}},
    "open": {"requires_client_authorization": False, "user_metadata": "of tests"},
    "off": {"enabled": False},
    "wire": {"accepts": ["websocket"]},
    "a/b": {},
}


async def echo(request: HttpRequest) -> HttpResponse:
    """What the listener saw that may be secret, and its target."""
    seen = [f"{name}: {value}" for name, value in request.headers.items() if "auth" in name.lower()]
    return HttpResponse(body="\n".join([request.target, *seen]))


def client_of(node: RelayNode) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=node.url.replace("ws", "http", 1), trust_env=False)


@pytest.mark.loop("uvloop")
async def test_tokens_never_reach_a_listener_and_authorization_only_where_it_is_none() -> None:
    async with quiet_node(ENTITIES) as node:
        good, bad = node.token("orders", rule="orders-sender"), node.token("orders", rights=["Listen"])
        query = f"sb-hc-token={quote_plus(good)}"
        cases = [
            (
                "/orders/x?a=1",
                {"ServiceBusAuthorization": good, "Authorization": "Basic mine"},
                "/orders/x?a=1\nBasic mine",
            ),
            ("/orders/x", {"Authorization": good}, "/orders/x"),
            (f"/orders?{query}&b", {"Authorization": "mine", "ServiceBusAuthorization": bad}, "/orders?b\nmine"),
            ("/open", {"Authorization": "mine"}, "/open\nmine"),
            ("/open?sb-hc-token=x", {"ServiceBusAuthorization": "x", "Authorization": good}, f"/open\n{good}"),
        ]
        async with node.listener("orders", http_handler=echo), node.listener("open", http_handler=echo):
            async with client_of(node) as client:
                for target, headers, expected in cases:
                    response = await client.get(target, headers=headers)
                    assert response.status_code == 200, response.text
                    assert re.sub("(?i)authorization: ", "", response.text) == expected


@pytest.mark.loop("uvloop")
async def test_refused_request_gets_the_status_of_its_fault_in_json_and_no_via() -> None:
    async with quiet_node(ENTITIES) as node, node.listener("orders", http_handler=echo), client_of(node) as client:
        listens = {"ServiceBusAuthorization": node.token("orders", rights=["Listen"])}
        everything = {"ServiceBusAuthorization": node.token("")}
        cases: list[tuple[str, dict[str, str], int, str]] = [
            ("/orders", {}, 401, "MissingToken"),
            ("/none", {}, 401, "MissingToken"),
            ("/", {}, 401, "MissingToken"),
            ("/orders", {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}, 401, "MissingToken"),
            ("/orders", {"Authorization": "Basic mine"}, 401, "InvalidSignature"),
            ("/orders?sb-hc-token=x", everything, 401, "InvalidSignature"),
            ("/orders", {"ServiceBusAuthorization": node.token("orders", expires_in=-100)}, 401, "ExpiredToken"),
            ("/orders", listens, 403, "Unauthorized access. 'Send' claim"),
            ("/none/x", everything, 404, "Endpoint does not exist: none/x"),
            ("/a", everything, 404, "Endpoint does not exist: a"),
            ("/off", everything, 403, "Endpoint is disabled"),
            ("/wire", everything, 400, "wire takes WebSockets only"),
            ("/a/b", everything, 504, "There are no listeners connected"),
        ]
        for target, headers, status, words in cases:
            response = await client.post(target, headers=headers, content=b"a body")
            assert (target, response.status_code) == (target, status), response.text
            message = response.json()["error"]["message"]
            assert message.startswith(words) and "TrackingId:" in message
            assert "Via" not in response.headers


@pytest.mark.loop("uvloop")
async def test_key_that_is_removed_lets_nobody_in_although_its_token_was_good_a_moment_ago() -> None:
    async with quiet_node(ENTITIES) as node, node.listener("orders", http_handler=echo), client_of(node) as client:
        headers = {"ServiceBusAuthorization": node.token("orders", rule="orders-sender")}
        for _ in range(3):
            assert (await client.get("/orders", headers=headers)).status_code == 200
        await node.remove_rule("orders-sender", entity="orders")
        assert (await client.get("/orders", headers=headers)).status_code == 401


@pytest.mark.loop("uvloop")
async def test_dotnet_client_hears_what_the_relay_knows_and_the_listener_nothing() -> None:
    seen: list[str] = []

    async def handle(request: HttpRequest) -> HttpResponse:
        seen.append(request.target)
        return HttpResponse()

    async with quiet_node(ENTITIES) as node, node.listener("open", http_handler=handle), client_of(node) as client:
        headers = {"X-PROCESS-AT": "ServiceBus", "Authorization": node.token("open")}
        response = await client.get("/open?api-version=2016-07", headers=headers)
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/atom+xml;type=entry;charset=utf-8"
        told = {each.tag.rpartition("}")[2]: each.text for each in ElementTree.fromstring(response.content).iter()}
        assert (told["ListenerCount"], told["UserMetadata"]) == ("1", "of tests")
        assert told["RequiresClientAuthorization"] == "false"
        assert told["CreatedAt"] == told["UpdatedAt"] and re.fullmatch(r"20..-..-..T.*Z", told["CreatedAt"] or "")
        refused = await client.get("/open?api-version=2016-07", headers={"X-PROCESS-AT": "ServiceBus"})
        assert refused.status_code == 401 and refused.text.startswith("<Error><Code>401</Code><Detail>MissingToken: ")
        assert seen == []
