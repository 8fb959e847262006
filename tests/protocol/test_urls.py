"""Addresses: what senders and listeners ask for, and what they are given."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, unquote, unquote_plus, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trunkline.protocol import urls
from trunkline.protocol.errors import InvalidRequest, InvalidUrl
from trunkline.protocol.urls import Action, HttpTarget, RelayTarget, match_entity, parse_target

ANY_TEXT = st.text(alphabet=st.characters(codec=None, exclude_categories=()))  # half surrogate pairs too
# Text made of what matters in a URL, so that hypothesis meets the odd corners often.
URL_TEXT = st.lists(
    st.sampled_from(
        ["/", "//", "$hc", "%24HC", "..", ".", "%2e", "%2F", "%252e", "%", "%zz", "%ff", "\\", "a", "b", "+", "%20"]
        + ["?", "&", "=", "&&", "sb-hc-", "sb-hc-action=", "accept", "listen", "sb-hc-rendezvous=x", "statusCode=4"]
        + ["#", " ", "é", "\x00", "\r\n", "\ud800", '"', "<", "{", "^", "|", "`"]
    )
).map("".join)  # fmt: skip
GUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
LEGAL_URL = re.compile(r"(?:[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*")


def relay(target: str) -> RelayTarget:
    parsed = parse_target(target)
    assert isinstance(parsed, RelayTarget)
    return parsed


def http(target: str) -> HttpTarget:
    parsed = parse_target(target)
    assert isinstance(parsed, HttpTarget)
    return parsed


def test_listener_of_dotnet_is_understood() -> None:
    target = relay(f"/$hc/orders?sb-hc-action=listen&sb-hc-id={GUID}")
    assert target == RelayTarget(
        raw_path="orders", segments=("orders",), raw_segments=("orders",), action=Action.LISTEN, id=GUID,
        token=None, secret=None, status_code=None, status_description=None, query="",
    )  # fmt: skip


def test_sender_of_hyco_sends_its_token_in_the_query() -> None:
    token = "SharedAccessSignature sr=http%3A%2F%2Fh%2Forders&sig=a%2Bb%3D&se=1&skn=rule"
    target = relay(f"/$hc/orders?sb-hc-action=connect&sb-hc-token={quote(token, safe='')}")
    assert target.token == token
    assert relay(f"/$hc/orders?sb-hc-token={quote(token, safe='').replace('%20', '+')}").token == token
    assert token not in repr(target)


def test_sender_without_an_action_connects() -> None:
    target = relay("/$hc/orders?sb-hc-token=t")
    assert (target.action, target.id, target.token) == (Action.CONNECT, None, "t")
    assert relay("/$hc/orders").action is Action.CONNECT


@pytest.mark.parametrize("prefix", ["/$hc/", "/%24hc/", "/$HC/", "/%24Hc/", "//$hc//", "///$hc/"])
def test_sender_may_spell_the_prefix_in_any_way(prefix: str) -> None:
    target = relay(f"{prefix}a%20b/C%2Fd?x=1")
    assert target.raw_path == "a%20b/C%2Fd"
    assert target.segments == ("a b", "C/d")
    assert target.raw_segments == ("a%20b", "C%2Fd")


@pytest.mark.parametrize("scheme", ["http", "https", "wss", "WS"])
def test_sender_behind_a_proxy_uses_the_absolute_form(scheme: str) -> None:
    assert relay(f"{scheme}://relay.local:8443/$hc/orders?sb-hc-action=listen").action is Action.LISTEN
    assert http(f"{scheme}://relay.local").segments == ()
    assert http(f"{scheme}://relay.local?a=1").query == "a=1"


@pytest.mark.parametrize(
    ("query", "action"),
    [
        ("sb-hc-action=LISTEN", Action.LISTEN),
        ("SB-HC-Action=accept", Action.ACCEPT),
        ("sb%2Dhc%2daction=request", Action.REQUEST),
        ("a=1&&sb-hc-action=connect&b", Action.CONNECT),
        ("sb-hc-action=listen&sb-hc-action=accept", Action.LISTEN),
        ("sb-hc-action=&sb-hc-action=accept", Action.ACCEPT),
        ("sb-hc-action", Action.CONNECT),
        ("sb-hc-action=", Action.CONNECT),
    ],
)
def test_parser_reads_the_action_without_case(query: str, action: Action) -> None:
    assert relay(f"/$hc/a?{query}").action is action


@pytest.mark.parametrize("action", ["Listen2", "%20listen", "li%73ten%00", "LİSTEN", "connect,listen"])
def test_sender_with_an_unknown_action_is_refused(action: str) -> None:
    with pytest.raises(InvalidRequest, match="listen, connect, accept or request"):
        parse_target(f"/$hc/a?sb-hc-action={quote(action, safe='%')}")


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("", "begin with a slash"),
        ("*", "begin with a slash"),
        ("relay.local:443", "begin with a slash"),
        ("$hc/orders", "begin with a slash"),
        ("/$hc", "names no hybrid connection"),
        ("/$hc/", "names no hybrid connection"),
        ("/$hc///?sb-hc-action=listen", "names no hybrid connection"),
        ("/$hc/a b", "percent-encoded"),
        ("/$hc/a\r\nX: 1", "percent-encoded"),
        ("/$hc/a\x00", "percent-encoded"),
        ("/$hc/é", "percent-encoded"),
        ("/$hc/\ud800", "percent-encoded"),
        ("/$hc/a#b", "percent-encoded"),
        ("/$hc/a?x=\x7f", "percent-encoded"),
        ("/$hc/a/../b", "'..'"),
        ("/$hc/..", "'..'"),
        ("/$hc/a/..?x", "'..'"),
        ("/$hc/a/%2e%2e/b", "'..'"),
        ("/$hc/a/%2E./b", "'..'"),
        ("/$hc/a/.%2e", "'..'"),
        ("/$hc/a/%2f..%2fb", "'..'"),
        ("/$hc/a/x%2f%2e%2e", "'..'"),
        ("/$hc/a/..%5cb", "'..'"),
        ("/$hc/a/..\\b", "'..'"),
        ("/$hc/a/%252e%252e/b", "'..'"),
        ("/$hc/a/%25252e%25252e", "'..'"),
        ("/a/../b", "'..'"),
        ("/../$hc/a", "'..'"),
    ],
)
def test_sender_with_a_malformed_address_is_refused(target: str, hint: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        parse_target(target)
    assert hint in caught.value.message
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("a%2Fb", ("a/b",)),
        ("a/%2e/b", ("a", ".", "b")),
        ("a...b/..c/d..", ("a...b", "..c", "d..")),
        ("a//b/", ("a", "b")),
        ("%ff%fe", ("\ufffd\ufffd",)),
        ("100%", ("100%",)),
        ("a%00b", ("a\x00b",)),
        ("a+b", ("a+b",)),
        ("%E2%82%AC", ("€",)),
    ],
)
def test_parser_decodes_each_segment_by_itself(path: str, segments: tuple[str, ...]) -> None:
    target = relay(f"/$hc/{path}")
    assert target.segments == segments
    assert target.raw_path == path
    assert "/".join(target.raw_segments) == path


def test_parser_follows_a_chain_of_escapes_only_so_far() -> None:
    chain = "%25" + "25" * 5_000 + "2e"
    assert relay(f"/$hc/a/{chain}").raw_segments == ("a", chain)


def test_parser_takes_what_is_not_below_the_prefix_for_plain_http() -> None:
    target = http("/orders/a%2fb//?x=1&sb-hc-token=a+b%2Bc&y=%c3%b8")
    assert target.raw_path == "orders/a%2fb//"
    assert target.segments == ("orders", "a/b")
    assert target.raw_segments == ("orders", "a%2fb", "", "")
    assert (target.query, target.token) == ("x=1&y=%C3%B8", "a b+c")
    assert "a b+c" not in repr(target)
    assert http("/").raw_segments == ()
    assert http("/$hcx/a").segments == ("$hcx", "a")
    assert http("/a/$hc/b").segments == ("a", "$hc", "b")
    assert http("/orders?sb-hc-action=unknown").query == ""


# The queries that Microsoft's own tests send, as they are on the wire, and what the listener must see.
QUERIES = [
    ("?a=1&a=2", "?a=1&a=2"),
    ("?a=1&a=2&", "?a=1&a=2&"),
    ("?&&&", "?&&&"),
    ("?foo=bar", "?foo=bar"),
    ("?foo=bar&", "?foo=bar&"),
    ("?&foo=bar", "?&foo=bar"),
    ("?sb-hc-id=1", ""),
    ("?sb-hc-id=1&custom=value", "?custom=value"),
    ("?custom=value&sb-hc-id=1", "?custom=value"),
    ("?sb-hc-undefined", "?sb-hc-undefined"),
    ("?sb-hc-undefined=true", ""),
    ("?sb-hc-whatever=", ""),
    ("?sb-hc-whatever=&foo=bar", "?foo=bar"),
    ("?CustomValue", "?CustomValue"),
    ("?custom-Value", "?custom-Value"),
    ("?custom&value", "?custom&value"),
    ("?&custom&value&", "?&custom&value&"),
    ("?&&value&&", "?&&value&&"),
    ("?+", "?+"),
    ("?&+&", "?&+&"),
    ("?%2B", "?%2B"),
    ("?%20", "?%20"),
    ("?", ""),
    ("", ""),
    ("?%20Key%20=%20%20Value%20With%20Space", "?%20Key%20=%20%20Value%20With%20Space"),
    ("?%20Not%20a%20key%20value%20pair", "?%20Not%20a%20key%20value%20pair"),
    ("?%2f%3a%3d%26", "?%2f%3a%3d%26"),
    ("?key='value'", "?key='value'"),
    ("?key=%22value%22", "?key=%22value%22"),
    ("?key=%3Cvalue%3E", "?key=%3Cvalue%3E"),
    ("?api-version=abc", "?api-version=abc"),
    ("?name=%C3%b8", "?name=%C3%B8"),
    ("?name=%C3%B8", "?name=%C3%B8"),
    ("?SB-HC-ID=1&x", "?x"),
    ("?sb%2dhc%2Did=1&x", "?x"),
    ("?sb-hc-token=a=b=c&x=a=b=c", "?x=a=b=c"),
    ("?=sb-hc-id", "?=sb-hc-id"),
    ("?xsb-hc-id=1", "?xsb-hc-id=1"),
]


@pytest.mark.parametrize(("sent", "seen"), QUERIES)
def test_listener_sees_the_senders_own_query(sent: str, seen: str) -> None:
    query = http(f"/orders{sent}").query
    assert (f"?{query}" if query else "") == seen


@pytest.mark.parametrize(("sent", "seen"), QUERIES)
def test_listener_gets_the_senders_own_query_byte_for_byte_in_an_accept_address(sent: str, seen: str) -> None:
    query = relay(f"/$hc/orders{sent}").query
    assert query == (seen[1:] if "%b8" not in sent else sent[1:])


@pytest.mark.parametrize(
    ("path", "entities", "found"),
    [
        ("orders", {"orders"}, ("orders", "")),
        ("orders/", {"orders"}, ("orders", "")),
        ("orders//", {"orders"}, ("orders", "/")),
        ("orders/a/b%20c/", {"orders"}, ("orders", "a/b%20c/")),
        ("orders//a", {"orders", "orders/a"}, ("orders", "/a")),
        ("a/b/c", {"a", "a/b"}, ("a/b", "c")),
        ("a/b/c", {"a", "a/b/c"}, ("a/b/c", "")),
        ("a/b/c", {"b"}, None),
        ("a/b", {"a/b/c"}, None),
        ("a%2Fb/c", {"a/b", "a/b/c"}, None),
        ("a/b%2Fc", {"a", "a/b/c"}, ("a", "b%2Fc")),
        ("a/b%5Cc", {"a", "a/b\\c"}, ("a", "b%5Cc")),
        ("a/./b", {"a", "a/./b", "a/b"}, ("a", "./b")),
        ("a/%2e/b", {"a", "a/./b"}, ("a", "%2e/b")),
        ("my%20hc/x", {"my hc"}, ("my hc", "x")),
        ("%6frders", {"orders"}, ("orders", "")),
        ("microsoft.hybridcompute/machines/x/y/v2", {"microsoft.hybridcompute/machines/x/y/v2"},
         ("microsoft.hybridcompute/machines/x/y/v2", "")),
    ],
)  # fmt: skip
def test_sender_reaches_the_longest_entity(path: str, entities: set[str], found: tuple[str, str] | None) -> None:
    target = relay(f"/$hc/{path}")
    assert match_entity(target.segments, target.raw_segments, entities.__contains__) == found


def test_sender_reaches_no_entity_with_dot_segments_even_unparsed() -> None:
    assert match_entity(("..", "b"), ("..", "b"), lambda path: True) is None
    assert match_entity(("a", ".."), ("a", ".."), lambda path: True) == ("a", "..")
    assert match_entity((), (), lambda path: True) is None


def test_sender_with_very_many_segments_costs_few_questions() -> None:
    asked: list[str] = []

    def exists(path: str) -> bool:
        asked.append(path)
        return False

    segments = ("a",) * 16_000
    assert match_entity(segments, segments, exists) is None
    assert len(asked) == 130
    assert max(map(len, asked)) <= 260


ADDRESS = re.compile(
    r"wss://relay\.local:8443/\$hc/(?P<path>[^?]*)\?(?:(?P<query>.*)&)?"
    r"sb-hc-action=accept&sb-hc-id=(?P<id>[^&=]*)&sb-hc-rendezvous=(?P<secret>[^&=]*)"
)


def accept(entity: str = "orders", suffix: str = "", query: str = "", id: str = GUID) -> str:
    return urls.accept_address(
        "wss://relay.local:8443", entity, suffix, query, action=Action.ACCEPT, id=id, secret="s-3_cret"
    )


def test_listener_gets_the_address_of_a_rendezvous() -> None:
    own = f"sb-hc-action=accept&sb-hc-id={GUID}&sb-hc-rendezvous=s-3_cret"
    assert accept() == f"wss://relay.local:8443/$hc/orders?{own}"
    assert accept("a b/c", "x%2fY/", "p=1&&q=%c3") == (f"wss://relay.local:8443/$hc/a%20b/c/x%2fY/?p=1&&q=%c3&{own}")


def test_listener_gets_the_address_of_a_request() -> None:
    base = "wss://relay.local:8443"
    given = urls.request_address(base, "a b/c", id=f"{GUID}_G1&a=b", secret="s-3_cret")
    assert given == urls.accept_address(
        base, "a b/c", "", "", action=Action.REQUEST, id=f"{GUID}_G1&a=b", secret="s-3_cret"
    )


def test_listener_gets_an_address_that_java_can_read() -> None:
    address = accept(suffix='a"b\\c', query='x={"y"}&p=100%&q=é ^|`', id=f"{GUID}_G1&a=b=c")
    assert LEGAL_URL.fullmatch(address)
    assert "x=%7B%22y%22%7D&p=100%25&q=%C3%A9%20%5E%7C%60&sb-hc-action=" in address
    assert "/a%22b%5Cc?" in address
    assert f"sb-hc-id={GUID}_G1_a_b_c&" in address


@given(entity=ANY_TEXT, suffix=URL_TEXT, query=URL_TEXT, id=ANY_TEXT)
def test_listener_gets_a_legal_address_whatever_the_sender_sent(entity: str, suffix: str, query: str, id: str) -> None:
    # What reaches the function was parsed: there is no "?" in a path, and nothing that no URL may hold.
    suffix, query = suffix.replace("?", ""), query.replace("#", "")
    address = accept(entity, suffix, query, id)
    assert LEGAL_URL.fullmatch(address.replace("[", "").replace("]", ""))
    found = ADDRESS.fullmatch(address)
    assert found is not None
    assert found["secret"] == "s-3_cret"
    if LEGAL_URL.fullmatch(query):
        assert (found["query"] or "") == query


@given(suffix=URL_TEXT, query=URL_TEXT)
def test_listener_that_uses_the_address_reaches_its_rendezvous(suffix: str, query: str) -> None:
    try:
        sender = relay(f"/$hc/orders/{suffix}?{query}")
    except (InvalidUrl, InvalidRequest):
        return
    found = match_entity(sender.segments, sender.raw_segments, lambda path: path == "orders")
    assert found is not None
    address = accept(*found, sender.query)
    target = relay(address.removeprefix("wss://relay.local:8443"))
    assert (target.action, target.id, target.secret) == (Action.ACCEPT, GUID, "s-3_cret")
    assert (target.status_code, target.status_description) == (None, None)
    assert target.segments == sender.segments
    rejected = relay(urls.rejection_address(address, 450, "no & never").removeprefix("wss://relay.local:8443"))
    assert (rejected.secret, rejected.status_code, rejected.status_description) == (
        "s-3_cret", "450", "no & never",
    )  # fmt: skip


def test_listener_rejects_in_either_spelling() -> None:
    path = accept(query="statusCode=200&statusDescription=mine").removeprefix("wss://relay.local:8443")
    plain = relay(path)
    assert (plain.status_code, plain.status_description) == (None, None)
    hyco = relay(path + "&statusCode=403&statusDescription=not%20you%2B")
    assert (hyco.status_code, hyco.status_description) == ("403", "not you+")
    dotnet = relay(path + "&sb-hc-statusCode=403&sb-hc-statusDescription=not+you%2b&statusCode=1")
    assert (dotnet.status_code, dotnet.status_description) == ("403", "not you+")


def test_sender_cannot_reject_in_the_place_of_the_listener() -> None:
    sender = relay("/$hc/orders?sb-hc-statusCode=200&sb-hc-rendezvous=x&statusCode=404&a=1")
    assert sender.query == "statusCode=404&a=1"
    assert relay(accept(query=sender.query).removeprefix("wss://relay.local:8443")).status_code is None


def test_listener_writes_its_rejection_as_dotnet_does() -> None:
    assert urls.rejection_address("wss://h/$hc/a?x=1", 400, "Rejected by user code: ä&") == (
        "wss://h/$hc/a?x=1&sb-hc-statusCode=400&sb-hc-statusDescription=Rejected+by+user+code%3A+%C3%A4%26"
    )
    assert urls.rejection_address("wss://h/$hc/a", 500, "\ud800").endswith(
        "/a?sb-hc-statusCode=500&sb-hc-statusDescription=%3F"
    )


def test_sdk_builds_the_addresses_of_its_connections() -> None:
    assert urls.listen_url("wss://h:8443/", "/a b/c") == "wss://h:8443/$hc/a%20b/c?sb-hc-action=listen"
    assert urls.listen_url("wss://h", "a", id=GUID, token="x y+z") == (
        f"wss://h/$hc/a?sb-hc-action=listen&sb-hc-id={GUID}&sb-hc-token=x%20y%2Bz"
    )
    assert urls.connect_url(
        "wss://h", "a", suffix="/b c/%2F", query="q=1&sb-hc-token=evil&&", id=GUID, token="t"
    ) == f"wss://h/$hc/a/b%20c/%2F?q=1&&&sb-hc-action=connect&sb-hc-id={GUID}&sb-hc-token=t"  # fmt: skip
    assert urls.connect_url("ws://h", "a") == "ws://h/$hc/a?sb-hc-action=connect"


@given(path=st.lists(st.text("abAB09._- +%é", min_size=1), min_size=1, max_size=3), id=ANY_TEXT, token=ANY_TEXT)
def test_node_reads_what_the_sdk_builds(path: list[str], id: str, token: str) -> None:
    if any(segment == ".." for segment in path) or "%2e" in "".join(path).lower():
        return
    base = urls.base_url("relay.local", 8443, secure=True)
    for build, action in ((urls.listen_url, Action.LISTEN), (urls.connect_url, Action.CONNECT)):
        build_any: Callable[..., str] = build
        address = build_any(base, "/".join(path), id=id, token=token)
        target = relay(address.removeprefix(base))
        assert target.segments == tuple(path)
        assert target.action is action
        assert (target.id or "") == id.encode("utf-8", "replace").decode()
        assert (target.token or "") == token.encode("utf-8", "replace").decode()


def test_sdk_builds_a_base_for_names_and_addresses() -> None:
    assert urls.base_url("relay.local", None, secure=True) == "wss://relay.local"
    assert urls.base_url("::1", 8080, secure=False) == "ws://[::1]:8080"


@pytest.mark.parametrize(
    ("text", "host", "port", "path", "secure"),
    [
        ("sb://relay.local/orders", "relay.local", None, "orders", True),
        (" SB://Relay.Local:8443/a%20b/c/ ", "relay.local", 8443, "a b/c", True),
        ("wss://h:1/$hc/orders?sb-hc-action=listen#x", "h", 1, "orders", True),
        ("ws://h/%24hc/orders", "h", None, "orders", False),
        ("https://h", "h", None, "", True),
        ("http://[::1]:65535/orders", "::1", 65535, "orders", False),
        ("http://[::1]", "::1", None, "", False),
        ("sb://h:/x", "h", None, "x", True),
    ],
)
def test_sdk_reads_the_address_of_an_entity(text: str, host: str, port: int | None, path: str, secure: bool) -> None:
    assert urls.parse_address(text) == (host, port, path, secure)


@pytest.mark.parametrize(
    "text",
    ["", "orders", "//h/x", "ftp://h/x", "sb:/h/x", "sb://", "sb:///x", "sb://s3cret@h/x", "sb://u:s3cret@h/x",
     "sb://h:0/x", "sb://h:65536/x", "sb://h:x/", "sb://h:-1/", "sb://h:١/", "sb://h h/", "sb://hé/", "sb://[::1/x",
     "sb://::1/x", "sb://[zz]/x", "sb://h/a/../b?s3cret", "sb://h/%2e%2e/s3cret", "sb://h\r\n/x", "sb://[::1]x/s3cret"],
)  # fmt: skip
def test_sdk_refuses_what_is_no_address_without_showing_it(text: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        urls.parse_address(text)
    assert "s3cret" not in repr(caught.value)


@given(text=st.one_of(ANY_TEXT, URL_TEXT, URL_TEXT.map(lambda rest: "sb://h" + rest)))
def test_sdk_reads_any_text_as_an_address_or_refuses_it(text: str) -> None:
    try:
        host, port, path, _ = urls.parse_address(text)
    except InvalidUrl:
        return
    assert host and host == host.lower()
    assert port is None or 0 < port < 65_536
    assert ".." not in path.split("/")


@pytest.mark.parametrize(
    ("id", "guid"),
    [
        (GUID, GUID),
        (GUID.upper() + "_G12_G34", GUID.upper()),
        (None, None),
        ("", None),
        ("x" + GUID, None),
        (GUID[:-1], None),
        (GUID.replace("0", "٠"), None),
        (GUID.replace("-", ""), None),
    ],
)
def test_node_finds_the_guid_of_a_tracking_id(id: str | None, guid: str | None) -> None:
    assert urls.tracking_guid(id) == guid


@pytest.mark.parametrize(
    ("id", "kept"),
    [
        (GUID, GUID),
        (GUID + "_G12_G34", GUID + "_G12_G34"),
        (GUID + "\r\nforged line", GUID),
        (GUID + "_" * 65, GUID),
        (GUID + "\n", GUID),
        ("forged", None),
        ("", None),
        (None, None),
    ],
)
def test_node_keeps_of_a_peers_tracking_id_what_a_log_can_hold(id: str | None, kept: str | None) -> None:
    assert urls.tracking_id(id) == kept


@given(target=st.one_of(ANY_TEXT, URL_TEXT, URL_TEXT.map(lambda rest: "/$hc/" + rest)))
@example("/$hc/" + "%25" * 10_000)
@example("/$hc/" + "a/" * 15_000)
@example("/$hc/a?" + "&" * 30_000)
def test_parser_reads_any_target_or_refuses_it(target: str) -> None:
    try:
        parsed = parse_target(target)
    except (InvalidUrl, InvalidRequest):
        return
    assert all(parsed.segments)
    assert "/".join(parsed.raw_segments) == parsed.raw_path
    assert ".." not in re.split(r"[/\\]", unquote(parsed.raw_path))
    assert parsed.raw_path in target
    names = [name for name, _ in parse_qsl(urlsplit("?" + parsed.query).query, keep_blank_values=True)]
    with_value = {part.partition("=")[0] for part in parsed.query.split("&") if "=" in part}
    assert not any(name.lower().startswith("sb-hc-") for name in names if name in with_value)
    found = match_entity(parsed.segments, parsed.raw_segments, lambda path: True)
    if found is not None:
        assert "//" not in found[0] and ".." not in found[0].split("/")
        assert parsed.raw_path.endswith(found[1])


@given(query=URL_TEXT)
def test_parser_filters_a_query_once_and_for_all(query: str) -> None:
    kept = urls.user_query(query)
    assert urls.user_query(kept) == kept
    rest = iter(query.split("&"))
    assert all(part in rest for part in kept.split("&")) or kept == ""


def test_parser_reads_host_and_port() -> None:
    assert urls.split_authority("Relay.Local:8443") == ("relay.local", 8443)
    assert urls.split_authority("[::1]") == ("::1", None)
    with pytest.raises(InvalidUrl):
        urls.split_authority("")


def spelled(name: str) -> st.SearchStrategy[str]:
    """A name in any case, with any of its characters percent-encoded."""
    return st.tuples(
        *(st.sampled_from([char, char.upper(), f"%{ord(char):02x}", f"%{ord(char.upper()):02X}"]) for char in name)
    ).map("".join)


QUERY_PIECES = st.one_of(
    *(spelled(name) for name in ("sb-hc-", "sb-hc-id", "sb-hc-rendezvous", "statuscode", "statusdescription")),
    st.sampled_from(["&", "&", "=", "=", "a", "%41", "+", "%", "%2", "s", "sb-", "sb-hc"]),
)


@example("sb-hc-rendezvous=x&statuscode=&statusdescription=&statuscode=1")
@given(st.lists(QUERY_PIECES, max_size=12).map("".join))
def test_query_is_read_in_one_scan_as_it_would_be_part_by_part(query: str) -> None:
    parts = [part.partition("=") for part in query.split("&")]
    names = [unquote_plus(name).lower() if equals else "" for name, equals, _ in parts]
    rest = "&".join(part for part, name in zip(query.split("&"), names, strict=True) if not name.startswith("sb-hc-"))
    assert urls.user_query(query) == rest
    found: dict[str, str] = {}
    for name, (_, _, value) in zip(names, parts, strict=True):
        status = name in ("statuscode", "statusdescription") and "sb-hc-rendezvous" in found
        if value and (name.startswith("sb-hc-") or status):
            found.setdefault(name, unquote_plus(value))
    assert http(f"/x?{query}").token == found.get("sb-hc-token")
    target = relay(f"/$hc/x?sb-hc-action=accept&{query}")
    assert (target.id, target.secret) == (found.get("sb-hc-id"), found.get("sb-hc-rendezvous"))
    assert target.status_code == found.get("sb-hc-statuscode", found.get("statuscode"))
    assert target.status_description == found.get("sb-hc-statusdescription", found.get("statusdescription"))


@given(st.lists(st.sampled_from(["/", "/", "%2F", "%2f", "a", "%41", "%C3", "%A9", "%25", "%", "%2"]), max_size=12))
def test_path_is_decoded_at_once_as_it_would_be_segment_by_segment(pieces: list[str]) -> None:
    path = "x" + "".join(pieces)
    target = relay(f"/$hc/{path}")
    assert target.segments == tuple(unquote(segment) for segment in path.split("/") if segment)
