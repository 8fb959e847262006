from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from trunkline.protocol.errors import (
    EndpointAlreadyExists,
    EndpointNotFound,
    EntityQuotaExceeded,
    InvalidSetting,
    RelayError,
)
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.model import HybridConnection, Namespace, hybrid_connection_id, namespace_id
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.entities.store import Document, EtagMismatch, StoreFull

NS = namespace_id("myRelayNS")


def entity(name: str, **more: Any) -> HybridConnection:
    return HybridConnection(hybrid_connection_id(NS, name), **more)


async def count(administration: Administration) -> int:
    namespace = await administration.get(NS)
    assert isinstance(namespace, Namespace)
    return namespace.hybrid_connections


async def test_entities_are_created_found_and_counted() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS, hosts=("relay.local",), hybrid_connections=7))
    await administration.create_hybrid_connection(entity("b"))
    await administration.create_hybrid_connection(entity("A/b"))
    assert await administration.namespaces() == (Namespace(NS, hosts=("relay.local",)),)
    assert await administration.hybrid_connections(NS) == (entity("A/b"), entity("b"))
    assert await administration.get(entity("a/B").id) == entity("A/b")
    assert await administration.get(entity("c").id) is None
    assert await count(administration) == 2
    await store.close()


async def test_second_entity_of_a_name_is_refused_and_not_counted() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))
    await administration.create_hybrid_connection(entity("a"))
    with pytest.raises(EndpointAlreadyExists, match="hybrid connection A already"):
        await administration.create_hybrid_connection(entity("A"))
    with pytest.raises(EndpointAlreadyExists, match="namespace MYRELAYNS already"):
        await administration.create_namespace(Namespace(namespace_id("MYRELAYNS")))
    assert await count(administration) == 1
    await store.close()


async def test_entity_that_may_not_exist_is_not_written() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store)
    with pytest.raises(InvalidSetting):
        await administration.create_namespace(Namespace(namespace_id("ns")))
    await administration.create_namespace(Namespace(NS))
    with pytest.raises(InvalidSetting):
        await administration.create_hybrid_connection(entity("a", limits={"max_senders": "x"}))
    with pytest.raises(InvalidSetting):
        await administration.change_namespace(NS, lambda each: dataclasses.replace(each, hosts=("A",)))
    assert await administration.hybrid_connections(NS) == ()
    assert await count(administration) == 0
    await store.close()


async def test_hybrid_connection_needs_its_namespace() -> None:
    store = SqliteStore(":memory:")
    with pytest.raises(EndpointNotFound, match="The namespace of a does not exist"):
        await Administration(store).create_hybrid_connection(entity("a"))
    assert await store.list("/") == ()
    await store.close()


@pytest.mark.parametrize(
    ("preset", "node_limits", "namespace_limits", "most"),
    [
        ("default", {}, {}, 100),
        ("azure", {"max_hybrid_connections": 3}, {}, 3),
        ("default", {}, {"max_hybrid_connections": 2}, 2),
    ],
)
async def test_one_hybrid_connection_too_many_is_refused_until_one_goes(
    preset: str, node_limits: Mapping[str, object], namespace_limits: Mapping[str, object], most: int
) -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store, preset=preset, node_limits=node_limits)
    await administration.create_namespace(Namespace(NS, limits=namespace_limits))
    for number in range(most):
        await administration.create_hybrid_connection(entity(f"e{number}"))
    with pytest.raises(EntityQuotaExceeded, match=f"has {most} hybrid connections and may have {most}"):
        await administration.create_hybrid_connection(entity("more"))
    assert await administration.delete(entity("E0").id)
    assert not await administration.delete(entity("e0").id)
    await administration.create_hybrid_connection(entity("more"))
    assert await count(administration) == most
    await store.close()


async def test_many_at_once_get_no_more_places_than_there_are() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store, node_limits={"max_hybrid_connections": 5})
    await administration.create_namespace(Namespace(NS))
    results = await asyncio.gather(
        *(administration.create_hybrid_connection(entity(f"e{number}")) for number in range(12)), return_exceptions=True
    )
    refused = [result for result in results if result is not None]
    assert len(refused) == 7 and all(isinstance(result, EntityQuotaExceeded) for result in refused)
    assert len(await administration.hybrid_connections(NS)) == await count(administration) == 5
    await store.close()


async def test_unlimited_is_unlimited() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store, node_limits={"max_hybrid_connections": 0})
    await administration.create_namespace(Namespace(NS))
    for number in range(101):
        await administration.create_hybrid_connection(entity(f"e{number}"))
    assert await count(administration) == 101
    await store.close()


