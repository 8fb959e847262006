"""Every way in which a request can be interrupted, at every step of its way.

Whatever happens, the sender hears of it by an answer of the relay or by a cut, the node holds nothing of it, and
whoever comes next is served.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from e2e.quiet_node import quiet_node
from e2e.raw_websocket import BINARY, TEXT, RawWebSocket
from e2e.test_http_disorder import left_over
from http_cases import Relay
from http_sender import Cut, HttpSender
from trunkline.protocol.errors import ClosedByOperator
from trunkline.testing import RelayNode

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.slow]

ENTITY, RULE = "test", "sender"


@dataclass
class Way:
    """A request under way, with everybody who takes part."""

    node: RelayNode
    sender: HttpSender
    control: RawWebSocket
    token: str
    asked: dict[str, Any] = field(default_factory=dict)
    leg: RawWebSocket | None = None

    def head(self, method: str, *headers: tuple[str, str]) -> None:
        """The sender's head."""
        host = f"{self.node.host}:{self.node.port}"
        self.sender.write_head(
            method, f"/{ENTITY}", [("Host", host), ("ServiceBusAuthorization", self.token), *headers]
        )

    async def told(self) -> None:
        """The listener is."""
        frame = await self.control.receive_answering_pings()
        self.asked = json.loads(frame.payload)["request"]
        if self.asked.get("body"):
            await self.control.receive_message()

    async def visit(self) -> RawWebSocket:
        """The listener opens the address."""
        self.leg = RawWebSocket(self.asked["address"], ssl=self.node.client_context() or None)
        await self.leg.__aenter__()
        return self.leg

    def response(self) -> dict[str, Any]:
        return {"response": {"requestId": self.asked["id"], "statusCode": 200, "responseHeaders": {}, "body": True}}


# --- steps: how far the request has come


async def gathering(way: Way) -> None:
    way.head("POST", ("Content-Length", "10"))
    await way.node.until(lambda counts: counts["http_requests"] == 1)


async def told(way: Way) -> None:
    way.head("GET")
    await way.told()


async def told_of_an_answer(way: Way) -> None:
    await told(way)
    await way.control.send_json(way.response())


async def redirected(way: Way) -> None:
    way.head("POST", ("Content-Length", "1000000"))
    await way.told()


async def visited(way: Way) -> None:
    await told(way)
    await way.visit()


async def fetched(way: Way) -> None:
    await redirected(way)
    assert (await (await way.visit()).receive()).opcode == TEXT


async def uploading(way: Way) -> None:
    await fetched(way)
    assert way.leg is not None
    way.sender.write(b"x" * 70_000)
    for _ in range(2):
        await way.leg.receive()


async def half_a_command(way: Way) -> None:
    await visited(way)
    assert way.leg is not None
    await way.leg.send(TEXT, b'{"response"', end=False)


async def answering(way: Way) -> None:
    await visited(way)
    await _begin(way)


async def answering_while_uploading(way: Way) -> None:
    await uploading(way)
    await _begin(way)


async def _begin(way: Way) -> None:
    assert way.leg is not None
    await way.leg.send_json(way.response())
    await way.leg.send(BINARY, b"part", end=False)
    assert (await way.sender.head("POST")).status == 200
    assert await way.sender.piece() == b"part"


BEGUN = (answering, answering_while_uploading)
AT_RENDEZVOUS = (visited, half_a_command, fetched, uploading, *BEGUN)
STEPS = (gathering, told, told_of_an_answer, redirected, *AT_RENDEZVOUS)


# --- interruptions


async def sender_is_cut(way: Way) -> None:
    way.sender.abort()


async def control_channel_is_cut(way: Way) -> None:
    way.control.abort()


async def control_channel_is_closed(way: Way) -> None:
    await way.control.send_close(1000)


async def control_channel_breaks_the_rules(way: Way) -> None:
    await way.control.send(TEXT, b"{]")


async def rendezvous_is_cut(way: Way) -> None:
    assert way.leg is not None
    way.leg.abort()


async def rendezvous_is_closed(way: Way) -> None:
    assert way.leg is not None
    await way.leg.send_close(1011)


