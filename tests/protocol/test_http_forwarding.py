from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import BadGateway
from trunkline.protocol.http_forwarding import (
    ResponseHead,
    request_headers,
    request_target,
    response_head,
    split_cookies,
)
from trunkline.protocol.messages import Response
from trunkline.protocol.urls import HttpTarget, match_entity, parse_target

VIA = "1.1 relay.local"


def forwarded(*headers: tuple[str, str], token_header: str | None = None, own_host: bool = False) -> dict[str, str]:
    """What the listener gets, but for the entry of the relay in `Via`."""
    given = request_headers(headers, token_header=token_header, via=VIA, own_host=own_host)
    assert given.pop("Via") == VIA
    return given


def answered(
    *headers: tuple[str, str], status: int = 200, method: str = "GET", has_body: bool = True, **more: Any
) -> ResponseHead:
    response = Response("id", status, headers=headers, **more)
    return response_head(response, method=method, via=VIA, has_body=has_body)


# -- request headers


def test_names_keep_their_spelling_and_host_goes_on() -> None:
    headers = {
        "Host": "relay.local:8443",
        "x-LOWER": "1",
        "Content-Type": "text/plain; charset=utf-8",
        "Accept": '"[\\',
    }
    assert forwarded(*headers.items()) == headers
    assert list(forwarded(*headers.items())) == list(headers)


