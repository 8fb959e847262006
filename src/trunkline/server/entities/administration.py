"""The writes: creating, changing and removing entities, by whatever way they were asked for.

A store has no transaction over two documents, so the order of the writes is the rule. The namespace counts its
hybrid connections, and the count is never too low:

    create   namespace: count + 1  ->  hybrid connection  ->  is the namespace still there?
    delete   hybrid connection     ->  namespace: count - 1
    delete   namespace             ->  everything inside

What a crash leaves between two steps (a count too high, hybrid connections without their namespace, which
nobody can see) is put right by `Administration.repair` when a node starts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from trunkline.protocol.errors import (
    EndpointAlreadyExists,
    EndpointNotFound,
    EntityQuotaExceeded,
    InvalidSetting,
    RelayError,
)
from trunkline.protocol.limits import resolve
from trunkline.server.entities.model import (
    Entity,
    HybridConnection,
    Namespace,
    check_entity,
    children_prefix,
    from_document,
    parse_id,
    to_document,
)
from trunkline.server.entities.store import EntityStore, EtagMismatch

E = TypeVar("E", Namespace, HybridConnection)

#: Attempts at a compare-and-set before the writer is told that others are in the way.
_ATTEMPTS = 64


class Administration:
    """Writes entities to a store.

    Parameters
    ----------
    preset, node_limits: what limits on the namespace rest on; see `trunkline.protocol.limits.resolve`.
    wall_clock: seconds since the epoch; entities remember when they were made and changed.
    """

    def __init__(
        self,
        store: EntityStore,
        *,
        preset: str = "default",
        node_limits: Mapping[str, object] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._preset = preset
        self._node_limits = dict(node_limits or {})
        self._wall_clock = wall_clock

    async def get(self, id: str) -> Entity | None:
        """The entity with that id as the store has it now."""
        document = await self._store.get(id)
        return None if document is None else from_document(document.id, document.body)

    async def namespaces(self) -> tuple[Namespace, ...]:
        """Every namespace, by id."""
        found = [from_document(each.id, each.body) for each in await self._store.list("/")]
        return tuple(each for each in found if isinstance(each, Namespace))

    async def hybrid_connections(self, namespace_id: str) -> tuple[HybridConnection, ...]:
        """Everything inside a namespace, by name."""
        documents = await self._store.list(children_prefix(namespace_id))
        found = [from_document(document.id, document.body) for document in documents]
        return tuple(each for each in found if isinstance(each, HybridConnection))

    async def hosts(self, *, but: str | None = None) -> dict[str, Entity]:
        """Who lists which host. A host that a namespace lists as well is the namespace's.

        Parameters
        ----------
        but: leaves out what was made by the declarative file of that name; None leaves out nothing.
        """
        found = [from_document(each.id, each.body) for each in await self._store.list("/") if each.body.get("hosts")]
        found = [each for each in found if but is None or each.origin != but]
        found.sort(key=lambda each: isinstance(each, Namespace))
        return {host: each for each in found for host in each.hosts}

    def most_hybrid_connections(self, namespace: Namespace) -> int:
        """How many it may have; 0: any number."""
        return resolve(self._preset, self._node_limits, namespace.limits).max_hybrid_connections

    async def create_namespace(self, namespace: Namespace) -> None:
        """Raises InvalidSetting, EndpointAlreadyExists."""
        check_entity(namespace)
        now = self._wall_clock()
        namespace = dataclasses.replace(namespace, hybrid_connections=0, created_at=now, updated_at=now)
        try:
            await self._store.put(namespace.id, to_document(namespace), etag=None)
        except EtagMismatch:
            raise EndpointAlreadyExists(f"The namespace {namespace.name} already exists", entity=namespace.id) from None

    async def create_hybrid_connection(self, entity: HybridConnection) -> None:
        """Raises InvalidSetting, EndpointNotFound (no such namespace), EndpointAlreadyExists, EntityQuotaExceeded."""
        check_entity(entity)
        await self._check_hosts(entity)
        now = self._wall_clock()
        entity = dataclasses.replace(entity, created_at=now, updated_at=now)
        await self._count(entity, +1)
        try:
            document = await self._store.put(entity.id, to_document(entity), etag=None)
        except EtagMismatch:
            await self._count(entity, -1)
            raise EndpointAlreadyExists(
                f"The hybrid connection {entity.name} already exists", entity=entity.id
            ) from None
        except RelayError:
            await self._count(entity, -1)
            raise
        if await self._store.get(entity.namespace_id) is None:
            # The namespace went between the two writes, and may have looked for what is inside before the second.
            await self._store.delete(entity.id, etag=document.etag)
            raise _no_namespace(entity)

    async def change_namespace(self, id: str, edit: Callable[[Namespace], Namespace]) -> Namespace:
        """Replaces a namespace by what ``edit`` makes of it, and gives that; nothing is written when nothing changed.

        ``edit`` may be called several times, each time with a later version. Id and count stay what they are.
        Raises EndpointNotFound, InvalidSetting, and whatever ``edit`` raises.
        """
        return await self._rewrite(
            id,
            Namespace,
            lambda before: dataclasses.replace(edit(before), hybrid_connections=before.hybrid_connections),
        )

    async def change_hybrid_connection(
        self, id: str, edit: Callable[[HybridConnection], HybridConnection]
    ) -> HybridConnection:
        """The same for a hybrid connection."""
        return await self._rewrite(id, HybridConnection, edit)

    async def delete(self, id: str) -> bool:
        """Removes an entity, a namespace with everything inside; False when there was none."""
        for _ in range(_ATTEMPTS):
            document = await self._store.get(id)
            if document is None:
                return False
            try:
                await self._store.delete(document.id, etag=document.etag)
                break
            except EtagMismatch:
                continue
        else:
            raise EtagMismatch(entity=id)
        entity = from_document(document.id, document.body)
        if isinstance(entity, HybridConnection):
            await self._count(entity, -1)
        else:
            for child in await self._store.list(children_prefix(entity.id)):
                await self.delete(child.id)
        return True

    async def repair(self) -> None:
        """Puts right what a crash left. Only while nobody else writes: when a node starts, before it serves."""
        counted: dict[str, int] = {}
        for document in await self._store.list("/"):
            namespace_id, _, child = parse_id(document.id)
            counted.setdefault(namespace_id.lower(), 0)
            if child is not None:
                counted[namespace_id.lower()] += 1
        for namespace_id, count in counted.items():
            try:
                await self._rewrite(namespace_id, Namespace, partial(dataclasses.replace, hybrid_connections=count))
            except EndpointNotFound:
                for orphan in await self._store.list(children_prefix(namespace_id)):
                    await self._store.delete(orphan.id, etag=orphan.etag)

    async def _check_hosts(self, entity: Entity) -> None:
        """Raises InvalidSetting when a hybrid connection has a host that another entity lists.

        What comes from a declarative file was compared by its reader and by `declaration.apply`.
        """
        if isinstance(entity, Namespace) or not entity.hosts or entity.origin is not None:
            return
        claimed = await self.hosts()
        for host in entity.hosts:
            owner = claimed.get(host)
            if owner is not None and owner.key != entity.key:
                raise InvalidSetting(f"{host} is a host of {owner.name} already")

    async def _count(self, entity: HybridConnection, by: int) -> None:
        """Adds to the count of the namespace that holds ``entity``. Raises EntityQuotaExceeded, EndpointNotFound."""

        def edit(namespace: Namespace) -> Namespace:
            most, count = self.most_hybrid_connections(namespace), namespace.hybrid_connections
            if by > 0 and most and count + by > most:
                raise EntityQuotaExceeded(
                    f"QuotaExceeded: The namespace {namespace.name} has {count} hybrid connections and may have"
                    f" {most} (max_hybrid_connections)",
                    entity=entity.id,
                )
            return dataclasses.replace(namespace, hybrid_connections=max(0, count + by))

        try:
            await self._rewrite(entity.namespace_id, Namespace, edit)
        except EndpointNotFound:
            if by > 0:  # else its count is gone with it
                raise _no_namespace(entity) from None

    async def _rewrite(self, id: str, kind: type[E], edit: Callable[[E], E]) -> E:
        """Read, edit, compare-and-set, until nobody came between."""
        for _ in range(_ATTEMPTS):
            document = await self._store.get(id)
            before = None if document is None else from_document(document.id, document.body)
            if document is None or not isinstance(before, kind):
                raise EndpointNotFound(entity=id)
            after = dataclasses.replace(
                edit(before), id=document.id, created_at=before.created_at, updated_at=before.updated_at
            )
            check_entity(after)
            if after.hosts != before.hosts:
                await self._check_hosts(after)
            if after != before:
                after = dataclasses.replace(after, updated_at=self._wall_clock())
            body = to_document(after)
            if body != document.body:
                try:
                    await self._store.put(document.id, body, etag=document.etag)
                except EtagMismatch:
                    continue
            return after
        raise EtagMismatch(entity=id)


def _no_namespace(entity: HybridConnection) -> EndpointNotFound:
    return EndpointNotFound(f"The namespace of {entity.name} does not exist", entity=entity.id)
