"""What is said about a token, good or wrong; never its signature."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.cli.token_explanation import Explanation, KnownKey, explain_token
from trunkline.protocol import sas

NOW = 1_800_000_000.0
KEY = base64.b64encode(bytes(range(32))).decode()
AUDIENCE = "http://relay.example/orders"
KNOWN = KnownKey("send", KEY, "the rule send of orders (primary)")


def token(audience: str = AUDIENCE, *, left: float = 3540, rule: str = "send", key: str = KEY) -> str:
    return sas.sign(audience, rule, key, expires_at=int(NOW + left))


def explain(text: str, **more: Any) -> Explanation:
    return explain_token(text, now=NOW, **more)


def what(found: Explanation) -> str:
    return "; ".join(each.what for each in found.problems)


def signature_of(text: str) -> str:
    return text.partition("&sig=")[2].partition("&")[0]


def test_good_token_says_for_what_by_whom_and_until_when() -> None:
    found = explain(token(), keys=[KNOWN], host="relay.example", entity="orders")
    assert not found.problems and not found.remarks
    assert found.kind == "shared access signature"
    assert found.lines == [
        ("audience", AUDIENCE),
        ("covers", "orders, and what is below it, on relay.example"),
        ("rule", "send"),
        ("expires", "2027-01-15 08:59:00 UTC, in 59 minutes"),
        ("signature", "fits the key of the rule send of orders (primary)"),
    ]
    assert found.as_json() == {
        "ok": True,
        "kind": "shared access signature",
        "audience": AUDIENCE,
        "host": "relay.example",
        "entity": "orders",
        "rule": "send",
        "expires_at": NOW + 3540,
        "seconds_left": 3540,
        "covers_it": True,
        "signature_fits": True,
        "problems": [],
        "remarks": [],
    }


def test_token_of_a_namespace_covers_everything_on_it() -> None:
    found = explain(token("http://relay.example/"), host="relay.example", entity="orders")
    assert not found.problems
    assert ("covers", "everything on relay.example") in found.lines
    assert ("signature", "not checked: no key was given") in found.lines


@pytest.mark.parametrize(
    ("left", "words", "problem"),
    [
        (1, "in 1 seconds", ""),
        (119, "in 119 seconds", ""),
        (7199, "in 120 minutes", ""),
        (86_400, "in 24 hours", ""),
        (86_500, "in 24 hours", "longer than the 24 h"),
        (172_800, "in 2 days", "longer than the 24 h"),
        (0, "0 seconds ago", "expired"),
        (-600, "10 minutes ago", "expired 10 minutes ago"),
        (-900_000, "10 days ago", "expired"),
    ],
)
def test_time_is_told_in_words_and_against_the_limit(left: float, words: str, problem: str) -> None:
    found = explain(token(left=left))
    assert words in dict(found.lines)["expires"]
    assert (problem in what(found)) if problem else not found.problems


# --- wrong in some way ---


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no text"),
        ("hush hush", "neither"),
        ("Endpoint=sb://h/;SharedAccessKeyName=a;SharedAccessKey=hush", "a connection string"),
        (f"Bearer {token()}", "the word Bearer is in front"),
        (f'"{token()}"', "quotes are around it"),
        (f"' {token()} '", "quotes are around it"),
        (f"ServiceBusAuthorization: {token()}", "the name of the header ServiceBusAuthorization"),
        (token().partition(" ")[2], "the word SharedAccessSignature is missing"),
        (token().replace("&se=", "&xx=hush&se="), "it has a field xx that no token has"),
        (token().replace("&skn=send", ""), "it has no skn"),
        (token().partition("&")[0], "it has no sig, se, skn"),
        (token() + "&sr=x", "it has sr twice"),
        (token().replace(f"se={int(NOW) + 3540}", "se=2027-01-15"), "is not a number"),
        (token().replace(f"se={int(NOW) + 3540}", f"se={int(NOW) + 3540}000"), "in milliseconds"),
        (token().replace(signature_of(token()), quote(signature_of(token()))), "its signature is encoded twice"),
        (token().replace(signature_of(token()), "aHVzaA%3D%3D"), "not the base64 of 32 bytes"),
        (token().replace(signature_of(token()), "ab" * 32), "not the base64 of 32 bytes"),
        (quote(quote(token())), "it is encoded twice as a whole"),
        ("eyJhbGciOiJub25lIn0.hush.hush", "its parts are not JSON"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(text: str, problem: str) -> None:
    found = explain(text)
    assert problem in what(found)
    assert all(each.remedy for each in found.problems)
    said = json.dumps(found.as_json()) + str(found.lines)
    assert "hush" not in said and signature_of(token()) not in said


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        (f" {token()}", "white space"),
        (f"{token()}\r\n\n", "white space"),
        (quote(token()), "encoded as a whole"),
        (quote_plus(token()), "encoded as a whole"),
        (token("http://relay.example/a%20b"), "its audience is encoded twice"),
    ],
)
def test_what_a_relay_takes_all_the_same_is_a_remark(text: str, remark: str) -> None:
    found = explain(text, keys=[KNOWN])
    assert not found.problems
    assert remark in found.remarks[0].what and found.remarks[0].remedy
    sas.parse(text)


def test_line_end_of_a_file_is_no_white_space() -> None:
    assert not explain(f"{token()}\n").remarks and not explain(f"{token()}\r\n").remarks


def test_plus_in_a_signature_is_remarked_and_the_token_is_good() -> None:
    for number in range(100):
        text = token(left=1000 + number)
        if "%2B" in signature_of(text):
            break
    for spoiled in ("+", " "):
        found = explain(text.replace("%2B", spoiled), keys=[KNOWN])
        assert found.facts["signature_fits"] is True and not found.problems
        assert "a + of its signature is not encoded" in found.remarks[0].what


# --- keys ---


def signed_wrongly(key: bytes, signed: str, resource: str = quote_plus(AUDIENCE)) -> str:
    expiry = int(NOW) + 600
    signature = base64.b64encode(hmac.digest(key, f"{signed}\n{expiry}".encode(), "sha256")).decode()
    return f"SharedAccessSignature sr={resource}&sig={quote_plus(signature)}&se={expiry}&skn=send"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (token(key="another"), "another key signed it, or it was changed"),
        (token(rule="listen", key="another"), "no key of that rule was given"),
        (token(rule="listen"), "it names another rule than the one whose key signed it, send"),
        (signed_wrongly(base64.b64decode(KEY), quote_plus(AUDIENCE)), "the key was base64-decoded"),
        (signed_wrongly(KEY.encode(), AUDIENCE), "another spelling of the audience"),
        (signed_wrongly(KEY.encode(), quote_plus(AUDIENCE), AUDIENCE), "another spelling of the audience"),
        (signed_wrongly(KEY.encode(), "http%3a%2f%2frelay.example%2forders"), "another spelling of the audience"),
    ],
)
def test_signature_that_does_not_fit_is_told_why(text: str, problem: str) -> None:
    found = explain(text, keys=[KnownKey("other", "other", "somewhere"), KNOWN])
    assert problem in what(found)


def test_secondary_key_and_other_rules_are_tried_too() -> None:
    keys = [KnownKey("send", "first", "one (primary)"), KnownKey("send", KEY, "one (secondary)")]
    assert dict(explain(token(), keys=keys).lines)["signature"] == "fits the key of one (secondary)"


def test_token_for_elsewhere_is_told() -> None:
    for host, entity in (("other.example", "orders"), ("relay.example", "other"), ("other.example", None)):
        found = explain(token(), host=host, entity=entity)
        assert f"it is not for {host}" in what(found) and found.facts["covers_it"] is False
    assert not explain(token(), host="relay.example", entity="orders/below").problems
    assert not explain(token(), host="relay.example").problems
    ported = token("sb://Relay.example:8443/orders")
    assert "it is not for relay.example/other" in what(explain(ported, entity="other"))
    assert not explain(ported, entity="orders").problems


# --- JWT ---


def jwt(**claims: Any) -> str:
    parts = ({"alg": "RS256", "typ": "JWT"}, claims)
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "hush"]
    )


def test_jwt_is_read_without_verifying_it() -> None:
    text = jwt(
        iss="https://sts.windows.net/t/", aud="https://relay.azure.net/", exp=NOW + 600, roles=["a", "b"], appid="7"
    )
    for written in (text, f"Bearer {text}"):
        found = explain(written)
        assert found.kind == "JWT" and not found.problems
        lines = dict(found.lines)
        assert lines["issuer"] == "https://sts.windows.net/t/" and lines["audience"] == "https://relay.azure.net/"
        assert lines["roles"] == "a, b" and lines["application"] == "7" and "in 10 minutes" in lines["expires"]
        assert "not checked" in lines["signature"] and "hush" not in json.dumps(found.as_json())
        assert [each.what for each in found.remarks] == ["a Trunkline node takes no JWT"]


def test_jwt_that_is_over_not_yet_valid_or_for_another_is_told() -> None:
    found = explain(jwt(exp=NOW - 7200, nbf=NOW + 7200, aud="https://vault.azure.net"))
    assert what(found) == "it has expired 2 hours ago; it is not valid yet; it begins in 2 hours"
    assert "its audience is not https://relay.azure.net" in found.remarks[0].what
    for odd in ({"exp": "soon"}, {"exp": True}, {"exp": 1e300}, {"exp": float("nan")}, {"exp": None}):
        assert not explain(jwt(**odd)).problems


# --- anything at all ---


@given(st.text() | st.text(alphabet="SharedAccessSignature srigkn=&%+2B3D.eyJ\"' "))
def test_any_text_is_explained(text: str) -> None:
    found = explain(text, keys=[KNOWN], host="relay.example", entity="orders")
    json.dumps(found.as_json())
    if not found.problems:  # then a relay can read it
        assert found.kind == "JWT" or sas.parse(text.strip()).signature


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_any_claims_are_explained(value: Any) -> None:
    for claims in ({"exp": value, "nbf": value, "aud": value, "roles": value}, value):
        body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        found = explain(f"eyJhIjoxfQ.{body}.x")
        assert json.loads(json.dumps(found.as_json()))["kind"] == "JWT"


def test_nested_json_breaks_nothing() -> None:
    body = base64.urlsafe_b64encode(b"[" * 50_000).decode().rstrip("=")
    assert "not JSON" in what(explain(f"eyJhIjoxfQ.{body}.x"))
