"""Where keys are found, without a process: files, folders, and how clients reach the node."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.cli import rules
from trunkline.cli.failure import Failure
from trunkline.protocol.connection_string import ConnectionString
from trunkline.server.config import declarative
from trunkline.server.config.settings import load
from trunkline.server.node import Node

NODE = '[node]\nport = 9000\nadmin_port = 0\ntls = "off"\n'
FIRST = """
[[namespace]]
name = "first-one"
[[namespace.rule]]
name = "all"
rights = ["Listen", "Send", "Manage"]
primary_key = "key-of-all"
[[namespace.rule]]
name = "listen"
rights = ["Listen"]
[[namespace.hybrid_connection]]
name = "a/b"
[[namespace.hybrid_connection.rule]]
name = "sender"
rights = ["Send"]
primary_key = "key-of-sender"
"""
SECOND = """
[[namespace]]
name = "Second"
hosts = ["second.example.com"]
[[namespace.rule]]
name = "all"
rights = ["Listen", "Send", "Manage"]
primary_key = "key-of-second"
[[namespace.hybrid_connection]]
name = "only-here"
"""


async def look(**options: Any) -> ConnectionString:
    """`rules.find` with the options that a command line gives; those not named were not given."""
    names = ("config", "data", "namespace", "entity", "rule", "rights", "endpoint")
    return await rules.find(**{**dict.fromkeys(names), **options})


def find(folder: Path, text: str | None = None, **options: Any) -> ConnectionString:
    file = None
    if text is not None:
        file = folder / "trunkline.toml"
        file.write_text(text)
    return asyncio.run(look(config=file, **options))


def test_first_rule_of_the_first_namespace_unless_told_otherwise(tmp_path: Path) -> None:
    found = find(tmp_path, NODE + FIRST)
    assert (found.host, found.port, found.key_name, found.key) == ("localhost", 9000, "all", "key-of-all")
    assert found.entity_path is None


def test_rule_of_the_hybrid_connection_comes_before_those_of_the_namespace(tmp_path: Path) -> None:
    found = find(tmp_path, NODE + FIRST, entity="/A/B/")
    assert (found.key_name, found.entity_path) == ("sender", "a/b")
    assert find(tmp_path, NODE + FIRST, entity="a/b", rights="manage, listen,Send").key_name == "all"
    assert find(tmp_path, NODE + FIRST, entity="a/b", rule="ALL").key == "key-of-all"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"entity": "c"}, "There is no hybrid connection c in first-one"),
        ({"namespace": "third"}, "There is no namespace third"),
        ({"rule": "nobody"}, "No rule for first-one is like that"),
        ({"rights": "Send"}, "No rule for first-one is like that"),
        ({"rights": "Sned"}, "is no list of rights"),
        ({"rights": ","}, "is no list of rights"),
        ({"rule": "listen"}, "is not made yet"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(Failure, match=said) as caught:
        find(tmp_path, NODE + FIRST, **options)
    assert caught.value.remedy
    assert "key-of" not in caught.value.what + caught.value.remedy


def test_folder_without_a_node(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="There is no namespace in"):
        find(tmp_path, data=tmp_path / "none")


@pytest.mark.parametrize(
    ("node", "options", "address"),
    [
        ('public_url = "https://relay.example.com"\n', {}, ("relay.example.com", 443)),
        ('public_url = "http://relay.example.com:8080"\n', {}, ("relay.example.com", 8080)),
        ('domain = "example.com"\n', {}, ("example.com", 9000)),
        ('domain = "example.com"\n', {"namespace": "second"}, ("second.example.com", 9000)),
        (
            'domain = "example.com"\npublic_url = "https://relay.example.com"\n',
            {"namespace": "second"},
            ("second.example.com", 443),
        ),
        ("", {"endpoint": "sb://other.example.com/"}, ("other.example.com", 9000)),
        ("", {"endpoint": "[::1]:7"}, ("::1", 7)),
        ("", {"endpoint": "1.2.3.4:7", "namespace": "second"}, ("1.2.3.4", 7)),
    ],
)
def test_address_for_clients(tmp_path: Path, node: str, options: dict[str, str], address: tuple[str, int]) -> None:
    found = find(tmp_path, NODE + node + FIRST + SECOND, **options)
    assert (found.host, found.port) == address


def test_port_that_the_system_chooses_must_be_said(tmp_path: Path) -> None:
    text = NODE.replace("9000", "0") + FIRST
    with pytest.raises(Failure, match="port = 0"):
        find(tmp_path, text)
    assert find(tmp_path, text, endpoint="localhost:1234").port == 1234


async def test_generated_keys_are_read_beside_the_running_node(tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    file.write_text(NODE.replace("9000", "0") + 'data = "kept"\n' + FIRST + SECOND)
    declaration = declarative.read(file)
    async with Node(load(declaration), declaration) as node:
        namespace = node.catalog.namespace("first-one")
        assert namespace is not None
        keys = {rule.name: rule.primary_key for rule in namespace.rules}
        while_it_runs = await look(config=file, rule="listen", endpoint="a:1")
    assert while_it_runs.key == keys["listen"]
    assert (await look(data=tmp_path / "kept", rule="listen", endpoint="a:1")).key == keys["listen"]


@pytest.mark.loop("asyncio")
async def test_connection_string_of_a_second_namespace_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "trunkline.toml"
    file.write_text(NODE.replace("9000", "0") + FIRST + SECOND)
    declaration = declarative.read(file)
    lookup = socket.getaddrinfo

    def resolve(host: str, *others: Any, **options: Any) -> Any:
        """As many systems do: every name under localhost is this computer (RFC 6761 section 6.3)."""
        return lookup("127.0.0.1" if host.endswith(".localhost") else host, *others, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with Node(load(declaration, {"data": str(tmp_path)}), declaration) as node:
        monkeypatch.setenv("TRUNKLINE_PORT", str(node.port))
        file.write_text(file.read_text().replace("\nport = 0\n", "\n"))
        text = str(await look(config=file, data=tmp_path, namespace="second", entity="only-here"))
        assert text.startswith(f"Endpoint=sb://second.localhost:{node.port}/;")
        async with HybridConnectionListener(text, ssl=False) as listener:
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(listener.accept())
                sender = await HybridConnectionClient(text, ssl=False).create_connection()
            accepted = accepting.result()
            await sender.send("hello")
            assert await accepted.recv() == "hello"
            await asyncio.gather(sender.close(), accepted.close())
