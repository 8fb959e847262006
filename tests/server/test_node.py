"""A whole node: how it starts, drains, stops and reloads, and what of it is left."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from otlp_collector import collector
from server.relay.peers import Answer, Peer, frame, handshake, target_of, until
from trunkline._version import __version__
from trunkline.protocol import sas
from trunkline.protocol.errors import EntityQuotaExceeded, InvalidSetting
from trunkline.protocol.frames import Opcode
from trunkline.protocol.sas import Right
from trunkline.server import metrics
from trunkline.server import node as node_module
from trunkline.server.config.declarative import (
    Declaration,
    DeclaredHybridConnection,
    DeclaredNamespace,
    DeclaredRule,
)
from trunkline.server.config.settings import NodeSettings
from trunkline.server.entities.model import hybrid_connection_id, namespace_id
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.entities.store import StoreLocked
from trunkline.server.metrics import METRICS
from trunkline.server.node import Node, Tasks
from trunkline.server.relay.sockets import descriptor_limit
from trunkline.server.spare_memory import ENOUGH, SpareMemory
from trunkline.server.status import Phase

NAMESPACE = "myRelayNS"
HOST = "myrelayns.localhost"
ADMIN_TOKEN = "token-of-the-admin"


def declared(*names: str, key: str | None = "secret-key", **limits: Any) -> Declaration:
    """What a file with these hybrid connections says."""
    rule = DeclaredRule("Root", frozenset(Right), key, key and f"{key}-2")
    children = tuple(DeclaredHybridConnection(name, limits) for name in names or ("orders",))
    return Declaration("trunkline.toml", (DeclaredNamespace(NAMESPACE, rules=(rule,), hybrid_connections=children),))


def settings(**values: Any) -> NodeSettings:
    own = {"port": 0, "admin_port": 0, "admin_socket": "off", "admin_token": ADMIN_TOKEN, "tls": "off"}
    return NodeSettings.model_validate({**own, **values})


def new_node(declaration: Declaration | None = None, **values: Any) -> Node:
    """A node in memory that looks at its clock often."""
    return Node(settings(**values), declaration or declared(), store=SqliteStore(":memory:"), tick=0.01)


def token(path: str = "orders", key: str = "secret-key") -> str:
    return sas.sign(sas.audience(HOST, path), "Root", key, expires_at=int(time.time()) + 3_600)


async def asked(node: Node, path: str, method: str = "GET", *, token: str = "") -> tuple[int, Any]:
    """What the admin port answers."""
    async with await Peer.dial(node.admin_port) as peer:
        headers = f"Authorization: Bearer {token}\r\n" if token else ""
        peer.send(f"{method} {path} HTTP/1.1\r\nHost: admin\r\n{headers}\r\n".encode())
        answer = await peer.answer()
        body = await peer.to_end()
    return answer.status, json.loads(body) if body else None


async def scraped(node: Node) -> tuple[Answer, str]:
    """The answer of `/metrics`."""
    async with await Peer.dial(node.admin_port) as peer:
        peer.send(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{node.admin_port}\r\n\r\n".encode())
        return await peer.answer(), (await peer.to_end()).decode()


async def dial(node: Node, action: str, path: str = "orders", tls: ssl.SSLContext | None = None) -> Peer:
    peer = await Peer.dial(node.port, tls)
    target = f"/$hc/{path}?sb-hc-action={action}"
    peer.send(handshake(target, [("ServiceBusAuthorization", token(path))], host=f"{HOST}:{node.port}"))
    return peer


async def listener_on(node: Node, path: str = "orders") -> Peer:
    peer = await dial(node, "listen", path)
    assert (await peer.answer()).status == 101
    return peer


async def pair_on(node: Node, listener: Peer) -> tuple[Peer, Peer]:
    sender = await dial(node, "connect")
    leg = await Peer.dial(node.port)
    leg.send(handshake(target_of((await listener.offer())["address"])))
    assert (await leg.answer()).status == 101
    assert (await sender.answer()).status == 101
    return sender, leg


async def can_talk(sender: Peer, leg: Peer) -> None:
    sender.send_frame(Opcode.TEXT, b"hello")
    assert await leg.message() == b"hello"
    leg.send_frame(Opcode.TEXT, b"hello back")
    assert await sender.message() == b"hello back"


def is_listening(node: Node) -> bool:
    # Not by connecting: another program may have the port by now.
    return any(server.sockets for server in node._servers)


def nothing(node: Node) -> bool:
    return not any(node.counts().values())


@pytest.fixture(autouse=True)
def short_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that stops does not wait long for peers that have nothing to say."""
    monkeypatch.setattr(node_module, "FAREWELL", 0.2)


