from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.limits import resolve
from trunkline.server.entities import catalog as catalog_module
from trunkline.server.entities import sqlite
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.catalog import Catalog, CatalogChange, host_of
from trunkline.server.entities.model import (
    DamagedDocument,
    Entity,
    HybridConnection,
    Namespace,
    from_document,
    hybrid_connection_id,
    namespace_id,
    to_document,
)
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.entities.store import Change, Document, StoreDamaged

NS = namespace_id("myRelayNS")


def entity(name: str, namespace: str = NS, **more: Any) -> HybridConnection:
    return HybridConnection(hybrid_connection_id(namespace, name), **more)


class Told:
    """A catalog whose changes are made by hand and collected."""

    def __init__(self, **more: Any) -> None:
        self.catalog = Catalog(**more)
        self.changes: list[CatalogChange] = []
        self.catalog.subscribe(self.changes.append)
        self.revision = 0

    def put(self, entity: Entity) -> list[CatalogChange]:
        self.revision += 1
        document = Document(entity.id, str(self.revision), self.revision, to_document(entity))
        return self.apply(Change(entity.id, self.revision, document))

    def drop(self, id: str) -> list[CatalogChange]:
        self.revision += 1
        return self.apply(Change(id, self.revision, None))

    def apply(self, change: Change) -> list[CatalogChange]:
        self.changes.clear()
        self.catalog.apply(change)
        return list(self.changes)

    def namespace(self, name: str = "myRelayNS") -> Namespace:
        found = self.catalog.namespace(name)
        assert found is not None
        return found


def test_entities_are_found_by_name_and_id_in_any_case() -> None:
    told = Told()
    told.put(Namespace(NS))
    told.put(entity("Orders/New"))
    namespace = told.namespace("MYRELAYNS")
    assert told.catalog.find(namespace, "orders/NEW") == entity("Orders/New")
    assert told.catalog.find(namespace, "orders") is None
    assert told.catalog.get(entity("ORDERS/new").id) == entity("Orders/New")
    assert told.catalog.get(NS.upper()) == namespace
    assert told.catalog.get(namespace_id("another")) is None
    assert told.catalog.namespaces == (namespace,)
    assert told.catalog.hybrid_connections(namespace) == (entity("Orders/New"),)
    assert told.catalog.hybrid_connections(Namespace(namespace_id("another"))) == ()
    assert repr(told.catalog) == "<Catalog namespaces=1 hybrid_connections=1 revision=2>"


def test_subscriber_hears_what_came_what_changed_and_what_went() -> None:
    told = Told()
    assert told.put(Namespace(NS)) == [CatalogChange(None, Namespace(NS))]
    assert told.put(entity("a")) == [CatalogChange(None, entity("a"))]
    assert told.put(entity("a", enabled=False)) == [CatalogChange(entity("a"), entity("a", enabled=False))]
    assert told.put(Namespace(NS, hosts=("b.c",))) == [CatalogChange(Namespace(NS), Namespace(NS, hosts=("b.c",)))]
    assert told.drop(entity("A").id) == [CatalogChange(entity("a", enabled=False), None)]
    assert told.drop(entity("a").id) == []
    assert told.drop(NS) == [CatalogChange(Namespace(NS, hosts=("b.c",)), None)]


def test_subscriber_does_not_hear_of_what_is_no_change() -> None:
    told = Told()
    told.put(Namespace(NS))
    namespace = told.namespace()
    assert told.put(Namespace(NS, hybrid_connections=5)) == []
    assert told.namespace() is namespace
    told.put(entity("a"))
    assert told.put(entity("a")) == []


def test_subscriber_sees_the_catalog_after_the_change() -> None:
    told = Told()
    seen: list[object] = []
    stop = told.catalog.subscribe(lambda change: seen.append(told.catalog.get(NS)))
    told.put(Namespace(NS))
    assert seen == [Namespace(NS)]
    stop()
    told.drop(NS)
    assert seen == [Namespace(NS)]


