"""What an application is told: addresses, headers, and who asks."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdk.asgi.asked import Asked, endpoint, incoming
from trunkline.sdk.asgi.scopes import Mount, Scope

pytestmark = pytest.mark.loop("asyncio")

ROOTS = {"by path": None, "own host": "/", "a sender's own word": "/prefix"}


@pytest.mark.parametrize(
    ("suffix", "path", "raw_path"),
    [
        ("", "/", b"/"),
        ("items/7", "/items/7", b"/items/7"),
        ("items/", "/items/", b"/items/"),
        ("a b/é", "/a b/é", b"/a%20b/%C3%A9"),
        ("50%25/a%2Fb", "/50%/a/b", b"/50%25/a%2Fb"),
        ("a%3Fb%23c", "/a?b#c", b"/a%3Fb%23c"),
    ],
)
@pytest.mark.parametrize("prefix", ROOTS.values(), ids=ROOTS)
async def test_path_includes_the_root_path(prefix: str | None, suffix: str, path: str, raw_path: bytes) -> None:
    headers = {} if prefix is None else {"x-forwarded-prefix": prefix}
    root = "" if prefix == "/" else "/orders"
    scope = Mount(endpoint()).http_scope(Asked(suffix=suffix, headers=headers).as_request(), {})
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == (root, root + path, root.encode() + raw_path)


async def test_root_path_of_the_host_wins() -> None:
    for root in ("", "/api/v1"):
        mount = Mount(endpoint(), root)
        scope = mount.http_scope(Asked(suffix="x", headers={"X-Forwarded-Prefix": "/"}).as_request(), {})
        assert (scope["root_path"], scope["path"]) == (root, f"{root}/x")


async def test_http_scope_says_who_asks_for_what() -> None:
    headers = {"Host": "Relay.Example:8443", "X-Twice": "a, b", "X-Latin": "é", "X-Other": "\u20ac"}
    asked = Asked("POST", "x", "a=%2F&b=é", headers=headers)
    state = {"db": object()}
    scope = Mount(endpoint()).http_scope(asked.as_request(), state)
    assert scope["type"] == "http" and scope["asgi"] == {"version": "3.0", "spec_version": "2.3"}
    assert (scope["method"], scope["scheme"], scope["http_version"]) == ("POST", "https", "1.1")
    assert scope["query_string"] == "a=%2F&b=é".encode()
    assert scope["client"] == ("192.0.2.7", 50_000)
    assert scope["server"] == ("relay.example", 8443)
    assert scope["headers"] == [
        (b"host", b"Relay.Example:8443"),
        (b"x-twice", b"a, b"),
        (b"x-latin", b"\xe9"),
        (b"x-other", "\u20ac".encode()),
    ]
    assert scope["state"] == state and scope["state"] is not state


# Half a surrogate pair, which JSON can carry.
@example("\ud800", "\ud800", "\ud800", {"\ud800": "\ud800"})
@settings(max_examples=40)
@given(
    suffix=st.text(),
    query=st.text(),
    host=st.text() | st.from_regex(r"[a-z.\[\]:@/?#%0-9]{0,20}"),
    headers=st.dictionaries(st.text(min_size=1), st.text()),
)
def test_nothing_that_a_sender_writes_is_too_odd(suffix: str, query: str, host: str, headers: dict[str, str]) -> None:
    async def scope_of() -> Scope:
        return Mount(endpoint(), "").http_scope(
            Asked("GET", suffix, query, headers=headers | {"Host": host}).as_request(), {}
        )

    scope = asyncio.run(scope_of())
    assert scope["path"].startswith("/") and scope["raw_path"].isascii()
    name, port = scope["server"]
    assert name and 0 < port <= 65_535
    assert all(isinstance(part, bytes) for header in scope["headers"] for part in header)


@pytest.mark.parametrize(("address", "secure", "port"), [("sb://h/orders", True, 443), ("ws://h/orders", False, 80)])
async def test_scheme_is_that_of_the_relay(address: str, secure: bool, port: int) -> None:
    mount = Mount(endpoint(address))
    s = "s" if secure else ""
    assert mount.http_scope(Asked().as_request(), {})["scheme"] == f"http{s}"
    assert mount.websocket_scope(incoming(), {})["scheme"] == f"ws{s}"
    assert mount.url == f"http{s}://h/orders/"
    for host in ("", "[", "h:x"):  # none that can be read
        scope = mount.http_scope(Asked(headers={"Host": host}).as_request(), {})
        assert scope["server"] == ("h", port)


async def test_client_is_none_where_the_relay_does_not_say() -> None:
    assert Mount(endpoint()).http_scope(Asked(remote=("", 0)).as_request(), {})["client"] is None


async def test_length_of_a_body_that_is_here_is_its_content_length() -> None:
    def lengths(asked: Asked) -> list[bytes]:
        headers = Mount(endpoint()).http_scope(asked.as_request(), {})["headers"]
        return [value for name, value in headers if name == b"content-length"]

    assert lengths(Asked("POST", length=5)) == [b"5"]
    assert lengths(Asked("POST", length=0)) == []
    assert lengths(Asked("POST", length=None)) == []
    assert lengths(Asked("POST", length=5, headers={"Content-Length": "7"})) == [b"7"]


async def test_websocket_scope_says_what_is_offered() -> None:
    headers = {"Sec-WebSocket-Protocol": "v1, v2", "Host": "relay.example", "X-Forwarded-Prefix": "/"}
    scope = Mount(endpoint()).websocket_scope(incoming("/room/a%20b", "x=1&y", headers), {"a": 1})
    assert scope["type"] == "websocket" and scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert scope["subprotocols"] == ["v1", "v2"]
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("", "/room/a b", b"/room/a%20b")
    assert scope["query_string"] == b"x=1&y"
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert scope["client"] == ("192.0.2.7", 50_000)
    assert scope["server"] == ("relay.example", 443)
    assert scope["state"] == {"a": 1}
    assert Mount(endpoint()).websocket_scope(incoming(), {})["path"] == "/orders/"
