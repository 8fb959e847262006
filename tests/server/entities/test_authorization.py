from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol import sas
from trunkline.protocol.errors import (
    AccessDenied,
    AuthorizationFailed,
    ExpiredToken,
    InvalidAudience,
    InvalidSignature,
    InvalidToken,
    MissingToken,
    TokenLifetimeExceeded,
)
from trunkline.protocol.limits import resolve
from trunkline.protocol.sas import Right
from trunkline.server.entities.authorization import Authorizer, Grant
from trunkline.server.entities.catalog import Catalog
from trunkline.server.entities.model import (
    Entity,
    HybridConnection,
    Namespace,
    Rule,
    hybrid_connection_id,
    namespace_id,
    to_document,
)
from trunkline.server.entities.store import Change, Document

NOW = 1_800_000_000.0
HOST = "myrelayns.localhost"
LISTEN = frozenset({Right.LISTEN})
SEND = frozenset({Right.SEND})

ROOT = Rule("RootManageSharedAccessKey", frozenset(Right), "root-primary", "root-secondary")
BOTH_NS = Rule("both", SEND, "ns-primary", "ns-secondary")
BOTH_HC = Rule("both", LISTEN, "hc-primary", "hc-secondary")
SPACED = Rule("my-rule.v2", SEND, "spaced-primary", "spaced-secondary")

NAMESPACE = Namespace(namespace_id("myRelayNS"), hosts=("relay.local",), rules=(ROOT, BOTH_NS))
ORDERS = HybridConnection(hybrid_connection_id(NAMESPACE.id, "Orders/New"), rules=(BOTH_HC, SPACED))


class Relay:
    """A catalog with one namespace and one hybrid connection, and who checks tokens for it."""

    def __init__(self, **more: Any) -> None:
        self.catalog = Catalog()
        self.revision = 0
        self.put(NAMESPACE)
        self.put(ORDERS)
        self.authorizer = Authorizer(self.catalog, **more)

    def put(self, entity: Entity) -> None:
        self.revision += 1
        document = Document(entity.id, str(self.revision), self.revision, to_document(entity))
        self.catalog.apply(Change(entity.id, self.revision, document))

    def drop(self, entity: Entity) -> None:
        self.revision += 1
        self.catalog.apply(Change(entity.id, self.revision, None))

    def authenticate(
        self, token: str | None, *, path: str = "Orders/New", host: str = HOST, now: float = NOW, **limits: object
    ) -> Grant:
        namespace = self.catalog.namespace("myRelayNS")
        assert namespace is not None
        entity = self.catalog.find(namespace, path)
        return self.authorizer.authenticate(
            namespace, path, entity, token, host=host, limits=resolve("default", limits), now=now
        )


def token(
    rule: Rule = ROOT, *, key: str | None = None, audience: str = f"http://{HOST}/Orders/New", lifetime: float = 3600
) -> str:
    return sas.sign(audience, rule.name, key or rule.primary_key, expires_at=int(NOW + lifetime))


@pytest.mark.parametrize("key", ["root-primary", "root-secondary"])
def test_either_key_of_a_namespace_rule_grants_its_rights(key: str) -> None:
    grant = Relay().authenticate(token(key=key))
    assert (grant.rule, grant.scope, grant.rights) == (ROOT.name, NAMESPACE.id, frozenset(Right))
    assert grant.expires_at == NOW + 3600


def test_rule_of_the_entity_comes_before_that_of_the_namespace() -> None:
    relay = Relay()
    grant = relay.authenticate(token(BOTH_HC))
    assert (grant.scope, grant.rights) == (ORDERS.id, LISTEN)
    grant = relay.authenticate(token(BOTH_NS))
    assert (grant.scope, grant.rights) == (NAMESPACE.id, SEND)
    same = dataclasses.replace(BOTH_NS, primary_key="hc-primary")
    relay.put(dataclasses.replace(NAMESPACE, rules=(same,)))
    assert relay.authenticate(token(BOTH_HC)).scope == ORDERS.id


def test_manage_implies_the_other_rights() -> None:
    relay = Relay()
    grant = relay.authenticate(token())
    for right in Right:
        grant.require(right)


def test_grant_without_the_right_is_denied_in_the_words_of_azure() -> None:
    with pytest.raises(AccessDenied, match=r"Unauthorized access. 'Send' claim\(s\) are required to perform this op"):
        Relay().authenticate(token(BOTH_HC)).require(Right.SEND)


