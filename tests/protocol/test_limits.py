"""The table of limits, and what may be written into it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol import limits
from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.limits import LIMITS, Limits, check, read, resolve

DEFAULTS: dict[str, tuple[Any, Any]] = {
    "max_hybrid_connections": (100, 10_000),
    "max_senders": (25, 0),
    "max_requests": (1_000, 0),
    "max_listeners": (25, 25),
    "listener_policy": ("active-standby", "balanced"),
    "idle_timeout": (60, 0),
    "control_idle_timeout": (60, 60),
    "ping_interval": (30, 30),
    "on_listener_loss": ("teardown", "keep"),
    "no_listener_status": (504, 404),
    "max_token_lifetime": (24 * 3600, 0),
    "token_grace": (30, 120),
    "frame_limit": (65_536, 65_536),
    "oversize_frames": ("split", "split"),
    "rendezvous_timeout": (30, 30),
    "response_timeout": (60, 60),
    "body_idle_timeout": (60, 60),
    "requires_client_authorization": (True, True),
    "plain_path_websockets": (True, False),
    "half_close_timeout": (120, 120),
    "drain_timeout": (30, 30),
}


@pytest.mark.parametrize(("preset", "column"), [("default", 0), ("azure", 1)])
def test_user_gets_the_defaults_of_the_preset(preset: str, column: int) -> None:
    expected = {name: row[column] for name, row in DEFAULTS.items()}
    assert dataclasses.asdict(resolve(preset)) == expected
    assert list(LIMITS) == list(DEFAULTS)


def test_table_has_the_types_that_the_fields_promise() -> None:
    types = {"int": int, "float": float, "str": str, "bool": bool}
    for field in dataclasses.fields(Limits):
        limit = LIMITS[field.name]
        for value in (limit.default, limit.azure):
            assert type(value) is types[str(field.type)]
            assert check(field.name, value) == value


@pytest.mark.parametrize("name", LIMITS)
def test_table_describes_each_limit(name: str) -> None:
    limit = LIMITS[name]
    assert limit.name == name
    assert limit.help and not limit.help.endswith(".")
    assert limit.allowed
    assert (limit.kind == "choice") == bool(limit.choices)
    assert "node" in limit.scopes


def test_wire_constants_are_those_of_the_real_clients() -> None:
    assert limits.CONTROL_MESSAGE_LIMIT == 65_536
    assert (limits.CONTROL_TEXT_LIMIT, limits.CONTROL_BINARY_LIMIT) == (262_144, 1_048_576)
    assert (limits.REQUEST_HEAD_LIMIT, limits.HEAD_TIMEOUT) == (32_768, 10.0)
    assert limits.RECONNECT_DELAYS == (0, 1, 2, 5, 10, 30)
    assert (limits.CLOSE_REASON_LIMIT, limits.MAX_RULES, limits.KEY_NAME_LIMIT) == (123, 12, 256)
    assert (limits.DEFAULT_TOKEN_LIFETIME, limits.LONGEST_TOKEN_LIFETIME) == (3_600, 86_400)
    assert (limits.CLOCK_SKEW, limits.HEARTBEAT) == (60.0, 30.0)


def test_nearest_layer_wins() -> None:
    found = resolve("azure", {"max_senders": 3, "idle_timeout": 7}, {"max_senders": 50})
    assert (found.max_senders, found.idle_timeout, found.max_listeners) == (50, 7.0, 25)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("max_senders", 50, 50),
        ("max_senders", 50.0, 50),
        ("max_senders", 0, 0),
        ("max_senders", "unlimited", 0),
        ("idle_timeout", "off", 0.0),
        ("idle_timeout", 1, 1.0),
        ("idle_timeout", 0.5, 0.5),
        ("listener_policy", "round-robin", "round-robin"),
        ("no_listener_status", 404, 404),
        ("requires_client_authorization", False, False),
        ("frame_limit", 1_024, 1_024),
    ],
)
def test_user_may_write(name: str, value: object, kept: object) -> None:
    found = check(name, value)
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("max_senders", -1, "a whole number from 1"),
        ("max_senders", 2.5, "a whole number"),
        ("max_senders", True, 'or 0 or "unlimited"'),
        ("max_senders", "50", "'50'"),
        ("max_senders", None, "None"),
        ("max_senders", [5], "[5]"),
        pytest.param("max_senders", 10**5_000, "that number", id="huge"),
        ("max_senders", "x" * 500, "xxx..."),
        ("max_senders", "off", "unlimited"),
        ("idle_timeout", math.nan, "nan"),
        ("idle_timeout", math.inf, "inf"),
        pytest.param("idle_timeout", 10**400, "number of seconds", id="beyond float"),
        ("idle_timeout", -0.5, "-0.5"),
        ("idle_timeout", "unlimited", '"off"'),
        ("rendezvous_timeout", 0, "from 0.001"),
        ("frame_limit", 0, "from 128"),
        ("frame_limit", 1 << 40, "16_777_216"),
        ("listener_policy", "random", "active-standby, round-robin, balanced"),
        ("listener_policy", 5, "one of"),
        ("no_listener_status", 404.0, "404, 502, 503, 504"),
        ("no_listener_status", 200, "404, 502, 503, 504"),
        ("requires_client_authorization", 1, "true or false"),
        ("requires_client_authorization", "true", "true or false"),
    ],
)
def test_user_is_told_what_is_wrong_and_what_is_allowed(name: str, value: object, hint: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        check(name, value)
    assert caught.value.message.startswith(f"{name} = ")
    assert hint in caught.value.message
    assert LIMITS[name].allowed in caught.value.message
    assert len(caught.value.message) < 250


def test_user_who_misspells_a_limit_is_told_its_name() -> None:
    with pytest.raises(InvalidSetting, match="'max_sender' is not a limit; did you mean max_senders"):
        check("max_sender", 5)
    with pytest.raises(InvalidSetting, match="'quux' is not a limit; the limits are max_hybrid_connections, "):
        resolve("default", {"quux": 5})
    with pytest.raises(InvalidSetting, match="preset = 'azur' is not allowed: it must be default or azure"):
        resolve("azur")


def test_user_cannot_set_a_limit_where_it_has_no_meaning() -> None:
    assert check("drain_timeout", 5, scope="node") == 5.0
    assert check("max_senders", 5, scope="hybrid_connection") == 5
    with pytest.raises(InvalidSetting, match="drain_timeout cannot be set on a hybrid connection, only on a node"):
        check("drain_timeout", 5, scope="hybrid_connection")
    with pytest.raises(InvalidSetting, match="cannot be set on a hybrid connection, only on a node or namespace"):
        check("max_hybrid_connections", 5, scope="hybrid_connection")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_senders", " 50 ", 50),
        ("max_senders", "unlimited", 0),
        ("idle_timeout", "0.5", 0.5),
        ("idle_timeout", "60", 60.0),
        ("no_listener_status", "404", 404),
        ("listener_policy", "balanced", "balanced"),
        ("requires_client_authorization", "No", False),
        ("requires_client_authorization", "1", True),
    ],
)
def test_user_may_write_in_the_environment(name: str, text: str, value: object) -> None:
    found = read(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_senders", "٣"),
        ("max_senders", "²"),
        ("max_senders", "1_0"),
        ("max_senders", "1e3"),
        ("max_senders", "9" * 5_000),
        ("max_senders", ""),
        ("idle_timeout", "nan"),
        ("idle_timeout", "inf"),
        ("idle_timeout", "1e400"),
        ("idle_timeout", "."),
        ("idle_timeout", "1.2.3"),
        ("idle_timeout", "-1"),
        ("requires_client_authorization", "perhaps"),
        ("listener_policy", "Balanced"),
        ("nothing", "1"),
    ],
)
def test_user_is_refused_in_the_environment(name: str, text: str) -> None:
    with pytest.raises(InvalidSetting):
        read(name, text)


def test_user_is_refused_a_node_limit_elsewhere_in_the_environment() -> None:
    with pytest.raises(InvalidSetting, match="only on a node"):
        read("drain_timeout", "5", scope="namespace")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=2),
    st.sampled_from(["off", "unlimited", "balanced", "keep", "split", 404]),
)  # fmt: skip


@given(name=st.one_of(st.sampled_from(sorted(LIMITS)), st.text()), value=VALUES)
def test_parser_keeps_a_value_within_its_limits_or_refuses_it(name: str, value: object) -> None:
    try:
        kept = check(name, value)
    except InvalidSetting:
        return
    limit = LIMITS[name]
    assert type(kept) is type(limit.default)
    assert check(name, kept) == kept
    if limit.kind in ("count", "seconds", "bytes"):
        assert isinstance(kept, int | float) and math.isfinite(kept)
        assert kept == 0 or limit.minimum <= kept <= limit.maximum


@given(name=st.sampled_from(sorted(LIMITS)), text=st.text())
def test_parser_reads_text_or_refuses_it(name: str, text: str) -> None:
    try:
        kept = read(name, text)
    except InvalidSetting:
        return
    assert check(name, kept) == kept


@given(name=st.sampled_from(sorted(LIMITS)), number=st.integers(1, 1_000))
def test_parser_reads_back_what_it_keeps(name: str, number: int) -> None:
    limit = LIMITS[name]
    if limit.kind in ("count", "seconds"):
        assert read(name, str(check(name, number))) == number