@pytest.mark.parametrize(
    "name",
    ["Connection", "Content-Length", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Close", "Keep-Alive"]
    + ["Proxy-Authorization", "Proxy-Connection", "Expect", "HTTP2-Settings", "ServiceBusAuthorization"],
)
def test_what_ends_at_the_relay_is_left_out(name: str) -> None:
    assert forwarded((name, "x"), (name.upper(), "y"), ("X-Kept", "1"), (name.lower(), "z")) == {"X-Kept": "1"}


def test_what_connection_names_is_left_out() -> None:
    named = ("Connection", "keep-alive, X-One ,x-TWO"), ("connection", "x-three, Cookie")
    mine = [("X-One", "1"), ("X-Two", "2"), ("X-Three", "3"), ("x-three", "3"), ("Cookie", "a=1"), ("X-Four", "4")]
    assert forwarded(*named, *mine) == {"X-Four": "4"}


def test_a_sender_cannot_hide_who_asks_and_whom() -> None:
    kept = {"Host": "h", "X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1", "X-Forwarded-Proto": "https"}
    assert forwarded(("Connection", ", ".join(kept)), ("Connection", "via"), *kept.items()) == kept


def test_repeated_headers_are_joined() -> None:
    given = [("X-One", "1"), ("Cookie", "a=1"), ("x-one", "2"), ("X-ONE", ""), ("cookie", "b=2")]
    assert forwarded(*given) == {"X-One": "1, 2, ", "Cookie": "a=1; b=2"}


def test_authorization_goes_on_unless_it_was_the_relays_token() -> None:
    both = [("Authorization", "Bearer x"), ("ServiceBusAuthorization", "SharedAccessSignature y")]
    assert forwarded(*both, token_header="ServiceBusAuthorization") == {"Authorization": "Bearer x"}
    assert forwarded(*both, token_header=None) == {"Authorization": "Bearer x"}
    assert forwarded(("AUTHORIZATION", "SharedAccessSignature y"), token_header="Authorization") == {}


def test_the_relay_is_the_last_in_via() -> None:
    headers = [("via", "1.0 first"), ("Via", "1.1 second")]
    assert request_headers(headers, token_header=None, via=VIA) == {"via": f"1.0 first, 1.1 second, {VIA}"}


def test_a_request_for_a_host_of_the_entitys_own_says_that_its_path_has_no_prefix() -> None:
    assert forwarded(own_host=True) == {"X-Forwarded-Prefix": "/"}
    assert forwarded(("x-forwarded-prefix", "/evil"), own_host=True) == {"x-forwarded-prefix": "/"}
    assert forwarded(("X-Forwarded-Prefix", "/api")) == {"X-Forwarded-Prefix": "/api"}


def test_nobody_but_the_relay_says_that_a_path_has_no_prefix() -> None:
    assert forwarded(("x-forwarded-prefix", "/")) == {}
    assert forwarded(("X-Forwarded-Prefix", "/"), ("x-forwarded-prefix", "/")) == {"X-Forwarded-Prefix": "/, /"}


NAMES = st.sampled_from(
    ["Host", "Connection", "connection", "Via", "Cookie", "X-A", "x-a", "TE", "Proxy-X", "Authorization", "A\xe4"]
)


@given(
    st.lists(st.tuples(NAMES, st.text(st.characters(max_codepoint=255), max_size=12)), max_size=12),
    st.sampled_from([None, "Authorization"]),
    st.booleans(),
)
def test_any_headers_are_forwarded_without_what_ends_here(
    headers: list[tuple[str, str]], token_header: str | None, own_host: bool
) -> None:
    given = request_headers(headers, token_header=token_header, via=VIA, own_host=own_host)
    names = [name.lower() for name in given]
    assert len(set(names)) == len(names)
    assert not {"connection", "te", "proxy-x"} & set(names)
    assert token_header is None or token_header.lower() not in names
    assert next(value for name, value in given.items() if name.lower() == "via").endswith(VIA)
    sent = {name.lower() for name, _ in headers}
    assert set(names) <= sent | {"via", "x-forwarded-prefix"}
    assert ("host" in names) == ("host" in sent)


# -- the target

#: What Microsoft's tests send as a query, and what must arrive.
QUERIES = {
    "": "",
    "?": "",
    "?foo": "?foo",
    "?foo=bar": "?foo=bar",
    "?foo=bar&": "?foo=bar&",
    "?foo=": "?foo=",
    "?=bar": "?=bar",
    "?&": "?&",
    "?&&&": "?&&&",
    "?&foo=bar": "?&foo=bar",
    "?a=1&a=2&": "?a=1&a=2&",
    "?a=b=c": "?a=b=c",
    "?+": "?+",
    "?%2B": "?%2B",
    "?%20": "?%20",
    "?a%20b=c%20d": "?a%20b=c%20d",
    "?a+b=c+d": "?a+b=c+d",
    "?%C3%b8=%c3%B8": "?%C3%B8=%C3%B8",
    "?x=%2f%2F": "?x=%2f%2F",
    "?a;b": "?a;b",
    "?a=1;b=2": "?a=1;b=2",
    "?api-version=abc": "?api-version=abc",
    "?sb-hc-id=1&custom=value": "?custom=value",
    "?custom=value&sb-hc-id=1": "?custom=value",
    "?sb-hc-action=connect&sb-hc-id=1": "",
    "?sb-hc-whatever=": "",
    "?SB-HC-Whatever=x&y": "?y",
    "?sb-hc-undefined": "?sb-hc-undefined",
    "?sb-hc-undefined&sb-hc-id=1": "?sb-hc-undefined",
    "?sb%2Dhc-id=1&z": "?z",
    "?a&sb-hc-token=x&b": "?a&b",
}


def passed_on(target: str, entity: str = "orders") -> str:
    """`requestTarget` of a request for an entity, as the relay makes it."""
    parsed = parse_target(target)
    assert isinstance(parsed, HttpTarget)
    found = match_entity(parsed.segments, parsed.raw_segments, lambda path: path == entity)
    assert found is not None
    rest = f"/{found[1]}" if found[1] or target.partition("?")[0].endswith("/") else ""
    return request_target(entity, rest, parsed.query)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_passes_as_it_is_without_what_is_the_relays(query: str) -> None:
    assert len(QUERIES) == 31
    assert passed_on(f"/orders/a{query}") == f"/orders/a{QUERIES[query]}"
    assert passed_on(f"/orders{query}") == f"/orders{QUERIES[query]}"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("/orders", "/orders"),
        ("/orders/", "/orders/"),
        ("/orders//", "/orders//"),
        ("//orders/a", "/orders/a"),
        ("/orders/a%20b", "/orders/a b"),
        ("/orders/%C3%B8", "/orders/\xf8"),
        ("/orders/%e2%82%ac", "/orders/\u20ac"),
        ("/orders/a+b", "/orders/a+b"),
        ("/orders/a//b/", "/orders/a//b/"),
        ("/orders/%41%2f%42", "/orders/A%2FB"),
        ("/orders/100%25", "/orders/100%25"),
        ("/orders/%2541", "/orders/%2541"),
        ("/orders/what%3f%23", "/orders/what%3F%23"),
        ("/orders/a%5cb", "/orders/a%5Cb"),
        ("/orders/a%0d%0aX:%20y", "/orders/a%0D%0AX: y"),
        ("/orders/a%00b%7f", "/orders/a%00b%7F"),
        ("/orders/%ff%C3", "/orders/%FF%C3"),
        ("/orders/%C3%28", "/orders/%C3("),
        ("/orders/%C2%85%E2%80%A8", "/orders/%C2%85%E2%80%A8"),
        ("/orders/%zz%4", "/orders/%25zz%254"),
        ("/orders/%2%46", "/orders/%252F"),
        ("http://relay.local/orders/x", "/orders/x"),
    ],
)
def test_a_path_is_decoded_where_that_changes_nothing(sent: str, expected: str) -> None:
    assert passed_on(sent) == expected


