from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import EntityQuotaExceeded, InvalidSetting
from trunkline.protocol.sas import Right
from trunkline.server.config.declarative import Declaration, parse
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.declaration import Applied, apply, random_key
from trunkline.server.entities.model import (
    Entity,
    HybridConnection,
    Namespace,
    Rule,
    hybrid_connection_id,
    namespace_id,
)
from trunkline.server.entities.sqlite import SqliteStore

NS = namespace_id("myRelayNS")
EXAMPLE = """
[[namespace]]
name = "myRelayNS"
hosts = ["relay.local"]
[[namespace.rule]]
name = "Root"
rights = ["Listen", "Send", "Manage"]
primary_key = "secretkey"
[[namespace.hybrid_connection]]
name = "orders"
max_senders = 50
user_metadata = "anything"
[[namespace.hybrid_connection.rule]]
name = "orders-listener"
rights = ["Listen"]
[[namespace.hybrid_connection]]
name = "a/b"
"""


class Node:
    """A store, who writes to it, and keys in a row: k1, k2, ..."""

    def __init__(self, **limits: object) -> None:
        self.store = SqliteStore(":memory:")
        self.administration = Administration(self.store, node_limits=limits)
        self.keys: Iterator[str] = (f"k{number}" for number in range(1, 1000))

    async def apply(self, text: str, origin: str = "trunkline.toml") -> Applied:
        return await apply(self.administration, parse(text, origin), new_key=lambda: next(self.keys))

    async def namespace(self, name: str = "myRelayNS") -> Namespace:
        found = await self.administration.get(namespace_id(name))
        assert isinstance(found, Namespace)
        return found

    async def entity(self, name: str = "orders") -> HybridConnection:
        found = await self.administration.get(hybrid_connection_id(NS, name))
        assert isinstance(found, HybridConnection)
        return found

    async def all(self) -> list[Entity]:
        found: list[Entity] = []
        for namespace in await self.administration.namespaces():
            found += [namespace, *await self.administration.hybrid_connections(namespace.id)]
        return found


async def test_what_is_declared_is_there_with_its_origin() -> None:
    node = Node()
    report = await node.apply(EXAMPLE)
    assert report == Applied(
        added=("namespace myRelayNS", "hybrid connection myRelayNS/orders", "hybrid connection myRelayNS/a/b")
    )
    namespace = await node.namespace()
    assert namespace == Namespace(
        NS,
        rules=(Rule("Root", frozenset(Right), "secretkey", "k1"),),
        origin="trunkline.toml",
        hosts=("relay.local",),
        declared_order=0,
    )
    assert namespace.hybrid_connections == 2
    assert await node.entity() == HybridConnection(
        hybrid_connection_id(NS, "orders"),
        limits={"max_senders": 50},
        rules=(Rule("orders-listener", frozenset({Right.LISTEN}), "k2", "k3"),),
        origin="trunkline.toml",
        user_metadata="anything",
    )
    await node.store.close()


async def test_applying_again_writes_nothing() -> None:
    node = Node()
    await node.apply(EXAMPLE)
    revision = await node.store.revision()
    report = await node.apply(EXAMPLE)
    assert report == Applied() and not report
    assert await node.store.revision() == revision
    await node.store.close()


async def test_change_keeps_the_keys_of_what_did_not_change() -> None:
    node = Node()
    await node.apply(EXAMPLE)
    changed = EXAMPLE.replace("50", "60").replace('["Listen"]', '["Listen", "Send"]').replace("relay.local", "r.io")
    report = await node.apply(changed)
    assert report == Applied(
        changed=("namespace myRelayNS (hosts)", "hybrid connection myRelayNS/orders (limits, rules)")
    )
    rule = (await node.entity()).rules[0]
    assert rule == Rule("orders-listener", frozenset({Right.LISTEN, Right.SEND}), "k2", "k3")
    assert (await node.entity()).limits == {"max_senders": 60}
    assert (await node.namespace()).rules[0].keys == ("secretkey", "k1")
    await node.store.close()


async def test_key_in_the_file_replaces_the_kept_one_and_leaving_it_out_keeps_it() -> None:
    node = Node()
    await node.apply(EXAMPLE)
    await node.apply(EXAMPLE.replace("secretkey", "another"))
    assert (await node.namespace()).rules[0].keys == ("another", "k1")
    await node.apply(EXAMPLE.replace('primary_key = "secretkey"', ""))
    assert (await node.namespace()).rules[0].keys == ("another", "k1")
    await node.store.close()


