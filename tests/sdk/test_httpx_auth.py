"""httpx with the token of a sender, against a web server."""

from __future__ import annotations

import httpx

from sdk.web_server import web_server
from trunkline.protocol import sas
from trunkline.sdk.httpx_auth import RelayAuth


def auth_for(url: str) -> RelayAuth:
    return RelayAuth(f"{url}/orders", key_name="send", key="key")


async def test_each_request_has_a_token() -> None:
    with web_server() as server:
        auth = auth_for(server.url)
        async with httpx.AsyncClient(base_url=auth.base_url, auth=auth) as client:
            await client.get("17")
            await client.get("/18?a=b")
    assert [each.target for each in server.asked] == ["/orders/17", "/orders/18?a=b"]
    first, second = (each.authorization for each in server.asked)
    assert first == second and first is not None
    assert sas.signed_by(sas.parse(first), "key")
    assert all(each.service_bus_authorization is None for each in server.asked)


def test_the_blocking_client_too() -> None:
    with web_server() as server:
        auth = auth_for(server.url)
        with httpx.Client(base_url=auth.base_url, auth=auth) as client:
            assert client.get("").status_code == 200
    token = server.asked[0].authorization
    assert token is not None and sas.signed_by(sas.parse(token), "key")


async def test_an_authorization_for_the_application_stays() -> None:
    with web_server() as server:
        auth = auth_for(server.url)
        async with httpx.AsyncClient(base_url=auth.base_url, auth=auth) as client:
            await client.get("", headers={"Authorization": "Bearer of the application"})
    (asked,) = server.asked
    assert asked.authorization == "Bearer of the application"
    assert asked.service_bus_authorization is not None and sas.signed_by(
        sas.parse(asked.service_bus_authorization), "key"
    )


async def test_nobody_else_gets_it() -> None:
    with web_server() as relay, web_server("localhost") as other:
        relay.redirect = f"{other.url}/stolen"
        auth = auth_for(relay.url)
        async with httpx.AsyncClient(base_url=auth.base_url, auth=auth, follow_redirects=True) as client:
            await client.get("away")
            await client.get(f"{other.url}/asked")
    assert [each.target for each in other.asked] == ["/stolen", "/asked"]
    assert all(each[1:] == (None, None) for each in other.asked)
    assert relay.asked[0].authorization is not None


def test_it_is_not_shown() -> None:
    auth = RelayAuth("https://ns.example.com/orders", key_name="send", key="very secret")
    assert repr(auth) == "<RelayAuth https://ns.example.com/orders>"
