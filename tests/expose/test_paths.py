"""Paths on their way to the target, and back."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.expose.paths import PublicPath, leaves_root, target_path
from trunkline.expose.target import Target

TARGET = Target("http", "localhost", 3000)
BELOW = Target("http", "localhost", 3000, "/app")


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("/myHC", "/"),
        ("/myHC/", "/"),
        ("/myHC/index.html", "/index.html"),
        ("/MYhc/Index.html", "/Index.html"),
        ("/myHC?x=1", "/?x=1"),
        ("/myHC/a//b/", "/a//b/"),
        ("/myHC/a b", "/a%20b"),
        ("/myHC/Köln/€", "/K%C3%B6ln/%E2%82%AC"),
        ("/myHC/a%2Fb%25", "/a%2Fb%25"),
        ("/myHC/100%", "/100%25"),
        ("/myHC/100%zz", "/100%25zz"),
        ("/myHC/~user/:@!$&'()*+,;=", "/~user/:@!$&'()*+,;="),
        ('/myHC/"<>^`{|}\\#', "/%22%3C%3E%5E%60%7B%7C%7D%5C%23"),
        ("/myHC/a\r\nb", "/a%0D%0Ab"),
        ("/myHC/x?a=b?c=d&&e=%20+", "/x?a=b?c=d&&e=%20+"),
        ("/myHC/x?a=ö b#c", "/x?a=%C3%B6%20b%23c"),
        ("/myHCx/y", "/myHCx/y"),
        ("/other", "/other"),
    ],
)
def test_entity_is_taken_off_and_the_rest_may_stand_in_a_request_line(sent: str, path: str) -> None:
    assert target_path(sent, "myHC", keep=False) == path


def test_entity_of_several_segments_is_taken_off() -> None:
    assert target_path("/a/b/c", "a/b", keep=False) == "/c"


def test_entity_stays_when_it_is_to_stay() -> None:
    assert target_path("/myHC/a b?c", "myHC", keep=True) == "/myHC/a%20b?c"


@given(st.text(), st.text())
def test_any_target_becomes_one_word_of_ascii_that_means_the_same(path: str, query: str) -> None:
    path = path.replace("?", "")
    sent = target_path(f"/myHC/{path}?{query}", "myHC", keep=False)
    assert sent.isascii() and sent.isprintable() and " " not in sent and sent.startswith("/")
    if "%" not in path and path.encode("utf-8", "replace").decode() == path:  # no halves of a character
        assert unquote(sent.partition("?")[0]) == f"/{path}"


@pytest.mark.parametrize(
    "path",
    ["/..", "/../secret", "/a/../../b", "/%2e%2E/x", "/a/..%2f..%2Fx", "/..\\x", "/a/%2e./../x", "/./../x", "//../x"],
)
def test_path_that_climbs_above_its_root_is_seen(path: str) -> None:
    assert leaves_root(path)


@pytest.mark.parametrize("path", ["/", "/a/..", "/a/../b", "/a/b/../../c", "/...", "/a..b", "/x?../../y", "/..a/x"])
def test_path_that_stays_below_its_root_passes(path: str) -> None:
    assert not leaves_root(path)


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("/docs/", "/myHC/docs/"),
        ("/", "/myHC/"),
        ("/?x=/y", "/myHC/?x=/y"),
        ("http://localhost:3000/docs?x", "/myHC/docs?x"),
        ("HTTP://LOCALHOST:3000", "/myHC/"),
        ("http://localhost:3000?x", "/myHC/?x"),
        ("https://localhost:3000/docs/", "/myHC/docs/"),
        ("https://relay.example:8443/docs/", "/myHC/docs/"),
        ("https://Relay.Example:8443/myHC/docs/", "/myHC/docs/"),
        ("https://relay.example/docs/", "https://relay.example/docs/"),
        ("http://localhost:3000//docs", "/myHC//docs"),
        ("/myHC/docs", "/myHC/docs"),
        ("/myHC", "/myHC"),
        ("/myHCx", "/myHC/myHCx"),
        ("docs/", "docs/"),
        ("?page=2", "?page=2"),
        ("//elsewhere/x", "//elsewhere/x"),
        ("https://elsewhere/x", "https://elsewhere/x"),
        ("http://localhost:30001/x", "http://localhost:30001/x"),
        ("", ""),
    ],
)
def test_location_is_one_that_the_sender_can_follow(said: str, public: str) -> None:
    assert PublicPath("/myHC", frozenset({"relay.example:8443"})).location(said, TARGET) == public


def test_location_below_a_base_path_loses_it() -> None:
    assert PublicPath("/myHC").location("/app/docs", BELOW) == "/myHC/docs"
    assert PublicPath("/myHC").location("http://localhost:3000/app", BELOW) == "/myHC/"
    assert PublicPath("/myHC").location("/app?x", BELOW) == "/myHC/?x"
    assert PublicPath("").location("/app/docs", BELOW) == "/docs"


def test_location_without_a_prefix_only_loses_the_target() -> None:
    assert PublicPath("").location("http://localhost:3000/docs", TARGET) == "/docs"
    assert PublicPath("").location("/docs", TARGET) == "/docs"
    assert PublicPath("").location("http://localhost:3000//docs", TARGET) == "/docs"


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("a=1; Path=/; HttpOnly", "a=1; Path=/myHC/; HttpOnly"),
        ("a=1;path=/x", "a=1;path=/myHC/x"),
        ("a=1; Path=/myHC", "a=1; Path=/myHC"),
        ("a=/x; Secure", "a=/x; Secure"),
        ("a=1; Path=", "a=1; Path="),
    ],
)
def test_cookie_belongs_to_the_public_path(said: str, public: str) -> None:
    assert PublicPath("/myHC").cookie(said, TARGET) == public


def test_cookie_stays_where_the_whole_path_is_the_targets() -> None:
    assert PublicPath("").cookie("a=1; Path=/x", TARGET) == "a=1; Path=/x"
    assert PublicPath("").cookie("a=1; Path=/app/x", BELOW) == "a=1; Path=/x"
