"""What an operator sees of a node that is used: exact metrics, and the lines of the log in both forms."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from e2e.quiet_node import look_at_clock, quiet_node
from e2e.raw_websocket import BINARY, CLOSE, TEXT, RawWebSocket, Refused, raw_pair, refusal
from trunkline.protocol import sas
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.server.logs import PREFIX, JsonFormatter, TextFormatter
from trunkline.testing import RelayNode

GUID = "11111111-2222-3333-4444-555555555555"


class Log:
    """All that the node says, at the level that says most, as people and as machines read it."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.json: list[str] = []

    def operations(self) -> Counter[str]:
        return Counter(str(line.get("operation", "")).removeprefix(PREFIX) for line in self.lines())

    def lines(self, operation: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.json]
        return [line for line in lines if operation is None or line.get("operation") == PREFIX + operation]

    def one(self, operation: str) -> dict[str, Any]:
        (line,) = self.lines(operation)
        return line


@pytest.fixture
def log() -> Iterator[Log]:
    logger, kept = logging.getLogger("trunkline"), Log()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.text.append(TextFormatter().format(record))
            kept.json.append(JsonFormatter().format(record))

    handler, before = Handler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(before)


async def scrape(node: RelayNode) -> dict[str, float]:
    """`/metrics`: every sample that is not 0, by its name, its entity unless that is `test`, and its own labels."""
    address = urlsplit(node.admin_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 200 ")
    return {
        _name(sample.name, **sample.labels): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.value
    }


def _name(name: str, *, namespace: str = "", entity: str = "test", kind: str = "", **labels: str) -> str:
    whose = {"test": [], "": ["nobody"]}.get(entity, [entity])
    return " ".join((name, *whose, *labels.values()))


def about(samples: dict[str, float], *names: str) -> dict[str, float]:
    """The samples of some metrics."""
    return {name: value for name, value in samples.items() if name.split(" ")[0] in names}


CONNECTIONS = ("relay_listener_connections_total", "relay_sender_connections_total")
ENDS = ("relay_listener_disconnects_total", "relay_sender_disconnects_total", "relay_token_expirations_total")
PASSED = ("relay_bytes_total", "relay_messages_total")
FAILURES = ("relay_auth_failures_total", "relay_refusals_total")
HELD = ("relay_active_listeners", "relay_active_connections", "relay_waiting_senders")


async def test_connection_is_seen_while_it_runs_and_after_it_has_ended(log: Log) -> None:
    async with quiet_node() as node:
        control = RawWebSocket(
            node.listen_url(id=GUID), token=node.token(), headers=[("Relay-User-Agent", ".NET 3.0.1")]
        )
        async with raw_pair(node, control=control) as pair:
            await pair.sender.send(TEXT, b"question")
            await pair.sender.send(BINARY, bytes(100_000))
            await pair.listener.send(TEXT, b"answer")
            assert (await pair.sender.receive()).payload == b"answer"
            # The relay cuts what is longer than the frame limit; it is one message all the same.
            assert len(await pair.listener.receive_message()) == 1
            assert len(await pair.listener.receive_message()) == 2
            running = await scrape(node)
            assert about(running, *HELD) == {"relay_active_listeners": 1, "relay_active_connections": 1}
            await pair.sender.send_close(1000, "done")
            assert (await pair.listener.receive()).opcode == CLOSE
            await pair.listener.send_close(1000)
            await node.until(lambda now: now["connections"] == 0)
            await pair.control.send_close(1000, "bye")
            await node.until(lambda now: now["listeners"] == 0)
        ended = await scrape(node)
        for samples in (running, ended):
            assert about(samples, *PASSED) == {
                "relay_bytes_total to_listener": 100_008,
                "relay_bytes_total to_sender": 6,
                "relay_messages_total to_listener": 2,
                "relay_messages_total to_sender": 1,
            }
            assert about(samples, *CONNECTIONS) == {
                "relay_listener_connections_total success": 1,
                "relay_sender_connections_total websocket success": 1,
            }
            assert about(samples, "relay_rendezvous_seconds_count", "relay_connect_seconds_count") == {
                "relay_rendezvous_seconds_count": 1,
                "relay_connect_seconds_count": 1,
            }
        assert about(running, *ENDS) == {}
        assert about(ended, *ENDS) == {
            "relay_listener_disconnects_total closed": 1,
            "relay_sender_disconnects_total closed": 1,
        }
        assert about(ended, *HELD) == {}
    assert log.operations() == {
        "NewListenerRegistered": 1,
        "NewSenderRegistering": 1,
        "ListenerAcceptingConnection": 1,
        "SenderListenerConnectionEstablished": 1,
        "SenderConnectionClosed": 1,
        "ListenerUnregistered": 1,
        # The node itself, and what else has no name there.
        "": log.operations()[""],
    }
    closed, unregistered = log.one("SenderConnectionClosed"), log.one("ListenerUnregistered")
    numbers = ("messagesToListener", "bytesToListener", "messagesToSender", "bytesToSender")
    assert [closed[name] for name in numbers] == [2, 100_008, 1, 6]
    assert (closed["cause"], closed["remote"], closed["rule"]) == ("closed", "127.0.0.1", "RootManageSharedAccessKey")
    assert (unregistered["activityId"], unregistered["client"], unregistered["reason"]) == (GUID, ".NET 3.0.1", "bye")
    assert closed["listener"] == unregistered["id"] != closed["id"]
    assert 0 < closed["duration"] <= unregistered["duration"] < 10


async def test_every_way_to_fail_has_its_numbers_and_its_line(log: Log) -> None:
    async with quiet_node(["test", "expiring"], ping_interval=0, control_idle_timeout=0, idle_timeout=0) as node:
        assert (await refusal(node.connect_url(), token=node.token())).status == 504
        assert (await refusal(node.connect_url(), token=node.token(expires_in=-600))).status == 401
        assert (await refusal(node.connect_url(), token="SharedAccessSignature sr=a")).status == 401
        assert (await refusal(node.listen_url())).status == 401
        assert (await refusal(node.listen_url(), token=node.token(rule="send"))).status == 403
        assert (await refusal(node.connect_url("made-up"), token=node.token(""))).status == 404
        # A token that runs out while the channel is open.
        expiring = RawWebSocket(node.listen_url("expiring"), token=node.token("expiring", expires_in=1_000))
        async with expiring:
            look_at_clock(node, ahead=1_100)
            assert (await expiring.receive_answering_pings()).close_code == 1008
        async with RawWebSocket(node.listen_url(), token=node.token()) as control:
            # A rejection by the listener, in its own words.
            async with asyncio.TaskGroup() as tasks:
                rejected = tasks.create_task(refusal(node.connect_url(), token=node.token()))
                more = "&sb-hc-statusCode=418&sb-hc-statusDescription=no%20coffee"
                assert (await refusal((await control.offer())["address"] + more)).status == 410
            assert (rejected.result().status, rejected.result().phrase) == (418, "no coffee")
            # A listener that is cut, and its connection with it.
            sender = RawWebSocket(node.connect_url(), token=node.token())
            await sender.connect()
            async with RawWebSocket((await control.offer())["address"]):
                await sender.upgraded()
                control.abort()
                await sender.ended()
            sender.abort()
        await node.until(lambda now: not any(now.values()))
        samples = await scrape(node)
    assert about(samples, *CONNECTIONS) == {
        "relay_listener_connections_total success": 1,
        "relay_listener_connections_total client_error": 2,
        "relay_listener_connections_total expiring success": 1,
        "relay_sender_connections_total websocket success": 1,
        # Two tokens and the rejection.
        "relay_sender_connections_total websocket client_error": 3,
        "relay_sender_connections_total websocket server_error": 1,
        "relay_sender_connections_total nobody websocket client_error": 1,
    }
    assert about(samples, *ENDS) == {
        "relay_listener_disconnects_total lost": 1,
        "relay_sender_disconnects_total control_channel_lost": 1,
        "relay_listener_disconnects_total expiring token_expired": 1,
        "relay_token_expirations_total expiring": 1,
    }
    assert about(samples, *FAILURES) == {
        "relay_auth_failures_total expired_token": 1,
        "relay_auth_failures_total invalid_token": 1,
        "relay_auth_failures_total missing_token": 1,
        "relay_auth_failures_total access_denied": 1,
        "relay_refusals_total no_listener": 1,
        "relay_refusals_total expired_token": 1,
        "relay_refusals_total invalid_token": 1,
        "relay_refusals_total missing_token": 1,
        "relay_refusals_total access_denied": 1,
        "relay_refusals_total endpoint_not_found": 1,
    }
    operations = log.operations()
    assert {name: operations[name] for name in operations if name.startswith(("Invalid", "Auth", "Processing"))} == {
        "InvalidSasToken": 2,
        "AuthorizationFailed": 2,
        "ProcessingRequestFailed": 2,
    }
    assert log.one("ListenerRejectedConnection")["reason"] == "no coffee"
    assert log.one("ListenerClosingFromExpiredToken")["cause"] == "token_expired"
    assert log.one("ListenerUnregistered")["cause"] == "lost"
    assert log.one("SenderConnectionClosed")["cause"] == "control_channel_lost"


@pytest.mark.loop("uvloop")
async def test_no_key_token_or_secret_is_in_the_log_in_either_form(log: Log) -> None:
    async with quiet_node(["test"]) as node:
        secrets = {node.token(), node.token(expires_in=-600), node.token(rule="send")}
        good, expired = node.token(), node.token(expires_in=-600)
        wrong = sas.sign(sas.audience(node.host, "test"), "listen", "the wrong key", expires_at=2_000_000_000)
        secrets |= {good, expired, wrong, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"}
        attempts = [
            (url, headers)
            for token in secrets
            for action in (node.connect_url, node.listen_url)
            for address in [action(token=token)]
            for url, headers in (
                (address, []),
                # What a client makes of an address that it encodes once too often.
                (address.replace("?", "%3F"), []),
                (action(), [("Authorization", token)]),
                (action(), [("ServiceBusAuthorization", token)]),
            )
        ]
        for number, (url, headers) in enumerate(attempts):
            # Each from another address: refusals of one that fails often come late.
            peer = RawWebSocket(url, headers=headers, local_address=f"127.0.1.{number + 1}")
            with contextlib.suppress(Refused):
                async with peer:
                    pass
        async with raw_pair(node) as pair:
            secrets |= set(parse_qs(urlsplit(pair.address).query)["sb-hc-rendezvous"])
            await pair.control.send_json({"renewToken": {"token": node.token()}})
            await pair.control.send_json({"renewToken": {"token": wrong}})
            assert (await pair.control.receive_answering_pings()).close_code == 1008
        for rule in (rule for each in node.node.catalog.namespaces for rule in each.rules):
            secrets |= set(rule.keys)
        secrets |= {parse_qs(each.partition(" ")[2])["sig"][0] for each in list(secrets) if "sig=" in each}
    assert len(log.text) == len(log.json) > 20
    for line in (*log.text, *log.json):
        assert [secret for secret in secrets if secret in line] == []
        assert "SharedAccessSignature sr=" not in line and "sr%3D" not in line, line


async def test_plain_requests_are_seen_while_they_run_and_after_they_have_ended(log: Log) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def handle(request: HttpRequest) -> HttpResponse:
        body = await request.read()
        if request.suffix == "slow":
            asked.set()
            await answer.wait()
        return HttpResponse(418 if request.suffix == "tea" else 200, body[::-1])

    async with quiet_node() as node, node.listener(http_handler=handle):
        headers = {"ServiceBusAuthorization": node.token()}
        base = node.url.replace("ws", "http", 1)
        async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False) as client:
            slow = asyncio.create_task(client.post("/test/slow?x=secret", content=b"x" * 1_000))  # noqa: TID251
            await asked.wait()
            running = await scrape(node)
            assert about(running, "relay_active_http_requests", "relay_http_body_bytes_total") == {
                "relay_active_http_requests": 1,
                "relay_http_body_bytes_total to_listener": 1_000,
            }
            answer.set()
            assert (await slow).status_code == 200
            assert (await client.get("/test/tea")).status_code == 418
            assert (await client.get("/test", headers={"ServiceBusAuthorization": "none"})).status_code == 401
        await node.until(lambda now: now["http_requests"] == 0)
        ended = await scrape(node)
    assert about(ended, "relay_active_http_requests", "relay_http_requests_total", "relay_http_body_bytes_total") == {
        "relay_http_requests_total 2xx": 1,
        "relay_http_requests_total 4xx": 1,
        "relay_http_requests_total client_error": 1,
        "relay_http_body_bytes_total to_listener": 1_000,
        "relay_http_body_bytes_total to_sender": 1_000,
    }
    assert about(ended, "relay_bytes_total") == {
        "relay_bytes_total to_listener": 1_000,
        "relay_bytes_total to_sender": 1_000,
    }
    assert about(ended, "relay_sender_connections_total") == {
        "relay_sender_connections_total http success": 2,
        "relay_sender_connections_total http client_error": 1,
    }
    assert about(ended, "relay_http_request_seconds_count") == {"relay_http_request_seconds_count": 2}
    first = log.lines("ListenerSentHttpResponse")[0]
    assert (first["method"], first["status"], first["bytesToSender"], first["level"]) == ("POST", 200, 1_000, "debug")
    assert first["activityId"] == log.lines("SenderSentHttpRequest")[0]["activityId"]
    assert not any("secret" in line for line in log.json + log.text)