async def test_rule_that_was_dropped_is_gone_and_gets_new_keys_when_it_is_back() -> None:
    node = Node()
    await node.apply(EXAMPLE)
    rule = '[[namespace.hybrid_connection.rule]]\nname = "orders-listener"\nrights = ["Listen"]\n'
    await node.apply(EXAMPLE.replace(rule, ""))
    assert (await node.entity()).rules == ()
    await node.apply(EXAMPLE)
    assert (await node.entity()).rules[0].keys == ("k4", "k5")
    await node.store.close()


async def test_what_the_file_dropped_is_removed() -> None:
    node = Node()
    await node.apply(EXAMPLE + '[[namespace]]\nname = "another"\n[[namespace.hybrid_connection]]\nname = "x"\n')
    report = await node.apply(EXAMPLE.replace('[[namespace.hybrid_connection]]\nname = "a/b"\n', ""))
    assert set(report.removed) == {
        "hybrid connection myRelayNS/a/b",
        "hybrid connection another/x",
        "namespace another",
    }
    assert [entity.id for entity in await node.all()] == [NS, hybrid_connection_id(NS, "orders")]
    assert (await node.namespace()).hybrid_connections == 1
    await node.apply("")
    assert await node.all() == []
    await node.store.close()


async def test_what_others_made_is_never_touched() -> None:
    node = Node()
    foreign = Namespace(NS, hosts=("theirs.io",))
    orders = HybridConnection(hybrid_connection_id(NS, "Orders"), user_metadata="theirs")
    extra = HybridConnection(hybrid_connection_id(NS, "extra"), origin="other.toml")
    await node.administration.create_namespace(foreign)
    await node.administration.create_hybrid_connection(orders)
    await node.administration.create_hybrid_connection(extra)
    report = await node.apply(EXAMPLE)
    assert report.added == ("hybrid connection myRelayNS/a/b",)
    assert report.left_alone == (
        "namespace myRelayNS stays as it is: it was not trunkline.toml that made it",
        "hybrid connection myRelayNS/Orders stays as it is: it was not trunkline.toml that made it",
    )
    assert await node.namespace() == foreign
    assert await node.entity() == orders
    assert (await node.apply(EXAMPLE.replace("orders", "extra"))).left_alone[1].endswith("other.toml made it")
    await node.apply("")
    assert [entity.id for entity in await node.all()] == [NS, extra.id, orders.id]
    await node.store.close()


async def test_dropped_namespace_stays_while_others_have_something_in_it() -> None:
    node = Node()
    await node.apply(EXAMPLE)
    extra = HybridConnection(hybrid_connection_id(NS, "extra"))
    await node.administration.create_hybrid_connection(extra)
    report = await node.apply("")
    assert report.left_alone == ("namespace myRelayNS stays: it holds what trunkline.toml did not make (extra)",)
    assert [entity.id for entity in await node.all()] == [NS, extra.id]
    await node.administration.delete(extra.id)
    assert (await node.apply("")).removed == ("namespace myRelayNS",)
    await node.store.close()


async def test_names_keep_the_spelling_of_their_creation() -> None:
    node = Node()
    await node.apply(EXAMPLE)
    assert not await node.apply(EXAMPLE.replace('"orders"', '"ORDERS"').replace("myRelayNS", "MYRELAYNS"))
    assert (await node.entity()).name == "orders"
    await node.store.close()


async def test_order_of_the_file_is_the_order_of_namespaces() -> None:
    node = Node()
    await node.apply('[[namespace]]\nname = "second"\n' + EXAMPLE)
    assert (await node.namespace("second")).declared_order == 0
    await node.apply(EXAMPLE + '[[namespace]]\nname = "second"\n')
    assert (await node.namespace("second")).declared_order == 1
    assert (await node.namespace()).declared_order == 0
    await node.store.close()


def entities(count: int, first: int = 0) -> str:
    numbers = range(first, first + count)
    return '[[namespace]]\nname = "myRelayNS"\n' + "".join(
        f'[[namespace.hybrid_connection]]\nname = "e{number}"\n' for number in numbers
    )


async def test_file_with_one_hybrid_connection_too_many_is_refused_whole() -> None:
    node = Node()
    with pytest.raises(EntityQuotaExceeded, match="would hold 101 hybrid connections, and it may have 100: raise max"):
        await node.apply(entities(101))
    assert await node.all() == []
    assert len((await node.apply(entities(100))).added) == 101
    with pytest.raises(EntityQuotaExceeded):
        await node.apply(entities(101))
    assert (await node.namespace()).hybrid_connections == 100
    await node.store.close()