# -- start and stop


async def test_control_channels_and_connections_have_short_names_that_no_other_run_gives() -> None:
    names = []
    for _ in range(2):
        async with new_node() as node, await dial(node, "listen") as listener:
            assert (await listener.answer()).status == 101
            (only,) = node.broker.channels
            names.append(only.id)
    assert [re.fullmatch(r"1-[0-9a-f]{4}", name) is not None for name in names] == [True, True]


async def test_a_node_that_has_started_serves_at_once_and_one_that_has_stopped_no_more() -> None:
    node = new_node()
    assert str(node.phase) == "starting"
    async with node:
        assert str(node.phase) == "ready"
        assert node.url == f"http://localhost:{node.port}"
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        await can_talk(sender, leg)
        assert node.counts()["connections"] == 1
        assert repr(node).startswith("<Node ready {")
        status, ready = await asked(node, "/readyz")
        assert (status, ready["status"], ready["listeners"], ready["senders"]) == (200, "ready", 1, 1)
        assert ready == {"status": "ready", **node.counts()}
    assert str(node.phase) == "stopped"
    assert nothing(node)
    assert not node._tasks._running and not node._watches._running
    assert not is_listening(node)
    assert (await listener.frame()).close.code == 1001
    assert await sender.is_cut() and await leg.is_cut()
    for peer in (listener, sender, leg):
        await peer.leave()


async def test_listeners_hear_of_a_stop_before_the_ports_close() -> None:
    async with new_node() as node:
        listener = await listener_on(node)
        stopping = asyncio.get_running_loop().create_task(node.stop())
        close = (await listener.frame()).close
        assert (close.code, close.reason[:10]) == (1001, "ServerBusy")
        # It comes back, and is held until the next node answers it: a refusal would make some clients try twice.
        again = await dial(node, "listen")
        await until(lambda: node.counts()["handshakes"] == 1)
        assert not again.reader._buffer  # type: ignore[attr-defined]
        listener.send_close(1001)
        await listener.leave()
        async with asyncio.timeout(1):
            await stopping
        assert await again.is_cut()
        await again.leave()


async def test_stopping_twice_is_stopping_once() -> None:
    node = new_node()
    await node.start()
    await asyncio.gather(node.stop(), node.stop())
    await node.stop()
    await node.drain()
    assert node.phase is Phase.STOPPED


async def test_a_node_that_was_never_started_can_be_stopped() -> None:
    node = new_node()
    await node.stop()
    assert nothing(node)


async def test_connections_that_are_only_closing_do_not_outlive_the_node() -> None:
    async with new_node() as node:
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        sender.send_close()
        await leg.frame()
        leg.send_close()
        await sender.frame()
        await until(lambda: not len(node.splicing))
        # Neither has closed its socket yet.
    for peer in (sender, leg):
        async with asyncio.timeout(1):
            assert await peer.to_end() == b""
        await peer.leave()
    listener.writer.transport.abort()


async def test_a_port_that_is_taken_is_told_with_the_remedy_and_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name in ("port", "admin_port"):
            node = Node(settings(**{name: port, "data": tmp_path}), declared())
            with pytest.raises(InvalidSetting) as caught:
                async with node:
                    raise AssertionError("it started")
            text = caught.value.message
            assert f"cannot listen on 127.0.0.1:{port}" in text
            assert f"set another {name}" in text
            assert not is_listening(node)
    # The store was let go: the next node has it.
    async with Node(settings(data=tmp_path), declared()) as node:
        assert node.phase is Phase.READY


async def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(InvalidSetting, match=r"cannot listen on 192\.0\.2\.1:0: .*Set admin_host to an address"):
        async with new_node(admin_host="192.0.2.1"):
            pass


async def test_a_second_node_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with Node(settings(data=tmp_path), declared()) as first:
        with pytest.raises(StoreLocked):
            async with Node(settings(data=tmp_path), declared()):
                pass
        listener = await listener_on(first)
        await listener.leave()