def test_the_name_of_an_entity_is_escaped_where_it_would_be_read_as_something_else() -> None:
    assert request_target("a/b c", "/x", "") == "/a/b c/x"
    assert request_target("a%b/c?d#e", "", "q") == "/a%25b/c%3Fd%23e?q"
    assert request_target("gr\xfc\xdfe", "", "") == "/gr\xfc\xdfe"


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FFF, exclude_categories=["Cs"]), max_size=20))
def test_any_path_that_is_encoded_again_means_the_same(rest: str) -> None:
    given = request_target("orders", "/" + quote(rest), "")
    path = given.removeprefix("/orders/")
    assert unquote(path) == rest
    assert "?" not in path and "#" not in path
    # As Java does it: what is escaped already is left.
    again = quote(path, safe="%/")
    assert unquote(again) == rest


# -- the response


@pytest.mark.parametrize("status", [200, 204, 306, 418, 450, 502, 504, 599, 999])
def test_any_status_that_ends_a_request_passes(status: int) -> None:
    assert answered(status=status).status == status


@pytest.mark.parametrize("status", [100, 101, 102, 199])
def test_a_status_that_ends_no_request_is_no_answer(status: int) -> None:
    with pytest.raises(BadGateway, match=str(status)):
        answered(status=status)


def test_the_reason_phrase_is_the_listeners_or_that_of_the_status() -> None:
    assert answered(status=202, status_description="OK").phrase == "OK"
    assert answered(status=201).phrase == "Created"
    assert answered(status=299).phrase == ""


def test_what_ends_at_the_relay_comes_not_back() -> None:
    hop = [(name, "x") for name in ("Connection", "Keep-Alive", "Transfer-Encoding", "TE", "Trailer", "Upgrade")]
    hop += [("Content-Length", "5"), ("Proxy-Connection", "close"), ("Connection", "X-Hop"), ("x-hop", "1")]
    head = answered(*hop, ("Content-Type", "text/plain"), ("x-Kept", "1"))
    assert head.headers == [("Content-Type", "text/plain"), ("x-Kept", "1"), ("Via", VIA)]
    assert head.announced is None


def test_the_relay_is_the_last_in_via_of_an_answer() -> None:
    head = answered(("via", "1.1 inner"), ("Via", "1.0 outer"), has_body=False)
    assert head.headers == [("Via", f"1.1 inner, 1.0 outer, {VIA}")]


def test_a_body_without_a_type_gets_one() -> None:
    assert ("Content-Type", "application/octet-stream") in answered().headers
    assert answered(has_body=False).headers == [("Via", VIA)]
    assert answered(status=304).headers == [("Via", VIA)]
    assert answered(method="HEAD").headers == [("Via", VIA)]
    assert answered(("content-type", "text/x")).headers == [("content-type", "text/x"), ("Via", VIA)]