async def test_those_that_others_made_take_places_too() -> None:
    node = Node(max_hybrid_connections=3)
    await node.administration.create_namespace(Namespace(NS))
    await node.administration.create_hybrid_connection(HybridConnection(hybrid_connection_id(NS, "theirs")))
    with pytest.raises(EntityQuotaExceeded, match="would hold 4"):
        await node.apply(entities(3))
    assert len((await node.apply(entities(2))).added) == 2
    await node.store.close()


async def test_full_namespace_can_be_exchanged() -> None:
    node = Node(max_hybrid_connections=3)
    await node.apply(entities(3))
    report = await node.apply(entities(3, first=2))
    assert (len(report.added), len(report.removed)) == (2, 2)
    await node.store.close()


async def test_namespace_may_allow_itself_more() -> None:
    node = Node(max_hybrid_connections=1)
    await node.apply(entities(3).replace('"myRelayNS"\n', '"myRelayNS"\nmax_hybrid_connections = 3\n'))
    assert (await node.namespace()).hybrid_connections == 3
    await node.store.close()


def test_random_keys_are_those_of_azure() -> None:
    first, second = random_key(), random_key()
    assert first != second
    assert len(base64.b64decode(first, validate=True)) == 32 and len(first) == 44


async def test_report_and_error_show_no_key() -> None:
    node = Node()
    reports = [
        await node.apply(EXAMPLE),
        await node.apply(EXAMPLE.replace("secretkey", "other-key")),
        await node.apply(""),
    ]
    assert all("key" not in str(report).replace("secondary", "") for report in reports)
    await node.store.close()


_NAMES = st.lists(st.sampled_from(["a", "b", "c/d", "e"]), unique=True)


@given(files=st.lists(st.dictionaries(st.sampled_from(["first-ns", "other-ns"]), _NAMES), min_size=1, max_size=5))
def test_only_the_last_file_counts(files: list[dict[str, list[str]]]) -> None:
    async def both() -> None:
        node, fresh = Node(), Node()
        for file in files:
            await node.apply(_text(file))
        await fresh.apply(_text(files[-1]))
        assert [_without_keys(each) for each in await node.all()] == [_without_keys(each) for each in await fresh.all()]
        revision = await node.store.revision()
        await node.apply(_text(files[-1]))
        assert await node.store.revision() == revision
        await node.store.close()
        await fresh.store.close()

    asyncio.run(both())


def _text(file: dict[str, list[str]]) -> str:
    text = ""
    for namespace, names in file.items():
        text += f'[[namespace]]\nname = "{namespace}"\n[[namespace.rule]]\nname = "r"\nrights = ["Send"]\n'
        for name in names:
            text += f'[[namespace.hybrid_connection]]\nname = "{name}"\nmax_senders = {len(names)}\n'
    return text


def _without_keys(entity: Entity) -> Entity:
    rules = tuple(dataclasses.replace(rule, primary_key="", secondary_key="") for rule in entity.rules)
    return dataclasses.replace(entity, rules=rules)


async def test_declaration_can_be_made_without_a_file() -> None:
    node = Node()
    assert not await apply(node.administration, Declaration("emulator"))
    await node.store.close()


# --- hosts of hybrid connections ---


async def test_hosts_and_what_is_accepted_are_kept_and_may_move() -> None:
    node = Node()
    await node.apply(EXAMPLE + "hosts = ['shop.io']\naccepts = ['http']\n")
    assert ((await node.entity("a/b")).hosts, (await node.entity("a/b")).accepts) == (("shop.io",), ("http",))
    applied = await node.apply(EXAMPLE.replace("max_senders = 50", "hosts = ['shop.io']\nmax_senders = 50"))
    assert applied.changed == (
        "hybrid connection myRelayNS/orders (hosts)",
        "hybrid connection myRelayNS/a/b (hosts, accepts)",
    )
    assert ((await node.entity("orders")).hosts, (await node.entity("a/b")).hosts) == (("shop.io",), ())
    await node.store.close()


async def test_host_that_somebody_else_has_is_refused_and_nothing_is_written() -> None:
    node = Node()
    theirs = Namespace(namespace_id("theirs"), hosts=("theirs.io",))
    await node.administration.create_namespace(theirs)
    await node.administration.create_hybrid_connection(
        HybridConnection(hybrid_connection_id(theirs.id, "own"), hosts=("own.io",))
    )
    for host, owner in (("theirs.io", "namespace theirs"), ("own.io", "hybrid connection theirs/own")):
        expected = f"a.toml gives the hybrid connection myRelayNS/a/b the host {host}, and that is a host of {owner} al"
        with pytest.raises(InvalidSetting, match=expected):
            await node.apply(f"{EXAMPLE}hosts = ['{host}']", "a.toml")
    assert await node.administration.get(NS) is None
    await node.store.close()