async def test_entities_and_generated_keys_outlive_the_node(tmp_path: Path) -> None:
    rule = namespace_id(NAMESPACE)
    async with Node(settings(data=tmp_path), declared(key=None)) as first:
        before = first.catalog.get(rule)
    async with Node(settings(data=tmp_path)) as second:
        assert before is not None and second.catalog.get(rule) == before
        assert before.rules[0].primary_key not in repr(second) + repr(before)


# -- the admin port


async def test_the_admin_port_answers_health_to_anybody_and_the_rest_for_its_token() -> None:
    async with new_node() as node:
        assert await asked(node, "/healthz") == (200, {"status": "alive"})
        assert (await asked(node, "/readyz?verbose"))[0] == 200
        status, refused = await asked(node, "/listeners")
        assert status == 401 and "admin token" in refused["error"]
        assert await asked(node, "/listeners", token=ADMIN_TOKEN) == (200, {"listeners": [], "total": 0})
        assert await asked(node, "/readyz", "HEAD") == (200, None)
        # Entities are not served here, nor the node's state on the data port.
        async with await Peer.dial(node.port) as peer:
            peer.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await peer.answer()).status == 401


async def test_the_unix_socket_is_there_while_the_node_runs_and_asks_for_no_token(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    # As a node leaves it that was killed.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    given = settings(data=tmp_path, admin_socket="admin.sock", admin_token=None)
    async with Node(given, declared(), tick=0.01) as node:
        assert path.stat().st_mode & 0o777 == 0o600
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /listeners HTTP/1.1\r\nHost: node\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b'{"listeners": [], "total": 0}\n')
        writer.close()
        await writer.wait_closed()
        made = (tmp_path / "admin-token").read_text().strip()
        assert (await asked(node, "/connections", token=made))[0] == 200
    assert not path.exists()


async def test_another_node_has_the_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "shared.sock")
    async with Node(settings(data=tmp_path / "a", admin_socket=path), declared()):
        with pytest.raises(InvalidSetting, match="set another admin_socket"):
            async with Node(settings(data=tmp_path / "b", admin_socket=path), declared()):
                pass


# -- the clock


async def test_deadlines_are_looked_at_while_the_node_runs() -> None:
    async with new_node(declared(idle_timeout=0.05)) as node:
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        assert (await sender.frame()).close.reason.startswith("IdleTimeout")
        assert (await leg.frame()).close.code == 1001
        for peer in (sender, leg, listener):
            await peer.leave()
        await until(lambda: nothing(node))


async def test_one_part_that_fails_does_not_stop_the_clock_of_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = new_node(declared(idle_timeout=0.05))
    monkeypatch.setattr(node.broker, "tick", lambda now: 1 / 0)
    async with node:
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        assert (await sender.frame()).close.code == 1001
        assert "ZeroDivisionError" in caplog.text
        for peer in (sender, leg, listener):
            await peer.leave()


# -- draining


async def draining(node: Node) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(node.drain())
    await until(lambda: node.phase is Phase.DRAINING)
    return task


async def test_a_node_that_drains_takes_nothing_new_and_waits_for_what_runs() -> None:
    async with new_node() as node:
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        task = await draining(node)
        assert (await asked(node, "/readyz"))[0] == 503
        assert await asked(node, "/healthz") == (200, {"status": "alive"})
        refused = await dial(node, "connect")
        answer = await refused.answer()
        assert (answer.status, answer.phrase[:11]) == (503, "ServerBusy:")
        held = await dial(node, "listen")
        for _ in range(5):
            await can_talk(sender, leg)
            await asyncio.sleep(0.01)
        assert not task.done()
        assert not held.reader._buffer  # type: ignore[attr-defined]
        sender.send_close()
        await leg.frame()
        leg.send_close()
        async with asyncio.timeout(2):
            await task
        assert len(node.broker.channels) == 1
        for peer in (refused, held, sender, leg, listener):
            await peer.leave()
    assert nothing(node)


