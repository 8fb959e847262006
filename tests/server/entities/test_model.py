from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.sas import Right
from trunkline.server.entities.model import (
    DamagedDocument,
    Entity,
    HybridConnection,
    Namespace,
    Rule,
    check_entity,
    check_rights,
    children_prefix,
    from_document,
    hybrid_connection_id,
    namespace_id,
    parse_id,
    to_document,
)

NS = namespace_id("myRelayNS")
SEND = Rule("send", frozenset({Right.SEND}), "key-one", "key-two")


def test_ids_are_those_of_azure() -> None:
    assert NS == (
        "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/trunkline"
        "/providers/Microsoft.Relay/namespaces/myRelayNS"
    )
    assert hybrid_connection_id(NS, "a/b") == NS + "/hybridConnections/a/b"
    assert hybrid_connection_id(NS, "a/b").startswith(children_prefix(NS))
    assert parse_id(NS) == (NS, "myRelayNS", None)
    assert parse_id(NS.lower() + "/HYBRIDCONNECTIONS/A/b") == (NS.lower(), "myrelayns", "A/b")


@pytest.mark.parametrize("id", ["", "/", "orders", NS + "/", NS + "/hybridConnections/", NS + "/wcfRelays/a", NS[:-10]])
def test_what_is_no_id_is_declared_so(id: str) -> None:
    with pytest.raises(DamagedDocument, match="is not the id"):
        parse_id(id)


def test_entity_knows_its_name_and_its_rules_in_any_case() -> None:
    entity = HybridConnection(hybrid_connection_id(NS, "Orders/New"), rules=(SEND,))
    assert entity.name == "Orders/New"
    assert entity.namespace_id == NS
    assert entity.key == entity.id.lower()
    assert entity.rule("SEND") is SEND
    assert entity.rule("listen") is None
    assert Namespace(NS).name == "myRelayNS"


def test_keys_are_not_in_the_repr() -> None:
    assert "key-" not in repr(Namespace(NS, rules=(SEND,)))


def test_count_does_not_tell_namespaces_apart() -> None:
    assert Namespace(NS, hybrid_connections=1) == Namespace(NS, hybrid_connections=2)


@pytest.mark.parametrize(
    ("rights", "problem"),
    [
        (set(), "at least one right"),
        ({Right.MANAGE}, "only together"),
        ({Right.MANAGE, Right.SEND}, "only together"),
    ],
)
def test_rule_with_odd_rights_is_refused(rights: set[Right], problem: str) -> None:
    with pytest.raises(InvalidSetting, match=problem):
        check_rights(frozenset(rights))


@pytest.mark.parametrize(
    ("entity", "problem"),
    [
        (Namespace(namespace_id("ns")), "6 to 50"),
        (Namespace(NS, hosts=("A.b",)), "lower case"),
        (Namespace(NS, hosts=("a:1",)), "without scheme, port"),
        (HybridConnection(hybrid_connection_id(NS, "a"), hosts=("A.b",)), "lower case"),
        (HybridConnection(hybrid_connection_id(NS, "a"), accepts=()), "list with 'http' or 'websocket' or both"),
        (HybridConnection(hybrid_connection_id(NS, "a"), accepts=("websocket", "http")), "kept in this order"),
        (Namespace(NS, limits={"max_sendrs": 1}), "max_senders"),
        (Namespace(NS, limits={"drain_timeout": 1}), "cannot be set on a namespace"),
        (HybridConnection(hybrid_connection_id(NS, "a..")), "1 to 260"),
        (HybridConnection(hybrid_connection_id(NS, "a"), limits={"max_senders": "x"}), "whole number"),
        (HybridConnection(hybrid_connection_id(NS, "a"), user_metadata="x" * 1025), "1024"),
        (Namespace(NS, rules=(SEND, Rule("Send", SEND.rights, "a", "b"))), "two rules"),
        (Namespace(NS, rules=tuple(Rule(f"r{n}", SEND.rights, "a", "b") for n in range(13))), "at most 12 rules"),
        (Namespace(NS, rules=(Rule("a b", SEND.rights, "a", "b"),)), "a rule is named"),
        (Namespace(NS, rules=(Rule("ab", SEND.rights, "", "b"),)), "a key is text"),
        (Namespace(NS, rules=(Rule("ab", SEND.rights, "a", ";"),)), "a key has no"),
        (Namespace(NS, rules=(Rule("ab", frozenset(), "a", "b"),)), "at least one right"),
    ],
)  # fmt: skip
def test_entity_that_may_not_exist_is_refused(entity: Entity, problem: str) -> None:
    with pytest.raises(InvalidSetting, match=problem):
        check_entity(entity)


_LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "max_senders": st.integers(1, 100),
        "idle_timeout": st.floats(1, 9),
        "listener_policy": st.just("balanced"),
    },
)
_KEYS = st.text(alphabet="abAB09+/=", min_size=1, max_size=44)
_RIGHTS = st.sampled_from([{Right.LISTEN}, {Right.SEND}, {Right.LISTEN, Right.SEND}, set(Right)]).map(frozenset)
_RULES = st.lists(
    st.builds(Rule, st.text(alphabet="abAB", min_size=1, max_size=5), _RIGHTS, _KEYS, _KEYS),
    max_size=4,
    unique_by=lambda rule: rule.name.lower(),
).map(tuple)
_ORIGIN = st.none() | st.text(max_size=9)
_NAMESPACES = st.builds(
    Namespace,
    st.just(NS),
    limits=_LIMITS,
    rules=_RULES,
    origin=_ORIGIN,
    hosts=st.lists(st.sampled_from(["a.b", "relay.local", "127.0.0.1", "::1"])).map(tuple),
    declared_order=st.none() | st.integers(0, 9),
    hybrid_connections=st.integers(0, 99),
)
_HYBRID_CONNECTIONS = st.builds(
    HybridConnection,
    st.sampled_from(["a", "A/b", "x.y-z_0"]).map(lambda name: hybrid_connection_id(NS, name)),
    limits=_LIMITS,
    rules=_RULES,
    origin=_ORIGIN,
    user_metadata=st.none() | st.text(),
    enabled=st.booleans(),
)
_ENTITIES: st.SearchStrategy[Entity] = st.one_of(_NAMESPACES, _HYBRID_CONNECTIONS)


@given(entity=_ENTITIES)
def test_document_gives_back_the_entity(entity: Entity) -> None:
    check_entity(entity)
    back = from_document(entity.id, json.loads(json.dumps(to_document(entity))))
    assert back == entity
    assert to_document(back) == to_document(entity)  # the count too, which does not compare


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(
    entity=_ENTITIES, key=st.sampled_from(["limits", "rules", "hosts", "enabled", "origin", "userMetadata"]), by=_JSON
)
def test_altered_document_is_an_entity_or_declared_damaged(entity: Entity, key: str, by: Any) -> None:
    body = to_document(entity) | {key: by}
    try:
        check_entity(from_document(entity.id, body))
    except DamagedDocument as error:
        assert entity.id in str(error)


def test_damaged_document_does_not_show_its_keys() -> None:
    body = to_document(Namespace(NS, rules=(SEND,)))
    body["rules"][0]["secondaryKey"] = "top;secret"
    with pytest.raises(DamagedDocument) as damaged:
        from_document(NS, body)
    assert "top;secret" not in str(damaged.value) and "key-one" not in str(damaged.value)