async def rendezvous_breaks_the_rules(way: Way) -> None:
    assert way.leg is not None
    await way.leg.send_bytes(b"\x83\x00")


async def entity_is_deleted(way: Way) -> None:
    await way.node.remove_hybrid_connection(ENTITY)
    await way.node.add_hybrid_connection(ENTITY)


async def entity_is_disabled(way: Way) -> None:
    await way.node.change_hybrid_connection(ENTITY, enabled=False)
    await way.node.change_hybrid_connection(ENTITY, enabled=True)


async def rule_is_removed(way: Way) -> None:
    await way.node.remove_rule(RULE)


async def operator_ends_it(way: Way) -> None:
    way.node.node.broker.http.withdraw(lambda admitted: True, ClosedByOperator())


async def node_restarts(way: Way) -> None:
    await way.node.restart()


async def node_is_killed(way: Way) -> None:
    await way.node.restart(abrupt=True)


ALWAYS = (
    sender_is_cut,
    control_channel_is_cut,
    control_channel_is_closed,
    control_channel_breaks_the_rules,
    entity_is_deleted,
    entity_is_disabled,
    rule_is_removed,
    operator_ends_it,
    node_restarts,
    node_is_killed,
)
OF_RENDEZVOUS = (rendezvous_is_cut, rendezvous_is_closed, rendezvous_breaks_the_rules)


@asynccontextmanager
async def under_way(tls: bool) -> AsyncIterator[tuple[RelayNode, Way]]:
    entities = [ENTITY, "peaceful"]
    # A request without a listener waits for nobody, and one without an answer for a second.
    async with quiet_node(entities, tls=tls, response_timeout=1, body_idle_timeout=1, tick=0.05) as node:
        await node.add_rule(RULE, ["Send"])
        async with (
            Relay.of(node).connect() as sender,
            RawWebSocket(node.listen_url(), token=node.token(), ssl=node.client_context() or None) as control,
        ):
            yield node, Way(node, sender, control, node.token(rule=RULE))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_request_that_is_interrupted_leaves_nothing_and_harms_nobody(step: Any, tls: bool) -> None:
    for interrupt in (*ALWAYS, *(OF_RENDEZVOUS if step in AT_RENDEZVOUS else ())):
        async with under_way(tls) as (node, way):
            await step(way)
            await interrupt(way)
            await _heard(way, step, interrupt)
            way.sender.abort()
            if way.leg is not None:
                way.leg.abort()
            await node.until(
                lambda counts: not any({**left_over(node), "connections": 0, "heads": 0}.values()), timeout=8
            )
            if interrupt is not node_is_killed:
                # A listener that has lost its channel comes back; the others go on with it.
                with contextlib.suppress(ConnectionError):
                    way.control.abort()
            await node.until(lambda counts: counts["listeners"] == 0)
            for entity in (ENTITY, "peaceful"):
                await _served(node, entity)


async def _heard(way: Way, step: Any, interrupt: Any) -> None:
    """What the sender hears of it."""
    if interrupt is sender_is_cut:
        return
    try:
        if step in BEGUN:
            # Nothing may look like a clean end.
            with pytest.raises(Cut):
                while await way.sender.piece():
                    pass
            return
        answer = await way.sender.answer("POST")
    except Cut:
        # A node that ends takes the connections along.
        assert interrupt in (node_restarts, node_is_killed), (step, interrupt)
    else:
        assert answer.get("via") is None and answer.status in (401, 403, 404, 408, 502, 503, 504), (interrupt, answer)
        assert "TrackingId:" in json.loads(answer.body)["error"]["message"]


async def _served(node: RelayNode, entity: str) -> None:
    """Whoever listens and asks now gets along."""
    relay = Relay.of(node, entity)
    context = node.client_context() or None
    async with RawWebSocket(node.listen_url(entity), token=node.token(entity), ssl=context) as control:
        async with relay.connect() as sender:
            relay.ask(sender)
            asked = json.loads((await control.receive_answering_pings()).payload)["request"]
            await control.send_json({"response": {"requestId": asked["id"], "statusCode": 200, "body": True}})
            await control.send(BINARY, b"served")
            assert (await sender.answer()).body == b"served"
        await control.send_close(1000)
