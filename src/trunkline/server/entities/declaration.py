"""Makes the store hold what a declarative file says: when a node starts, and on SIGHUP.

What the file made, the file changes, and removes when it is no longer in it. What it did not make it never
touches. What did not change keeps its keys, and is not written at all, so applying twice is applying once.
"""

from __future__ import annotations

import base64
import dataclasses
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trunkline.protocol.errors import EntityQuotaExceeded, InvalidSetting
from trunkline.server.config.declarative import Declaration, DeclaredHybridConnection, DeclaredNamespace, DeclaredRule
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.model import (
    Entity,
    HybridConnection,
    Namespace,
    Rule,
    hybrid_connection_id,
    namespace_id,
)


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done, each in words for the log; no key is in them. False when nothing was."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    #: What the file says and was not done, with the reason: somebody else made it.
    left_alone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def random_key() -> str:
    """A new key as Azure makes them: 32 random bytes in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


async def apply(
    administration: Administration, declaration: Declaration, *, new_key: Callable[[], str] = random_key
) -> Applied:
    """Brings the store to what ``declaration`` says.

    Parameters
    ----------
    new_key: makes the keys that the declaration does not give and the store does not have.

    Raises EntityQuotaExceeded when a namespace would hold more hybrid connections than it may, InvalidSetting when a
    hybrid connection has a host that something has which the file did not make; then nothing was written. Raises
    StoreError.
    """
    return await _Application(administration, declaration, new_key).run()


class _Application:
    def __init__(self, administration: Administration, declaration: Declaration, new_key: Callable[[], str]) -> None:
        self._administration = administration
        self._declaration = declaration
        self._origin = declaration.origin
        self._new_key = new_key
        self._added: list[str] = []
        self._changed: list[str] = []
        self._removed: list[str] = []
        self._left_alone: list[str] = []

    async def run(self) -> Applied:
        for declared in self._declaration.namespaces:
            await self._check_room(declared)
        await self._check_hosts()
        # First what goes: what comes may need its place.
        await self._remove_dropped()
        for order, declared in enumerate(self._declaration.namespaces):
            await self._apply_namespace(declared, order)
            for child in declared.hybrid_connections:
                await self._apply_hybrid_connection(declared, child)
        return Applied(tuple(self._added), tuple(self._changed), tuple(self._removed), tuple(self._left_alone))

    async def _check_room(self, declared: DeclaredNamespace) -> None:
        id = namespace_id(declared.name)
        wanted = {child.name.lower() for child in declared.hybrid_connections}
        for child in await self._administration.hybrid_connections(id):
            if child.origin != self._origin:
                wanted.add(child.name.lower())
        most = self._administration.most_hybrid_connections(Namespace(id, limits=declared.limits))
        if most and len(wanted) > most:
            raise EntityQuotaExceeded(
                f"QuotaExceeded: with {self._origin} the namespace {declared.name} would hold {len(wanted)} hybrid"
                f" connections, and it may have {most}: raise max_hybrid_connections or declare fewer",
                entity=id,
            )

    async def _check_hosts(self) -> None:
        # Those of one file were compared with each other when it was read.
        claimed = await self._administration.hosts(but=self._origin)
        for namespace in self._declaration.namespaces:
            for child in namespace.hybrid_connections:
                for host in child.hosts:
                    if host in claimed:
                        raise InvalidSetting(
                            f"{self._origin} gives the hybrid connection {namespace.name}/{child.name} the host {host},"
                            f" and that is a host of {_named(claimed[host])} already"
                        )

    async def _remove_dropped(self) -> None:
        declared = {
            namespace_id(namespace.name).lower(): {child.name.lower() for child in namespace.hybrid_connections}
            for namespace in self._declaration.namespaces
        }
        for namespace in await self._administration.namespaces():
            children = await self._administration.hybrid_connections(namespace.id)
            kept = []
            for child in children:
                if child.origin != self._origin:
                    kept.append(child.name)
                elif child.name.lower() not in declared.get(namespace.key, set()):
                    await self._administration.delete(child.id)
                    self._removed.append(_named(child))
            if namespace.origin != self._origin or namespace.key in declared:
                continue
            if kept:
                self._left_alone.append(
                    f"{_named(namespace)} stays: it holds what {self._origin} did not make ({', '.join(kept[:5])})"
                )
            elif await self._administration.delete(namespace.id):
                self._removed.append(_named(namespace))

    async def _apply_namespace(self, declared: DeclaredNamespace, order: int) -> None:
        def edit(before: Namespace) -> Namespace:
            return dataclasses.replace(
                before,
                hosts=declared.hosts,
                limits=declared.limits,
                rules=self._rules(declared.rules, before.rules),
                origin=self._origin,
                declared_order=order,
            )

        blank = Namespace(namespace_id(declared.name))
        before = await self._administration.get(blank.id)
        if before is None:
            await self._administration.create_namespace(edit(blank))
            self._added.append(_named(blank))
        elif self._may_change(before):
            self._note(before, await self._administration.change_namespace(before.id, edit))

    async def _apply_hybrid_connection(self, parent: DeclaredNamespace, declared: DeclaredHybridConnection) -> None:
        def edit(before: HybridConnection) -> HybridConnection:
            return dataclasses.replace(
                before,
                limits=declared.limits,
                rules=self._rules(declared.rules, before.rules),
                user_metadata=declared.user_metadata,
                enabled=declared.enabled,
                hosts=declared.hosts,
                accepts=declared.accepts,
                origin=self._origin,
            )

        blank = HybridConnection(hybrid_connection_id(namespace_id(parent.name), declared.name))
        before = await self._administration.get(blank.id)
        if before is None:
            await self._administration.create_hybrid_connection(edit(blank))
            self._added.append(_named(blank))
        elif self._may_change(before):
            self._note(before, await self._administration.change_hybrid_connection(before.id, edit))

    def _rules(self, declared: Sequence[DeclaredRule], existing: Sequence[Rule]) -> tuple[Rule, ...]:
        """The declared rules, with the keys of the file, else those they have, else new ones."""
        known = {rule.name.lower(): rule for rule in existing}
        rules = []
        for each in declared:
            had = known.get(each.name.lower())
            rules.append(
                Rule(
                    name=each.name,
                    rights=each.rights,
                    primary_key=each.primary_key or (had.primary_key if had else self._new_key()),
                    secondary_key=each.secondary_key or (had.secondary_key if had else self._new_key()),
                )
            )
        return tuple(rules)

    def _may_change(self, entity: Entity) -> bool:
        if entity.origin == self._origin:
            return True
        maker = f"{entity.origin} made it" if entity.origin else f"it was not {self._origin} that made it"
        self._left_alone.append(f"{_named(entity)} stays as it is: {maker}")
        return False

    def _note(self, before: Entity, after: Entity) -> None:
        names = [field.name for field in dataclasses.fields(after) if field.compare]
        changed = [name for name in names if getattr(before, name) != getattr(after, name)]
        if changed:
            self._changed.append(f"{_named(after)} ({', '.join(changed)})")


def _named(entity: Entity) -> str:
    if isinstance(entity, Namespace):
        return f"namespace {entity.name}"
    return f"hybrid connection {entity.namespace_id.rpartition('/')[2]}/{entity.name}"
