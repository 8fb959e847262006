"""The declarative file, ``trunkline.toml``: settings of the node, and the entities that it is to have.

    [node]                                port, tls, data ...             see `settings`
    [[namespace]]                         name, hosts, limits
    [[namespace.rule]]                    name, rights, primary_key, secondary_key
    [[namespace.hybrid_connection]]       name, hosts, accepts, enabled, user_metadata, limits
    [[namespace.hybrid_connection.rule]]  as above

Reading it only checks what the text alone can tell. `settings` gives the node table its meaning,
`entities.declaration` makes the store hold the rest.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.limits import LIMITS, MAX_RULES, Scope, Value, check
from trunkline.protocol.sas import Right, implied
from trunkline.server.config import names, positions
from trunkline.server.config.errors import InvalidConfiguration, nearest, shown

T = TypeVar("T")
_REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class DeclaredRule:
    name: str
    rights: frozenset[Right]
    #: None: generated once, and kept in the store.
    primary_key: str | None = field(default=None, repr=False)
    secondary_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DeclaredHybridConnection:
    name: str
    limits: Mapping[str, Value] = field(default_factory=dict)
    rules: tuple[DeclaredRule, ...] = ()
    user_metadata: str | None = None
    enabled: bool = True
    #: Host names of its own.
    hosts: tuple[str, ...] = ()
    #: What senders may be.
    accepts: tuple[str, ...] = names.SENDERS


@dataclass(frozen=True, slots=True)
class DeclaredNamespace:
    name: str
    hosts: tuple[str, ...] = ()
    limits: Mapping[str, Value] = field(default_factory=dict)
    rules: tuple[DeclaredRule, ...] = ()
    hybrid_connections: tuple[DeclaredHybridConnection, ...] = ()


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a file says; also made without one, by the emulator and by tests."""

    #: Name of the file, without its folder: entities remember it as the one that made them, and a file that was
    #: moved is still the same.
    origin: str
    namespaces: tuple[DeclaredNamespace, ...] = ()
    #: The ``[node]`` table as written, not checked yet; `settings.load` does. Not shown: a secret may be in it.
    node: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: Where relative paths in the file begin; None: there is no file.
    folder: Path | None = None
    #: Line of each key, for messages.
    lines: Mapping[positions.Path, int] = field(default_factory=dict, repr=False)

    def error(self, path: positions.Path, problem: str) -> InvalidConfiguration:
        """``problem`` with the place of the key ``path``, or of what is nearest above it."""
        line = next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), 1)
        key = ".".join(_bare(part) for part in path if isinstance(part, str))
        return InvalidConfiguration(problem, place=f"{self.origin}:{line}", key=key, line=line)


