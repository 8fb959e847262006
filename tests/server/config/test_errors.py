from __future__ import annotations

from trunkline.protocol.errors import InvalidSetting
from trunkline.server.config.errors import InvalidConfiguration, nearest, shown


def test_error_says_where_and_what() -> None:
    error = InvalidConfiguration("'x' is not allowed", place="trunkline.toml:3", key="node.port", line=3)
    assert str(error) == "trunkline.toml:3: node.port: 'x' is not allowed"
    assert (error.place, error.key, error.line) == ("trunkline.toml:3", "node.port", 3)
    assert isinstance(error, InvalidSetting)


def test_error_about_a_whole_file_has_no_key() -> None:
    assert str(InvalidConfiguration("is not UTF-8 text", place="a.toml:1", line=1)) == "a.toml:1: is not UTF-8 text"


def test_error_names_a_key_once() -> None:
    error = InvalidConfiguration("port = 'x' is not allowed", place="a.toml:3", key="node.port")
    assert str(error) == "a.toml:3: node.port: 'x' is not allowed"


def test_nearest_word_is_proposed_else_all_are_told() -> None:
    assert nearest("max_sendrs", ["max_senders", "port"]) == "; did you mean max_senders?"
    assert nearest("zzz", ["max_senders", "port"]) == "; known are max_senders, port"


def test_value_is_shown_short_and_in_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 1000)) == 60
    assert shown(10**5000) == "the value"