@pytest.mark.parametrize(
    "audience",
    [
        f"http://{HOST}/Orders/New",
        f"http://{HOST}/orders/new/",
        f"HTTPS://{HOST.upper()}:443/ORDERS",
        f"sb://{HOST}:28443",
        f"http://{HOST}/",
        "wss://relay.local/$hc/Orders/New",
    ],
)
def test_audience_of_the_namespace_or_above_the_entity_covers_it(audience: str) -> None:
    relay = Relay()
    assert relay.authenticate(token(audience=audience)).rule == ROOT.name
    # The Java sender signs for the whole namespace with the key of an entity.
    assert relay.authenticate(token(BOTH_HC, audience=audience)).scope == ORDERS.id


@pytest.mark.parametrize(
    "audience",
    [
        f"http://{HOST}/other",
        f"http://{HOST}/Orders/Ne",
        f"http://{HOST}/Orders/New/more",
        "http://elsewhere.com/Orders/New",
        "http://another.localhost/Orders/New",
    ],
)
def test_audience_beside_the_entity_is_refused(audience: str) -> None:
    with pytest.raises(InvalidAudience):
        Relay().authenticate(token(audience=audience))


def test_token_may_be_made_for_the_host_that_was_asked() -> None:
    relay = Relay()
    made = token(audience="http://public.example.com/Orders/New")
    with pytest.raises(InvalidAudience):
        relay.authenticate(made)
    assert relay.authenticate(made, host="public.example.com").rule == ROOT.name


@pytest.mark.parametrize(
    "name", ["my-rule.v2", "MY-RULE.V2", "my%2Drule.v2"], ids=["as it is", "another case", "escaped"]
)
def test_rule_is_found_however_its_name_was_written(name: str) -> None:
    made = token(SPACED).replace("skn=my-rule.v2", f"skn={name}")
    assert Relay().authenticate(made).rule == "my-rule.v2"


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_absent_token_is_missing(nothing: str | None) -> None:
    with pytest.raises(MissingToken):
        Relay().authenticate(nothing)


@pytest.mark.parametrize(
    "text", ["SharedAccessSignature", "SharedAccessSignature sr=a", "Basic dXNlcg==", "eyJub3QgYSBqd3Q"]
)
def test_malformed_token_has_an_invalid_signature(text: str) -> None:
    with pytest.raises(InvalidToken, match="token has an invalid signature"):
        Relay().authenticate(text)


BAD: list[Callable[[], str]] = [
    lambda: token(key="wrong"),
    lambda: token(Rule("unknown", LISTEN, "x", "y")),
    lambda: token(Rule("both", LISTEN, "x", "y")),
    lambda: token(lifetime=-7200, key="wrong"),
    lambda: token(audience="http://elsewhere.com", key="wrong"),
    lambda: token(lifetime=90_000, key="wrong"),
    lambda: token().replace("se=18", "se=19"),
]


@pytest.mark.parametrize("make", BAD)
def test_who_has_no_key_learns_nothing_else(make: Callable[[], str]) -> None:
    relay = Relay()
    refusals = []
    for path in ("Orders/New", "Orders", "nothing/here"):
        with pytest.raises(InvalidSignature) as refused:
            relay.authenticate(make(), path=path)
        refusals.append((type(refused.value), str(refused.value), refused.value.status))
    assert len(set(refusals)) == 1


def test_where_there_is_no_entity_only_the_namespace_counts() -> None:
    relay = Relay()
    made = token(audience=f"http://{HOST}/nothing")
    assert relay.authenticate(made, path="nothing").scope == NAMESPACE.id
    with pytest.raises(InvalidAudience):
        relay.authenticate(token(), path="nothing")
    with pytest.raises(InvalidSignature):
        relay.authenticate(token(BOTH_HC, audience=f"http://{HOST}/nothing"), path="nothing")


@pytest.mark.parametrize("late", [0, 30, 60])
def test_clocks_may_differ_by_a_minute(late: float) -> None:
    grant = Relay().authenticate(token(lifetime=3600), now=NOW + 3600 + late)
    assert grant.expires_at == NOW + 3600


def test_expired_token_is_refused() -> None:
    with pytest.raises(ExpiredToken):
        Relay().authenticate(token(lifetime=3600), now=NOW + 3600 + 60.5)


@pytest.mark.parametrize("lifetime", [3600, 86_400, 86_460])
def test_token_of_a_day_and_the_skew_is_taken(lifetime: float) -> None:
    assert Relay().authenticate(token(lifetime=lifetime)).expires_at == NOW + lifetime


