"""What the .NET client asks of a hybrid connection, and how it is refused."""

from __future__ import annotations

import dataclasses
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.relay.peers import ROOT, Answer, Relay, hybrid_connection, namespace, token, until
from server.relay.requests_made import LEFT_OUT
from server.relay.requests_made import asked as asked_for
from trunkline.protocol.limits import resolve
from trunkline.protocol.sas import Right
from trunkline.server import metrics
from trunkline.server.entities.model import Rule
from trunkline.server.relay import runtime_information as information

SEND = Rule("Send", frozenset({Right.SEND}), primary_key="send-key", secondary_key="send-key-2")
LISTEN = Rule("Listen", frozenset({Right.LISTEN}), primary_key="listen-key", secondary_key="listen-key-2")
ASK = (information.HEADER, "ServiceBus")


def relay() -> Relay:
    return Relay(
        (
            namespace(rules=(ROOT, SEND, LISTEN)),
            dataclasses.replace(
                hybrid_connection(requires_client_authorization=False, user_metadata="<a> & \u00f8\r\n"),
                created_at=1_700_000_000.25,
                updated_at=1_700_000_001.0,
            ),
            hybrid_connection("old"),
            hybrid_connection("off", enabled=False),
        )
    )


async def asked(
    node: Relay, path: str = "/orders", signature: str | None = token(""), **more: Any
) -> tuple[Answer, ElementTree.Element]:
    """The head and the body of an answer."""
    headers = [ASK, *([] if signature is None else [("Authorization", signature)])]
    async with await node.dial(f"{path}?api-version=2016-07", headers, without=LEFT_OUT, **more) as peer:
        answer = await peer.answer()
        [size] = answer.all("Content-Length")
        return answer, ElementTree.fromstring(await peer.read(int(size)))


def description(entry: ElementTree.Element) -> dict[str, str | None]:
    """The elements in the order in which .NET has to find them."""
    [content] = entry.iter(f"{{{information.ATOM}}}content")
    [found] = content
    assert found.tag == f"{{{information.DESCRIPTION}}}HybridConnectionDescription"
    return {child.tag.removeprefix(f"{{{information.DESCRIPTION}}}"): child.text for child in found}


@pytest.mark.loop("uvloop")
async def test_listener_is_told_what_the_relay_knows_of_its_hybrid_connection() -> None:
    async with relay() as node:
        await node.listener()
        await node.listener()
        for signature in (token(""), token("orders", "Listen", "listen-key")):
            answer, entry = await asked(node, signature=signature)
            assert (answer.status, answer.all("Content-Type")) == (200, [information.ENTRY_TYPE])
            assert entry.tag == f"{{{information.ATOM}}}entry"
            found = description(entry)
            assert list(found) == [
                "CreatedAt",
                "UpdatedAt",
                "RequiresClientAuthorization",
                "UserMetadata",
                "ListenerCount",
            ]
            assert found == {
                "CreatedAt": "2023-11-14T22:13:20.250000Z",
                "UpdatedAt": "2023-11-14T22:13:21.000000Z",
                "RequiresClientAuthorization": "false",
                "UserMetadata": "<a> & \u00f8\r\n",
                "ListenerCount": "2",
            }


@pytest.mark.loop("uvloop")
async def test_what_is_not_known_is_left_out_and_a_disabled_one_is_described() -> None:
    async with relay() as node:
        for name in ("old", "off"):
            answer, entry = await asked(node, f"/{name}")
            assert answer.status == 200
            assert description(entry) == {"RequiresClientAuthorization": "true", "ListenerCount": "0"}


@pytest.mark.parametrize(
    ("path", "signature", "more", "status", "words"),
    [
        # Also where a sender needs no token.
        ("/orders", None, {}, 401, "MissingToken: "),
        ("/none", None, {}, 401, "MissingToken: "),
        ("/orders", token("orders", key="guessed"), {}, 401, "InvalidSignature: "),
        ("/orders", token("orders", lifetime=-100), {}, 401, "ExpiredToken: "),
        # A 403 is "quota exceeded" to .NET.
        ("/orders", token("", "Send", "send-key"), {}, 401, "Unauthorized access. 'Listen' claim(s) are required"),
        ("/none", token(""), {}, 404, "Endpoint does not exist: none. TrackingId:"),
        ("/orders/more", token(""), {}, 404, "Endpoint does not exist: orders/more. TrackingId:"),
        ("/orders", token(""), {"method": "DELETE"}, 400, "The relay is asked with GET, not with DELETE. TrackingId:"),
    ],
)
@pytest.mark.loop("uvloop")
async def test_refusal_is_told_as_xml(
    path: str, signature: str | None, more: dict[str, Any], status: int, words: str
) -> None:
    async with relay() as node:
        answer, error = await asked(node, path, signature, **more)
        assert (answer.status, answer.all("Content-Type")) == (status, [information.ERROR_TYPE])
        assert [child.tag for child in error] == ["Code", "Detail"] and error.tag == "Error"
        assert (error[0].text, error[1].text) == (str(status), answer.phrase)
        assert answer.phrase.startswith(words) and "TrackingId:" in answer.phrase


@pytest.mark.loop("uvloop")
async def test_refusal_that_is_held_is_told_as_xml_too() -> None:
    async with relay() as node:
        for _ in range(10):
            await asked(node, signature="wrong")
        peer = await node.dial("/orders", [ASK, ("Authorization", "wrong")], without=LEFT_OUT)
        await until(lambda: node.broker.held_refusals)
        node.pass_time(3)
        answer = await peer.answer()
        assert (answer.status, answer.all("Content-Type")) == (401, [information.ERROR_TYPE])


@pytest.mark.loop("uvloop")
async def test_no_listener_hears_of_it_and_no_sender_is_counted() -> None:
    async with relay() as node:
        await node.listener()
        await asked(node)
        await asked(node, "/none")
        [channel] = node.broker.channels
        assert channel.offers == 0 and not node.journal.requests
        counted = [
            metric for tally in node.tallies for (metric, _), count in tally.counts.items() if count and tally.labels
        ]
        assert set(counted) == {metrics.LISTENER_CONNECTIONS}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("ServiceBus", True), (" servicebus ", True), ("elsewhere", False), ("", False), (None, False)],
)
def test_it_is_told_by_its_header(value: str | None, expected: bool) -> None:
    headers = [] if value is None else [("x-process-at", value)]
    assert information.is_inquiry(asked_for(headers=headers).head) is expected


@given(metadata=st.text(max_size=60))
def test_any_metadata_is_told_as_xml(metadata: str) -> None:
    entity = hybrid_connection(user_metadata=metadata)
    found = description(ElementTree.fromstring(information.entry(entity, resolve(), 3)))
    told = found["UserMetadata"] or ""
    assert len(told) == len(metadata) and found["ListenerCount"] == "3"
    assert all(each == was or each == "?" for each, was in zip(told, metadata, strict=True))
