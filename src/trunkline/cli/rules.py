"""Where keys are found: in a connection string, in a declarative file, or in the folder of a node or an emulator.

The store is read beside a running node, which goes on writing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from trunkline.cli.failure import Failure, usage
from trunkline.cli.token_explanation import KnownKey
from trunkline.protocol import connection_string
from trunkline.protocol.sas import Right
from trunkline.protocol.urls import split_authority
from trunkline.server.config import declarative
from trunkline.server.config.declarative import Declaration, DeclaredRule
from trunkline.server.config.settings import NodeSettings, load
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.sqlite import SqliteStore

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Take the key from this declarative file.")
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Take the key from this data folder, of a node or an emulator."),
]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", metavar="NAME", help="With --config or --data, when there are several.")
]
RuleOption = Annotated[str | None, typer.Option("--rule", metavar="NAME", help="The authorization rule to use.")]
RightsOption = Annotated[
    str | None,
    typer.Option("--rights", metavar="RIGHT[,RIGHT]", help="Use a rule with exactly these: Listen, Send, Manage."),
]
EndpointOption = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="HOST[:PORT]", help="How clients reach the node, when the file does not say."),
]


@dataclass(frozen=True)
class _Rule:
    name: str
    rights: frozenset[Right]
    # None: the node makes it, and has not been started yet.
    key: str | None = field(repr=False)
    # Good too, and never handed out here.
    secondary_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Namespace:
    name: str
    rules: tuple[_Rule, ...]
    # Of each hybrid connection, by its name in lower case.
    entities: dict[str, tuple[str, tuple[_Rule, ...]]]


async def find(
    *,
    config: Path | None,
    data: Path | None,
    namespace: str | None,
    entity: str | None,
    rule: str | None,
    rights: str | None,
    endpoint: str | None,
) -> connection_string.ConnectionString:
    """The connection string of a rule that a file or a folder holds.

    Raises:
        Failure: there is none like that; the message names those there are.
    """
    declaration, settings, known = await _known(config, data)
    chosen = _choose_namespace(known, namespace, settings.data if declaration is None else config)
    path, own = ("", ()) if not entity else _entity(chosen, entity)
    found = _choose_rule((*own, *chosen.rules), rule, rights, entity or chosen.name)
    if found.key is None:
        raise Failure(
            f"The key of the rule {found.name} is not made yet", "start the node once: trunkline serve --config FILE"
        )
    host, port = _where(settings, endpoint, None if chosen is known[0] else chosen.name)
    text = connection_string.build(host, port=port, key_name=found.name, key=found.key, entity_path=path or None)
    return connection_string.parse(text)


async def keys(*, config: Path | None, data: Path | None) -> list[KnownKey]:
    """Every key that a file or a folder holds, those of hybrid connections first. Raises Failure."""
    _, _, known = await _known(config, data)
    found = []
    for namespace in known:
        scopes = [*namespace.entities.values(), (f"the namespace {namespace.name}", namespace.rules)]
        for where, own in scopes:
            for rule in own:
                for which, key in (("primary", rule.key), ("secondary", rule.secondary_key)):
                    if key is not None:
                        found.append(KnownKey(rule.name, key, f"the rule {rule.name} of {where} ({which})"))
    return found


async def _known(config: Path | None, data: Path | None) -> tuple[Declaration | None, NodeSettings, list[_Namespace]]:
    """What a file says, the settings of its node, and the namespaces of the store or, without one, of the file."""
    declaration = None if config is None else declarative.read(config)
    settings = load(declaration, {"data": None if data is None else str(data)})
    known = await _stored(settings.data)
    if not known and declaration is not None:
        known = _declared(declaration)
    return declaration, settings, known


async def _stored(folder: Path) -> list[_Namespace]:
    file = folder / "entities.db"
    if not file.exists():
        return []
    store = SqliteStore(file, read_only=True)
    try:
        administration = Administration(store)
        found = []
        for namespace in await administration.namespaces():
            children = await administration.hybrid_connections(namespace.id)
            entities = {each.name.lower(): (each.name, _plain(each.rules)) for each in children}
            found.append((namespace.declared_order, _Namespace(namespace.name, _plain(namespace.rules), entities)))
        return [each for _, each in sorted(found, key=lambda pair: (pair[0] is None, pair[0] or 0))]
    finally:
        await store.close()


def _plain(rules: Iterable[object]) -> tuple[_Rule, ...]:
    return tuple(
        _Rule(rule.name, rule.rights, rule.primary_key, rule.secondary_key)  # type: ignore[attr-defined]
        for rule in rules
    )


def _declared(declaration: Declaration) -> list[_Namespace]:
    def rules(declared: Sequence[DeclaredRule]) -> tuple[_Rule, ...]:
        return _plain(declared)

    return [
        _Namespace(
            namespace.name,
            rules(namespace.rules),
            {child.name.lower(): (child.name, rules(child.rules)) for child in namespace.hybrid_connections},
        )
        for namespace in declaration.namespaces
    ]


def _choose_namespace(known: list[_Namespace], name: str | None, where: Path | None) -> _Namespace:
    if not known:
        raise usage(f"There is no namespace in {where}", "name the data folder or the file of a node")
    if name is None:
        return known[0]
    for each in known:
        if each.name.lower() == name.lower():
            return each
    raise usage(f"There is no namespace {name}", f"there are: {', '.join(each.name for each in known)}")


def _entity(namespace: _Namespace, path: str) -> tuple[str, tuple[_Rule, ...]]:
    found = namespace.entities.get(path.strip("/").lower())
    if found is None:
        there = ", ".join(name for name, _ in namespace.entities.values()) or "none"
        raise usage(f"There is no hybrid connection {path} in {namespace.name}", f"there are: {there}")
    return found


def _choose_rule(rules: Sequence[_Rule], name: str | None, rights: str | None, where: str) -> _Rule:
    wanted = None if rights is None else _rights(rights)
    for each in rules:
        if name is not None and each.name.lower() != name.lower():
            continue
        if wanted is not None and each.rights != wanted:
            continue
        return each
    there = "; ".join(f"{each.name} ({', '.join(sorted(each.rights))})" for each in rules) or "none"
    raise usage(f"No rule for {where} is like that", f"there are: {there}")


def _rights(text: str) -> frozenset[Right]:
    by_name = {right.value.lower(): right for right in Right}
    words = [word.strip().lower() for word in text.replace(" ", ",").split(",") if word.strip()]
    if not words or any(word not in by_name for word in words):
        raise usage(
            f"--rights {text} is no list of rights", "write for example --rights Listen or --rights Listen,Send"
        )
    return frozenset(by_name[word] for word in words)


def _where(settings: NodeSettings, endpoint: str | None, further: str | None = None) -> tuple[str, int]:
    """Host and port for clients: as asked, else the public URL, else the domain and the port of the node.

    Args:
        further: name of a namespace that is not the first one. A host that no namespace has leads to the first, so
            this one is reached by its own name alone.
    """
    if endpoint is not None:
        host, port = split_authority(endpoint.removeprefix("sb://").rstrip("/"))
    elif settings.public_url is not None:
        host, port = split_authority(settings.public_url.partition("://")[2])
        port = port or (443 if settings.public_url.startswith("https") else 80)
    else:
        host, port = settings.domain, settings.port
    if endpoint is None and further is not None:
        host = f"{further.lower()}.{settings.domain}"
    if not (port or settings.port):
        raise usage("The system chooses the port of this node (port = 0)", "say which: --endpoint HOST:PORT")
    return host, port or settings.port