async def test_change_keeps_id_and_count_and_writes_nothing_when_nothing_changed() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))
    await administration.create_hybrid_connection(entity("a"))
    changed = await administration.change_namespace(
        NS.upper(), lambda each: Namespace("elsewhere", hosts=("a.b",), hybrid_connections=50)
    )
    assert changed == Namespace(NS, hosts=("a.b",)) and await count(administration) == 1
    before = await store.revision()
    assert await administration.change_hybrid_connection(entity("A").id, lambda each: each) == entity("a")
    assert await store.revision() == before
    with pytest.raises(EndpointNotFound):
        await administration.change_hybrid_connection(entity("none").id, lambda each: each)
    with pytest.raises(EndpointNotFound):
        await administration.change_hybrid_connection(NS, lambda each: each)
    await store.close()


async def test_changes_at_once_are_all_kept() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))

    def add(host: str) -> Any:
        return lambda each: dataclasses.replace(each, hosts=(*each.hosts, host))

    await asyncio.gather(*(administration.change_namespace(NS, add(f"h{number}")) for number in range(10)))
    namespace = await administration.get(NS)
    assert isinstance(namespace, Namespace)
    assert sorted(namespace.hosts) == [f"h{number}" for number in range(10)]
    await store.close()


async def test_namespace_takes_everything_inside_with_it() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))
    await administration.create_namespace(Namespace(namespace_id("another")))
    await administration.create_hybrid_connection(entity("a"))
    await administration.create_hybrid_connection(entity("b/c"))
    assert await administration.delete(NS)
    assert [document.id for document in await store.list("/")] == [namespace_id("another")]
    assert not await administration.delete(NS)
    await store.close()