def read(file: Path) -> Declaration:
    """The declaration in ``file``. Raises InvalidConfiguration, with the line where there is one."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidConfiguration(f"cannot be read: {error.strerror}", place=str(file)) from None
    try:
        text = data.decode("utf-8-sig")  # Windows editors begin a file with a mark that TOML does not have
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidConfiguration("is not UTF-8 text", place=f"{file.name}:{line}", line=line) from None
    return parse(text, file.name, folder=file.resolve().parent)


def parse(text: str, origin: str, *, folder: Path | None = None) -> Declaration:
    """The declaration in ``text``. Raises InvalidConfiguration with the line.

    Parameters
    ----------
    origin: name for messages and for the entities that come from it.
    folder: where relative paths in it begin; None: the working folder.
    """
    try:
        root = tomllib.loads(text)
        lines = positions.lines_of(text.replace("\r\n", "\n"))
    except RecursionError:
        raise InvalidConfiguration("is nested too deeply", place=f"{origin}:1", line=1) from None
    except ValueError as error:  # also for a number of more digits than Python reads
        raise _syntax_error(text, origin, error) from None
    reader = _Reader(Declaration(origin, lines=lines))
    top = reader.table(root, (), ("node", "namespace"))
    node = reader.table(top.get("node", {}), ("node",))
    return Declaration(origin, reader.namespaces(top), node, folder, lines)


def _bare(key: str) -> str:
    """A key as in a file where that fits in a message, else in quotes, short and in one line."""
    return key if re.fullmatch("[A-Za-z0-9_-]{1,60}", key) else shown(key)


def _syntax_error(text: str, origin: str, error: ValueError) -> InvalidConfiguration:
    found = re.search(r"\(at line (\d+), column (\d+)\)|\(at end of document\)", str(error))
    problem = str(error) if found is None else str(error)[: found.start()].strip()
    line, column = 1, ""
    if found is not None and found[1]:
        line, column = int(found[1]), f" at column {found[2]}"
    elif found is not None:
        line = text.rstrip().count("\n") + 1
    return InvalidConfiguration(f"is not valid TOML: {problem}{column}", place=f"{origin}:{line}", line=line)


class _Reader:
    """Turns tables into what is declared, or raises with the place of what is wrong."""

    def __init__(self, source: Declaration) -> None:
        self._source = source

    def namespaces(self, top: Mapping[str, Any]) -> tuple[DeclaredNamespace, ...]:
        found = []
        hosts: dict[str, str] = {}
        for table, path in self._tables(top, "namespace", (), ("name", "hosts", "rule", "hybrid_connection")):
            namespace = DeclaredNamespace(
                name=self._value(table, "name", path, names.namespace_name),
                hosts=self._value(table, "hosts", path, _hosts, ()),
                limits=self._limits(table, path, "namespace"),
                rules=self._rules(table, path),
                hybrid_connections=self._hybrid_connections(table, path),
            )
            self._claim(hosts, namespace.hosts, namespace.name, path)
            for index, entity in enumerate(namespace.hybrid_connections):
                owner = f"{namespace.name}/{entity.name}"
                self._claim(hosts, entity.hosts, owner, (*path, "hybrid_connection", index))
            found.append(namespace)
        self._unique(found, ("namespace",))
        return tuple(found)

    def _claim(self, claimed: dict[str, str], hosts: tuple[str, ...], owner: str, path: positions.Path) -> None:
        """Each host leads to one place."""
        for host in hosts:
            if claimed.setdefault(host, owner) != owner:
                raise self._source.error((*path, "hosts"), f"{host} is a host of {claimed[host]} already")

    def _hybrid_connections(
        self, parent: Mapping[str, Any], above: positions.Path
    ) -> tuple[DeclaredHybridConnection, ...]:
        found = []
        known = ("name", "hosts", "accepts", "enabled", "user_metadata", "rule")
        for table, path in self._tables(parent, "hybrid_connection", above, known):
            entity = DeclaredHybridConnection(
                name=self._value(table, "name", path, names.hybrid_connection_name),
                limits=self._limits(table, path, "hybrid_connection"),
                rules=self._rules(table, path),
                user_metadata=self._value(table, "user_metadata", path, names.user_metadata, None),
                enabled=self._value(table, "enabled", path, _flag, True),
                hosts=self._value(table, "hosts", path, _hosts, ()),
                accepts=self._value(table, "accepts", path, names.accepts, names.SENDERS),
            )
            found.append(entity)
        self._unique(found, (*above, "hybrid_connection"))
        return tuple(found)

    def _rules(self, parent: Mapping[str, Any], above: positions.Path) -> tuple[DeclaredRule, ...]:
        found: list[DeclaredRule] = []
        for table, path in self._tables(parent, "rule", above, ("name", "rights", "primary_key", "secondary_key")):
            if len(found) == MAX_RULES:
                raise self._source.error(path, f"there can be at most {MAX_RULES} rules in one place")
            rule = DeclaredRule(
                name=self._value(table, "name", path, names.rule_name),
                rights=self._value(table, "rights", path, _rights),
                primary_key=self._value(table, "primary_key", path, names.rule_key, None),
                secondary_key=self._value(table, "secondary_key", path, names.rule_key, None),
            )
            found.append(rule)
        self._unique(found, (*above, "rule"))
        return tuple(found)

    def _limits(self, table: Mapping[str, Any], path: positions.Path, scope: Scope) -> dict[str, Value]:
        return {key: self._value(table, key, path, partial(check, key, scope=scope)) for key in table if key in LIMITS}

    def table(self, value: object, path: positions.Path, known: tuple[str, ...] | None = None) -> dict[str, Any]:
        """``value`` as a table whose keys are all ``known`` or limits; None: the keys are not looked at."""
        if not isinstance(value, dict):
            raise self._source.error(path, f"{shown(value)} is not allowed: it must be a table")
        allowed = known if known is None or not path else (*known, *LIMITS)
        for key in value:
            if allowed is not None and key not in allowed:
                raise self._source.error((*path, key), f"there is no such key here{nearest(key, allowed)}")
        return value

    def _tables(
        self, parent: Mapping[str, Any], key: str, above: positions.Path, known: tuple[str, ...]
    ) -> list[tuple[dict[str, Any], positions.Path]]:
        value, path = parent.get(key, []), (*above, key)
        if not isinstance(value, list):
            name = ".".join(part for part in path if isinstance(part, str))
            raise self._source.error(path, f"there can be several: write [[{name}]] with two brackets")
        return [(self.table(each, (*path, index), known), (*path, index)) for index, each in enumerate(value)]

    def _value(
        self,
        table: Mapping[str, Any],
        key: str,
        path: positions.Path,
        convert: Callable[[Any], T],
        default: T = _REQUIRED,
    ) -> T:
        if key not in table:
            if default is _REQUIRED:
                raise self._source.error(path, f"{key} is missing")
            return default
        try:
            return convert(table[key])
        except InvalidSetting as error:
            raise self._source.error((*path, key), error.message) from None

    def _unique(self, found: list[Any], path: positions.Path) -> None:
        seen: dict[str, str] = {}
        for index, each in enumerate(found):
            if each.name.lower() in seen:
                problem = f"{each.name} is there already; names are compared without regard to case"
                raise self._source.error((*path, index, "name"), problem)
            seen[each.name.lower()] = each.name


def _hosts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidSetting(f'{shown(value)} is not allowed: it must be a list of host names, ["relay.example.com"]')
    return tuple(dict.fromkeys(names.host_name(each) for each in value))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidSetting(f"{shown(value)} is not allowed: it must be true or false")
    return value


def _rights(value: object) -> frozenset[Right]:
    if not isinstance(value, list) or not value:
        raise InvalidSetting(f'{shown(value)} is not allowed: it must be a list of rights, ["Listen", "Send"]')
    known = {right.value: right for right in Right}
    for each in value:
        if not isinstance(each, str) or each not in known:
            similar = nearest(each, known) if isinstance(each, str) else f"; known are {', '.join(known)}"
            raise InvalidSetting(f"{shown(each)} is no right{similar}")
    rights = frozenset(known[each] for each in value)
    if rights != implied(rights):
        raise InvalidSetting('Manage is granted only with the others: write ["Listen", "Send", "Manage"]')
    return rights
