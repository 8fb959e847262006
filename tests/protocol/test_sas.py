"""Tokens as the real clients make them, and as nobody should."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trunkline.protocol import sas
from trunkline.protocol.errors import AuthorizationFailed, InvalidSetting, InvalidToken
from trunkline.protocol.sas import Right, SharedAccessSignature, implied

KEY = "k3y+/with=signs=="
HOSTS = {"relay.local", "myrelayns.localhost"}
ANY_TEXT = st.text(alphabet=st.characters(codec=None, exclude_categories=()))  # half surrogate pairs too


def signed(resource: str, expiry: str = "1700000000", key: str = KEY) -> str:
    """The signature of a resource as transmitted, made without the code under test."""
    digest = hmac.new(key.encode(), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def token(resource: str, *, encode: Callable[[str], str] = quote_plus, name: str = "rule", **more: str) -> str:
    expiry = more.get("expiry", "1700000000")
    return f"SharedAccessSignature sr={resource}&sig={encode(signed(resource, expiry))}&se={expiry}&skn={encode(name)}"


def lower_escapes(text: str) -> str:
    return re.sub("%..", lambda escape: escape.group().lower(), text)


# How each client encodes a form field or URL component: what it leaves bare, what it makes of a space.
ENCODERS: dict[str, Callable[[str], str]] = {
    ".NET WebUtility.UrlEncode": lambda text: quote_plus(text, safe="!*()"),
    ".NET HttpUtility.UrlEncode": lambda text: lower_escapes(quote_plus(text, safe="!*()")),
    "Java URLEncoder": lambda text: quote_plus(text, safe="*").replace("~", "%7E"),
    "hyco encodeURIComponent": lambda text: quote(text, safe="!~*'()"),
    "az CLI quote_plus": quote_plus,
    "PowerShell, lower case": lambda text: lower_escapes(quote(text, safe="")),
    "bare": lambda text: text,
}

AUDIENCES = [
    "http://relay.local/orders",
    "http://relay.local:18443/orders",
    "http://relay.local:443/orders",
    "http://RELAY.local/Orders/",
    "sb://relay.local:28443/orders",
    "sb://relay.local:28443",
    "https://relay.local/",
    "wss://relay.local/$hc/orders",
    "amqps://myRelayNS.localhost/orders",
    "http://relay.local//orders//",
    "relay.local/orders",
    "https://relay.local/orders?sb-hc-action=listen",
    "https://relay.local/orders#part",
    "http://relay.local:/orders",
]


@pytest.mark.parametrize("client", ENCODERS)
@pytest.mark.parametrize("audience", AUDIENCES)
def test_listener_of_any_client_is_recognised(client: str, audience: str) -> None:
    encode = ENCODERS[client]
    found = sas.parse(token(encode(audience), encode=quote_plus if client == "bare" else encode))
    assert sas.signed_by(found, KEY)
    assert found.covers(HOSTS, "orders")
    assert not sas.signed_by(found, KEY + "x")
    assert "rule" in found.key_names()


@pytest.mark.parametrize("client", [client for client in ENCODERS if client != "bare"])
@pytest.mark.parametrize("path", ["a b/c", "a%20b/c", "a+b/c", "é/c"])
def test_listener_with_an_odd_path_is_recognised(client: str, path: str) -> None:
    encode = ENCODERS[client]
    found = sas.parse(token(encode(f"http://relay.local/{path}"), encode=quote_plus))
    assert sas.signed_by(found, KEY)
    assert found.covers(HOSTS, path)
    assert not found.covers(HOSTS, "a")


def test_listener_of_hyco_escapes_a_space_twice() -> None:
    assert sas.parse(token("http%3A%2F%2Frelay.local%2Fmy%2520hc")).covers(HOSTS, "my hc")


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        ("http://relay.local/order", "orders"),
        ("http://relay.local/orders/sub", "orders"),
        ("http://relay.local/orders/..", "orders"),
        ("http://relay.local/orders/../other", "other"),
        ("http://other.local/orders", "orders"),
        ("http://relay.local.evil/orders", "orders"),
        ("http://evil/relay.local/orders", "orders"),
        ("http://user@relay.local/orders", "orders"),
        ("http:///orders", "orders"),
        ("orders", "orders"),
        ("https://relay.local/$hc", "x/$hc"),
        ("http://relay.local/orders", ""),
        ("%", "orders"),
        ("%ff%fe", "orders"),
    ],
)
def test_sender_with_another_audience_is_not_covered(resource: str, path: str) -> None:
    found = sas.parse(token(resource))
    covered = found.covers(HOSTS, path)
    # "$hc" alone is the namespace, which covers everything in it.
    assert covered is (resource == "https://relay.local/$hc")


def test_sender_with_a_namespace_audience_is_covered_for_every_entity() -> None:
    for resource in ("http%3a%2f%2frelay.local%2f", "sb%3A%2F%2Frelay.local%3A28443", "http://relay.local"):
        found = sas.parse(token(resource))
        assert found.covers(HOSTS, "any/thing")
        assert found.covers(HOSTS, "")
        assert not found.covers({"else"}, "any/thing")
        assert not found.covers(set(), "")
        assert not found.covers({""}, "")


def test_sender_with_the_audience_of_a_path_above_is_covered() -> None:
    found = sas.parse(token("http://relay.local/machines/X"))
    assert found.covers(HOSTS, "Machines/x/v2")
    assert found.covers(HOSTS, "machines/x")
    assert not found.covers(HOSTS, "machines/xy")
    assert not found.covers(HOSTS, "machines")


def test_sender_may_address_the_node_by_ip() -> None:
    found = sas.parse(token(quote_plus("http://[::1]:8443/orders")))
    assert found.covers({"[::1]"}, "orders")
    assert found.covers({"::1"}, "orders")


def test_sdk_signs_as_dotnet_does() -> None:
    made = sas.sign("http://relay.local/orders", "my rule", KEY, expires_at=1_700_000_000)
    resource = "http%3A%2F%2Frelay.local%2Forders"
    expected = quote_plus(signed(resource))
    assert made == f"SharedAccessSignature sr={resource}&sig={expected}&se=1700000000&skn=my+rule"


def test_sdk_makes_the_audience_as_hyco_does() -> None:
    assert sas.audience("Relay.Local:8443", "/a/b/") == "http://relay.local:8443/a/b"
    assert sas.audience("relay.local", "") == "http://relay.local/"


@given(
    audience=st.text(min_size=1),
    name=st.text(min_size=1),
    key=st.text(min_size=1),
    other=st.text(min_size=1),
    expires_at=st.integers(0, 10**15),
)
def test_sdk_signs_what_the_node_verifies(audience: str, name: str, key: str, other: str, expires_at: int) -> None:
    found = sas.parse(sas.sign(audience, name, key, expires_at=expires_at))
    assert sas.signed_by(found, key)
    assert sas.signed_by(found, other) is (key == other)
    assert name in found.key_names()
    assert found.expires_at == expires_at


@given(path=st.lists(st.text("abcXYZ09._- +", min_size=1), max_size=3).map("/".join))
def test_sdk_signs_what_covers_its_own_path_through_every_encoding(path: str) -> None:
    audience = sas.audience("relay.local", path)
    for encode in (encode for client, encode in ENCODERS.items() if client != "bare"):
        assert sas.parse(token(encode(audience))).covers(HOSTS, path)


@pytest.mark.parametrize(
    ("audience", "name", "key", "expires_at"),
    [
        ("", "rule", KEY, 1),
        ("http://h/", "", KEY, 1),
        ("http://h/", "rule", "", 1),
        ("http://h/", "rule", KEY, -1),
        ("http://h/\ud800", "rule", "s3cret", 1),
        ("http://h/", "\ud800", "s3cret", 1),
        ("http://h/", "rule", "s3cret\ud800", 1),
    ],
)
def test_sdk_refuses_to_sign_with_a_part_missing(audience: str, name: str, key: str, expires_at: int) -> None:
    with pytest.raises(InvalidSetting) as caught:
        sas.sign(audience, name, key, expires_at=expires_at)
    assert KEY not in str(caught.value) and "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_parser_takes_the_scheme_in_any_case_and_the_fields_in_any_order() -> None:
    resource = "http%3a%2f%2frelay.local%2forders"
    sig = quote_plus(signed(resource))
    found = sas.parse(f"  sharedACCESSsignature  skn=rule&SE=1700000000&sig={sig}&sr={resource} ")
    assert sas.signed_by(found, KEY)
    assert found == sas.parse(token(resource))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: quote(text, safe=""),
        lambda text: quote(text, safe="=&"),
        lambda text: lower_escapes(quote(text, safe="")),
        lambda text: quote_plus(text),
    ],
)
def test_parser_takes_a_token_that_is_escaped_as_a_whole(wrap: Callable[[str], str]) -> None:
    plain = sas.sign("http://relay.local/my hc", "my rule", KEY, expires_at=1_700_000_000)
    found = sas.parse(wrap(plain))
    assert sas.signed_by(found, KEY)
    assert found.covers(HOSTS, "my hc")
    assert "my rule" in found.key_names()


def test_parser_takes_the_bare_rule_name_of_node_with_its_spaces() -> None:
    found = sas.parse(token("http://relay.local/", encode=quote_plus).replace("skn=rule", "skn=a b=c %41+d"))
    assert found.key_name == "a b=c %41+d"
    assert found.key_names() == ("a b=c %41+d", "a b=c A+d", "a b=c A d")


def test_parser_repairs_a_signature_whose_plus_became_a_space() -> None:
    resource = next(f"http://h/{n}" for n in range(1_000) if "+" in signed(f"http://h/{n}"))
    text = signed(resource)
    spoiled = text.replace("+", " ")
    for sent in (text, spoiled, quote(text, safe=""), quote(spoiled, safe="")):
        found = sas.parse(f"SharedAccessSignature sr={resource}&sig={sent}&se=1700000000&skn=rule")
        assert sas.signed_by(found, KEY)


@pytest.mark.parametrize(
    ("expiry", "seconds"),
    [("1700000000", 1.7e9), ("1700000000.5", 1_700_000_000.5), ("0", 0.0), ("18446744073709551615", 2.0**64)],
)
def test_parser_takes_an_expiry(expiry: str, seconds: float) -> None:
    found = sas.parse(token("http://h/", expiry=expiry))
    assert (found.expires_at, found.expiry_text) == (seconds, expiry)
    assert sas.signed_by(found, KEY)


@pytest.mark.parametrize(
    "expiry",
    ["inf", "-inf", "nan", "NaN", "1e400", "1e9", "-1", "+1", "0x10", "1_0", " 1", "1 ", "", ".", "1.", ".5", "9" * 21,
     "٣", "²", "１", "1.٣", "9" * 400, "1\n", "%31"],
)  # fmt: skip
def test_parser_refuses_an_expiry_that_is_no_plain_number(expiry: str) -> None:
    with pytest.raises(InvalidToken):
        sas.parse(f"SharedAccessSignature sr=http://h/&sig=x&se={expiry}&skn=rule")


SECRET = signed("http://h/")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "begin with the word"),
        ("   ", "begin with the word"),
        ("SharedAccessSignature", "each of sr, sig, se and skn"),
        ("SharedAccessSignature ", "each of sr, sig, se and skn"),
        (f"sr=http://h/&sig={SECRET}&se=1&skn=r", "begin with the word"),
        (f"Bearer sr=http://h/&sig={SECRET}&se=1&skn=r", "begin with the word"),
        (f"SharedAccessSignatures sr=http://h/&sig={SECRET}&se=1&skn=r", "begin with the word"),
        (f"SharedAccessSignature sr=http://h/&sig={SECRET}&se=1", "each of"),
        (f"SharedAccessSignature sr=http://h/&sig={SECRET}&se=1&skn=", "each of"),
        (f"SharedAccessSignature sr=http://h/&sig={SECRET}&se=1&skn", "each of"),
        (f"SharedAccessSignature sr=http://h/&sig={SECRET}&se=1&skn=r&sr=http://i/", "each of"),
        (f"SharedAccessSignature sr=http://h/&sr=http://i/&sig={SECRET}&se=1&skn=r", "each of"),
        (f"SharedAccessSignature sr=http://h/&sig={SECRET}&se=1&skn=r&more=1", "each of"),
        (f"SharedAccessSignature sr=http://h/&sig={SECRET}&se=1&skn=r&", "each of"),
        (f"SharedAccessSignature sr=http://h/\ud800&sig={SECRET}&se=1&skn=r", "not Unicode"),
        (token("http://h/" + "a" * 16_384), "too long"),
        ("com.microsoft.azure.relay.SharedAccessSignatureToken@1f2e3d", "begin with the word"),
        ("eyJhbGciOiJub25lIn0.e30.", "begin with the word"),
    ],
)
def test_parser_says_why_a_token_is_none_and_does_not_show_it(text: str, hint: str) -> None:
    with pytest.raises(InvalidToken, match="The token has an invalid signature: ") as caught:
        sas.parse(text)
    assert hint in caught.value.message
    assert SECRET not in repr(caught.value)
    assert isinstance(caught.value, AuthorizationFailed)


@given(text=ANY_TEXT)
@example("%")
@example("SharedAccessSignature%20sr%3D%ff%26sig%3D%ff%26se%3D1%26skn%3D%ff")
@example("SharedAccessSignature " + "&" * 10_000)
def test_parser_raises_only_invalid_token(text: str) -> None:
    for whole in (text, "SharedAccessSignature " + text, "SharedAccessSignature+" + text):
        try:
            sas.parse(whole)
        except InvalidToken:
            continue


@given(
    resource=ANY_TEXT.filter(lambda text: "&" not in text and text.strip() == text),
    signature=ANY_TEXT.filter(lambda text: "&" not in text),
    name=ANY_TEXT.filter(lambda text: "&" not in text and text.strip() == text),
    key=ANY_TEXT,
)
def test_node_checks_any_token_without_another_error(resource: str, signature: str, name: str, key: str) -> None:
    try:
        found = sas.parse(f"SharedAccessSignature sr={resource}&sig={signature}&se=1&skn={name}")
    except InvalidToken:
        return
    assert not sas.signed_by(found, key)
    assert isinstance(found.covers(HOSTS, "orders"), bool)
    assert found.key_name in found.key_names()
    assert (found.resource, found.key_name) == (resource, name)


def test_node_never_shows_a_signature() -> None:
    found = sas.parse(token("http://relay.local/"))
    assert "relay.local" in repr(found) and "rule" in repr(found)
    assert found.signature not in repr(found)


def test_node_takes_a_key_it_cannot_encode_for_a_wrong_one() -> None:
    assert not sas.signed_by(sas.parse(token("http://relay.local/")), "\ud800")


def test_token_cannot_be_changed() -> None:
    found = SharedAccessSignature("http://h/", "x", 1.0, "rule", "1")
    with pytest.raises(AttributeError):
        found.resource = "http://other/"  # type: ignore[misc]


def test_manage_implies_listen_and_send() -> None:
    assert implied([Right.MANAGE]) == {Right.LISTEN, Right.SEND, Right.MANAGE}
    assert implied([Right.LISTEN]) == {Right.LISTEN}
    assert implied([]) == frozenset()
    assert [str(right) for right in Right] == ["Listen", "Send", "Manage"]
