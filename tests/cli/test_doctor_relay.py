"""Upgrade, token, hybrid connection, listener and round trip, each broken for real."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Literal

import pytest

from cli.test_doctor_network import served
from nginx_server import nginx
from trunkline.cli import credentials
from trunkline.cli.diagnosis import Step, Subject, run_check, subject_of
from trunkline.cli.doctor import examine
from trunkline.cli.doctor_relay import CLOCK_TOLERANCE, check_token, check_upgrade
from trunkline.protocol import sas
from trunkline.protocol.errors import ConnectionRejected, ServerBusy
from trunkline.sdk import Connection, IncomingConnection, Token
from trunkline.testing import RelayNode, relay_node, relay_node_thread


def subject(text: str, *, listen: bool = False, connect: bool = False) -> Subject:
    who = credentials.read(text, None, None, True)
    return subject_of(who, timeout=5, listen=listen, connect=connect)


async def steps(found: Subject) -> dict[str, Step]:
    """Everything, up to the first failure."""
    return {step.name: step async for step in examine(found)}


async def failed(found: Subject, name: str) -> Step:
    """The step that is the last, and has failed."""
    *_, last = [step async for step in examine(found)]
    assert (last.name, last.state) == (name, "failed"), last
    assert last.remedy
    return last


# --- what answers ---


def address(port: int) -> str:
    return f"Endpoint=sb://127.0.0.1:{port}/;SharedAccessKeyName=all;SharedAccessKey=c2VjcmV0;EntityPath=test"


async def upgrade_of(answer: bytes, to_upgrade: bytes = b"") -> Step:
    """The step where each request is answered so."""

    with served(None, lambda head: to_upgrade if b"Upgrade:" in head else answer) as port:
        found = subject(address(port))
        found.address = "127.0.0.1"
        return await run_check("upgrade", check_upgrade, found)


RELAY = b"HTTP/1.1 400 This endpoint is only for web-socket requests. TrackingId:x\r\nServer: relay\r\n"


@pytest.mark.parametrize(
    ("answer", "text", "remedy"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n<html>", "but a web server or a portal: 200 OK (nginx)", "host and"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal\r\n\r\n", "but a portal: 302 Found", "sign in"),
        (b"HTTP/1.1 404\r\n\r\n", "a web server or a portal: 404", "host and port"),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\n\r\n",
            "does not answer; 502 Bad Gateway (nginx)",
            "look after",
        ),
        (b"HTTP/1.1 400 The request is HTTP/1.0; speak HTTP/1.1\r\n\r\n", "speaks HTTP/1.0", "proxy_http_version 1.1"),
        (b"", "closed without an answer", "filters HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer in HTTP, but with b'SSH-2.0-OpenSSH_9.6", "check the port"),
    ],
)
@pytest.mark.loop("uvloop")
async def test_what_is_no_relay_is_told_apart(answer: bytes, text: str, remedy: str) -> None:
    step = await upgrade_of(answer)
    assert step.state == "failed" and text in step.text and remedy in step.remedy


@pytest.mark.parametrize(
    ("to_upgrade", "text"),
    [
        (RELAY + b"\r\n", "takes the header Upgrade away"),
        (b"", "HTTP passes, and a WebSocket is cut off"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "HTTP passes, and a WebSocket is cut off"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "answer to the upgrade is invalid"),
    ],
)
@pytest.mark.loop("uvloop")
async def test_something_that_lets_no_websocket_pass_is_named(to_upgrade: bytes, text: str) -> None:
    step = await upgrade_of(RELAY + b"\r\n", to_upgrade)
    assert step.state == "failed" and text in step.text and step.remedy


@pytest.mark.loop("uvloop")
async def test_relay_behind_one_that_drops_reason_phrases_is_still_known() -> None:
    body = b"This endpoint is only for web-socket requests. TrackingId:x\n"
    step = await upgrade_of(b"HTTP/1.1 400 Bad Request\r\n\r\n" + body, b"HTTP/1.1 401 Unauthorized\r\n\r\n")
    assert step.state == "ok"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("proxy_http_version 1.1;", "something between here and the relay (nginx/"),
        ("proxy_http_version 1.0;", "what stands before the relay (nginx/"),
        (
            "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;",
            "",
        ),
    ],
    ids=["eats upgrades", "HTTP/1.0", "as the remedy says"],
)
@pytest.mark.loop("asyncio")
async def test_nginx_that_takes_the_upgrade_away_is_named_with_what_to_write(more: str, text: str) -> None:
    async with relay_node() as node:
        with nginx(node.port, more) as port:
            through = node.connection_string().replace(str(node.port), str(port))
            if text:
                step = await failed(subject(through), "upgrade")
                assert text in step.text and "proxy_set_header Upgrade $http_upgrade" in step.remedy
            else:
                assert (await steps(subject(through)))["round trip"].state == "ok"


async def test_port_that_speaks_tls_is_not_spoken_to_without() -> None:
    with relay_node_thread(tls=True) as node:  # in a loop of its own: it logs what we cut off
        step = await failed(subject(node.connection_string()), "upgrade")
        assert step.text == f"port {node.port} speaks TLS" and "--no-tls" in step.remedy


# --- token ---


def with_token(node: RelayNode, token: str) -> str:
    return f"Endpoint=sb://127.0.0.1:{node.port}/;SharedAccessSignature={token};EntityPath=test"


@pytest.mark.loop("uvloop")
async def test_each_refusal_of_a_token_has_its_words_and_its_remedy() -> None:
    async with relay_node({"test": {"max_token_lifetime": 1800}}) as node:
        host = "127.0.0.1"
        key = node.connection_string().partition("SharedAccessKey=")[2].partition(";")[0]
        name = "RootManageSharedAccessKey"

        def signed(audience: str = f"http://{host}/test", key: str = key, name: str = name, left: int = 600) -> str:
            return with_token(node, sas.sign(audience, name, key, expires_at=int(time.time()) + left))

        cases = [
            (signed(key="bm90IHRoZSBrZXk="), "InvalidSignature", "copy the connection string anew"),
            (signed(name="nobody"), "InvalidSignature", "copy the connection string anew"),
            (signed(left=-600), "ExpiredToken", "make a new token"),
            (signed(audience="http://elsewhere.example/test"), "InvalidAudience", "host name that the relay has"),
            (signed(audience=f"http://{host}/other"), "InvalidAudience", "for this hybrid connection"),
            (signed(left=86_000), "TokenLifetimeExceeded", "max_token_lifetime"),
            (with_token(node, "eyJhbGciOiJub25lIn0.eyJhIjoxfQ.c2ln"), "InvalidToken", "shared access signature"),
            (f"Endpoint=sb://{host}:{node.port}/;EntityPath=test", "MissingToken", "with a key"),
        ]
        for text, word, remedy in cases:
            step = await failed(subject(text), "token")
            assert word in step.text and remedy in step.remedy
            assert "sig=" not in step.text and key not in str(step)
        assert "rule nobody for http://127.0.0.1/test" in (await failed(subject(cases[1][0]), "token")).text
        # A key of the connection string is good for an hour, which is too long here too.
        assert "TokenLifetimeExceeded" in (await failed(subject(node.connection_string()), "token")).text


@pytest.mark.loop("uvloop")
async def test_token_step_says_who_and_until_when_and_warns_of_manage() -> None:
    async with relay_node() as node:
        found = await steps(subject(node.connection_string(rights=["Send"]), listen=True))
        assert found["token"].state == "ok"
        said = found["token"].text
        assert re.fullmatch(r"rule send for http://127\.0\.0\.1/test until [-0-9]+ [0-9:]+ UTC: accepted, Send", said)
        assert 3590 < found["token"].facts["seconds_left"] <= 3601 and found["token"].facts["send"] is True
        found = await steps(subject(node.connection_string()))
        assert found["token"].state == "warned" and "for managing" in found["token"].text
        found = await steps(subject(node.connection_string(rights=["Listen"])))
        assert "accepted, no right to send" in found["token"].text and found["token"].facts["send"] is False


@pytest.mark.parametrize(
    ("ahead", "words"), [(3600, "3600 s behind the relay's"), (-3600, "3600 s ahead of the relay's")]
)
@pytest.mark.loop("uvloop")
async def test_clock_that_is_off_is_measured_against_the_relay(ahead: float, words: str) -> None:
    date = formatdate(time.time() + ahead, usegmt=True).encode()

    refusal = b"HTTP/1.1 401 ExpiredToken: The token is expired. TrackingId:x\r\n"

    def answer(head: bytes) -> bytes:
        return (refusal if b"Upgrade:" in head else RELAY) + b"Date: " + date + b"\r\n\r\n"

    with served(None, answer) as port:
        step = await failed(subject(address(port)), "token")
    found = re.search(r"([0-9]+) s (behind|ahead of) the relay's", step.remedy)
    assert found and abs(int(found[1]) - 3600) <= 2 and found[2] in words


async def test_clock_and_long_tokens_are_warnings_where_the_relay_takes_them() -> None:
    found = subject(address(1))
    found.token = Token(sas.sign("http://127.0.0.1/test", "send", "key", expires_at=int(time.time()) + 200_000), None)
    found.clock_ahead = CLOCK_TOLERANCE + 1
    step = await check_token(found)
    assert step.state == "warned" and "31 s behind" in step.text and "longer than 24 h" in step.text
    found.clock_ahead = -CLOCK_TOLERANCE + 1
    assert "clock" not in (await check_token(found)).text


# --- hybrid connection, listener, round trip ---


@pytest.mark.loop("uvloop")
async def test_hybrid_connection_that_is_not_there_or_disabled() -> None:
    async with relay_node({"test": {}, "off": {"enabled": False}}) as node:
        step = await failed(subject(node.connection_string("nothing")), "hybrid connection")
        assert "Endpoint does not exist" in step.text and "EntityPath" in step.remedy
        step = await failed(subject(node.connection_string("off")), "hybrid connection")
        assert "disabled" in step.text and "enable" in step.remedy


async def echo(connection: Connection) -> None:
    async for message in connection:
        await connection.send(message)


@asynccontextmanager
async def listening(node: RelayNode, seen: list[IncomingConnection]) -> AsyncIterator[None]:
    """Somebody who listens, and keeps what was offered."""
    async with node.listener(accept_handler=lambda incoming: seen.append(incoming)) as listener:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listener.serve(echo))
            yield
            await listener.close()


@pytest.mark.parametrize("preset", ["default", "azure"])
@pytest.mark.loop("uvloop")
async def test_nobody_listens_and_the_doctor_stands_in_only_with_the_right_to(
    preset: Literal["default", "azure"],
) -> None:
    async with relay_node(preset=preset) as node:
        found = await steps(subject(node.connection_string()))
        assert found["listener"].state == "warned" and "nobody listens" in found["listener"].text
        assert found["round trip"].state == "ok" and found["round trip"].facts["round_trip_ms"] > 0
        step = await failed(subject(node.connection_string(rights=["Send"])), "listener")
        assert step.text == "nobody listens" and step.remedy == "start a listener: trunkline listen"
        found = await steps(subject(node.connection_string(rights=["Listen"])))
        assert found["listener"].state == "ok" and "this key may listen" in found["listener"].text
        assert (found["round trip"].state, found["round trip"].text) == ("skipped", "this key may not send")
        await node.until(lambda now: now["listeners"] == 0 and now["connections"] == 0)


async def test_listener_that_is_there_notices_nothing_unless_asked() -> None:
    async with relay_node(listener_policy="round-robin") as node:
        seen: list[IncomingConnection] = []
        async with listening(node, seen):
            found = await steps(subject(node.connection_string()))
            assert found["listener"].text == "somebody listens" and found["listener"].state == "ok"
            assert found["round trip"].state == "skipped" and "--connect" in found["round trip"].text
            assert not seen
            found = await steps(subject(node.connection_string(), listen=True))
            assert found["listener"].text == "somebody listens; this key may listen"
            assert found["round trip"].state == "ok" and not seen
            found = await steps(subject(node.connection_string(rights=["Send"]), connect=True))
            assert found["round trip"].state == "ok" and found["round trip"].facts["connect_ms"] > 0
            assert len(seen) == 1
            step = await failed(subject(node.connection_string(rights=["Send"]), listen=True), "listener")
            assert "this key cannot listen" in step.text and "'Listen' claim" in step.text


async def test_doctors_listener_turns_strangers_away_so_that_they_come_again() -> None:
    async with relay_node() as node:
        found = subject(node.connection_string())
        async for step in examine(found):
            if step.name == "listener":
                with pytest.raises(ServerBusy, match="trunkline doctor is looking"):
                    await node.client().create_connection()
        assert step.name == "round trip" and step.state == "ok"


async def test_listener_that_rejects_or_does_not_come_is_told_in_its_words() -> None:
    async with relay_node({"test": {"rendezvous_timeout": 0.2}}, tick=0.05) as node:

        def reject(incoming: IncomingConnection) -> None:
            incoming.reject(418, "I am a teapot")

        async def never(incoming: IncomingConnection) -> None:
            await asyncio.sleep(60)

        for handler, text, remedy in (
            (reject, "418 I am a teapot", ""),
            (never, "ConnectionNotEstablished", "check the"),
        ):
            async with node.listener(accept_handler=handler):
                last = [step async for step in examine(subject(node.connection_string(), connect=True))][-1]
                assert (last.name, last.state) == ("round trip", "failed")
                assert text in last.text and remedy in last.remedy
        assert issubclass(ConnectionRejected, Exception)


@pytest.mark.loop("uvloop")
async def test_hybrid_connection_without_room_for_a_sender() -> None:
    async with relay_node({"test": {"max_senders": 1}}) as node:
        seen: list[IncomingConnection] = []
        async with listening(node, seen):
            async with await node.client().create_connection():
                step = await failed(subject(node.connection_string()), "listener")
                assert "max_senders" in step.text and "raise the limit" in step.remedy


@pytest.mark.loop("uvloop")
async def test_anonymous_sender_needs_no_token() -> None:
    async with relay_node({"test": {"requires_client_authorization": False}}) as node:
        seen: list[IncomingConnection] = []
        async with listening(node, seen):
            found = await steps(subject(f"Endpoint=sb://127.0.0.1:{node.port}/;EntityPath=test"))
            assert found["token"].text == "none; the relay takes anonymous senders here"
            assert found["listener"].state == "ok"