def test_longer_token_is_refused_and_told_why() -> None:
    with pytest.raises(TokenLifetimeExceeded) as refused:
        Relay().authenticate(token(lifetime=90_000))
    assert "valid for another 25 h" in str(refused.value)
    assert "takes at most 24 h (max_token_lifetime)" in str(refused.value)
    with pytest.raises(TokenLifetimeExceeded, match="another 1 h, .* at most 2 min"):
        Relay().authenticate(token(lifetime=3600), max_token_lifetime=120)
    with pytest.raises(TokenLifetimeExceeded, match="another 5 min, .* at most 30 s"):
        Relay().authenticate(token(lifetime=300), max_token_lifetime=30)


def test_no_limit_is_no_limit() -> None:
    relay = Relay()
    assert relay.authenticate(token(lifetime=10**9), max_token_lifetime=0).expires_at == NOW + 10**9


# --- bearer tokens ---


@pytest.mark.parametrize("text", ["Bearer eyJh.eyJh.c2ln", "bearer x", "eyJh.eyJh.c2ln"])
def test_bearer_token_is_refused_clearly_without_an_identity_provider(text: str) -> None:
    with pytest.raises(AuthorizationFailed, match="takes no bearer tokens.*send a SharedAccessSignature") as refused:
        Relay().authenticate(text)
    assert refused.value.status == 401


@pytest.mark.parametrize("text", ["Bearer  eyJh.eyJh.c2ln ", "eyJh.eyJh.c2ln"])
def test_bearer_token_is_given_to_its_verifier(text: str) -> None:
    seen: list[object] = []
    granted = Grant("", NAMESPACE.id, LISTEN, NOW, "")

    def verifier(*arguments: object) -> Grant:
        seen.extend(arguments)
        return granted

    assert Relay(jwt=verifier).authenticate(text) is granted
    assert seen == ["eyJh.eyJh.c2ln", NAMESPACE, ORDERS, NOW]


# --- whether a grant still stands ---


# --- what is remembered ---


def remembered(relay: Relay, text: str, *, now: float = NOW) -> Grant:
    """As the data plane asks: with the limits that the catalog keeps."""
    namespace = relay.catalog.namespace("myRelayNS")
    assert namespace is not None
    entity = relay.catalog.find(namespace, "Orders/New")
    limits = relay.catalog.limits(namespace, entity)
    return relay.authorizer.authenticate(namespace, "x", entity, text, host=HOST, limits=limits, now=now)


def test_token_that_comes_again_is_not_checked_again() -> None:
    relay = Relay()
    grant = remembered(relay, token())
    assert remembered(relay, token()) is grant
    assert repr(relay.authorizer) == "<Authorizer remembers=1>"
    assert remembered(relay, token(lifetime=60)) is not grant


def test_token_that_is_remembered_ends_when_it_ends() -> None:
    relay = Relay()
    remembered(relay, token())
    assert remembered(relay, token(), now=NOW + 3600 + 60).expires_at == NOW + 3600
    with pytest.raises(ExpiredToken):
        remembered(relay, token(), now=NOW + 3600 + 61)
    assert repr(relay.authorizer) == "<Authorizer remembers=0>"


def test_clock_that_was_set_back_lets_no_token_last_longer() -> None:
    relay = Relay()
    remembered(relay, token(lifetime=86_400))
    with pytest.raises(TokenLifetimeExceeded):
        remembered(relay, token(lifetime=86_400), now=NOW - 3600)


@pytest.mark.parametrize(
    "change",
    [
        lambda relay: relay.put(dataclasses.replace(NAMESPACE, rules=(BOTH_NS,))),
        lambda relay: relay.put(dataclasses.replace(NAMESPACE, rules=(Rule(ROOT.name, frozenset(Right), "x", "y"),))),
        lambda relay: relay.drop(ORDERS),
    ],
)
def test_nothing_is_remembered_over_a_change(change: Callable[[Relay], None]) -> None:
    relay = Relay()
    remembered(relay, token())
    change(relay)
    assert repr(relay.authorizer) == "<Authorizer remembers=0>"
    with pytest.raises(AuthorizationFailed):
        remembered(relay, token())


def test_settings_that_change_count_for_a_token_that_is_remembered() -> None:
    relay = Relay()
    grant = remembered(relay, token())
    relay.catalog.take_settings(node_limits={"max_token_lifetime": 60})
    with pytest.raises(TokenLifetimeExceeded):
        remembered(relay, token())
    relay.catalog.take_settings()
    assert remembered(relay, token()) is not grant