def test_one_broken_subscriber_does_not_keep_the_news_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    catalog = Catalog()
    heard: list[CatalogChange] = []
    catalog.subscribe(lambda change: 1 / 0)  # type: ignore[arg-type]
    catalog.subscribe(heard.append)
    with caplog.at_level(logging.ERROR):
        catalog.apply(Change(NS, 1, Document(NS, "1", 1, to_document(Namespace(NS)))))
    assert heard == [CatalogChange(None, Namespace(NS))]
    assert "a subscriber failed" in caplog.text and "myRelayNS" in caplog.text


def test_hybrid_connections_come_and_go_with_their_namespace() -> None:
    told = Told()
    assert told.put(entity("a")) == []
    assert told.catalog.get(entity("a").id) is None
    assert told.catalog.namespaces == ()
    namespace = Namespace(NS)
    assert told.put(namespace) == [CatalogChange(None, namespace), CatalogChange(None, entity("a"))]
    assert told.catalog.find(namespace, "a") == entity("a")
    assert told.drop(NS) == [CatalogChange(entity("a"), None), CatalogChange(namespace, None)]
    assert told.catalog.find(namespace, "a") is None
    assert told.drop(entity("a").id) == []


def test_damaged_document_changes_nothing() -> None:
    told = Told()
    told.put(Namespace(NS))
    with pytest.raises(DamagedDocument):
        told.catalog.apply(Change(NS, 9, Document(NS, "9", 9, {"limits": 5})))
    assert told.catalog.namespaces == (Namespace(NS),)
    assert told.catalog.revision == 1


# --- hosts ---


def test_namespace_is_found_by_its_hosts() -> None:
    told = Told(domain="Relay.example.COM")
    told.put(Namespace(NS, hosts=("relay.local", "::1")))
    told.put(Namespace(namespace_id("another")))
    first, second = told.namespace(), told.namespace("another")
    for host in ("myrelayns.relay.example.com", "MyRelayNS.Relay.Example.com:8443", "RELAY.local.", "[::1]:8443"):
        assert told.catalog.namespace_for_host(host) is first
        assert told.catalog.owns_host(host)
    assert told.catalog.namespace_for_host("another.relay.example.com") is second
    assert told.catalog.hosts(first) == {"myrelayns.relay.example.com", "relay.local", "::1"}
    assert told.catalog.hosts() == told.catalog.hosts(first) | told.catalog.hosts(second)


def test_unlisted_host_goes_to_the_only_namespace() -> None:
    told = Told()
    assert told.catalog.namespace_for_host("localhost") is None
    told.put(Namespace(NS))
    assert told.catalog.namespace_for_host("localhost:8443") is told.namespace()
    assert not told.catalog.owns_host("localhost")
    told.put(Namespace(namespace_id("another")))
    assert told.catalog.namespace_for_host("localhost") is None  # two, and none of them declared


def test_tokens_for_the_nodes_own_address_are_for_the_namespace_that_it_leads_to() -> None:
    told = Told(domain="Relay.example.COM")
    told.put(Namespace(NS, hosts=("relay.local",)))
    assert told.catalog.audiences(told.namespace()) == {
        "myrelayns.relay.example.com", "relay.local", "relay.example.com",
    }  # fmt: skip
    told.catalog.take_settings(domain="relay.example.com", public_host="Public.example.com")
    assert "public.example.com" in told.catalog.audiences(told.namespace())
    told.put(Namespace(namespace_id("another")))  # it leads to neither
    for namespace in (told.namespace(), told.namespace("another")):
        assert told.catalog.audiences(namespace) == told.catalog.hosts(namespace)


def test_unlisted_host_goes_to_the_first_declared_namespace() -> None:
    told = Told()
    told.put(Namespace(namespace_id("aaaaaa")))
    told.put(Namespace(namespace_id("second"), declared_order=1))
    told.put(Namespace(NS, declared_order=0))
    assert [namespace.name for namespace in told.catalog.namespaces] == ["myRelayNS", "second", "aaaaaa"]
    assert told.catalog.namespace_for_host("anything") is told.namespace()
    told.drop(NS)
    assert told.catalog.namespace_for_host("anything") is told.namespace("second")


