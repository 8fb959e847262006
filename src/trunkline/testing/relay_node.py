"""A relay node in the event loop of the test."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.limits import Preset
from trunkline.sdk import HybridConnectionClient, HybridConnectionListener
from trunkline.server.config.declarative import DeclaredRule
from trunkline.server.config.settings import NodeSettings
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.catalog import Catalog
from trunkline.server.entities.declaration import random_key
from trunkline.server.entities.model import HybridConnection, Namespace, Rule, hybrid_connection_id, namespace_id
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.node import Node
from trunkline.testing.address import Address
from trunkline.testing.declared import (
    DEFAULT_RULES,
    HybridConnections,
    Rules,
    checked_limits,
    checked_rights,
    declare,
    declare_hybrid_connection,
)

E = TypeVar("E", Namespace, HybridConnection)

#: Seconds between two looks of the node at its clock: short time-outs are as exact as that.
TICK = 0.05


class _KeptStore(SqliteStore):
    """Outlives the nodes that use it, as a file would."""

    async def close(self) -> None:
        """Nothing: `dispose` ends it."""

    async def dispose(self) -> None:
        await super().close()


def relay_node(
    hybrid_connections: HybridConnections = "test",
    *,
    rules: Rules = DEFAULT_RULES,
    tls: bool = False,
    namespace: str = "testing",
    hosts: Iterable[str] = (),
    preset: Preset = "default",
    host: str = "127.0.0.1",
    port: int = 0,
    tick: float = TICK,
    **limits: object,
) -> RelayNode:
    """A relay node for an ``async with`` block, in the running event loop.

        async with relay_node({"orders": {"max_senders": 2, "rules": {"orders-listener": ["Listen"]}}}) as node:
            node.connection_string("orders", rule="orders-listener")

    Args:
        hybrid_connections: a name, several names, or names with options: any limit of the settings table,
            ``rules``, ``user_metadata``, ``enabled``, ``hosts``, ``accepts``.
        rules: of the namespace, by name with their rights; unless told otherwise RootManageSharedAccessKey (all
            rights), ``listen`` and ``send``. Keys are random.
        tls: speak TLS with a development authority of its own; see `RelayNode.client_context` and ``ca_file``.
        namespace: its name.
        hosts: further host names in URLs, tokens and the certificate.
        preset: ``azure`` for the limits that the real service was seen to have.
        host: loopback address to bind to; also what connection strings name.
        port: 0 for a free one.
        tick: seconds between two looks at the clock.
        limits: of the node, ``idle_timeout=1``, ``max_senders=2``; seconds, bytes or numbers as in the table.

    Raises:
        InvalidSetting: an argument cannot be used; the message says why.
    """
    return RelayNode(
        NodeSettings.model_validate(
            {
                "host": host,
                "port": port,
                "admin_port": 0,
                "tls": "development" if tls else "off",
                "preset": preset,
                "limits": checked_limits(limits, "node"),
            }
        ),
        declare(namespace, hosts, rules, hybrid_connections),
        tick,
    )


class RelayNode(Address):
    """A node that is running, unless it was stopped; made by `relay_node`."""

    def __init__(self, settings: NodeSettings, declaration: Any, tick: float) -> None:
        self._settings = settings
        self._declaration = declaration
        self._tick = tick
        [declared] = declaration.namespaces
        self.host = settings.host
        self.tls = settings.tls != "off"
        self.namespace = declared.name
        self.entity = declared.hybrid_connections[0].name if declared.hybrid_connections else ""
        # Entities outlive a stop; the store is made with the first start.
        self._store: _KeptStore | None = None
        # Holds the certificate authority, which outlives a stop too.
        self._folder: Path | None = None
        # The node that runs now, or ran last.
        self._node: Node | None = None
        self._running = False

    def __repr__(self) -> str:
        return f"<RelayNode {self.url if self._node else 'not started'}{'' if self._running else ' stopped'}>"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._dispose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            await self._dispose()

    # --- start and stop ---

    async def start(self) -> None:
        """Start it, or start it again after `stop`: same port, same entities and keys, same authority."""
        if self._running:
            return
        declaration = self._declaration
        if self._store is None:
            self._store = _KeptStore(":memory:")
            self._folder = Path(tempfile.mkdtemp(prefix="trunkline-"))
        else:
            declaration = None  # what a test removed must not come back
        settings = self._settings.model_copy(update={"data": self._folder})
        self._node = Node(settings, declaration, store=self._store, tick=self._tick)
        try:
            await self._node.start()
        except BaseException:
            await self._node.stop()
            raise
        self._running = True
        # The same ports next time: clients come back to where they were.
        ports = {"port": self._node.port, "admin_port": self._node.admin_port}
        self._settings = self._settings.model_copy(update=ports)

    async def stop(self, *, abrupt: bool = False) -> None:
        """Stop it: listeners get Close 1001, data connections are cut, the port is closed.

        Args:
            abrupt: as a crash: nobody gets a Close, every connection is just cut.
        """
        if self._node is None or not self._running:
            return
        self._running = False
        if abrupt:
            self._node.broker.abort()
        await self._node.stop()

    async def restart(self, *, outage: float = 0, abrupt: bool = False) -> None:
        """Stop it and start it again: same port, same entities and keys.

        Args:
            outage: seconds in between; connections are refused meanwhile.
            abrupt: as in `stop`.
        """
        await self.stop(abrupt=abrupt)
        await asyncio.sleep(outage)
        await self.start()

    async def drain(self) -> None:
        """Take nothing new and wait until established connections have ended, at most ``drain_timeout``."""
        await self.node.drain()

    async def _dispose(self) -> None:
        if self._store is not None:
            await self._store.dispose()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # --- what it is ---

    @property
    def node(self) -> Node:
        """The node itself, with all its parts. A restart makes another one."""
        if self._node is None:
            raise RuntimeError("The node was not started: use it in an `async with` block")
        return self._node

    @property
    def port(self) -> int:
        """Port of the data plane; stays the same over restarts."""
        if not self._settings.port:
            raise RuntimeError("The node was not started: it has no port yet")
        return self._settings.port

    @property
    def admin_url(self) -> str:
        """Where ``/healthz`` and ``/readyz`` are."""
        return f"http://{self._settings.admin_host}:{self._settings.admin_port}"

    @property
    def ca_file(self) -> Path | None:
        """The certificate authority that clients must trust, as PEM; None without TLS. Gone when the block ends."""
        return self._folder / "ca.pem" if self._folder is not None and self.tls else None

    def _catalog(self) -> Catalog:
        return self.node.catalog

    def counts(self) -> dict[str, int]:
        """What it holds now: ``listeners``, ``senders``, ``connections``, ``control_channels`` and so on."""
        return self.node.counts()

    def listener_count(self, entity: str | None = None) -> int:
        """Listeners that are registered on a hybrid connection, without parked ones."""
        return self.node.directory.listener_count(self._id(entity).lower())

    async def until(self, condition: Callable[[dict[str, int]], bool], *, timeout: float = 5) -> dict[str, int]:
        """Wait until `counts` are as wanted: ``await node.until(lambda now: now["connections"] == 0)``.

        Raises:
            TimeoutError: they were not within `timeout` seconds; the message holds the counts.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while not condition(now := self.counts()):
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"After {timeout:g} s the node has {now}")
            await asyncio.sleep(0.005)
        return now

    def listener(self, entity: str | None = None, **options: Any) -> HybridConnectionListener:
        """A listener of our SDK for this node; options as in `HybridConnectionListener`. Not opened yet.

        The node is here, so no proxy of the environment is asked unless `proxy` says so.
        """
        options = {"ssl": self.client_context(), "proxy": False, **options}
        return HybridConnectionListener(self.connection_string(entity), **options)

    def client(self, entity: str | None = None, **options: Any) -> HybridConnectionClient:
        """A sender of our SDK for this node; options as in `HybridConnectionClient`; proxies as with `listener`."""
        options = {"ssl": self.client_context(), "proxy": False, **options}
        return HybridConnectionClient(self.connection_string(entity), **options)

    # --- changing entities while it runs; each is in effect when the call returns ---

    async def add_hybrid_connection(self, name: str, **options: object) -> None:
        """Add a hybrid connection.

        Args:
            options: any limit, ``rules``, ``user_metadata``, ``enabled``, ``hosts``, ``accepts``.

        Raises:
            EndpointAlreadyExists: there is one of that name.
            EntityQuotaExceeded: the namespace is full (``max_hybrid_connections``).
        """
        declared = declare_hybrid_connection(name, options)
        entity = HybridConnection(
            self._id(name),
            limits=declared.limits,
            rules=tuple(_new_rule(rule) for rule in declared.rules),
            user_metadata=declared.user_metadata,
            enabled=declared.enabled,
            hosts=declared.hosts,
            accepts=declared.accepts,
        )
        await self._administration.create_hybrid_connection(entity)
        await self._in_effect()

    async def remove_hybrid_connection(self, name: str) -> bool:
        """Remove a hybrid connection: its listeners get Close 1001, and 404 from then on. False: there was none."""
        removed = await self._administration.delete(self._id(name))
        await self._in_effect()
        return removed

    async def change_hybrid_connection(self, name: str, **options: object) -> None:
        """Change limits, ``user_metadata``, ``enabled``, ``hosts`` or ``accepts``; what is not named stays.

        Rules: `add_rule`, `remove_rule`.

        Raises:
            EndpointNotFound: there is no such hybrid connection.
        """
        if "rules" in options:
            raise InvalidSetting("Rules are changed with add_rule and remove_rule")
        declared = declare_hybrid_connection(name, options)
        others = {key: getattr(declared, key) for key in _FIELDS if key in options}

        def edit(before: HybridConnection) -> HybridConnection:
            return dataclasses.replace(before, limits={**before.limits, **declared.limits}, **others)

        await self._administration.change_hybrid_connection(self._id(name), edit)
        await self._in_effect()

    async def add_rule(self, name: str, rights: Iterable[str], *, entity: str | None = "") -> None:
        """Add a rule, or give one of that name a new key and these rights, which revokes what it granted before.

        Args:
            entity: a hybrid connection; None: the first one; ``""``: the namespace.
        """
        rule = _new_rule(DeclaredRule(name, checked_rights(rights)))
        await self._change_rules(entity, lambda rules: (*_without(rules, name), rule))

    async def remove_rule(self, name: str, *, entity: str | None = "") -> None:
        """Remove a rule; whoever came in with its keys is put out."""
        await self._change_rules(entity, lambda rules: _without(rules, name))

    async def _change_rules(self, entity: str | None, change: Callable[[tuple[Rule, ...]], tuple[Rule, ...]]) -> None:
        if entity == "":
            await self._administration.change_namespace(
                namespace_id(self.namespace), lambda before: _with_rules(before, change)
            )
        else:
            await self._administration.change_hybrid_connection(
                self._id(entity), lambda before: _with_rules(before, change)
            )
        await self._in_effect()

    @property
    def _administration(self) -> Administration:
        if self._store is None:
            raise RuntimeError("The node was not started: use it in an `async with` block")
        limits: Mapping[str, object] = self._settings.limits
        return Administration(self._store, preset=self._settings.preset, node_limits=limits)

    async def _in_effect(self) -> None:
        """Wait until the node has heard of the last change, as it does through the store's change feed."""
        if self._running and self._store is not None:
            await self.node.catalog.wait_applied(await self._store.revision())

    def _id(self, entity: str | None) -> str:
        return hybrid_connection_id(namespace_id(self.namespace), self.entity if entity is None else entity)


# What a test may change of a hybrid connection besides its limits and rules.
_FIELDS = ("user_metadata", "enabled", "hosts", "accepts")


def _new_rule(declared: DeclaredRule) -> Rule:
    return Rule(declared.name, declared.rights, random_key(), random_key())


def _without(rules: tuple[Rule, ...], name: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if rule.name.lower() != name.lower())


def _with_rules(entity: E, change: Callable[[tuple[Rule, ...]], tuple[Rule, ...]]) -> E:
    return dataclasses.replace(entity, rules=change(entity.rules))
