"""The arguments of a test as the declaration that a settings file would hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.limits import LIMITS, Scope, Value, check
from trunkline.protocol.sas import Right
from trunkline.server.config import names
from trunkline.server.config.declarative import (
    Declaration,
    DeclaredHybridConnection,
    DeclaredNamespace,
    DeclaredRule,
)

#: What a test may say of a hybrid connection: any limit, and ``rules``, ``user_metadata``, ``enabled``, ``hosts``,
#: ``accepts``.
HybridConnectionOptions = Mapping[str, object]
#: Names only, or names with options.
HybridConnections = str | Iterable[str] | Mapping[str, HybridConnectionOptions]
#: Name of a rule to its rights, ``{"orders-listener": ["Listen"]}``.
Rules = Mapping[str, Iterable[str]]

#: The rules of a namespace unless a test names others: Azure's own, and one for each side.
DEFAULT_RULES: Rules = {
    "RootManageSharedAccessKey": ("Listen", "Send", "Manage"),
    "listen": ("Listen",),
    "send": ("Send",),
}
#: What entities remember as the file that made them.
ORIGIN = "trunkline.testing"


def declare(namespace: str, hosts: Iterable[str], rules: Rules, hybrid_connections: HybridConnections) -> Declaration:
    """One namespace with what is in it. Raises InvalidSetting, which names what is wrong."""
    if isinstance(hybrid_connections, str):
        hybrid_connections = [hybrid_connections]
    if not isinstance(hybrid_connections, Mapping):
        hybrid_connections = {name: {} for name in hybrid_connections}
    declared = DeclaredNamespace(
        namespace,
        hosts=tuple(hosts),
        rules=declare_rules(rules),
        hybrid_connections=tuple(
            declare_hybrid_connection(name, options) for name, options in hybrid_connections.items()
        ),
    )
    return Declaration(ORIGIN, (declared,))


def declare_hybrid_connection(name: str, options: HybridConnectionOptions) -> DeclaredHybridConnection:
    """One hybrid connection. Raises InvalidSetting."""
    others = dict(options)
    rules = others.pop("rules", {})
    if not isinstance(rules, Mapping):
        raise InvalidSetting(f'rules of {name}: write {{"name of the rule": ["Listen", "Send"]}}')
    metadata, enabled = others.pop("user_metadata", None), others.pop("enabled", True)
    hosts, accepted = others.pop("hosts", ()), others.pop("accepts", names.SENDERS)
    if isinstance(hosts, str) or not isinstance(hosts, Iterable):
        raise InvalidSetting(f"hosts of {name} must be a list of host names")
    if not isinstance(metadata, str | None) or not isinstance(enabled, bool):
        raise InvalidSetting(f"user_metadata of {name} must be text, and enabled True or False")
    return DeclaredHybridConnection(
        name,
        limits=checked_limits(others, "hybrid_connection"),
        rules=declare_rules(rules),
        user_metadata=metadata,
        enabled=enabled,
        hosts=tuple(names.host_name(host) for host in hosts),
        accepts=names.accepts(accepted),
    )


def declare_rules(rules: Rules) -> tuple[DeclaredRule, ...]:
    """Rules with keys that are still to be made."""
    return tuple(DeclaredRule(name, checked_rights(rights)) for name, rights in rules.items())


def checked_rights(rights: Iterable[str]) -> frozenset[Right]:
    """Rights by name. Raises InvalidSetting."""
    if isinstance(rights, str):
        rights = [rights]
    try:
        return frozenset(Right(right) for right in rights)
    except ValueError as error:
        raise InvalidSetting(f"{error}: the rights are {', '.join(Right)}") from None


def checked_limits(limits: Mapping[str, object], scope: Scope) -> dict[str, Value]:
    """Limits by name. Raises InvalidSetting, with the nearest name for one that does not exist."""
    return {name: check(name, value, scope=scope if name in LIMITS else None) for name, value in limits.items()}