async def test_the_last_bytes_of_a_connection_are_waited_for() -> None:
    data = b"x" * 12_000_000
    async with new_node() as node:
        listener = await listener_on(node)
        sender, slow = await pair_on(node, listener)
        (connection,) = node.splicing
        sender.send_close()
        await slow.frame()
        connection.legs[1].write(data)
        slow.send_close()
        await until(lambda: not len(node.splicing))
        task = await draining(node)
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not task.done()
        assert (await slow.to_end())[: len(data)] == data
        await slow.leave()
        await sender.leave()
        async with asyncio.timeout(2):
            await task
        await listener.leave()


async def test_a_sender_that_waits_is_waited_for() -> None:
    async with new_node() as node:
        listener = await listener_on(node)
        waiting = await dial(node, "connect")
        await listener.offer()
        task = await draining(node)
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not task.done()
        await waiting.leave()
        async with asyncio.timeout(2):
            await task
        await listener.leave()


async def test_memory_is_given_back_when_connections_for_plain_requests_have_gone() -> None:
    async with new_node() as node:
        given: list[None] = []
        node._spare_memory = SpareMemory(lambda: given.append(None))

        async def kept_alive() -> Peer:
            peer = await Peer.dial(node.port)
            signed = f"ServiceBusAuthorization: {token()}"
            peer.send(f"GET /orders HTTP/1.1\r\nHost: {HOST}:{node.port}\r\n{signed}\r\n\r\n".encode())
            assert (await peer.response())[0].status == 504
            return peer

        # The first one that goes is reason enough, and the next only after a while.
        first = await kept_alive()
        await until(lambda: node._spare_memory._last == 1)
        await first.leave()
        await until(lambda: len(given) == 1)
        peers = [await kept_alive() for _ in range(ENOUGH)]
        await until(lambda: node._spare_memory._last == len(peers))
        for peer in peers:
            peer.reset()
        await until(lambda: len(given) == 2)


async def test_an_idle_node_is_drained_at_once() -> None:
    async with new_node() as node:
        async with asyncio.timeout(2):
            await node.drain()
        assert node.phase is Phase.DRAINING


async def test_a_second_signal_ends_the_wait() -> None:
    async with new_node() as node:
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        task = await draining(node)
        node.hurry()
        async with asyncio.timeout(2):
            await task
        await can_talk(sender, leg)
        await listener.leave()
    assert await sender.is_cut() and await leg.is_cut()
    await sender.leave()
    await leg.leave()


async def test_draining_ends_after_its_time(caplog: pytest.LogCaptureFixture) -> None:
    async with new_node(limits={"drain_timeout": 0.05}) as node:
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        async with asyncio.timeout(2):
            await node.drain()
        assert "connections are cut after 0.05 s" in caplog.text
        for peer in (sender, leg, listener):
            await peer.leave()


# -- sockets that somebody else holds too


def listening_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def test_a_node_serves_on_the_sockets_that_it_is_handed_and_leaves_them_to_the_next() -> None:
    with listening_socket() as data, listening_socket() as admin:
        for _ in range(2):
            handed = {"data": [data.dup()], "admin": [admin.dup()]}
            async with Node(settings(port=1), declared(), store=SqliteStore(":memory:"), sockets=handed) as node:
                assert (node.port, node.admin_port) == (data.getsockname()[1], admin.getsockname()[1])
                assert (await asked(node, "/readyz"))[0] == 200
                listener = await listener_on(node)
                await listener.leave()
        # Nobody serves it, and nobody is refused.
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection("127.0.0.1", data.getsockname()[1])
        writer.close()


