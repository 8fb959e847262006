from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import InvalidSetting
from trunkline.server.config import names

CHECKS: list[Callable[[object], str]] = [
    names.namespace_name,
    names.hybrid_connection_name,
    names.rule_name,
    names.rule_key,
    names.user_metadata,
    names.host_name,
]


@pytest.mark.parametrize("name", ["myRelayNS", "a-b-c-d", "abcdef", "a" * 50])
def test_namespace_may_have_the_name(name: str) -> None:
    assert names.namespace_name(name) == name


@pytest.mark.parametrize("name", ["", "abcde", "a" * 51, "1abcde", "abcde-", "abc_def", "abcdef\n", "äbcdef", 6, None])
def test_namespace_may_not_have_the_name(name: object) -> None:
    with pytest.raises(InvalidSetting, match="6 to 50 letters"):
        names.namespace_name(name)


@pytest.mark.parametrize(
    "name", ["a", "orders", "a/b", "microsoft.hybridcompute/machines/x/v2", "A.b_c-d/0", "x" * 260]
)
def test_hybrid_connection_may_have_the_name(name: str) -> None:
    assert names.hybrid_connection_name(name) == name


@pytest.mark.parametrize("name", ["", "/a", "a/", "-a", "a.", "a b", "a%2Fb", "a~b", "x" * 261, "orders\n", 1])
def test_hybrid_connection_may_not_have_the_name(name: object) -> None:
    with pytest.raises(InvalidSetting, match="1 to 260"):
        names.hybrid_connection_name(name)


@pytest.mark.parametrize("name", ["a//b", "a/../b", "a/./b"])
def test_segment_of_a_name_cannot_lead_elsewhere(name: str) -> None:
    with pytest.raises(InvalidSetting, match="between slashes"):
        names.hybrid_connection_name(name)


@pytest.mark.parametrize("name", ["a b", "", "a" * 51, "a/b", "_a"])
def test_rule_may_not_have_the_name(name: str) -> None:
    with pytest.raises(InvalidSetting, match="a rule is named"):
        names.rule_name(name)


@pytest.mark.parametrize("key", ["", "a;b", "with space", "line\nfeed", "schlüssel", "k" * 257, 777_777])
def test_key_that_no_connection_string_can_carry_is_refused_without_being_shown(key: object) -> None:
    with pytest.raises(InvalidSetting) as refused:
        names.rule_key(key)
    assert "not shown" in str(refused.value)
    assert not key or str(key) not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("Relay.Example.COM", "relay.example.com"),
        ("relay.local.", "relay.local"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("host_with_underscore", "host_with_underscore"),
    ],
)
def test_host_is_kept_in_one_form(written: str, kept: str) -> None:
    assert names.host_name(written) == kept


@pytest.mark.parametrize("host", ["", "a:80", "https://a", "a/b", "*.a", "-a", "a..b", "ä.de", "a" * 64, "a\n", ".", 5])
def test_what_is_no_host_is_refused(host: object) -> None:
    with pytest.raises(InvalidSetting, match="DNS name or an IP address"):
        names.host_name(host)


@given(value=st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text()), st.booleans()))
def test_any_value_is_a_name_or_a_declared_error_of_one_line(value: object) -> None:
    for check in CHECKS:
        try:
            kept = check(value)
        except InvalidSetting as error:
            assert str(error).isprintable()
        else:
            assert check(kept) == kept


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (["http"], ("http",)),
        (["websocket", "http"], ("http", "websocket")),
        (("http", "http"), ("http",)),
        ([], None),
        ("http", None),
        (["HTTP"], None),
        ([["http"]], None),
        (None, None),
    ],
)
def test_what_is_accepted_is_a_list_of_known_words(value: object, kept: tuple[str, ...] | None) -> None:
    if kept is not None:
        assert names.accepts(value) == kept
        return
    with pytest.raises(InvalidSetting, match="list with 'http' or 'websocket' or both"):
        names.accepts(value)


@pytest.mark.parametrize(
    ("name", "expected"), [("a", True), ("A-1_b", True), ("a.b", False), ("a/b", False), ("", False)]
)
def test_label_is_what_can_begin_a_host_name(name: str, expected: bool) -> None:
    assert names.is_label(name) is expected