def test_name_of_a_namespace_is_stronger_than_a_host_that_another_lists() -> None:
    told = Told()
    told.put(Namespace(namespace_id("aaaaaa"), hosts=("myrelayns.localhost", "shared.io"), declared_order=1))
    told.put(Namespace(NS, hosts=("shared.io",), declared_order=2))
    assert told.catalog.namespace_for_host("myrelayns.localhost") is told.namespace()
    assert told.catalog.namespace_for_host("shared.io") is told.namespace("aaaaaa")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("shop.example.com", "Orders"),
        ("SHOP.Example.com:8443", "Orders"),
        ("10.0.0.9", "Orders"),
        ("orders.relay.local", "Orders"),
        ("ORDERS.myrelayns.localhost.", "Orders"),
        ("a/b.relay.local", None),  # no label
        ("b.c.relay.local", None),
        ("none.relay.local", None),
        ("relay.local", None),
        ("x.orders.relay.local", None),
        ("orders.", None),
        (".relay.local", None),
    ],
)
def test_hybrid_connection_is_found_by_hosts_of_its_own(host: str, name: str | None) -> None:
    told = Told()
    told.put(Namespace(namespace_id("aaaaaa"), declared_order=0))
    told.put(Namespace(NS, hosts=("relay.local",), declared_order=1))
    told.put(entity("Orders", hosts=("shop.example.com", "10.0.0.9")))
    told.put(entity("a/b"))
    told.put(entity("b.c"))
    namespace, own = told.catalog.place(host)
    assert (own and own.name) == name
    if name is not None:
        assert namespace is told.namespace()


def test_certificate_names_every_host_once() -> None:
    told = Told(domain="relay.example.com")
    told.put(Namespace(NS, hosts=("localhost", "relay.local", "10.0.0.9", "::1")))
    told.put(entity("Orders", hosts=("shop.io",)))
    told.put(entity("a/b"))
    told.put(entity("b.c"))
    told.put(Namespace(namespace_id("second"), hosts=("orders.localhost",)))
    assert told.catalog.certificate_names() == (
        *("10.0.0.9", "::1", "localhost", "myrelayns.relay.example.com", "orders.localhost", "relay.local"),
        *("second.relay.example.com", "shop.io"),
        *("*.myrelayns.relay.example.com", "*.orders.localhost", "*.relay.local", "*.second.relay.example.com"),
    )


def test_own_host_comes_and_goes_with_its_hybrid_connection() -> None:
    told = Told()
    told.put(Namespace(NS))
    told.put(entity("a"))
    assert told.catalog.place("a.example.com")[1] is None
    told.put(entity("a", hosts=("a.example.com",)))
    assert told.catalog.place("a.example.com")[1] == entity("a", hosts=("a.example.com",))
    told.put(entity("a", hosts=("b.example.com",)))
    assert told.catalog.place("a.example.com")[1] is None
    assert told.catalog.place("b.example.com")[1] is not None
    told.drop(entity("a").id)
    assert told.catalog.place("b.example.com")[1] is None
    assert told.catalog.place("a.myrelayns.localhost")[1] is None


def test_host_of_a_namespace_is_stronger_than_one_of_a_hybrid_connection() -> None:
    told = Told()
    told.put(Namespace(NS, hosts=("relay.local",), declared_order=0))
    told.put(Namespace(namespace_id("second"), hosts=("a.relay.local", "shop.io"), declared_order=1))
    told.put(entity("a", hosts=("shop.io",)))
    for host in ("a.relay.local", "shop.io"):
        assert told.catalog.place(host) == (told.namespace("second"), None)


@pytest.mark.parametrize(
    ("authority", "host"),
    [("A.b:80", "a.b"), ("a.b.", "a.b"), ("[::1]:80", "::1"), ("[::1", "::1"), ("", ""), (":80", ""), (" a ", "a")],
)
def test_host_of_a_header(authority: str, host: str) -> None:
    assert host_of(authority) == host


@given(host=st.text())
def test_any_host_is_answered(host: str) -> None:
    told = Told()
    told.put(Namespace(NS))
    assert told.catalog.namespace_for_host(host) is told.namespace()


# --- limits ---


