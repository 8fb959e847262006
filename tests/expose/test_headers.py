"""Headers on their way to the target, and back."""

from __future__ import annotations

import pytest

from trunkline.expose.headers import HeaderRules, content_length
from trunkline.expose.paths import PublicPath
from trunkline.expose.target import Target
from trunkline.sdk.incoming import CaseInsensitiveHeaders

TARGET = Target("http", "localhost", 3000)
RULES = HeaderRules(TARGET, pseudonym="us")
MYHC = PublicPath("/myHC")


def request(rules: HeaderRules = RULES, public_path: PublicPath = MYHC, **headers: str) -> dict[str, str]:
    """What the target gets for the headers of a sender; an underscore in a name stands for a hyphen."""
    sent = CaseInsensitiveHeaders(
        {"Host": "relay:8443", **{name.replace("_", "-"): value for name, value in headers.items()}}
    )
    result = rules.request(sent, remote="192.0.2.7", public_path=public_path)
    assert len({name.lower() for name, _ in result}) == len(result)
    return dict(result)


def test_target_is_told_what_the_sender_saw() -> None:
    assert request(Accept="*/*") == {
        "Host": "localhost:3000",
        "Accept": "*/*",
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "relay:8443",
        "X-Forwarded-Prefix": "/myHC",
        "Via": "1.1 us",
    }


def test_no_prefix_is_told_where_there_is_none() -> None:
    assert "X-Forwarded-Prefix" not in request(public_path=PublicPath(""))


def test_host_is_the_senders_or_another_one_on_demand() -> None:
    assert request(HeaderRules(TARGET, preserve_host=True))["Host"] == "relay:8443"
    assert request(HeaderRules(TARGET, preserve_host=True, host="app.example"))["Host"] == "app.example"


@pytest.mark.parametrize(
    "name",
    ["Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Connection", "Close"]
    + ["Proxy-Authorization", "Expect", "Content-Length", "Sec-WebSocket-Key", "Sec-WebSocket-Extensions"],
)
def test_headers_of_the_connection_stay_behind(name: str) -> None:
    sent = CaseInsensitiveHeaders({name: "x", "X-Stays": "s"})
    seen = dict(RULES.request(sent, remote="", public_path=MYHC))
    assert name not in seen and seen["X-Stays"] == "s"


def test_headers_that_connection_names_stay_behind_but_not_ours() -> None:
    seen = request(Connection="close, X-Named,x-forwarded-for", X_Named="n", X_Stays="s")
    assert "X-Named" not in seen and seen["X-Stays"] == "s"
    assert seen["X-Forwarded-For"] == "192.0.2.7"


def test_what_a_sender_says_of_itself_does_not_count() -> None:
    seen = request(
        X_Forwarded_For="10.0.0.1", x_forwarded_proto="ftp", X_Forwarded_Host="evil", Forwarded="for=1", X_Real_IP="2"
    )
    assert seen["X-Forwarded-For"] == "192.0.2.7"
    assert seen["X-Forwarded-Proto"] == "https"
    assert seen["X-Forwarded-Host"] == "relay:8443"
    assert not {"Forwarded", "X-Real-IP", "x-forwarded-proto"} & set(seen)


@pytest.mark.parametrize(
    "name", ["X_Forwarded_For", "x-forwarded_prefix", "Content_Length", "Transfer_Encoding", "HOST_"]
)
def test_name_with_underscores_is_not_taken_for_one_of_ours(name: str) -> None:
    """A WSGI server reads X_Forwarded_For and X-Forwarded-For as the same."""
    names = {each for each, _ in RULES.request({name: "evil", "X_Own": "1"}, remote="", public_path=PublicPath(""))}
    assert "X_Own" in names
    assert (name in names) is (name == "HOST_")


def test_what_a_trusted_gateway_says_counts() -> None:
    seen = request(
        HeaderRules(TARGET, trust_forwarded=True),
        X_Forwarded_For="10.0.0.1",
        X_Forwarded_Proto="http",
        X_Forwarded_Host="api.example",
        Forwarded="for=10.0.0.1",
        X_Real_IP="10.0.0.1",
    )
    assert seen["X-Forwarded-For"] == "10.0.0.1, 192.0.2.7"
    assert seen["X-Forwarded-Proto"] == "http"
    assert seen["X-Forwarded-Host"] == "api.example"
    assert seen["Forwarded"] == "for=10.0.0.1" and seen["X-Real-IP"] == "10.0.0.1"


