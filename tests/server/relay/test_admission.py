"""The order of checks, what each refusal says, and what a sender's request becomes."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote_plus, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.relay.peers import (
    EPOCH,
    GUID,
    HOST,
    ROOT,
    Answer,
    Peer,
    Relay,
    handshake,
    hybrid_connection,
    namespace,
    token,
)
from trunkline.protocol.errors import RelayError
from trunkline.protocol.sas import Right
from trunkline.protocol.urls import RelayTarget, parse_target
from trunkline.server.entities.model import Namespace, Rule, namespace_id
from trunkline.server.relay.admission import Admitted, find_token, headers_for_listener
from trunkline.server.relay.frontend import Exchange
from trunkline.server.relay.request_head import RequestHead, parse_head

LISTEN = Rule("Listen", frozenset({Right.LISTEN}), primary_key="listen-key", secondary_key="listen-key-2")
SEND = Rule("Send", frozenset({Right.SEND}), primary_key="send-key", secondary_key="send-key-2")

LISTEN_ORDERS = "/$hc/orders?sb-hc-action=listen"
CONNECT_ORDERS = "/$hc/orders?sb-hc-action=connect"


def entities(**limits: Any) -> tuple[Any, ...]:
    return (
        namespace(rules=(ROOT, LISTEN, SEND)),
        hybrid_connection(**limits),
        hybrid_connection("own", rules=(Rule("Own", ROOT.rights, "own-key", "own-key-2"),)),
        hybrid_connection("off", enabled=False),
        hybrid_connection("open", requires_client_authorization=False),
        hybrid_connection("a"),
        hybrid_connection("a/b.c"),
        hybrid_connection("full", max_senders=1),
        hybrid_connection("strict", plain_path_websockets=False),
        hybrid_connection("shop", hosts=("shop.example.com",)),
        hybrid_connection("web", accepts=("http",)),
        hybrid_connection("wire", accepts=("websocket",)),
    )


def relay() -> Relay:
    return Relay(entities())


def signed(text: str) -> list[tuple[str, str]]:
    return [("ServiceBusAuthorization", text)]


async def asked(relay: Relay, target: str, headers: Any = (), **request: Any) -> Answer:
    """The answer to one handshake; the connection is closed after it."""
    async with await relay.dial(target, headers, **request) as peer:
        return await peer.answer()


def without_what_differs(answer: Answer, *names: str) -> bytes:
    """The whole head but for tracking id, time and the path that was asked for."""
    text = re.sub(rb"TrackingId:[^,]*", b"TrackingId:*", answer.raw)
    text = re.sub(rb"Timestamp:[^\r]*|Date: [^\r]*|Content-Length: [^\r]*", b"*", text)
    for name in names:
        text = text.replace(name.encode(), b"NAME")
    return text


# What makes a plain request of a handshake.
PLAIN: dict[str, Any] = {"without": ["Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key"]}

# What is asked, by what token, and what is answered: status and the beginning of the phrase. Whatever fails first in
# the order of checks is told, so each row breaks every later check as well where it can.
BAD = token("orders", key="another-key")
CHECKS: dict[str, tuple[str, list[tuple[str, str]], dict[str, Any], int, str]] = {
    "plain HTTP": (
        CONNECT_ORDERS,
        signed(BAD),
        {"without": ["Upgrade"]},
        400,
        "This endpoint is only for web-socket requests. TrackingId:",
    ),
    "plain HTTP/1.0": (
        CONNECT_ORDERS,
        signed(BAD),
        {"without": ["Upgrade", "Connection"], "version": "HTTP/1.0"},
        400,
        "This endpoint is only for web-socket requests, and this one is HTTP/1.0: let the proxy speak HTTP/1.1. Track",
    ),
    "climbing path of a request": ("/a/%2e%2e/orders", signed(token()), PLAIN, 404, "The address is malformed"),
    "request without a token": ("/none", [], PLAIN, 401, "MissingToken: "),
    "request with a wrong key": ("/none", signed(BAD), PLAIN, 401, "InvalidSignature: The token has an invalid"),
    "request for what is missing": ("/none/x", signed(token("none")), PLAIN, 404, "Endpoint does not exist: none/x."),
    "request without Send, disabled": (
        "/off/x",
        signed(token("off", "Listen", "listen-key")),
        PLAIN,
        403,
        "Unauthorized access. 'Send' claim(s) are required to perform this operation. ",
    ),
    "disabled request": ("/off", signed(token("off")), PLAIN, 403, "Endpoint is disabled. "),
    "WebSocket on the plain path without a token": ("/orders", [], {}, 401, "MissingToken: "),
    "WebSocket on the plain path": ("/orders/x", signed(token()), {}, 504, "There are no listeners connected for the"),
    "request to what takes WebSockets": (
        "/wire",
        signed(token("wire")),
        PLAIN,
        400,
        "wire takes WebSockets only (accepts), and this is a plain HTTP request. ",
    ),
    "WebSocket to what takes requests": (
        "/$hc/web",
        signed(token("web")),
        {},
        400,
        "web takes plain HTTP requests only (accepts), and this is a WebSocket. ",
    ),
    "WebSocket on the plain path to what takes requests": ("/web", signed(token("web")), {}, 400, "web takes plain HT"),
    "listener of what takes requests": ("/$hc/web?sb-hc-action=listen", signed(token("web")), {}, 101, "Switching"),
    "WebSocket on the plain path, as in azure": (
        "/strict",
        signed(token("strict")),
        {},
        400,
        "A WebSocket goes to /$hc/ and the path of a hybrid connection. ",
    ),
    "no path": ("/$hc/?sb-hc-action=listen", signed(BAD), {}, 404, "The address is malformed"),
    "climbing path": ("/$hc/a/%2e%2e/orders", signed(token()), {}, 404, "The address is malformed"),
    "fragment": ("/$hc/orders#x", signed(token()), {}, 404, "The address is malformed"),
    "unknown action": ("/$hc/none?sb-hc-action=steal", signed(BAD), {}, 400, "The sb-hc-action must be"),
    "unusable host": (LISTEN_ORDERS, signed(BAD), {"host": "a,b"}, 404, "The host of the address is malformed"),
    "no token": ("/$hc/none?sb-hc-action=connect", [], {}, 401, "MissingToken: "),
    "no token, listen": (LISTEN_ORDERS, [], {}, 401, "MissingToken: "),
    "garbage token": (CONNECT_ORDERS, signed("x"), {}, 401, "InvalidSignature: The token has an invalid signature"),
    "wrong key": ("/$hc/none?sb-hc-action=listen", signed(BAD), {}, 401, "InvalidSignature: The token has an invalid"),
    "unknown rule": (LISTEN_ORDERS, signed(token(rule="No")), {}, 401, "InvalidSignature: The token has an invalid"),
    "rule of another entity": (
        LISTEN_ORDERS,
        signed(token("orders", "Own", "own-key")),
        {},
        401,
        "InvalidSignature: The token has an invalid signature",
    ),
    "expired": (LISTEN_ORDERS, signed(token(lifetime=-61)), {}, 401, "ExpiredToken: The token is expired"),
    "other audience": (LISTEN_ORDERS, signed(token("a")), {}, 401, "InvalidAudience: "),
    "other host": (LISTEN_ORDERS, signed(token(host="elsewhere")), {}, 401, "InvalidAudience: "),
    "25 h": (LISTEN_ORDERS, signed(token(lifetime=90_000)), {}, 401, "TokenLifetimeExceeded: "),
    "bearer": (LISTEN_ORDERS, signed("Bearer eyJ.a.b"), {}, 401, "InvalidToken: This relay takes no bearer tokens"),
    "missing, no right": (
        "/$hc/none?sb-hc-action=listen",
        signed(token("none", "Send", "send-key")),
        {},
        404,
        "Endpoint does not exist: none. ",
    ),
    "missing": ("/$hc/none/x?sb-hc-action=connect", signed(token("none")), {}, 404, "Endpoint does not exist: none/x."),
    "suffix on listen": (
        "/$hc/orders/more?sb-hc-action=listen",
        signed(token("orders")),
        {},
        404,
        "Endpoint does not exist: orders/more. ",
    ),
    "no Listen, disabled": (
        "/$hc/off?sb-hc-action=listen",
        signed(token("off", "Send", "send-key")),
        {},
        403,
        "Unauthorized access. 'Listen' claim(s) are required to perform this operation. ",
    ),
    "no Send": (
        CONNECT_ORDERS,
        signed(token("orders", "Listen", "listen-key")),
        {},
        403,
        "Unauthorized access. 'Send' claim(s) are required to perform this operation. ",
    ),
    "disabled listen": ("/$hc/off?sb-hc-action=listen", signed(token("off")), {}, 403, "Endpoint is disabled. "),
    "disabled connect": ("/$hc/off", signed(token("off")), {}, 403, "Endpoint is disabled. "),
    "no listener": (CONNECT_ORDERS, signed(token()), {}, 504, "There are no listeners connected for the endpoint. "),
    "no listener, anonymous": ("/$hc/open", [], {}, 504, "There are no listeners connected for the endpoint. "),
    "request": ("/$hc/orders?sb-hc-action=request", [], {}, 400, "The rendezvous is not recognised. "),
    "accept": ("/$hc/orders?sb-hc-action=accept", [], {}, 403, "The rendezvous does not exist or has expired. "),
    "good listen": (LISTEN_ORDERS, signed(token()), {}, 101, "Switching Protocols"),
}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.loop("uvloop")
async def test_the_first_check_that_fails_is_told(name: str) -> None:
    target, headers, request, status, words = CHECKS[name]
    async with relay() as node:
        answer = await asked(node, target, headers, **request)
        assert (answer.status, answer.phrase[: len(words)]) == (status, words)
        if status != 101:
            assert re.search(r"\. TrackingId:[^ ,]+, SystemTracker:sb://[^ ]*, Timestamp:", answer.phrase), answer


@pytest.mark.loop("uvloop")
async def test_a_refusal_names_the_address_the_id_and_the_time() -> None:
    async with relay() as node:
        target = f"/$hc/none/x?secret=1&sb-hc-token=t&sb-hc-id={GUID}_G12"
        answer = await asked(node, target, host=f"{HOST}:8443")
        assert answer.phrase == (
            "InvalidSignature: The token has an invalid signature: it does not begin with the word "
            f"SharedAccessSignature. TrackingId:{GUID}_G12, SystemTracker:sb://{HOST}:8443/none/x, "
            "Timestamp:11/14/2023 10:30:00 PM"
        )


@pytest.mark.parametrize("target", ["/$hc/none?q", "//$hc//none", "/%24hc/none", "http://relay.local/$HC/none"])
@pytest.mark.loop("uvloop")
async def test_the_address_in_a_refusal_is_the_one_of_the_entity(target: str) -> None:
    async with relay() as node:
        answer = await asked(node, target)
        assert f"SystemTracker:sb://{HOST}/none, " in answer.phrase


@pytest.mark.loop("uvloop")
async def test_a_very_long_path_does_not_make_a_very_long_phrase() -> None:
    async with relay() as node:
        answer = await asked(node, f"/$hc/{'n' * 20_000}", signed(token("")))
        assert answer.status == 404
        assert len(answer.phrase) < 2_000


@pytest.mark.loop("uvloop")
async def test_nothing_in_the_url_can_end_the_line_of_a_refusal() -> None:
    target = f"/$hc/a%0d%0aSet-Cookie:%20x/none?sb-hc-id={GUID}%0d%0aX:%20y"
    async with Relay((namespace(),)) as node:
        answer = await asked(node, target, signed(token("")))
        assert answer.status == 404
        assert {name for name, _ in answer.headers} == {"Date", "Content-Length", "Content-Type", "Connection"}


# -- who may not learn what exists


@pytest.mark.parametrize("action", ["listen", "connect"])
@pytest.mark.parametrize("given", ["none", "garbage", "wrong key", "expired", "own"])
@pytest.mark.loop("uvloop")
async def test_without_a_good_token_missing_entities_look_like_existing_ones(action: str, given: str) -> None:
    def signature(name: str) -> list[tuple[str, str]]:
        texts = {
            "none": None,
            "garbage": "SharedAccessSignature sr=x",
            "wrong key": token(name, key="guessed"),
            "expired": token(name, lifetime=-100),
            "own": token(name, "Own", "guessed"),
        }
        text = texts[given]
        return [] if text is None else signed(text)

    async with relay() as node:
        answers = [
            without_what_differs(await asked(node, f"/$hc/{name}?sb-hc-action={action}", signature(name)), name)
            for name in ("orders", "absent", "own", "off")
        ]
        assert answers[0].startswith(b"HTTP/1.1 401 ")
        assert len(set(answers)) == 1


@pytest.mark.loop("uvloop")
async def test_the_body_of_a_refusal_says_no_more_than_its_phrase() -> None:
    async with relay() as node, await node.dial("/$hc/absent") as peer:
        answer = await peer.answer()
        assert await peer.to_end() == answer.phrase.encode() + b"\n"


# -- tokens


@pytest.mark.parametrize(
    ("action", "lifetime", "status"),
    [
        ("connect", 0, 504),
        ("connect", -60, 504),
        ("connect", -61, 401),
        ("connect", 86_460, 504),
        ("connect", 86_461, 401),
        # A control channel lives for `token_grace` after its token, 30 s: one that would be closed at once is none.
        ("listen", -30, 101),
        ("listen", -31, 401),
        ("listen", 86_460, 101),
    ],
)
@pytest.mark.loop("uvloop")
async def test_clocks_may_differ_by_a_minute(action: str, lifetime: float, status: int) -> None:
    async with relay() as node:
        answer = await asked(node, f"/$hc/orders?sb-hc-action={action}", signed(token(lifetime=lifetime)))
        assert answer.status == status


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", token())],
        [("authorization", token())],
        [("ServiceBusAuthorization", token(key="root-key-2"))],
        [("ServiceBusAuthorization", token("")), ("Authorization", "Basic abc")],
    ],
)
@pytest.mark.loop("uvloop")
async def test_a_token_comes_in_either_header(headers: list[tuple[str, str]]) -> None:
    async with relay() as node:
        assert (await asked(node, LISTEN_ORDERS, headers)).status == 101


BROKEN = token(key="guessed")
GOOD = token()
PRECEDENCE = {
    "query": (GOOD, None, None, 101),
    "query before header": (GOOD, BROKEN, BROKEN, 101),
    "bad query, good headers": (BROKEN, GOOD, GOOD, 401),
    "header before Authorization": (None, GOOD, BROKEN, 101),
    "bad header, good Authorization": (None, BROKEN, GOOD, 401),
    "empty header, good Authorization": (None, "", GOOD, 401),
    "empty query counts as none": ("", GOOD, None, 101),
}


@pytest.mark.parametrize("name", PRECEDENCE)
@pytest.mark.loop("uvloop")
async def test_the_first_token_decides_alone(name: str) -> None:
    query, relay_header, standard_header, status = PRECEDENCE[name]
    target = LISTEN_ORDERS + ("" if query is None else f"&sb-hc-token={quote_plus(query)}")
    headers = [
        (name, value)
        for name, value in (("ServiceBusAuthorization", relay_header), ("Authorization", standard_header))
        if value is not None
    ]
    async with relay() as node:
        assert (await asked(node, target, headers)).status == status


@pytest.mark.loop("uvloop")
async def test_an_anonymous_sender_needs_no_token_and_a_listener_still_does() -> None:
    async with relay() as node:
        assert (await asked(node, "/$hc/open?sb-hc-action=listen")).status == 401
        listener = await node.listener("open")
        for headers in ([], signed("nonsense"), signed(BROKEN)):
            sender = await node.dial("/$hc/open?sb-hc-token=nonsense", headers)
            offer = await listener.offer()
            assert "ServiceBusAuthorization" not in offer["connectHeaders"]
            assert "nonsense" not in offer["address"]
            await sender.leave()


@pytest.mark.loop("uvloop")
async def test_the_authorization_of_an_anonymous_sender_goes_to_the_listener() -> None:
    async with relay() as node:
        listener = await node.listener("open")
        await node.dial("/$hc/open", [("Authorization", "Bearer mine")])
        assert (await listener.offer())["connectHeaders"]["Authorization"] == "Bearer mine"


@pytest.mark.loop("uvloop")
async def test_authorization_goes_through_unless_it_was_the_relays_token() -> None:
    async with relay() as node:
        listener = await node.listener()
        await node.dial_sender(headers=[("Authorization", "Basic mine")])
        assert (await listener.offer())["connectHeaders"]["Authorization"] == "Basic mine"
        await node.dial_sender(headers=[("Authorization", GOOD)], signature=None)
        assert "Authorization" not in (await listener.offer())["connectHeaders"]
        await node.dial(f"{CONNECT_ORDERS}&sb-hc-token={quote_plus(GOOD)}", [("Authorization", "Basic mine")])
        assert (await listener.offer())["connectHeaders"]["Authorization"] == "Basic mine"


# -- addresses


@pytest.mark.parametrize(
    "target",
    [
        "/$hc/orders?sb-hc-action=listen&api-version=2016-07",
        "/%24hc/orders?sb-hc-action=listen",
        "/$HC/ORDERS/?SB-HC-ACTION=LISTEN",
        "//$hc//orders?sb-hc-action=listen",
        "http://relay.local/$hc/orders?sb-hc-action=listen",
    ],
)
@pytest.mark.loop("uvloop")
async def test_a_listener_may_spell_its_address_in_many_ways(target: str) -> None:
    async with relay() as node:
        assert (await asked(node, target, signed(token()))).status == 101


async def offered(target: str, path: str, headers: Any = ()) -> tuple[dict[str, Any], Relay]:
    """What the listener on `path` is told of a sender."""
    async with relay() as node:
        listener = await node.listener(path)
        sender: Peer = await node.dial(target, [*signed(token("")), *headers])
        offer = await listener.offer()
        await sender.leave()
        return offer, node


@pytest.mark.parametrize(
    ("target", "path", "expected"),
    [
        ("/$hc/orders", "orders", "/$hc/orders?sb-hc-action=accept"),
        ("/%24HC/Orders/", "orders", "/$hc/orders?sb-hc-action=accept"),
        ("/$hc/orders/x%2Fy/%C3%B8?a=b=c&&d", "orders", "/$hc/orders/x%2Fy/%C3%B8?a=b=c&&d&sb-hc-action=accept"),
        ("/$hc/orders?api-version=1&sb-hc-x=1", "orders", "/$hc/orders?api-version=1&sb-hc-action=accept"),
        ("/$hc/orders?x=%26&sb-hc-action=connect&y", "orders", "/$hc/orders?x=%26&y&sb-hc-action=accept"),
        ("/$hc/a/b.c/d", "a/b.c", "/$hc/a/b.c/d?sb-hc-action=accept"),
        ("/$hc/a/b", "a", "/$hc/a/b?sb-hc-action=accept"),
    ],
)
@pytest.mark.loop("uvloop")
async def test_suffix_and_query_reach_the_listener_byte_for_byte(target: str, path: str, expected: str) -> None:
    offer, _ = await offered(target, path)
    address = offer["address"]
    assert address.startswith(f"ws://{HOST}{expected}&sb-hc-id={offer['id']}&sb-hc-rendezvous=")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (GUID, GUID),
        (f"{GUID.upper()}_G12_G34", f"{GUID.upper()}_G12_G34"),
        (f"{GUID}%20and%0d%0amore", GUID),
        (GUID + "x" * 500, GUID),
        ("not-a-guid", None),
        ("", None),
    ],
)
@pytest.mark.loop("uvloop")
async def test_an_id_is_kept_when_it_begins_with_a_guid(given: str, kept: str | None) -> None:
    offer, _ = await offered(f"/$hc/orders?sb-hc-id={given}", "orders")
    if kept is None:
        assert re.fullmatch(r"[0-9]{36}", offer["id"])  # the relay's own
    else:
        assert offer["id"] == kept


@pytest.mark.loop("uvloop")
async def test_a_namespace_is_found_by_its_hosts_and_the_first_takes_the_rest() -> None:
    first = Namespace(namespace_id("firstNS"), declared_order=0)
    second = namespace(hosts=("::1", HOST), declared_order=1)
    async with Relay((first, second, hybrid_connection())) as node:
        for host in (HOST, f"{HOST.upper()}:8443", "myrelayns.localhost", "[::1]:8443"):
            name = host.removesuffix(":8443").lower()
            answer = await asked(node, LISTEN_ORDERS, signed(token("", host=name)), host=host)
            assert (host, answer.status) == (host, 101)
        # The first has no such rule.
        answer = await asked(node, LISTEN_ORDERS, signed(token("", host="other.example")), host="other.example")
        assert answer.status == 401


@pytest.mark.loop("uvloop")
async def test_a_relay_without_a_namespace_says_so() -> None:
    async with Relay(()) as node:
        answer = await asked(node, LISTEN_ORDERS, signed(token()))
        assert answer.status == 404
        assert f"no namespace of this relay is called {HOST}. " in answer.phrase


# -- plain HTTP requests


def admitted(target: str, headers: Any = (), *, host: str = HOST, **request: Any) -> Admitted:
    """What a plain request (with `without=()`: a handshake) becomes."""
    relay = Relay(entities())
    head = parse_head(handshake(target, headers, host=host, **{**PLAIN, **request}))
    exchange = Exchange(None, head, ("192.0.2.1", 1), False)  # type: ignore[arg-type]
    found = relay.admission.admit(exchange)
    assert isinstance(found, Admitted)
    assert exchange.subject is not None
    assert (exchange.subject.entity, exchange.subject.is_request) == (found.entity, found.is_request)
    return found


@pytest.mark.parametrize(
    ("target", "entity", "suffix", "query"),
    [
        ("/orders", "orders", "", ""),
        ("/orders/", "orders", "", ""),
        (
            "/Orders/x%2Fy/%C3%b8/?a=1&sb-hc-id=1&sb-hc-x&&b=%c3%b8",
            "orders",
            "x%2Fy/%C3%b8/",
            "a=1&sb-hc-x&&b=%C3%B8",
        ),
        ("/a/b.c/d", "a/b.c", "d", ""),
        ("/a/b", "a", "b", ""),
        ("//orders//x", "orders", "/x", ""),
        (f"http://{HOST}/orders/x?y", "orders", "x", "y"),
    ],
)
def test_a_request_becomes_entity_suffix_and_query(target: str, entity: str, suffix: str, query: str) -> None:
    request = admitted(target, signed(token("")))
    assert (request.action, request.is_request, request.own_host) == (None, True, False)
    assert (request.entity.name, request.suffix, request.query) == (entity, suffix, query)
    assert request.host == HOST


GOOD_REQUESTS = {
    "query": ("orders", f"sb-hc-token={quote_plus(token())}", {"Authorization": "mine"}, None),
    "relay header": (
        "orders",
        "",
        {"ServiceBusAuthorization": token(), "Authorization": "mine"},
        "ServiceBusAuthorization",
    ),
    "standard header": ("orders", "", {"Authorization": token()}, "Authorization"),
    "anonymous": ("open", "", {"Authorization": "mine"}, None),
    "anonymous with tokens": ("open", "sb-hc-token=x", {"ServiceBusAuthorization": "x", "Authorization": "mine"}, None),
}


@pytest.mark.parametrize("name", GOOD_REQUESTS)
def test_a_request_says_which_header_was_its_token(name: str) -> None:
    entity, query, headers, taken = GOOD_REQUESTS[name]
    request = admitted(f"/{entity}?{query}", headers.items())
    assert (request.token_header, request.query) == (taken, "")
    assert (request.grant is None) == (entity == "open")


@pytest.mark.parametrize(
    ("host", "target", "entity", "suffix"),
    [
        ("shop.example.com", "/", "shop", ""),
        ("SHOP.example.com:8443", "/static/app.js", "shop", "static/app.js"),
        ("shop.example.com.", "/orders", "shop", "orders"),
        ("orders.relay.local", "/shop/x/", "orders", "shop/x/"),
        ("Orders.MyRelayNS.localhost:443", "//x", "orders", "x"),
    ],
)
def test_on_its_own_host_the_whole_path_is_the_suffix(host: str, target: str, entity: str, suffix: str) -> None:
    for signature in (token(entity), token("", host=host.partition(":")[0].lower().removesuffix("."))):
        request = admitted(target, signed(signature), host=host)
        assert (request.entity.name, request.suffix, request.own_host) == (entity, suffix, True)
        assert request.host == host.partition(":")[0].lower().removesuffix(".")


def test_below_hc_an_own_host_is_one_of_its_namespace() -> None:
    connect = admitted("/$hc/a/x", signed(token("")), host="shop.example.com", without=())
    assert (connect.entity.name, connect.suffix, connect.own_host) == ("a", "x", False)


ANYBODY = Relay(entities())
HOSTS = st.sampled_from(
    ["relay.local", "shop.example.com", "orders.relay.local:8443", "open.myrelayns.localhost", "x.y"]
)
PIECES = st.sampled_from(
    [
        "/",
        "//",
        "orders",
        "open",
        "a",
        "b.c",
        "shop",
        ".",
        "..",
        "%2e%2e",
        "%2F",
        "$hc",
        "%24hc",
        "?",
        "&",
        "=",
        "#",
        "x",
    ]
    + ["sb-hc-token=", "sb-hc-action=connect", "sb-hc-x", "http://", "\xf8", "%c3%b8", "@", "%", " "]
)


@given(host=HOSTS, pieces=st.lists(PIECES, max_size=9), signed_for=st.sampled_from(["", "orders", "none", None]))
def test_any_request_is_let_in_for_the_entity_that_it_names_or_refused(
    host: str, pieces: list[str], signed_for: str | None
) -> None:
    target = "/" + "".join(pieces)
    headers = () if signed_for is None else (("ServiceBusAuthorization", token(signed_for)),)
    head = RequestHead("GET", target, (("Host", host), *headers))
    exchange = Exchange(None, head, ("192.0.2.1", 1), False)  # type: ignore[arg-type]
    try:
        found = ANYBODY.admission.admit(exchange)
    except RelayError as error:
        assert error.tracking_id and 400 <= error.status < 500
        return
    assert isinstance(found, Admitted) and found.is_request and found.entity.enabled
    path = target.partition("?")[0].lstrip("/")
    if found.own_host:
        assert host.startswith(found.entity.name) and found.suffix == path
    else:
        assert unquote(path).lower().startswith(found.entity.name)
        assert path.endswith(found.suffix) and len(path) >= len(found.entity.name) + len(found.suffix)
    assert not any(part.startswith("sb-hc-token=") for part in found.query.split("&"))
    assert ".." not in unquote(found.suffix).split("/")
    assert (found.grant is None) == (found.entity.name == "open")
    passed = headers_for_listener(head, found.token_header, own_host=found.own_host)
    assert set(passed) == {"Host", *(["X-Forwarded-Prefix"] if found.own_host else [])}


@pytest.mark.loop("uvloop")
async def test_a_websocket_on_the_plain_path_reaches_the_listener_like_any_other() -> None:
    async with relay() as node:
        listener = await node.listener()
        sender = await node.dial("/orders/x%2Fy?a=1&sb-hc-id=1", [("X-Forwarded-Prefix", "/mine")], signature=token())
        offer = await listener.offer()
        assert offer["address"].startswith(f"ws://{HOST}/$hc/orders/x%2Fy?a=1&sb-hc-action=accept&")
        assert offer["connectHeaders"]["X-Forwarded-Prefix"] == "/mine"
        # A listener takes "/" for the relay's own word: see the next test.
        await node.dial("/orders/x", [("x-forwarded-prefix", "/")], signature=token())
        assert not [name for name in (await listener.offer())["connectHeaders"] if "prefix" in name.lower()]
        await node.accept(offer)
        assert (await sender.answer()).status == 101


@pytest.mark.loop("uvloop")
async def test_a_websocket_on_an_own_host_says_that_its_path_has_no_prefix() -> None:
    async with relay() as node:
        listener = await node.listener("shop")
        headers = [("x-forwarded-prefix", "/mine")]
        await node.dial("/live/1", headers, signature=token("shop"), host="shop.example.com")
        offer = await listener.offer()
        assert offer["address"].startswith(f"ws://{HOST}/$hc/shop/live/1?sb-hc-action=accept&")
        assert [value for name, value in offer["connectHeaders"].items() if "prefix" in name.lower()] == ["/"]


# -- headers


def test_headers_keep_their_spelling_and_repeated_ones_are_joined() -> None:
    head = parse_head(
        handshake(
            "/$hc/orders",
            [
                ("X-First", "1"),
                ("x-FIRST", "2"),
                ("Cookie", "a=1"),
                ("cookie", "b=2"),
                ("0", "Sec-WebSocket-Extensions: permessage-deflate"),
                ("!#$%&'*+-.^_`|~", '"q" [b] \\ é'),
                ("servicebusauthorization", "secret"),
            ],
        )
    )
    told = headers_for_listener(head, None)
    assert told["X-First"] == "1, 2"
    assert told["Cookie"] == "a=1; b=2"
    assert told["0"] == "Sec-WebSocket-Extensions: permessage-deflate"
    assert told["!#$%&'*+-.^_`|~"] == '"q" [b] \\ é'
    assert "secret" not in told.values()
    assert list(told)[:5] == ["Host", "Connection", "Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key"]


def test_the_token_is_looked_for_in_order() -> None:
    head = parse_head(handshake("/", [("Authorization", "three"), ("ServiceBusAuthorization", "two")]))

    def target(text: str) -> RelayTarget:
        parsed = parse_target(text)
        assert isinstance(parsed, RelayTarget)
        return parsed

    assert find_token(head, target("/$hc/x?sb-hc-token=o+n%65")) == ("o ne", None)
    assert find_token(head, target("/$hc/x")) == ("two", "ServiceBusAuthorization")
    assert find_token(parse_head(handshake("/")), target("/$hc/x")) == (None, None)


# -- what nobody may read


@pytest.mark.loop("uvloop")
async def test_what_was_admitted_shows_no_secret() -> None:
    async with relay() as node:
        head = parse_head(handshake(f"{CONNECT_ORDERS}&sb-hc-token={quote_plus(GOOD)}&sb-hc-rendezvous=hidden"))
        exchange = Exchange(None, head, ("192.0.2.1", 1), False)  # type: ignore[arg-type]
        admitted = node.admission.admit(exchange)
        assert isinstance(admitted, Admitted)
        assert admitted.grant is not None and admitted.grant.expires_at == EPOCH + 1_000 + 3_600
        arrival = node.admission.admit(
            Exchange(None, parse_head(handshake("/$hc/x?sb-hc-action=accept&sb-hc-rendezvous=hidden")), ("", 1), False)  # type: ignore[arg-type]
        )
        listen = parse_head(handshake(f"{LISTEN_ORDERS}&api-version=1", signed(GOOD)))
        listening = node.admission.admit(Exchange(None, listen, ("", 1), False))  # type: ignore[arg-type]
        assert isinstance(listening, Admitted) and (listening.suffix, listening.query) == ("", "")
        for shown in map(repr, (exchange, admitted, arrival)):
            assert "sig=" not in shown and "hidden" not in shown and "root-key" not in shown


async def test_limits_of_an_entity_are_those_of_the_moment() -> None:
    async with Relay() as relay:
        entity = hybrid_connection(max_senders=3)
        relay.put(entity)
        found = relay.admission.limits(entity.key)
        assert found is not None and found.max_senders == 3
        assert relay.admission.limits(entity.namespace_id) is None
        relay.remove(entity.id)
        assert relay.admission.limits(entity.key) is None
