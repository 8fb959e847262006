"""What the data plane knows about entities: everything, in memory, fed by the store's change feed alone.

No connection waits for a database. A change takes effect when `apply` returns: subscribers hear of each
namespace and hybrid connection that came, went or changed, and close what lost its ground.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from trunkline.protocol.limits import Limits, resolve
from trunkline.server.config import names
from trunkline.server.entities.model import (
    DamagedDocument,
    Entity,
    HybridConnection,
    Namespace,
    from_document,
    parse_id,
)
from trunkline.server.entities.store import Change, ChangesForgotten, EntityStore, StoreClosed, StoreError

log = logging.getLogger(__name__)

#: Seconds before a store that failed is asked again.
RETRY = 1.0


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """One entity before and after; None before: it is new, None after: it is gone.

    A hybrid connection whose namespace goes is gone with it, and is told before the namespace.
    """

    before: Entity | None
    after: Entity | None


class _Shelf:
    """A namespace id with what lies under it; the namespace itself may not be known yet, or any more."""

    __slots__ = ("children", "limits", "namespace")

    def __init__(self) -> None:
        self.namespace: Namespace | None = None
        #: By lower-case name.
        self.children: dict[str, HybridConnection] = {}
        #: Resolved, by lower-case name of the hybrid connection, "" for the namespace.
        self.limits: dict[str, Limits] = {}


class Catalog:
    """The entities of a node, in memory.

    Parameters
    ----------
    preset: which defaults lie below every limit, ``default`` or ``azure``.
    node_limits: limits set on the node.
    domain: a namespace is reached as ``<name>.<domain>``.
    public_host: host of the node's public address, without port; None without one.
    """

    def __init__(
        self,
        *,
        preset: str = "default",
        node_limits: Mapping[str, object] | None = None,
        domain: str = "localhost",
        public_host: str | None = None,
    ) -> None:
        #: By lower-case id of the namespace.
        self._shelves: dict[str, _Shelf] = {}
        #: The indexes below are behind; they are made when somebody looks (and not for each of many changes).
        self._stale = False
        self._by_name: dict[str, Namespace] = {}
        self._by_host: dict[str, Namespace] = {}
        #: Namespace and hybrid connection, by a host that the hybrid connection lists.
        self._by_own_host: dict[str, tuple[Namespace, HybridConnection]] = {}
        #: Takes hosts that nobody listed.
        self._catch_all: Namespace | None = None
        self._subscribers: list[Callable[[CatalogChange], None]] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        #: The last change that is in effect.
        self.revision = 0
        self.take_settings(preset=preset, node_limits=node_limits, domain=domain, public_host=public_host)

    def __repr__(self) -> str:
        shelves = [shelf for shelf in self._shelves.values() if shelf.namespace]
        children = sum(len(shelf.children) for shelf in shelves)
        return f"<Catalog namespaces={len(shelves)} hybrid_connections={children} revision={self.revision}>"

    def take_settings(
        self,
        *,
        preset: str = "default",
        node_limits: Mapping[str, object] | None = None,
        domain: str = "localhost",
        public_host: str | None = None,
    ) -> None:
        """Other settings of the node count from now on. Raises InvalidSetting, changing nothing."""
        node_limits = dict(node_limits or {})
        resolve(preset, node_limits)  # wrong settings are refused here and not on the first connection
        self._preset, self._node_limits, self._domain = preset, node_limits, domain.lower()
        # How connection strings name the node.
        self._address = (public_host or domain).lower()
        self._stale = True
        for shelf in self._shelves.values():
            shelf.limits.clear()

    # --- looking things up ---

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """Every namespace: the declared ones in their order, then the others by name."""
        self._index()
        return tuple(self._by_name.values())

    def namespace(self, name: str) -> Namespace | None:
        """The namespace of that name, in any case."""
        self._index()
        return self._by_name.get(name.lower())

    def namespace_for_host(self, host: str) -> Namespace | None:
        """Who serves a request for ``host`` (a Host header; a port is ignored).

        A host of a hybrid connection belongs to its namespace. A host that nobody has goes to the only namespace, or
        to the first declared one.
        """
        return self.place(host)[0]

    def place(self, host: str) -> tuple[Namespace | None, HybridConnection | None]:
        """The namespace as `namespace_for_host` has it, and the hybrid connection that has ``host`` as its own.

        A hybrid connection has the hosts that it lists, and ``<its name>.<a host of its namespace>`` where its name is
        one label of a host name. A host of a namespace comes before both.
        """
        self._index()
        host = host_of(host)
        namespace = self._by_host.get(host)
        if namespace is not None:
            return namespace, None
        listed = self._by_own_host.get(host)
        if listed is not None:
            return listed
        label, _, rest = host.partition(".")
        namespace = self._by_host.get(rest)
        if namespace is not None and "/" not in label:
            entity = self.find(namespace, label)
            if entity is not None:
                return namespace, entity
        return self._catch_all, None

    def owns_host(self, host: str) -> bool:
        """Whether ``host`` is a name of some namespace, and not just any name somebody asks for."""
        self._index()
        return host_of(host) in self._by_host

    def find(self, namespace: Namespace, path: str) -> HybridConnection | None:
        """The hybrid connection with exactly that name, in any case."""
        shelf = self._shelves.get(namespace.key)
        return None if shelf is None or shelf.namespace is None else shelf.children.get(path.lower())

    def get(self, id: str) -> Entity | None:
        """The entity with that ARM id, in any case."""
        namespace, _, child = parse_id(id)
        shelf = self._shelves.get(namespace.lower())
        if shelf is None or shelf.namespace is None:
            return None
        return shelf.namespace if child is None else shelf.children.get(child.lower())

    def hybrid_connections(self, namespace: Namespace) -> tuple[HybridConnection, ...]:
        """Everything inside ``namespace``, by name."""
        shelf = self._shelves.get(namespace.key)
        if shelf is None or shelf.namespace is None:
            return ()
        return tuple(shelf.children[name] for name in sorted(shelf.children))

    def hosts(self, namespace: Namespace | None = None) -> frozenset[str]:
        """Host names of one namespace, or of all: ``<name>.<domain>`` and those it lists, in lower case."""
        if namespace is None:
            self._index()
            return frozenset(self._by_host)
        return frozenset((f"{namespace.name.lower()}.{self._domain}", *namespace.hosts))

    def audiences(self, namespace: Namespace) -> frozenset[str]:
        """Host names that a token for one namespace may be made for, whichever host is asked.

        The host of the node's own address is one of them where it leads to the namespace: connection strings name it,
        and their tokens are good for a hybrid connection's own host too.
        """
        hosts, there = self.hosts(namespace), self.namespace_for_host(self._address)
        return hosts | {self._address} if there is not None and there.key == namespace.key else hosts

    def certificate_names(self) -> tuple[str, ...]:
        """What a certificate must name for all hosts that lead here, the most needed first.

        Behind the hosts that are listed stand those of hybrid connections in front of a host of their namespace: with a
        ``*`` as their first label. Below a host of one label clients take no such name ("*.localhost"): there each
        hybrid connection is named.
        """
        self._index()
        found: set[str] = set()
        for host, namespace in self._by_host.items():
            if ":" in host or host.replace(".", "").isdigit():  # an IP address
                continue
            if "." in host:
                found.add(f"*.{host}")
            else:
                labels = (child.name.lower() for child in self.hybrid_connections(namespace))
                found.update(f"{label}.{host}" for label in labels if names.is_label(label))
        listed = dict.fromkeys((*sorted(self._by_host), *sorted(self._by_own_host)))
        return (*listed, *sorted(found - listed.keys()))

    def limits(self, namespace: Namespace, entity: HybridConnection | None = None) -> Limits:
        """The limits in force: node, then namespace, then hybrid connection, the nearest wins."""
        shelf = self._shelves.get(namespace.key)
        name = "" if entity is None else entity.name.lower()
        known = None if shelf is None else shelf.limits.get(name)
        if known is not None:
            return known
        layers = (self._node_limits, namespace.limits, {} if entity is None else entity.limits)
        limits = resolve(self._preset, *layers)
        # Only what is current is remembered: a caller may ask about an entity that has just changed or gone.
        if shelf is not None and shelf.namespace is namespace and entity in (None, shelf.children.get(name)):
            shelf.limits[name] = limits
        return limits

    # --- keeping up with the store ---

    def subscribe(self, callback: Callable[[CatalogChange], None]) -> Callable[[], None]:
        """Calls ``callback`` for every change from now on, at once and in order; gives back what ends that.

        When it is called, the catalog already is in the state after the whole change.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def load(self, store: EntityStore) -> None:
        """Takes over everything that is in the store now, and drops what is not there (any more)."""
        target = await store.revision()
        documents = await store.list("/")
        present = {document.id.lower() for document in documents}
        known = [child.id for shelf in self._shelves.values() for child in shelf.children.values()]
        known += [shelf.namespace.id for shelf in self._shelves.values() if shelf.namespace is not None]
        for id in known:
            if id.lower() not in present:
                self.apply(Change(id, target, None))
        for document in documents:
            self.apply(Change(document.id, min(document.revision, target), document))
        self.revision = max(self.revision, target)
        self._wake()

    async def follow(self, store: EntityStore) -> None:
        """Applies each change as it comes, until the store is closed.

        A store that fails is asked again, and a document that cannot be read is passed over: whoever gives up here
        never hears of a key that is removed later.
        """
        told = ""
        while True:
            try:
                await self._follow(store)
                return
            except StoreClosed:
                return
            except (StoreError, DamagedDocument) as error:
                if str(error) != told:
                    told = str(error)
                    log.error("no change of an entity takes effect until the store can be read again: %s", error)
                await asyncio.sleep(RETRY)

    async def _follow(self, store: EntityStore) -> None:
        try:
            async with aclosing(store.changes(self.revision)) as feed:
                async for change in feed:
                    self._apply_or_skip(change)
        except ChangesForgotten:
            await self.load(store)
            await self._follow(store)

    def _apply_or_skip(self, change: Change) -> None:
        try:
            self.apply(change)
        except DamagedDocument as error:
            log.error("a change does not take effect, what was there before goes on: %s", error)
            self.revision = max(self.revision, change.revision)
            self._wake()

    async def wait_applied(self, revision: int) -> None:
        """Returns when the change with that revision, made by whomever, is in effect here."""
        if revision > self.revision:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append((revision, waiter))
            await waiter

    def apply(self, change: Change) -> None:
        """Puts one change into effect and tells the subscribers. Raises DamagedDocument, changing nothing."""
        document = change.document
        after = None if document is None else from_document(document.id, document.body)
        id, _, child = parse_id(change.id)
        shelf = self._shelves.setdefault(id.lower(), _Shelf())
        if child is None:
            assert after is None or isinstance(after, Namespace)
            changes = self._set_namespace(shelf, after)
        else:
            assert after is None or isinstance(after, HybridConnection)
            changes = self._set_child(shelf, child.lower(), after)
        if shelf.namespace is None and not shelf.children:
            del self._shelves[id.lower()]
        self.revision = max(self.revision, change.revision)
        for entity_change in changes:
            self._tell(entity_change)
        self._wake()

    def _set_namespace(self, shelf: _Shelf, after: Namespace | None) -> list[CatalogChange]:
        before = shelf.namespace
        if before == after:  # or only the count differs, which nobody reads here
            return []
        shelf.namespace = after
        shelf.limits.clear()
        self._stale = True
        children = list(shelf.children.values())
        if after is None:
            return [*(CatalogChange(child, None) for child in children), CatalogChange(before, None)]
        come = children if before is None else []
        return [CatalogChange(before, after), *(CatalogChange(None, child) for child in come)]

    def _set_child(self, shelf: _Shelf, name: str, after: HybridConnection | None) -> list[CatalogChange]:
        before = shelf.children.get(name)
        if before == after:
            return []
        shelf.limits.pop(name, None)
        if (before is not None and before.hosts) or (after is not None and after.hosts):
            self._stale = True
        if after is None:
            del shelf.children[name]
        else:
            shelf.children[name] = after
        # Of a hybrid connection that came before its namespace nobody hears until the namespace is there.
        return [] if shelf.namespace is None else [CatalogChange(before, after)]

    def _index(self) -> None:
        """Who has which name and host. Where two claim the same, the first in order has it."""
        if not self._stale:
            return
        self._stale = False
        present = [shelf.namespace for shelf in self._shelves.values() if shelf.namespace is not None]
        present.sort(key=lambda each: (each.declared_order is None, each.declared_order or 0, each.key))
        self._by_name, self._by_host = {}, {}
        for namespace in present:
            self._by_name.setdefault(namespace.name.lower(), namespace)
        for namespace in present:
            self._by_host.setdefault(f"{namespace.name.lower()}.{self._domain}", namespace)
        for namespace in present:
            for host in namespace.hosts:
                self._by_host.setdefault(host, namespace)
        self._by_own_host = {}
        for namespace in present:
            for child in self.hybrid_connections(namespace):
                for host in child.hosts:
                    self._by_own_host.setdefault(host, (namespace, child))
        first = present[0] if present else None
        self._catch_all = first if first and (len(present) == 1 or first.declared_order is not None) else None

    def _tell(self, change: CatalogChange) -> None:
        for callback in list(self._subscribers):
            try:
                callback(change)
            except Exception:  # one deaf subscriber must not keep a revoked key alive for the others
                entity = change.after or change.before
                log.exception("a subscriber failed on a change of %s", entity.id if entity else "nothing")

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for revision, waiter in waiting:
            if waiter.done():
                continue
            if revision <= self.revision:
                waiter.set_result(None)
            else:
                self._waiting.append((revision, waiter))


def host_of(authority: str) -> str:
    """The host of a Host header or URL authority: lower case, without port, brackets and the final dot."""
    host = authority.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")