async def test_an_ipv4_client_of_a_socket_for_both_families_is_one_of_ipv4() -> None:
    """As the socket unit of systemd opens it."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        handed = {"data": [both.dup()]}
        async with Node(settings(), declared(), store=SqliteStore(":memory:"), sockets=handed) as node:
            listener = await listener_on(node)
            [channel] = node.broker.channels
            assert channel.facts.remote == listener.writer.get_extra_info("sockname")
            await listener.leave()


async def test_a_node_that_drains_leaves_who_comes_to_the_next_one_when_nobody_is_half_way() -> None:
    with listening_socket() as data:
        handed = {"data": [data.dup(), listening_socket()]}
        async with Node(settings(), declared(), store=SqliteStore(":memory:"), sockets=handed, tick=0.01) as node:
            listener = await listener_on(node)
            sender = await dial(node, "connect")
            offer = await listener.offer()
            task = await draining(node)
            # The sender waits for a listener that has to come to this node, and so does another one that comes now.
            leg = await Peer.dial(node.port)
            leg.send(handshake(target_of(offer["address"])))
            assert (await leg.answer()).status == 101
            assert (await sender.answer()).status == 101
            await until(lambda: node.broker.draining)
            late = await dial(node, "listen")
            await can_talk(sender, leg)
            assert not node.counts()["handshakes"]
            node.hurry()
            await task
            await listener.leave()
        handed = {"data": [data.dup()]}
        async with Node(settings(), declared(), store=SqliteStore(":memory:"), sockets=handed) as after:
            assert (await late.answer()).status == 101
            assert after.counts()["listeners"] == 1
            for peer in (sender, leg, late):
                await peer.leave()


async def test_a_node_waits_no_longer_than_it_may_for_those_who_are_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "HANDING_OVER", 0.02)
    handed = {"data": [listening_socket()]}
    async with Node(settings(), declared(), store=SqliteStore(":memory:"), sockets=handed, tick=0.01) as node:
        async with await Peer.dial(node.port) as slow:
            slow.send(b"GET /")
            await until(lambda: node.counts()["handshakes"])
            async with asyncio.timeout(2):
                await node.drain()
            slow.send(b"$hc/orders HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await slow.answer()).status == 400


# -- reloading


async def test_reloading_brings_and_takes_entities_at_once() -> None:
    async with new_node(declared("orders", "old")) as node:
        kept, gone = await listener_on(node), await listener_on(node, "old")
        await node.reload(declared("orders", "new"))
        assert node.catalog.get(hybrid_connection_id(namespace_id(NAMESPACE), "new")) is not None
        assert (await gone.frame()).close.code == 1001
        new = await listener_on(node, "new")
        sender, leg = await pair_on(node, kept)
        refused = await dial(node, "listen", "old")
        assert (await refused.answer()).status == 404
        for peer in (kept, gone, new, sender, leg, refused):
            await peer.leave()
        assert node.catalog.get(hybrid_connection_id(namespace_id(NAMESPACE), "old")) is None


async def test_a_reload_that_is_refused_changes_nothing() -> None:
    async with new_node(limits={"max_hybrid_connections": 2}) as node:
        listener = await listener_on(node)
        with pytest.raises(EntityQuotaExceeded):
            await node.reload(declared("a", "b", "c"))
        sender, leg = await pair_on(node, listener)
        await can_talk(sender, leg)
        for peer in (sender, leg, listener):
            await peer.leave()
        await node.reload(None)


async def test_reloading_takes_other_settings_over_and_names_those_that_wait_for_a_restart() -> None:
    async with new_node(limits={"max_senders": 1, "ping_interval": 30}) as node:
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        wanted = settings(
            port=1,
            domain="example.com",
            public_url="https://relay.example.com",
            limits={"max_senders": 2, "ping_interval": 0.01, "drain_timeout": 0.02},
        )
        assert await node.reload(None, wanted) == ("port",)
        assert await node.reload(declared(), wanted) == ("port",)
        assert node.settings == wanted.model_copy(update={"port": 0})
        assert node.url == "https://relay.example.com"
        # For a listener that was there, and for a sender that comes now.
        assert (await listener.frame()).opcode is Opcode.PING
        second = await dial(node, "connect")
        offer = await listener.offer()
        assert offer["address"].startswith("wss://relay.example.com/$hc/orders")
        assert node.catalog.hosts() == {"myrelayns.example.com"}
        await can_talk(sender, leg)
        async with asyncio.timeout(2):
            await node.drain()
        for peer in (sender, second, leg, listener):
            await peer.leave()


async def test_reloading_takes_another_admin_token_over(tmp_path: Path) -> None:
    async with new_node() as node:
        assert (await asked(node, "/listeners", token=ADMIN_TOKEN))[0] == 200
        assert await node.reload(None, settings(admin_token="another-token-of-the-operator")) == ()
        assert (await asked(node, "/listeners", token=ADMIN_TOKEN))[0] == 401
        assert (await asked(node, "/listeners", token="another-token-of-the-operator"))[0] == 200
    # One that is kept in a file is read again.
    kept = settings(admin_token=None, data=tmp_path)
    async with Node(kept, declared(), store=SqliteStore(":memory:")) as node:
        (tmp_path / "admin-token").write_text("a-token-that-was-put-there\n")
        await node.reload(None)
        assert (await asked(node, "/listeners", token="a-token-that-was-put-there"))[0] == 200
        (tmp_path / "admin-token").write_text("")
        with pytest.raises(InvalidSetting, match="holds no token"):
            await node.reload(declared("another"))
        assert node.catalog.get(hybrid_connection_id(namespace_id(NAMESPACE), "another")) is None


async def test_a_reload_counts_the_room_that_its_own_settings_give() -> None:
    async with new_node(limits={"max_hybrid_connections": 1}) as node:
        less = settings(limits={"max_hybrid_connections": 2})
        with pytest.raises(EntityQuotaExceeded):
            await node.reload(declared("a", "b", "c"), less)
        assert node.settings.limits == {"max_hybrid_connections": 1}
        await node.reload(declared("a", "b"), less)
        assert node.settings.limits == {"max_hybrid_connections": 2}


async def test_a_reload_with_certificates_that_do_not_fit_changes_nothing(tmp_path: Path) -> None:
    files = {"certificate": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(files["key"]))
    issued.cert_chain_pems[0].write_to_path(str(files["certificate"]))
    async with new_node(tls=files) as node:
        before = node.settings
        wanted = settings(tls={**files, "key": tmp_path / "none.pem"}, domain="example.com")
        with pytest.raises(InvalidSetting, match=r"none\.pem cannot be read"):
            await node.reload(declared("another"), wanted)
        assert node.settings is before
        assert node.catalog.get(hybrid_connection_id(namespace_id(NAMESPACE), "another")) is None


async def test_reloading_reads_the_certificate_again(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def issue() -> str:
        issued = trustme.CA().issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        return certificate.read_text().strip()

    async def shown() -> str:
        return (await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", node.port))).strip()

    first = issue()
    async with new_node(tls={"certificate": certificate, "key": key}) as node:
        assert node.url.startswith("https://")
        assert node.ca_file is None
        assert await shown() == first
        second = issue()
        assert await shown() == first
        await node.reload(None)
        assert await shown() == second


async def test_a_development_node_speaks_tls_that_its_ca_file_vouches_for(tmp_path: Path) -> None:
    async with new_node(tls="development", data=tmp_path) as node:
        assert node.ca_file == tmp_path / "ca.pem"
        context = ssl.create_default_context(cafile=str(node.ca_file))
        context.check_hostname = False
        listener = await dial(node, "listen", tls=context)
        assert (await listener.answer()).status == 101
        sender = await dial(node, "connect", tls=context)
        assert (await listener.offer())["address"].startswith(f"wss://{HOST}:{node.port}/$hc/orders?")
        await sender.leave()
        await listener.leave()


@pytest.mark.loop("uvloop")
async def test_a_public_address_is_what_everybody_is_told() -> None:
    async with new_node(public_url="https://relay.example:443") as node:
        assert node.url == "https://relay.example:443"
        listener = await listener_on(node)
        sender = await dial(node, "connect")
        assert (await listener.offer())["address"].startswith("wss://relay.example:443/$hc/orders?")
        await sender.leave()
        await listener.leave()


# -- tasks


async def test_a_task_that_fails_is_logged_and_takes_nobody_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("it broke")

    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("worked")

    tasks = Tasks()
    _ = tasks.spawn(fail()), tasks.spawn(work())
    await tasks.finish(within=5)
    assert done == ["worked"]
    assert "it broke" in caplog.text


async def test_tasks_and_what_they_begin_are_waited_for_and_then_cancelled() -> None:
    tasks = Tasks()
    done: list[str] = []

    async def begin_another() -> None:
        _ = tasks.spawn(work())

    async def work() -> None:
        done.append("worked")

    _ = tasks.spawn(begin_another())
    await tasks.finish(within=5)
    assert done == ["worked"]
    endless = tasks.spawn(asyncio.Event().wait())  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await tasks.finish(within=0.01)
    assert endless.cancelled()
    await tasks.finish(within=0)


# -- secrets


async def test_no_key_is_in_the_log_of_a_node(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with new_node() as node:
        listener = await listener_on(node)
        sender, leg = await pair_on(node, listener)
        await node.reload(declared("orders", "more"))
        sender.send(frame(Opcode.TEXT, b"hello"))
        await leg.message()
        for peer in (sender, leg, listener):
            await peer.leave()
    assert "trunkline.toml added hybrid connection myRelayNS/more" in caplog.text
    assert "secret-key" not in caplog.text and "sig=" not in caplog.text


# -- what is refused before anybody knows what was asked


async def test_peer_that_does_not_speak_http_is_told_a_tracking_id() -> None:
    async with new_node() as node, await Peer.dial(node.port) as peer:
        peer.send(b"\x16\x03\x01 this would be TLS")
        answer = await peer.answer()
        assert answer.status == 400
        assert re.fullmatch(
            r"This is not HTTP: it looks like TLS, and this port is without\. TrackingId:[0-9a-f-]{36}, "
            r"SystemTracker:sb://, Timestamp:\S+ \S+ [AP]M",
            answer.phrase,
        )


# -- metrics


async def test_every_metric_of_the_node_is_on_the_admin_port() -> None:
    async with new_node() as node, await listener_on(node):
        head, text = await scraped(node)
        assert ("Content-Type", "text/plain; version=0.0.4; charset=utf-8") in head.headers
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert [metric.name for metric in METRICS if metric.name.removesuffix("_total") not in families] == []
        (info,) = families["relay_build_info"].samples
        assert info.labels["version"] == __version__ and info.labels["loop"] in ("asyncio", "uvloop")
        assert families["relay_handshakes"].samples[0].value == 0
        lag = {sample.name: sample.value for sample in families["relay_loop_lag_seconds"].samples}
        assert lag["relay_loop_lag_seconds_sum"] >= 0
        (active,) = families["relay_active_listeners"].samples
        assert (active.labels, active.value) == (
            {"namespace": NAMESPACE, "entity": "orders", "kind": "hybrid_connection"},
            1,
        )


async def test_end_of_the_certificate_is_a_metric(tmp_path: Path) -> None:
    async with new_node(tls="development", data=tmp_path) as node:
        (sample,) = node.measure()[metrics.CERTIFICATE_EXPIRY].values()
        assert node._certificates is not None
        assert sample == node._certificates.ends > time.time()
    async with new_node() as plain:
        assert plain.measure()[metrics.CERTIFICATE_EXPIRY] == {}


async def test_limit_of_open_files_is_a_metric_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_node() as node:
        assert node.measure()[metrics.OPEN_FILES_LIMIT] == {(): descriptor_limit()}
        monkeypatch.setattr(node_module, "descriptor_limit", lambda: sys.maxsize)
        assert node.measure()[metrics.OPEN_FILES_LIMIT] == {}


async def test_loop_that_is_late_is_seen_in_its_lag() -> None:
    async with new_node() as node:
        histogram = node.tallies.node.histograms[metrics.LOOP_LAG]
        before = histogram.copy()
        time.sleep(0.06)  # noqa: ASYNC251  nothing else makes a loop late
        await until(lambda: histogram.counts != before.counts)
        assert histogram.total - before.total >= 0.04


@pytest.mark.loop("uvloop")
async def test_node_hands_what_it_knows_to_a_collector_when_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        async with new_node(opentelemetry=True) as node:
            listener = await listener_on(node)
            sender, leg = await pair_on(node, listener)
            async with listener, sender, leg:
                await can_talk(sender, leg)
                (tracking_id,) = (connection.facts.tracking_id for connection in node.splicing)
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")] == []
    (span,) = receiver.spans()
    assert {each.key: each.value.string_value or each.value.int_value for each in span.attributes} == {
        "relay.tracking_id": tracking_id,
        "relay.namespace": NAMESPACE,
        "relay.entity": "orders",
        "relay.rule": "Root",
        "relay.outcome": "joined",
        "http.response.status_code": 101,
    }
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 5e9
    sums = {each.key: each.value.string_value for each in receiver.points("relay.messages")[0].attributes}
    assert sums["entity"] == "orders"
    assert sorted(point.as_int for point in receiver.points("relay.messages")) == [1, 1]
    assert [point.count for point in receiver.points("relay.connect.duration")] == [1]
