"""Requests of every kind while listeners and senders do what they should not, in an order that chance decides.

Each request carries a key, and what a listener is to do with it. All content is made of the key, both ways, so a byte
that reaches the wrong peer is seen. Once it is over, the node must hold nothing, and serve the next as if nothing was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import Counter
from typing import Any

import pytest

from e2e.quiet_node import quiet_node
from e2e.raw_websocket import BINARY, CLOSE, CONTINUATION, TEXT, RawWebSocket, Refused, encode
from http_cases import Relay
from http_echo import content
from http_sender import Answer, Cut, HttpSender
from trunkline.testing import RelayNode

#: Where a sender may stop, and what a listener may do with a request.
STOPS = ("never", "head", "half", "body", "answer head")
DEEDS = (
    "answer",
    "answer twice",
    "answer at the rendezvous",
    "answer in pieces",
    "break off",
    "close 1000",
    "half an answer",
    "stall",
    "nothing",
    "late",
    "visit",
    "no head",
    "garbage",
    "both ways",
    "wrong listener",
)
SIZES = (0, 1, 700, 65_535, 65_536, 65_537, 200_000)
#: What the relay answers by itself where the peers did as above.
RELAY_MADE = {400, 408, 429, 502, 503, 504}

# uvloop raises RuntimeError where others raise ConnectionError.
_GONE = (ConnectionError, asyncio.IncompleteReadError, Refused, TimeoutError, RuntimeError)


class Disorder:
    """Listeners and senders of one hybrid connection, and what came of them."""

    def __init__(self, node: RelayNode, chance: random.Random, entity: str) -> None:
        self.node = node
        self.chance = chance
        self.relay = Relay.of(node, entity)
        self.entity = entity
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.number = 0
        self.controls: set[RawWebSocket] = set()
        self._deeds: set[asyncio.Task[None]] = set()

    # --- the listener

    async def listen(self, *, restarts: float) -> None:
        """Be there, again and again; with `restarts` as the chance to leave with each request."""
        while True:
            control = RawWebSocket(
                self.node.listen_url(self.entity),
                token=self.node.token(self.entity),
                ssl=self.relay.ssl,
            )
            with contextlib.suppress(*_GONE):
                async with control:
                    self.controls.add(control)
                    await self._read(control, restarts)
            self.controls.discard(control)

    async def _read(self, control: RawWebSocket, restarts: float) -> None:
        while True:
            try:
                frame = await control.receive_answering_pings()
            except TimeoutError:
                continue
            if frame.opcode == CLOSE:
                return
            assert frame.opcode == TEXT, frame
            request = json.loads(frame.payload)["request"]
            body = b""
            if request.get("body") and "method" in request:
                body = b"".join(each.payload for each in await control.receive_message())
            if self.chance.random() < restarts:
                if self.chance.random() < 0.5:
                    await control.send_close(1000)
                return
            task = asyncio.get_running_loop().create_task(self._do(control, request, body))
            self._deeds.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._deeds.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, _GONE):
            self.faults.append(f"listener: {error!r}")

    async def _do(self, control: RawWebSocket, request: dict[str, Any], body: bytes) -> None:
        if "method" in request:
            await self._act(control, request, body, None)
            return
        if self.chance.random() < 0.1:
            return  # never fetched
        async with RawWebSocket(request["address"], ssl=self.relay.ssl) as rendezvous:
            frame = await rendezvous.receive_answering_pings()
            if frame.opcode == CLOSE:
                return
            fetched = json.loads(frame.payload)["request"]
            assert fetched["id"] == request["id"]
            early = self.chance.random() < 0.2
            if not early:
                pieces = []
                while True:
                    frame = await rendezvous.receive_answering_pings()
                    if frame.opcode == CLOSE:
                        return
                    pieces.append(frame.payload)
                    if frame.end:
                        break
                body = b"".join(pieces)
            await self._act(control, fetched, None if early else body, rendezvous)

    async def _act(
        self, control: RawWebSocket, request: dict[str, Any], body: bytes | None, rendezvous: RawWebSocket | None
    ) -> None:
        plan = json.loads(request["requestHeaders"]["X-Plan"])
        key, size, deed = plan["key"], plan["size"], plan["deed"]
        if body is not None and body != content(plan["sent"], key):
            self.faults.append(f"{key}: the listener got {len(body)} bytes, not {plan['sent']}")
        answer = content(size, "answer" + key)

        def head(with_body: bool = bool(size)) -> dict[str, Any]:
            headers = {"X-Key": key}
            return {
                "response": {
                    "requestId": request["id"],
                    "statusCode": 200,
                    "statusDescription": key,
                    "responseHeaders": headers,
                    "body": with_body,
                }
            }

        async def by_control(by: RawWebSocket) -> None:
            # Text and body in one write: others answer on the same channel.
            await by.send_bytes(_text(head()) + (_binary(answer) if size else b""))

        async def at(address: str) -> RawWebSocket:
            visitor = RawWebSocket(address, ssl=self.relay.ssl)
            await visitor.__aenter__()
            return visitor

        if deed == "nothing":
            return
        if deed == "wrong listener":
            for other in self.controls - {control}:
                fake = head(True)
                fake["response"]["statusDescription"] = "stolen"
                await other.send_bytes(_text(fake) + _binary(b"stolen"))
            deed = "answer"
        if deed == "late":
            await asyncio.sleep(self.chance.random() * 1.6)
            deed = "answer"
        if deed in ("answer", "answer twice") and size <= 1_000_000:
            await by_control(control)
            if deed == "answer twice":
                await by_control(control)
            return
        if rendezvous is None:
            rendezvous = await at(request["address"])
        try:
            if deed == "visit":
                if self.chance.random() < 0.5:
                    await rendezvous.send_close(1000)
                return
            if deed == "garbage":
                await rendezvous.send_bytes(os.urandom(300))
                return
            if deed == "no head":
                await rendezvous.send(BINARY, b"x" * 100)
                return
            await rendezvous.send_bytes(_text(head(True)))
            half = size // 2
            await rendezvous.send(BINARY, answer[:half], end=False)
            if deed == "both ways":
                await by_control(control)
            if deed == "break off":
                if self.chance.random() < 0.5:
                    await rendezvous.send_close(1011)
                return
            if deed == "stall":
                await asyncio.sleep(30)
            if deed == "half an answer":
                await asyncio.sleep(self.chance.random() * 0.3)
                return
            if deed == "answer in pieces":
                await asyncio.sleep(self.chance.random() * 0.2)
            if deed == "close 1000":
                await rendezvous.send(CONTINUATION, answer[half:], end=False)
                await rendezvous.send_close(1000)
            else:
                await rendezvous.send(CONTINUATION, answer[half:])
            while (await rendezvous.receive()).opcode != CLOSE:
                pass
        finally:
            rendezvous.abort()

    # --- the sender

    async def send(self, requests: int) -> None:
        """So many requests, on connections that are kept as long as they last."""
        sender: HttpSender | None = None
        for _ in range(requests):
            if sender is None:
                sender = self.relay.connect()
                await sender.__aenter__()
            try:
                stays = await asyncio.wait_for(self._ask(sender), 25)
            except TimeoutError:
                self.faults.append(f"a request of {self.entity} did not end")
                stays = False
            if not stays:
                sender.abort()
                sender = None
        if sender is not None:
            sender.abort()

    async def _ask(self, sender: HttpSender) -> bool:
        chance = self.chance
        self.number += 1
        key = f"{self.entity}-{self.number}"
        stop = chance.choice(STOPS) if chance.random() < 0.3 else "never"
        plan: dict[str, Any] = {
            "key": key,
            "size": chance.choice(SIZES),
            "deed": chance.choice(DEEDS),
            "sent": chance.choice(SIZES),
        }
        if chance.random() < 0.5:
            plan["sent"] = 0
        if chance.random() < 0.5:
            plan["deed"] = "answer"
        body = content(plan["sent"], key)
        chunked = chance.random() < 0.4
        method = "POST" if body else chance.choice(("GET", "POST", "DELETE"))
        framing = [("Transfer-Encoding", "chunked")] if chunked else [("Content-Length", str(len(body)))]
        sender.write_head(method, f"/{self.entity}/x", self.relay.request_headers(plan, framing))
        if stop == "head" and body:
            await asyncio.sleep(chance.random() * 0.15)
            return False
        half = len(body) // 2
        slow = chance.random() < 0.15
        try:
            for piece in (body[:half], body[half:]):
                if chunked:
                    sender.write_chunk(piece)
                else:
                    sender.write(piece)
                if slow:
                    await asyncio.sleep(chance.random() * 0.25)
                if stop == "half":
                    return False
                await sender.drain()
            if chunked:
                sender.write_last_chunk()
            if stop == "body":
                await asyncio.sleep(chance.random() * 0.05)
                return False
        except (ConnectionError, RuntimeError):
            pass  # an early answer, which is there to be read
        try:
            head = await sender.head(method)
        except Cut as error:
            self.outcomes["cut before the head"] += 1
            # A reset that follows an answer takes it along where the sender has not read it yet.
            if plan["deed"] not in ("break off", "half an answer", "stall") and not body and not slow:
                self.faults.append(f"{plan}: {error!r} in place of an answer")
            return False
        if stop == "answer head":
            return False
        pieces = []
        try:
            while piece := await sender.piece():
                pieces.append(piece)
        except Cut:
            self.outcomes["cut"] += 1
            if head.get("via") is None:
                self.faults.append(f"{plan}: the relay's own answer was cut")
            self._check(plan, head, b"".join(pieces), whole=False)
            return False
        self._check(plan, head, b"".join(pieces), whole=True)
        self.outcomes[str(head.status)] += 1
        return (head.get("connection") or "").lower() != "close"

    def _check(self, plan: dict[str, Any], head: Answer, body: bytes, *, whole: bool) -> None:
        if head.get("via") is None:
            if head.status not in RELAY_MADE:
                self.faults.append(f"{plan}: the relay said {head.status} {head.reason}")
            elif "TrackingId" not in json.loads(body)["error"]["message"]:
                self.faults.append(f"{plan}: no tracking id in {body!r}")
            return
        expected = content(plan["size"], "answer" + plan["key"])
        if head.get("x-key") != plan["key"] or head.reason != plan["key"]:
            self.faults.append(f"{plan}: the head is that of {head.reason}")
        if body != (expected if whole else expected[: len(body)]):
            self.faults.append(f"{plan}: {len(body)} bytes of the answer, whole={whole}, are not those")

    async def end(self) -> None:
        for task in list(self._deeds):
            task.cancel()
        await asyncio.gather(*self._deeds, return_exceptions=True)


def _text(command: object) -> bytes:
    return encode(TEXT, json.dumps(command).encode())


def _binary(payload: bytes) -> bytes:
    return encode(BINARY, payload)


def left_over(node: RelayNode) -> dict[str, int]:
    """Everything that the node keeps of requests."""
    http, frontend = node.node.broker.http, node.node._frontend
    rosters = node.node.directory._rosters.values()
    return {
        "in flight": len(http._in_flight),
        "secrets": len(http._by_secret),
        "legs": len(http._legs),
        "waiting": len(http.waiting),
        "told": len(http._told),
        "placing": len(http._placing),
        "bodies": http.held,
        "records": len(node.node.journal.requests),
        "owed": frontend.in_flight,
        "held": frontend.held,
        "connections": len(frontend.connections),
        "lingering": len(frontend.lingering),
        "idle": len(frontend.idle),
        "heads": len(frontend.heads),
        "placed": sum(len(roster.requests) for roster in rosters),
        "load": sum(len(each.requests) for roster in rosters for each in roster.registered),
    }


async def disorder(seed: int, *, workers: int, requests: int, tls: bool) -> Counter[str]:
    """So many requests of so many senders to each of two hybrid connections; gives how they ended."""
    chance = random.Random(seed)
    entities = {
        "one": {"listener_policy": "round-robin"},
        "two": {"listener_policy": "balanced", "max_requests": workers},
    }
    async with quiet_node(entities, tls=tls, response_timeout=0.8, body_idle_timeout=0.8, tick=0.1) as node:
        parts = [Disorder(node, chance, entity) for entity in entities]
        async with asyncio.TaskGroup() as listeners:
            listening = [
                listeners.create_task(part.listen(restarts=restarts))
                for part in parts
                for restarts in (0.0, 0.01, 0.03)
            ]
            async with asyncio.TaskGroup() as senders:
                for part in parts:
                    for _ in range(workers):
                        senders.create_task(part.send(requests))
            for part in parts:
                await part.end()
            # The senders are gone, and the listeners are not: of requests there must be nothing.
            await node.until(lambda counts: not any(left_over(node).values()), timeout=10)
            for task in listening:
                task.cancel()
        await node.until(lambda counts: not node.node.directory._rosters)
        faults = [fault for part in parts for fault in part.faults]
        assert not faults, "\n".join(faults[:10])
        return sum((part.outcomes for part in parts), Counter[str]())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_requests_in_disorder_get_their_own_answers_and_leave_nothing(tls: bool) -> None:
    outcomes = await disorder(int(tls), workers=12, requests=4, tls=tls)
    assert outcomes["200"] and outcomes["504"], outcomes


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_long_disorder_leaves_nothing(tls: bool) -> None:
    outcomes = await disorder(2 + tls, workers=40, requests=10, tls=tls)
    assert outcomes["200"] and outcomes["504"], outcomes