@pytest.mark.parametrize(
    ("method", "status", "value", "announced"),
    [
        ("HEAD", 200, "5", 5),
        ("HEAD", 200, " 0 ", 0),
        ("HEAD", 200, "five", None),
        ("HEAD", 200, "-1", None),
        ("HEAD", 200, "9" * 19, None),
        ("HEAD", 204, "5", None),
        ("GET", 304, "5", 5),
        ("GET", 204, "5", None),
        ("GET", 200, "5", None),
    ],
)
def test_a_length_goes_on_where_no_body_does(method: str, status: int, value: str, announced: int | None) -> None:
    head = answered(("Content-Length", value), method=method, status=status)
    assert head.announced == announced
    assert head.is_bodyless == (method == "HEAD" or status != 200)


def test_a_value_is_one_line_of_latin_1() -> None:
    head = answered(("X", "a\x0bb\x1f\u20ac\xfc"), ("Y", "a\tb"), ("Content-Type", "t"))
    assert head.headers[:2] == [("X", "a b ?\xfc"), ("Y", "a\tb")]


@pytest.mark.parametrize(
    ("joined", "cookies"),
    [
        ("a=1", ["a=1"]),
        ("a=1, b=2", ["a=1", "b=2"]),
        ("a=1,b=2,\tc=3", ["a=1", "b=2", "c=3"]),
        (
            "a=1; Expires=Wed, 21 Oct 2015 07:28:00 GMT; Path=/, b=2; expires=Thu, 01-Jan-70 00:00:00 GMT",
            ["a=1; Expires=Wed, 21 Oct 2015 07:28:00 GMT; Path=/", "b=2; expires=Thu, 01-Jan-70 00:00:00 GMT"],
        ),
        ('a="x, y=1"; Path=/, b=2', ['a="x, y=1"; Path=/', "b=2"]),
        ("a=1, 2, 3; Path=/", ["a=1, 2, 3; Path=/"]),
        ("a=1, ", ["a=1, "]),
        ("", [""]),
    ],
)
def test_joined_cookies_come_apart(joined: str, cookies: list[str]) -> None:
    assert list(split_cookies(joined)) == cookies
    head = answered(("X", "1"), ("set-cookie", joined), ("Y", "1, z=2"), ("Content-Type", "t"))
    assert head.headers == [
        ("X", "1"),
        *(("set-cookie", cookie) for cookie in cookies),
        ("Y", "1, z=2"),
        ("Content-Type", "t"),
        ("Via", VIA),
    ]


def test_cookies_that_nobody_joined_stay_as_they_are() -> None:
    cookies = [("Set-Cookie", "a=1, b=2"), ("Set-Cookie", "c=3")]
    assert answered(*cookies, has_body=False).headers == [*cookies, ("Via", VIA)]


COOKIE = st.builds(
    "{}={}{}".format,
    st.text("abcXYZ09!#-_", min_size=1, max_size=8),
    st.text("abcXYZ09+/%:. ", max_size=8).map(str.strip),
    st.sampled_from(["", "; Path=/", "; Expires=Wed, 21 Oct 2015 07:28:00 GMT", "; Max-Age=1; Secure"]),
)


@given(st.lists(COOKIE, min_size=1, max_size=6), st.sampled_from([",", ", "]))
def test_any_cookies_that_dotnet_joins_come_apart(cookies: list[str], joint: str) -> None:
    assert list(split_cookies(joint.join(cookies))) == cookies


@given(
    st.lists(st.tuples(st.sampled_from(["A", "Set-Cookie", "connection", "VIA", "Content-Length"]), st.text())),
    st.integers(200, 999),
    st.sampled_from(["GET", "HEAD"]),
    st.booleans(),
)
def test_any_response_makes_a_head_that_can_be_written(
    headers: list[tuple[str, str]], status: int, method: str, has_body: bool
) -> None:
    head = answered(*headers, status=status, method=method, has_body=has_body)
    for name, value in head.headers:
        assert value.encode("latin-1").decode("latin-1").replace("\t", " ").isprintable()
        assert name.lower() not in ("connection", "content-length")
    assert [value for name, value in head.headers if name.lower() == "via"][-1].endswith(VIA)
