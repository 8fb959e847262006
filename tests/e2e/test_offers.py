"""What a listener is told of a sender, what it may answer, and what the sender gets of it."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote_plus

import pytest

from e2e.quiet_node import quiet_node
from e2e.raw_websocket import BINARY, RawWebSocket, Refused, raw_pair, refusal
from e2e.sdk_pair import sdk_pair
from trunkline.protocol.errors import ConnectionRejected, ServerBusy
from trunkline.sdk import HybridConnectionClient, IncomingConnection
from trunkline.testing import RelayNode

pytestmark = pytest.mark.loop("uvloop")

GUID = "7f8d9c6e-1111-2222-3333-444455556666"


async def offered(node: RelayNode, url: str, *headers: tuple[str, str]) -> dict[str, Any]:
    """What a listener is told of a sender that comes to `url`."""
    async with RawWebSocket(node.listen_url(), token=node.token()) as listener:
        sender = RawWebSocket(url, headers=headers)
        await sender.connect()
        offer = await listener.offer()
        sender.abort()
        return offer


# --- the offer


async def test_headers_arrive_in_their_own_case_and_the_token_of_the_relay_does_not() -> None:
    async with quiet_node() as node:
        token = node.token()
        offer = await offered(
            node,
            node.connect_url(),
            ("ServiceBusAuthorization", token),
            ("X-CuStOm", 'a "quoted" [value] with \\ and ÿ'),
            ("x-repeated", "one"),
            ("X-Repeated", "two"),
            ("!#$%&'*+-.^_`|~09", "every character of a name"),
            ("Authorization", "Basic the-application-s-own"),
        )
        headers = offer["connectHeaders"]
        assert headers["X-CuStOm"] == 'a "quoted" [value] with \\ and ÿ'
        assert headers["x-repeated"] == "one, two" and "X-Repeated" not in headers
        assert headers["!#$%&'*+-.^_`|~09"] == "every character of a name"
        assert headers["Authorization"] == "Basic the-application-s-own"
        assert {"Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"} <= headers.keys()
        assert "ServiceBusAuthorization" not in headers and token not in str(offer)
        assert all(isinstance(value, str) for value in headers.values())


async def test_authorization_is_hidden_from_the_listener_where_it_was_the_token_of_the_relay() -> None:
    async with quiet_node() as node:
        token = node.token()
        offer = await offered(node, node.connect_url(), ("Authorization", token))
        assert "Authorization" not in offer["connectHeaders"] and token not in str(offer)


@pytest.mark.parametrize(
    "query", ["", "a=1&b=2", "&&&", "a=1&a=2&", "%C3%B8=%2B&x=+", "api-version=abc", "sb-hc-undefined", "?"]
)
@pytest.mark.parametrize("suffix", ["", "/deep/er", "/with%20space/and%2Fslash;p=1/UPPER", "//double//"])
async def test_path_suffix_and_query_arrive_as_they_were_sent(suffix: str, query: str) -> None:
    async with quiet_node() as node:
        own = f"{query}&" if query else ""
        url = f"{node.websocket_url}/$hc/test{suffix}?{own}sb-hc-action=connect&sb-hc-id={GUID}"
        offer = await offered(node, url, ("ServiceBusAuthorization", node.token()))
        path, _, rest = offer["address"].partition("?")
        assert path == f"{node.websocket_url}/$hc/test{suffix}"
        assert rest.startswith(f"{own}sb-hc-action=accept&sb-hc-id={GUID}&sb-hc-")
        assert offer["id"] == GUID
        assert offer["remoteEndpoint"]["address"] == "127.0.0.1" and offer["remoteEndpoint"]["port"] > 0


async def test_accept_handler_sees_headers_suffix_query_and_remote_address() -> None:
    seen: list[IncomingConnection] = []
    async with quiet_node() as node, node.listener(accept_handler=seen.append) as listener:
        sender = await node.client().create_connection(
            headers=[("X-Order", "4711")], path_suffix="north/a%2Fb", query="city=K%C3%B6ln&flag"
        )
        accepted = await listener.accept()
        [request] = seen
        assert request is accepted.request
        assert request.headers["x-order"] == "4711" and "X-Order" in list(request.headers)
        assert request.suffix == "north/a%2Fb" and request.query == "city=K%C3%B6ln&flag"
        assert request.remote_address[0] == "127.0.0.1" and request.tracking_id == sender.tracking_id
        await asyncio.gather(sender.close(), accepted.close())


async def test_sender_needs_no_action_and_may_bring_its_token_in_the_query() -> None:
    async with quiet_node() as node:
        with_action = node.connect_url(token=node.token())
        bare = with_action.replace("sb-hc-action=connect&", "")
        assert "sb-hc-action" in with_action and "sb-hc-action" not in bare
        offer = await offered(node, bare)
        assert "sb-hc-token" not in offer["address"]


# --- an address is good for one sender, once


async def test_address_lets_one_listener_in_and_no_second() -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        assert (await refusal(pair.address)).status == 403
        await pair.sender.send(BINARY, b"nobody noticed")
        assert (await pair.listener.receive()).payload == b"nobody noticed"


async def test_address_that_has_expired_lets_nobody_in() -> None:
    async with quiet_node(rendezvous_timeout=0.2) as node:
        async with RawWebSocket(node.listen_url(), token=node.token()) as listener:
            assert (await refusal(node.connect_url(), token=node.token())).status == 504
            assert (await refusal((await listener.offer())["address"])).status == 403


async def test_address_whose_sender_has_left_lets_nobody_in() -> None:
    async with quiet_node() as node, RawWebSocket(node.listen_url(), token=node.token()) as listener:
        sender = RawWebSocket(node.connect_url(), token=node.token())
        await sender.connect()
        address = (await listener.offer())["address"]
        sender.abort()
        await node.until(lambda counts: counts["waiting_senders"] == 0)
        assert (await refusal(address)).status == 403
        assert node.counts()["senders"] == 0


async def test_address_with_another_secret_lets_nobody_in_and_the_right_one_still_does() -> None:
    async with quiet_node() as node, RawWebSocket(node.listen_url(), token=node.token()) as listener:
        sender = RawWebSocket(node.connect_url(), token=node.token())
        await sender.connect()
        address = (await listener.offer())["address"]
        assert (await refusal(address[:-1] + ("A" if address[-1] != "A" else "B"))).status == 403
        async with RawWebSocket(address):
            await sender.upgraded()
        sender.abort()


# --- rejection

REASONS = [
    (400, "Rejected by user code"),
    (403, "Not you"),
    (418, 'I\'m a "teapot": short & stout; 100% [#1] <\\o/> {a|b} ~`^ =+?'),
    (503, "x" * 2_000),
    (202, "OK"),
    (599, "ÄÖÜ in Latin-1"),
]


@pytest.mark.parametrize(("status", "reason"), REASONS, ids=[str(status) for status, _ in REASONS])
async def test_rejection_reaches_the_sender_word_for_word(status: int, reason: str) -> None:
    def reject(request: IncomingConnection) -> None:
        request.reject(status, reason)

    async with quiet_node() as node, node.listener(accept_handler=reject):
        refused = await refusal(node.connect_url(), token=node.token())
        assert (refused.status, refused.phrase) == (status, reason)


@pytest.mark.parametrize("prefix", ["sb-hc-", ""])  # .NET and Java; hyco-websocket
async def test_listener_that_rejects_is_told_410_that_it_worked(prefix: str) -> None:
    async with quiet_node() as node, RawWebSocket(node.listen_url(), token=node.token()) as listener:
        async with asyncio.TaskGroup() as tasks:
            refused = tasks.create_task(refusal(node.connect_url(), token=node.token()))
            address = (await listener.offer())["address"]
            words = quote_plus("The order is taken")
            told = await refusal(f"{address}&{prefix}statusCode=409&{prefix}statusDescription={words}")
        assert told.status == 410
        assert (refused.result().status, refused.result().phrase) == (409, "The order is taken")
        assert (await refusal(address)).status == 403  # its word was its one attempt


async def test_rejection_is_an_exception_for_a_sender_of_the_sdk() -> None:
    def reject(request: IncomingConnection) -> None:
        request.reject(418, "I'm a teapot")

    async with quiet_node() as node, node.listener(accept_handler=reject):
        with pytest.raises(ConnectionRejected, match="I'm a teapot") as caught:
            await node.client().create_connection()
        assert caught.value.status == 418


async def test_accept_handler_that_fails_is_a_502_and_one_that_says_no_a_400() -> None:
    def fail(request: IncomingConnection) -> None:
        raise ValueError("a bug of the application")

    async with quiet_node() as node:
        async with node.listener(accept_handler=fail):
            refused = await refusal(node.connect_url(), token=node.token())
            assert refused.status == 502 and refused.phrase.startswith("The Listener's custom AcceptHandler threw")
            assert "a bug" not in refused.phrase
        async with node.listener(accept_handler=lambda request: False):
            refused = await refusal(node.connect_url(), token=node.token())
            assert (refused.status, refused.phrase) == (400, "Rejected by user code")


async def test_overloaded_listener_rejects_with_503() -> None:
    async with quiet_node() as node, sdk_pair(node, listener=node.listener(max_connections=1)):
        with pytest.raises(ServerBusy, match="overloaded"):
            await node.client().create_connection()


# --- subprotocols


async def test_listener_chooses_among_the_subprotocols_of_the_sender() -> None:
    def choose(request: IncomingConnection) -> None:
        assert request.subprotocols == ("mqtt", "amqp", "stomp")
        request.subprotocol = "amqp"

    async with quiet_node() as node, node.listener(accept_handler=choose) as listener:
        sender = await node.client().create_connection(subprotocols=["mqtt", "amqp", "stomp"])
        accepted = await listener.accept()
        assert sender.subprotocol == accepted.subprotocol == "amqp"
        await asyncio.gather(sender.close(), accepted.close())


async def test_no_subprotocol_is_answered_where_the_listener_requests_none() -> None:
    async with quiet_node() as node:
        sender = RawWebSocket(
            node.connect_url(), token=node.token(), headers=[("Sec-WebSocket-Protocol", "mqtt, amqp")]
        )
        async with raw_pair(node, sender=sender) as pair:
            assert "sec-websocket-protocol" not in pair.sender.headers


async def test_listener_that_chooses_what_was_not_offered_fails_both() -> None:
    async with quiet_node() as node, RawWebSocket(node.listen_url(), token=node.token()) as listener:
        async with asyncio.TaskGroup() as tasks:
            refused = tasks.create_task(refusal(node.connect_url(), token=node.token()))
            address = (await listener.offer())["address"]
            told = await refusal(address, headers=[("Sec-WebSocket-Protocol", "stomp")])
        assert told.status == 400 and refused.result().status == 502


async def test_no_extension_is_agreed_on_with_anybody() -> None:
    wish = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
    async with quiet_node() as node:
        sender = RawWebSocket(node.connect_url(), token=node.token(), headers=wish)
        control = RawWebSocket(node.listen_url(), token=node.token(), headers=wish)
        async with raw_pair(node, sender=sender, control=control) as pair:
            for end in (pair.sender, pair.control, pair.listener):
                assert "sec-websocket-extensions" not in end.headers
                assert end.headers["connection"].lower() == "upgrade"


# --- anonymous senders


async def test_anonymous_sender_is_served_where_the_entity_allows_it_and_nowhere_else() -> None:
    async with quiet_node({"open": {"requires_client_authorization": False}, "closed": {}}) as node:
        assert (await refusal(node.connect_url("closed"))).status == 401
        async with node.listener("open") as listener:
            sender = await HybridConnectionClient(f"{node.websocket_url}/open").create_connection()
            accepted = await listener.accept()
            await sender.send("who am I?")
            assert await accepted.recv() == "who am I?"
            await asyncio.gather(sender.close(), accepted.close())
        # A listener always needs a token.
        assert (await refusal(node.listen_url("open"))).status == 401


@pytest.mark.parametrize("token", ["nonsense", "SharedAccessSignature sr=x&sig=x&se=1&skn=x"])
async def test_token_of_an_anonymous_sender_is_neither_read_nor_passed_on(token: str) -> None:
    async with quiet_node({"open": {"requires_client_authorization": False}}) as node:
        offer = await offered(node, node.connect_url("open"), ("ServiceBusAuthorization", token))
        assert token not in str(offer)


# --- what is refused before anybody is asked


async def test_sender_is_refused_where_there_is_no_such_entity_and_its_name_is_in_the_phrase() -> None:
    async with quiet_node() as node:
        for url in (node.connect_url("nowhere"), node.listen_url("nowhere")):
            refused = await refusal(url, token=node.token("nowhere"))
            assert refused.status == 404 and refused.phrase.startswith("Endpoint does not exist")
            assert "/nowhere" in refused.phrase
            # A bad token learns nothing of what exists.
            assert (await refusal(url, token=node.token("nowhere").replace("sig=", "sig=A"))).status == 401
            assert (await refusal(url)).status == 401


async def test_unknown_action_is_refused_with_400() -> None:
    async with quiet_node() as node:
        url = node.connect_url().replace("=connect", "=dance")
        with pytest.raises(Refused) as caught:
            async with RawWebSocket(url, token=node.token()):
                pass
        assert caught.value.status == 400
