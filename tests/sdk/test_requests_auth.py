"""requests with the token of a sender, against a web server."""

from __future__ import annotations

import requests

from sdk.web_server import web_server
from trunkline.protocol import sas
from trunkline.sdk.requests_auth import RelayAuth


def auth_for(url: str) -> RelayAuth:
    return RelayAuth(f"{url}/orders", key_name="send", key="key")


def test_each_request_has_a_token() -> None:
    with web_server() as server, requests.Session() as session:
        session.auth = auth = auth_for(server.url)
        assert session.get(f"{auth.base_url}/17").status_code == 200
        assert session.get(f"{auth.base_url}/18?a=b").status_code == 200
    assert [each.target for each in server.asked] == ["/orders/17", "/orders/18?a=b"]
    first, second = (each.authorization for each in server.asked)
    assert first == second and first is not None
    assert sas.signed_by(sas.parse(first), "key")


def test_an_authorization_for_the_application_stays_and_nobody_else_gets_the_token() -> None:
    with web_server() as relay, web_server("localhost") as other:
        relay.redirect = f"{other.url}/stolen"
        auth = auth_for(relay.url)
        headers = {"Authorization": "Bearer of the application"}
        requests.get(f"{auth.base_url}/away", auth=auth, headers=headers)
        requests.get(f"{auth.base_url}/away", auth=auth)
        requests.get(f"{other.url}/asked", auth=auth)
    own, only = relay.asked
    assert own.authorization == "Bearer of the application" and own.service_bus_authorization is not None
    assert sas.signed_by(sas.parse(own.service_bus_authorization), "key")
    assert only.authorization is not None and sas.signed_by(sas.parse(only.authorization), "key")
    assert [each.target for each in other.asked] == ["/stolen", "/stolen", "/asked"]
    assert all(each[1:] == (None, None) for each in other.asked)


def test_a_redirect_that_stays_with_the_relay_keeps_it() -> None:
    with web_server() as server:
        server.redirect = "/orders/here"
        auth = auth_for(server.url)
        requests.get(f"{auth.base_url}/away", auth=auth, headers={"Authorization": "Bearer of the application"})
        away, here = server.asked
    assert here.target == "/orders/here"
    assert here.service_bus_authorization == away.service_bus_authorization is not None


def test_it_is_not_shown() -> None:
    auth = RelayAuth("https://ns.example.com/orders", key_name="send", key="very secret")
    assert repr(auth) == "<RelayAuth https://ns.example.com/orders>"
