"""What hyco-ws sees when the node, or the listener, says no: the status, and a reason phrase that helps."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from trunkline.sdk import HybridConnectionListener
from trunkline.testing import relay_node
from wire.addresses import Addresses
from wire.node_script import Event, NodeScript

pytestmark = pytest.mark.loop("uvloop")

TRACKED = re.compile(r"TrackingId:[0-9a-f-]{36}\S*, SystemTracker:\S+, Timestamp:")


def assert_refused(event: Event, status: int, text: str, entity: str | None = None) -> None:
    """The status, the words of Azure Relay, the tracking id, and the entity's name."""
    assert event["status"] == status, event
    assert text in event["phrase"], event
    assert TRACKED.search(event["phrase"]), event
    assert entity is None or f"/{entity}" in event["phrase"], event


async def test_hyco_sender_is_told_why_it_was_refused(node_script: Callable[..., NodeScript]) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        missing = at.connect_url.replace(f"/{at.entity}?", "/missing?")
        refusals = {
            "no listener": (at.connect_url, at.token(), 504, "There are no listeners connected for the endpoint"),
            "wrong key": (at.connect_url, at.token(key="wrong"), 401, "token has an invalid signature"),
            "expired": (at.connect_url, at.token(seconds=-3600), 401, "ExpiredToken"),
            "not a token": (at.connect_url, "nonsense", 401, "token"),
            "25 hours": (at.connect_url, at.token(seconds=25 * 3600), 401, "24"),
            "no token": (at.connect_url, None, 401, "MissingToken"),
            "another entity": (missing, at.token(), 401, "InvalidAudience"),
        }
        async with node_script("sender", ca_file=node.ca_file) as sender:
            for n, (url, token, status, text) in enumerate(refusals.values()):
                sender.tell("open", n=n, url=url, token=token)
                assert_refused(await sender.expect("rejected", n=n), status, text)


async def test_hyco_sender_is_told_that_the_entity_is_missing(node_script: Callable[..., NodeScript]) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string(entity="missing"))
        async with node_script("sender", ca_file=node.ca_file) as sender:
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            assert_refused(await sender.expect("rejected", n=1), 404, "Endpoint does not exist", "missing")


async def test_hyco_listener_is_refused_with_a_wrong_key_an_expired_token_and_no_right(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        send_only = Addresses(node.connection_string(rights=["Send"]))
        cases = {
            at.token(key="wrong"): 401,
            at.token(seconds=-3600): 401,
            send_only.token(): 403,
        }
        for token, status in cases.items():
            async with node_script(
                "listener", ca_file=node.ca_file, url=at.listen_url, token=token, keepTrying=False
            ) as listener:
                error = await listener.expect("error")
                assert f"({status})" in error["message"]
                assert not listener.said("listening")


async def test_hyco_sender_may_not_send_with_a_listen_token(node_script: Callable[..., NodeScript]) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string(rights=["Listen"]))
        async with node_script("sender", ca_file=node.ca_file) as sender:
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            assert_refused(await sender.expect("rejected", n=1), 403, "'Send' claim(s) are required")


async def test_hyco_sender_sees_the_status_and_words_of_the_listener_that_rejects_it(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        words = 'Rejected by user code: "busy", [back] {in} 5\'; 100 % & more'

        async with (
            HybridConnectionListener(
                node.connection_string(),
                ssl=node.client_context(),
                accept_handler=lambda incoming: incoming.reject(418, words),
            ),
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            rejected = await sender.expect("rejected", n=1)
            assert (rejected["status"], rejected["phrase"]) == (418, words)
