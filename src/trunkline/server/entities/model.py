"""The product's nouns as the node sees them, and the documents they are kept as.

A namespace and a hybrid connection are one document each, under its ARM id; their authorization rules are
part of that document, because a key-value store has no transaction over two keys:

    /subscriptions/S/resourceGroups/G/providers/Microsoft.Relay/namespaces/NS                          Namespace
    /subscriptions/S/resourceGroups/G/providers/Microsoft.Relay/namespaces/NS/hybridConnections/a/b    HybridConnection

Ids and names are compared without regard to case and keep the spelling they were created with. A name with
slashes stays as it is inside the id: nothing lies below a hybrid connection, so the rest is its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from trunkline.protocol import sas
from trunkline.protocol.errors import InvalidSetting, RelayError
from trunkline.protocol.limits import MAX_RULES, Scope, check
from trunkline.protocol.sas import Right
from trunkline.server.config import names

#: Where entities live that nobody placed in a subscription and a resource group.
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
RESOURCE_GROUP = "trunkline"

_ID = re.compile(
    r"(?P<namespace>/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Relay/namespaces/(?P<name>[^/]+))"
    r"(?:/hybridConnections/(?P<hybrid_connection>.+))?\Z",
    re.IGNORECASE,
)


class DamagedDocument(RelayError):
    """A kept document is not what this version writes; the message names the document, never its content."""

    code = "DamagedDocument"
    default_message = "A stored document cannot be read"


@dataclass(frozen=True, slots=True)
class Rule:
    """An authorization rule: whoever holds one of its keys has its rights."""

    #: Compared without regard to case.
    name: str
    #: As granted; Manage comes with both others.
    rights: frozenset[Right]
    #: Secrets: never shown, never logged.
    primary_key: str = field(repr=False)
    secondary_key: str = field(repr=False)

    @property
    def keys(self) -> tuple[str, str]:
        """Both keys, in the order in which a signature is tried."""
        return (self.primary_key, self.secondary_key)


@dataclass(frozen=True)
class _Entity:
    #: ARM id, in the spelling of its creation.
    id: str
    #: Limits set on this entity itself; see `trunkline.protocol.limits`.
    limits: Mapping[str, object] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    #: Name of the declarative file that made it, the only one that may change or remove it; None: made otherwise.
    origin: str | None = None
    #: When it was made and when it was last changed, in seconds since the epoch; None: before that was remembered. Not
    #: part of what makes two entities differ.
    created_at: float | None = field(default=None, compare=False)
    updated_at: float | None = field(default=None, compare=False)

    @cached_property
    def key(self) -> str:
        """The id as it is compared."""
        return self.id.lower()

    def rule(self, name: str) -> Rule | None:
        """The rule of that name, in any case."""
        return self._rules.get(name.lower())

    @cached_property
    def _rules(self) -> dict[str, Rule]:
        return {rule.name.lower(): rule for rule in self.rules}


@dataclass(frozen=True)
class Namespace(_Entity):
    """A container of hybrid connections, reached as ``<name>.<domain of the node>`` and by `hosts`."""

    #: Further host names in URLs, tokens and certificates, in lower case.
    hosts: tuple[str, ...] = ()
    #: Place in the declarative file, from 0; a host that nobody listed goes to the lowest. None: not declared.
    declared_order: int | None = None
    #: Hybrid connections inside, as counted by `entities.administration`. Not part of what makes two namespaces
    #: differ: nobody needs to hear of a change of the count.
    hybrid_connections: int = field(default=0, compare=False)

    @cached_property
    def name(self) -> str:
        return parse_id(self.id)[1]


@dataclass(frozen=True)
class HybridConnection(_Entity):
    """The entity that listeners and senders meet on."""

    #: Free text for people and tools; the relay does not read it.
    user_metadata: str | None = None
    #: False: every listen and connect is refused with EndpointDisabled.
    enabled: bool = True
    #: Host names of its own, in lower case: the whole path of a request for one of them is the sender's.
    hosts: tuple[str, ...] = ()
    #: What senders may be, of `names.SENDERS`: a listener that cannot serve the others never hears of them.
    accepts: tuple[str, ...] = names.SENDERS

    @cached_property
    def name(self) -> str:
        """Its path inside the namespace, without a slash at either end."""
        return parse_id(self.id)[2] or ""

    @cached_property
    def namespace_id(self) -> str:
        return parse_id(self.id)[0]


Entity = Namespace | HybridConnection


def namespace_id(name: str, *, subscription: str = SUBSCRIPTION, resource_group: str = RESOURCE_GROUP) -> str:
    """The ARM id of a namespace."""
    # `resourceGroups` in exactly this spelling: `az webapp hybrid-connection add` splits ids on it (seen).
    return f"/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/Microsoft.Relay/namespaces/{name}"


def hybrid_connection_id(namespace: str, name: str) -> str:
    """The ARM id of a hybrid connection in the namespace with the id ``namespace``."""
    return f"{namespace}/hybridConnections/{name}"


def children_prefix(namespace: str) -> str:
    """What the ids of all hybrid connections of that namespace begin with."""
    return f"{namespace}/hybridConnections/"


def parse_id(id: str) -> tuple[str, str, str | None]:
    """Id of the namespace, its name, and the name of the hybrid connection (None for the namespace itself).

    Raises DamagedDocument when it is no such id.
    """
    match = _ID.match(id)
    if match is None:
        raise DamagedDocument(f"{id[:200]!r} is not the id of a namespace or a hybrid connection")
    return match["namespace"], match["name"], match["hybrid_connection"]


def check_rights(rights: frozenset[Right]) -> frozenset[Right]:
    """``rights`` when a rule may have them, else InvalidSetting: at least one, and Manage only with the others."""
    if not rights:
        raise InvalidSetting("a rule needs at least one right: Listen, Send or Manage")
    # Terraform refuses Manage alone on its side, az and the SDKs leave it to the service.
    if Right.MANAGE in rights and rights != sas.implied(rights):
        raise InvalidSetting("Manage is granted only together with Listen and Send: name all three")
    return rights


def check_rules(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """``rules`` when one entity may have them, else InvalidSetting."""
    if len(rules) > MAX_RULES:
        raise InvalidSetting(f"there can be at most {MAX_RULES} rules on one entity, not {len(rules)}")
    seen: set[str] = set()
    for rule in rules:
        if names.rule_name(rule.name).lower() in seen:
            raise InvalidSetting(f"there are two rules named {rule.name}; names are compared without regard to case")
        seen.add(rule.name.lower())
        check_rights(rule.rights)
        names.rule_key(rule.primary_key)
        names.rule_key(rule.secondary_key)
    return rules


def check_entity(entity: Entity) -> None:
    """Raises InvalidSetting, with the rule in words, when ``entity`` may not exist; every writer asks first."""
    for host in entity.hosts:
        if names.host_name(host) != host:
            raise InvalidSetting(f"host {host} is kept in lower case: {names.host_name(host)}")
    if isinstance(entity, Namespace):
        names.namespace_name(entity.name)
    else:
        names.hybrid_connection_name(entity.name)
        if names.accepts(entity.accepts) != entity.accepts:
            raise InvalidSetting(f"what {entity.name} accepts is kept in this order: {names.SENDERS}")
        if entity.user_metadata is not None:
            names.user_metadata(entity.user_metadata)
    scope: Scope = "namespace" if isinstance(entity, Namespace) else "hybrid_connection"
    for name, value in entity.limits.items():
        check(name, value, scope=scope)
    check_rules(entity.rules)


def to_document(entity: Entity) -> dict[str, Any]:
    """What is kept of ``entity``, as JSON can hold it; what has its usual value is left out."""
    body: dict[str, Any] = {
        "limits": dict(entity.limits),
        "rules": [
            {
                "name": rule.name,
                "rights": [right.value for right in Right if right in rule.rights],
                "primaryKey": rule.primary_key,
                "secondaryKey": rule.secondary_key,
            }
            for rule in entity.rules
        ],
    }
    if entity.origin is not None:
        body["origin"] = entity.origin
    for key, moment in (("createdAt", entity.created_at), ("updatedAt", entity.updated_at)):
        if moment is not None:
            body[key] = moment
    if isinstance(entity, Namespace):
        body |= {"hosts": list(entity.hosts), "hybridConnections": entity.hybrid_connections}
        if entity.declared_order is not None:
            body["declaredOrder"] = entity.declared_order
    else:
        body["enabled"] = entity.enabled
        if entity.hosts:
            body["hosts"] = list(entity.hosts)
        if entity.accepts != names.SENDERS:
            body["accepts"] = list(entity.accepts)
        if entity.user_metadata is not None:
            body["userMetadata"] = entity.user_metadata
    return body


def from_document(id: str, body: Mapping[str, Any]) -> Entity:
    """The entity that `to_document` made ``body`` from. Raises DamagedDocument for anything else."""
    is_namespace = parse_id(id)[2] is None
    try:
        common: dict[str, Any] = {
            "id": id,
            "limits": dict(_expect(body, "limits", dict)),
            "rules": tuple(_rule(rule) for rule in _expect(body, "rules", list)),
            "origin": _optional(body, "origin", str),
            "created_at": _optional(body, "createdAt", float),
            "updated_at": _optional(body, "updatedAt", float),
        }
        entity: Entity
        if is_namespace:
            entity = Namespace(
                hosts=tuple(_expect(body, "hosts", list)),
                declared_order=_optional(body, "declaredOrder", int),
                hybrid_connections=_expect(body, "hybridConnections", int),
                **common,
            )
        else:
            entity = HybridConnection(
                user_metadata=_optional(body, "userMetadata", str),
                enabled=_expect(body, "enabled", bool),
                hosts=tuple(_optional(body, "hosts", list) or ()),
                accepts=tuple(_optional(body, "accepts", list) or names.SENDERS),
                **common,
            )
        check_entity(entity)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedDocument(f"the stored document of {id} cannot be read: {error}") from None
    return entity


def _rule(body: Any) -> Rule:
    return Rule(
        name=_expect(body, "name", str),
        rights=frozenset(Right(right) for right in _expect(body, "rights", list)),
        primary_key=_expect(body, "primaryKey", str),
        secondary_key=_expect(body, "secondaryKey", str),
    )


def _expect(body: Any, key: str, kind: type) -> Any:
    if not isinstance(body, Mapping) or type(body.get(key)) is not kind:
        raise TypeError(f"{key} is missing or has the wrong type")
    return body[key]


def _optional(body: Any, key: str, kind: type) -> Any:
    return None if body.get(key) is None else _expect(body, key, kind)