def test_token_is_remembered_for_its_entity_and_its_host_alone() -> None:
    relay = Relay()
    more = HybridConnection(hybrid_connection_id(NAMESPACE.id, "more"))
    relay.put(more)
    remembered(relay, token())
    namespace = relay.catalog.namespace("myRelayNS")
    assert namespace is not None
    for path, host, error in (("more", HOST, InvalidAudience), ("Orders/New", "relay.local", None)):
        entity = relay.catalog.find(namespace, path)
        limits = relay.catalog.limits(namespace, entity)
        arguments = (namespace, path, entity, token())
        if error is None:
            relay.authorizer.authenticate(*arguments, host=host, limits=limits, now=NOW)
        else:
            with pytest.raises(error):
                relay.authorizer.authenticate(*arguments, host=host, limits=limits, now=NOW)
    assert repr(relay.authorizer) == "<Authorizer remembers=2>"


def test_bad_tokens_and_what_does_not_exist_are_not_remembered() -> None:
    relay = Relay()
    with pytest.raises(InvalidSignature):
        remembered(relay, token(key="guessed"))
    relay.authenticate(token(audience=f"http://{HOST}/"), path="none")
    assert repr(relay.authorizer) == "<Authorizer remembers=0>"


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.server.entities.authorization.REMEMBERED", 3)
    relay = Relay()
    texts = [token(lifetime=100 + number) for number in range(4)]
    grants = [remembered(relay, text) for text in texts[:3]]
    assert remembered(relay, texts[0]) is grants[0]
    remembered(relay, texts[3])
    assert repr(relay.authorizer) == "<Authorizer remembers=3>"
    assert remembered(relay, texts[0]) is grants[0]
    assert remembered(relay, texts[1]) is not grants[1]


def test_no_token_is_kept_readable() -> None:
    relay = Relay()
    text = token()
    remembered(relay, text)
    signature = text.partition("&sig=")[2].partition("&")[0]
    assert signature not in repr(vars(relay.authorizer))


# --- grants ---


def test_grant_stands_while_its_rule_and_key_do() -> None:
    relay = Relay()
    grant = relay.authenticate(token(BOTH_HC))
    assert relay.authorizer.still_valid(grant)
    other = dataclasses.replace(BOTH_HC, secondary_key="new")
    relay.put(dataclasses.replace(ORDERS, rules=(other,), limits={"max_senders": 3}))
    assert relay.authorizer.still_valid(grant)
    swapped = Rule("BOTH", LISTEN, "new", "hc-primary")
    relay.put(dataclasses.replace(ORDERS, rules=(swapped,)))
    assert relay.authorizer.still_valid(grant)


def test_grant_falls_with_its_key_its_rule_or_its_entity() -> None:
    relay = Relay()
    primary, secondary = relay.authenticate(token(BOTH_HC)), relay.authenticate(token(BOTH_HC, key="hc-secondary"))
    rotated = dataclasses.replace(BOTH_HC, primary_key="new")
    relay.put(dataclasses.replace(ORDERS, rules=(rotated,)))
    assert not relay.authorizer.still_valid(primary)
    assert relay.authorizer.still_valid(secondary)
    # A rule of the same name and keys on the namespace is another ground.
    relay.put(dataclasses.replace(NAMESPACE, rules=(BOTH_HC,)))
    relay.put(dataclasses.replace(ORDERS, rules=()))
    assert not relay.authorizer.still_valid(secondary)
    root = relay.authenticate(token(BOTH_HC))
    assert root.scope == NAMESPACE.id
    relay.drop(NAMESPACE)
    assert not relay.authorizer.still_valid(root)


def test_grant_falls_with_the_rights_that_its_holder_uses() -> None:
    relay = Relay()
    grant = relay.authenticate(token())
    lowered = dataclasses.replace(ROOT, rights=frozenset({Right.LISTEN, Right.SEND}))
    relay.put(dataclasses.replace(NAMESPACE, rules=(lowered,)))
    assert not relay.authorizer.still_valid(grant)
    assert relay.authorizer.still_valid(grant, Right.LISTEN)
    relay.put(dataclasses.replace(NAMESPACE, rules=(dataclasses.replace(ROOT, rights=SEND),)))
    assert not relay.authorizer.still_valid(grant, Right.LISTEN)
    assert relay.authorizer.still_valid(grant, Right.SEND)


def test_grant_holds_no_key() -> None:
    grant = Relay().authenticate(token())
    assert "root" not in grant.key_digest and "digest" not in repr(grant)
    assert Relay().authenticate(token()).key_digest != grant.key_digest  # of use in one process alone


@given(text=st.text() | st.text(alphabet="SharedAccessSignature sr=&sig=&se=1&skn=both%2Bearer.eyJ"))
def test_any_text_is_refused_with_401(text: str) -> None:
    with pytest.raises(AuthorizationFailed) as refused:
        Relay().authenticate(text)
    assert refused.value.status == 401