def test_via_grows_by_one() -> None:
    assert request(Via="1.1 relay")["Via"] == "1.1 relay, 1.1 us"


def test_request_that_was_here_before_is_known() -> None:
    assert RULES.is_loop({"Via": "1.1 relay, 1.1 us, 1.1 relay"})
    assert not RULES.is_loop({"Via": "1.1 relay, 1.1 others"})
    assert not RULES.is_loop({})


def test_value_keeps_the_bytes_that_the_sender_sent() -> None:
    """aiohttp writes UTF-8; the relay gives each byte as a character."""
    assert request(X="Köln".encode().decode("latin-1"))["X"] == "Köln"
    assert request(X="K\xf6ln")["X"] == "K\xf6ln"


@pytest.mark.parametrize(
    ("rules", "said", "prefix"),
    [
        (RULES, "", "/myHC"),
        (RULES, "/", ""),
        (RULES, "/spoofed", "/myHC"),
        (HeaderRules(TARGET, trust_forwarded=True), "/api/", "/api"),
        (HeaderRules(TARGET, trust_forwarded=True), "", "/myHC"),
        (HeaderRules(TARGET, keep_path=True), "", ""),
        (HeaderRules(TARGET, keep_path=True), "/", ""),
    ],
)
def test_public_path_is_that_of_the_entity_unless_it_has_a_host_of_its_own(
    rules: HeaderRules, said: str, prefix: str
) -> None:
    headers = CaseInsensitiveHeaders({"X-Forwarded-Prefix": said} if said else {})
    assert rules.public_path(headers, "myHC").prefix == prefix


def test_redirect_to_any_host_that_the_target_takes_for_its_own_stays_with_the_sender() -> None:
    rules = HeaderRules(TARGET, host="app.example")
    public = rules.public_path(CaseInsensitiveHeaders({"Host": "Relay:8443"}), "myHC")
    for host in ("localhost:3000", "app.example", "relay:8443"):
        for scheme in ("http", "https"):
            said = f"{scheme}://{host}/x".encode()
            assert rules.response([(b"Location", said)], public) == [("Location", "/myHC/x")]


def test_answer_keeps_names_order_and_repetitions() -> None:
    raw = [(b"X-One", b"1"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=\xc3\xb6"), (b"ETag", b'"x"')]
    assert RULES.response(raw, MYHC) == [
        ("X-One", "1"),
        ("Set-Cookie", "a=1"),
        ("set-cookie", "b=\xc3\xb6"),
        ("ETag", '"x"'),
    ]


def test_headers_of_the_connection_to_the_target_stay_there() -> None:
    raw = [(b"Connection", b"keep-alive, X-Named"), (b"Keep-Alive", b"timeout=5"), (b"X-Named", b"n")]
    raw += [(b"Transfer-Encoding", b"chunked"), (b"Trailer", b"X-T"), (b"Upgrade", b"h2c"), (b"Content-Length", b"5")]
    assert RULES.response(raw, MYHC) == [("Content-Length", "5")]


def test_addresses_in_an_answer_are_public_ones() -> None:
    raw = [(b"Location", b"http://localhost:3000/x"), (b"Content-Location", b"/y"), (b"Set-Cookie", b"a=1; Path=/z")]
    assert [value for _, value in RULES.response(raw, MYHC)] == ["/myHC/x", "/myHC/y", "a=1; Path=/myHC/z"]


@pytest.mark.parametrize(("value", "length"), [("0", 0), ("12", 12), ("x", None), ("-1", None), ("١", None)])
def test_length_of_an_answer_is_a_number_or_nothing(value: str, length: int | None) -> None:
    assert content_length([("content-length", value)]) == length


def test_answer_that_says_no_length_has_none() -> None:
    assert content_length([("Content-Type", "text/plain")]) is None