def test_nearest_limit_wins_and_the_preset_lies_below() -> None:
    told = Told(preset="azure", node_limits={"max_senders": 1, "max_listeners": 1, "idle_timeout": 1})
    told.put(Namespace(NS, limits={"max_listeners": 2, "idle_timeout": 2}))
    told.put(entity("a", limits={"idle_timeout": 3}))
    namespace = told.namespace()
    a = told.catalog.find(namespace, "a")
    limits = told.catalog.limits(namespace, a)
    assert (limits.max_senders, limits.max_listeners, limits.idle_timeout) == (1, 2, 3.0)
    assert limits.listener_policy == "balanced"
    assert told.catalog.limits(namespace).idle_timeout == 2.0


def test_limits_are_worked_out_once_until_something_changes() -> None:
    told = Told()
    told.put(Namespace(NS))
    told.put(entity("a"))
    namespace, a = told.namespace(), told.catalog.find(told.namespace(), "a")
    first = told.catalog.limits(namespace, a)
    assert told.catalog.limits(namespace, a) is first
    told.put(entity("a", limits={"max_senders": 7}))
    assert told.catalog.limits(namespace, told.catalog.find(namespace, "a")).max_senders == 7
    told.put(Namespace(NS, limits={"max_listeners": 8}))
    assert told.catalog.limits(told.namespace(), told.catalog.find(namespace, "a")).max_listeners == 8
    assert told.catalog.limits(told.namespace()).max_listeners == 8


def test_limits_of_an_entity_that_is_gone_are_answered_and_forgotten() -> None:
    told = Told()
    told.put(Namespace(NS))
    gone = entity("a", limits={"max_senders": 7})
    assert told.catalog.limits(told.namespace(), gone).max_senders == 7
    told.put(entity("a"))
    assert told.catalog.limits(told.namespace(), told.catalog.find(told.namespace(), "a")) == resolve()
    assert told.catalog.limits(Namespace(namespace_id("another"))) == resolve()


def test_wrong_limit_of_the_node_is_refused_at_once() -> None:
    with pytest.raises(InvalidSetting):
        Catalog(node_limits={"max_sendrs": 1})
    with pytest.raises(InvalidSetting):
        Catalog(preset="azur")


def test_other_settings_of_the_node_count_at_once_and_wrong_ones_change_nothing() -> None:
    told = Told(node_limits={"max_senders": 1})
    told.put(Namespace(NS))
    told.put(entity("a", limits={"idle_timeout": 3}))
    namespace, a = told.namespace(), told.catalog.find(told.namespace(), "a")
    assert told.catalog.limits(namespace, a).max_senders == 1
    told.changes.clear()
    with pytest.raises(InvalidSetting):
        told.catalog.take_settings(preset="azure", node_limits={"max_sendrs": 1}, domain="example.com")
    assert told.catalog.limits(namespace, a).max_senders == 1
    assert told.catalog.owns_host("myrelayns.localhost")
    told.catalog.take_settings(preset="azure", node_limits={"max_listeners": 2}, domain="Example.com")
    limits = told.catalog.limits(namespace, a)
    assert (limits.max_senders, limits.max_listeners, limits.idle_timeout) == (0, 2, 3.0)
    assert told.catalog.owns_host("myrelayns.example.com") and not told.catalog.owns_host("myrelayns.localhost")
    assert told.changes == []


# --- with a store ---


async def test_catalog_keeps_up_with_a_store() -> None:
    store = SqliteStore(":memory:")
    administration, catalog = Administration(store), Catalog()
    await administration.create_namespace(Namespace(NS))
    await administration.create_hybrid_connection(entity("a"))
    await catalog.load(store)
    namespace = catalog.namespace("myRelayNS")
    assert namespace is not None and catalog.find(namespace, "a") == entity("a")
    assert catalog.revision == await store.revision()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(catalog.follow(store))
        await administration.create_hybrid_connection(entity("b"))
        await catalog.wait_applied(await store.revision())
        assert catalog.find(namespace, "b") == entity("b")
        waiting = tasks.create_task(catalog.wait_applied(await store.revision() + 2))
        abandoned = tasks.create_task(catalog.wait_applied(await store.revision() + 1))
        await asyncio.sleep(0)
        abandoned.cancel()
        await administration.delete(entity("a").id)
        await waiting
        assert catalog.find(namespace, "a") is None
        await catalog.wait_applied(0)
        await store.close()