class _Meddling(SqliteStore):
    """Does something else, once, just before a document is written or removed."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.before_put: Any = None
        self.before_delete: Any = None

    async def delete(self, id: str, *, etag: str) -> int:
        meddle, self.before_delete = self.before_delete, None
        if meddle is not None:
            await meddle(id)
        return await super().delete(id, etag=etag)

    async def put(self, id: str, body: Mapping[str, Any], *, etag: str | None) -> Document:
        meddle, self.before_put = self.before_put, None
        if meddle is not None:
            await meddle(id)
        return await super().put(id, body, etag=etag)


async def test_hybrid_connection_does_not_outlive_a_namespace_that_goes_meanwhile() -> None:
    store = _Meddling()
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))

    async def after_the_count(id: str) -> None:
        async def delete(id: str) -> None:
            assert id == entity("a").id
            await administration.delete(NS)

        store.before_put = delete

    store.before_put = after_the_count
    with pytest.raises(EndpointNotFound):
        await administration.create_hybrid_connection(entity("a"))
    assert await store.list("/") == ()
    await store.close()


async def test_place_is_given_back_when_the_hybrid_connection_cannot_be_written() -> None:
    store = _Meddling()
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))

    async def after_the_count(id: str) -> None:
        async def fail(id: str) -> None:
            raise StoreFull()

        store.before_put = fail

    store.before_put = after_the_count
    with pytest.raises(StoreFull):
        await administration.create_hybrid_connection(entity("a"))
    assert await count(administration) == 0
    await store.close()


async def test_writer_gives_up_when_others_are_always_in_the_way() -> None:
    store = _Meddling()
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))

    async def be_in_the_way(id: str) -> None:
        document = await SqliteStore.get(store, NS)
        assert document is not None
        await SqliteStore.put(store, NS, document.body, etag=document.etag)
        store.before_put = be_in_the_way

    store.before_put = be_in_the_way
    with pytest.raises(EtagMismatch):
        await administration.change_namespace(NS, lambda each: dataclasses.replace(each, hosts=("a.b",)))
    await store.close()


async def test_entity_that_was_changed_meanwhile_is_removed_all_the_same() -> None:
    store = _Meddling()
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))

    async def change(id: str) -> None:
        await administration.change_namespace(NS, lambda each: dataclasses.replace(each, hosts=("a.b",)))

    store.before_delete = change
    assert await administration.delete(NS)
    assert await store.list("/") == ()

    async def change_always(id: str) -> None:
        store.before_delete = change_always
        document = await store.get(NS)
        assert document is not None
        await store.put(NS, document.body, etag=document.etag)

    await administration.create_namespace(Namespace(NS))
    store.before_delete = change_always
    with pytest.raises(EtagMismatch):
        await administration.delete(NS)
    await store.close()


async def test_what_a_crash_left_is_put_right() -> None:
    store = _Meddling()
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS))
    await administration.create_hybrid_connection(entity("a"))

    class Crash(Exception):
        pass

    async def after_the_count(id: str) -> None:
        async def crash(id: str) -> None:
            raise Crash

        store.before_put = crash

    store.before_put = after_the_count
    with pytest.raises(Crash):
        await administration.create_hybrid_connection(entity("b"))
    assert await count(administration) == 2
    orphan = HybridConnection(hybrid_connection_id(namespace_id("another"), "lost"))
    await administration.create_namespace(Namespace(namespace_id("another")))
    await administration.create_hybrid_connection(orphan)
    document = await store.get(namespace_id("another"))
    assert document is not None
    await store.delete(document.id, etag=document.etag)

    await administration.repair()
    assert await count(administration) == 1
    assert [document.id for document in await store.list("/")] == [NS, entity("a").id]
    revision = await store.revision()
    await administration.repair()
    assert await store.revision() == revision
    await store.close()


async def test_wrong_limits_of_the_node_are_told() -> None:
    store = SqliteStore(":memory:")
    with pytest.raises(RelayError, match="max_hybrid_connections"):
        Administration(store, node_limits={"max_hybrid_connections": "x"}).most_hybrid_connections(Namespace(NS))
    await store.close()


async def test_host_of_a_hybrid_connection_is_its_alone() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store)
    await administration.create_namespace(Namespace(NS, hosts=("relay.local",)))
    await administration.create_hybrid_connection(entity("a", hosts=("a.io",)))
    for host, owner in (("relay.local", "myRelayNS"), ("a.io", "a")):
        with pytest.raises(InvalidSetting, match=f"{host} is a host of {owner} already"):
            await administration.create_hybrid_connection(entity("b", hosts=("b.io", host)))
    assert await count(administration) == 1
    await administration.create_hybrid_connection(entity("b", hosts=("b.io",)))
    with pytest.raises(InvalidSetting, match=r"a\.io is a host of a already"):
        await administration.change_hybrid_connection(
            entity("b").id, lambda before: dataclasses.replace(before, hosts=("a.io",))
        )
    changed = await administration.change_hybrid_connection(
        entity("b").id, lambda before: dataclasses.replace(before, hosts=("c.io", "b.io"))
    )
    assert changed.hosts == ("c.io", "b.io")
    assert set(await administration.hosts()) == {"relay.local", "a.io", "b.io", "c.io"}
    await store.close()


async def test_entities_remember_when_they_were_made_and_changed() -> None:
    store, now = SqliteStore(":memory:"), [1_000.0]
    administration = Administration(store, wall_clock=lambda: now[0])
    await administration.create_namespace(Namespace(NS))
    now[0] = 2_000.0
    await administration.create_hybrid_connection(entity("a", created_at=5.0))
    now[0] = 3_000.0
    same = await administration.change_hybrid_connection(entity("a").id, lambda before: before)
    assert (same.created_at, same.updated_at) == (2_000.0, 2_000.0)
    await administration.change_hybrid_connection(
        entity("a").id, lambda before: dataclasses.replace(before, enabled=False, created_at=7.0, updated_at=7.0)
    )
    [found] = await administration.hybrid_connections(NS)
    assert (found.created_at, found.updated_at) == (2_000.0, 3_000.0)
    # That something came into it is no change of the namespace.
    [namespace] = await administration.namespaces()
    assert (namespace.created_at, namespace.updated_at) == (1_000.0, 1_000.0)
    await store.close()


async def test_entity_of_an_older_version_is_read_and_remembers_its_next_change() -> None:
    store = SqliteStore(":memory:")
    administration = Administration(store, wall_clock=lambda: 9_000.0)
    body = {"limits": {}, "rules": [], "enabled": True, "userMetadata": "old"}
    await store.put(NS, {"limits": {}, "rules": [], "hosts": [], "hybridConnections": 1}, etag=None)
    await store.put(entity("a").id, body, etag=None)
    [found] = await administration.hybrid_connections(NS)
    assert (found.created_at, found.updated_at, found.accepts) == (None, None, ("http", "websocket"))
    await administration.repair()
    assert await administration.hybrid_connections(NS) == (found,)
    changed = await administration.change_hybrid_connection(
        entity("a").id, lambda before: dataclasses.replace(before, user_metadata="new")
    )
    assert (changed.created_at, changed.updated_at) == (None, 9_000.0)
    await store.close()