async def test_load_drops_what_is_no_longer_there() -> None:
    told = Told()
    told.put(Namespace(NS))
    told.put(entity("a"))
    told.put(Namespace(namespace_id("another")))
    store = SqliteStore(":memory:")
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))
    await administration.create_hybrid_connection(entity("b"))
    told.changes.clear()
    await told.catalog.load(store)
    assert told.changes == [
        CatalogChange(entity("a"), None),
        CatalogChange(Namespace(namespace_id("another")), None),
        CatalogChange(None, entity("b")),
    ]
    await store.close()


async def test_catalog_that_fell_too_far_behind_reads_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MARKERS_KEPT", 2)
    store = SqliteStore(":memory:")
    administration, catalog = Administration(store), Catalog()
    await administration.create_namespace(Namespace(NS))
    for number in range(4):
        await administration.create_hybrid_connection(entity(f"e{number}"))
    await catalog.load(store)
    for number in range(4):
        await administration.delete(entity(f"e{number}").id)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(catalog.follow(store))
        await catalog.wait_applied(await store.revision())
        assert repr(catalog) == f"<Catalog namespaces=1 hybrid_connections=0 revision={await store.revision()}>"
        await store.close()


async def test_catalog_hears_of_a_change_after_a_store_that_failed_and_a_document_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catalog_module, "RETRY", 0.001)
    store = SqliteStore(":memory:")
    administration, catalog = Administration(store), Catalog()
    await administration.create_namespace(Namespace(NS))
    await administration.create_hybrid_connection(entity("a"))
    await catalog.load(store)
    read, failures = store._read_changes, 3

    def read_or_fail(after: int) -> tuple[Change, ...]:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreDamaged("the disk is away")
        return read(after)

    monkeypatch.setattr(store, "_read_changes", read_or_fail)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(catalog.follow(store))
        await store.put(entity("damaged").id, {"rules": "none"}, etag=None)
        await administration.delete(entity("a").id)
        await catalog.wait_applied(await store.revision())
        namespace = catalog.namespace("myRelayNS")
        assert namespace is not None and catalog.find(namespace, "a") is None
        assert catalog.find(namespace, "damaged") is None
        await store.close()
    assert failures == 0
    # Once for the store, however often it was asked, and once for the document.
    assert len(caplog.records) == 2
    assert "the disk is away" in caplog.text and "damaged" in caplog.text and "none" not in caplog.text


async def test_a_feed_of_a_closed_store_ends() -> None:
    store, catalog = SqliteStore(":memory:"), Catalog()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        feed = tasks.create_task(catalog.follow(store))
        await asyncio.sleep(0)
        await store.close()
        await feed
        await catalog.follow(store)
    assert catalog.revision == 0


_NAMES = st.sampled_from(["a", "A", "b", "c/d"])
_NAMESPACES = st.sampled_from([NS, namespace_id("another")])
_STEPS = st.one_of(
    st.builds(lambda id, host: Namespace(id, hosts=(host,)), _NAMESPACES, st.sampled_from(["a.b", "c.d"])),
    st.builds(lambda id, name, on: entity(name, id, enabled=on), _NAMESPACES, _NAMES, st.booleans()),
    _NAMESPACES,
    st.builds(hybrid_connection_id, _NAMESPACES, _NAMES),
)


@given(steps=st.lists(_STEPS, max_size=25))
def test_whoever_adds_up_the_changes_has_the_catalog(steps: list[Entity | str]) -> None:
    told = Told()
    believed: dict[str, Entity] = {}
    kept: dict[str, Entity] = {}
    for step in steps:
        if isinstance(step, str):
            changes = told.drop(step)
            kept.pop(step.lower(), None)
        else:
            changes = told.put(step)
            kept[step.key] = from_document(step.id, to_document(step))
        for change in changes:
            assert change.before != change.after
            if change.before is not None:
                assert believed.pop(change.before.key) == change.before
            if change.after is not None:
                assert change.after.key not in believed
                believed[change.after.key] = change.after
        visible = {
            key: each for key, each in kept.items() if isinstance(each, Namespace) or each.namespace_id.lower() in kept
        }
        assert believed == visible
        for key in kept:
            assert told.catalog.get(key) == visible.get(key)
