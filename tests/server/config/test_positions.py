from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.server.config.positions import DEEPEST, Path, lines_of

TEXT = '''\
# a comment with [brackets] and "quotes"
a = 1
b.c = "x # ] }"  # a comment
[t]
d = """
[not.a.table]
x""" # q
e = [1, # c
 {x = 1, y = [2,3]}, """a""""", \'\'\'b\'\'\'\'\',
 1979-05-27 07:32:00 ]
[[n]]
name = 'q'
[[n.r]]
[ n . "r" . s ]
"a\\u0041.b" = 1
[[n]]
[[n.r]]
z=""
'''


def paths(value: Any, above: Path = ()) -> Iterator[Path]:
    """The path of everything inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from paths(inner, (*above, key))


def test_each_key_is_found_on_its_line() -> None:
    lines = lines_of(TEXT)
    assert lines[("a",)] == 2
    assert lines[("b", "c")] == 3
    assert lines[("t", "d")] == 5
    assert lines[("t", "e")] == lines[("t", "e", 0)] == 8
    assert lines[("t", "e", 1, "y", 1)] == lines[("t", "e", 3)] == 9
    assert lines[("t", "e", 4)] == 10
    assert lines[("n", 0)] == 11
    assert lines[("n", 0, "name")] == 12
    assert lines[("n", 0, "r", 0)] == 13
    assert lines[("n", 0, "r", 0, "s", "aA.b")] == 15
    assert lines[("n", 1)] == 16
    assert lines[("n", 1, "r", 0, "z")] == 18


def test_every_key_of_a_document_has_a_line_and_nothing_else_has() -> None:
    assert set(lines_of(TEXT)) == set(paths(tomllib.loads(TEXT)))


_BITS = [
    "a", "b", "=", "1", ".", ",", "\n", " ", "[", "]", "[[", "]]", "{", "}", '"', "'", '"""', "'''", "#", "\\", "\\n",
    "a = 1\n", "[a]\n", "[[b]]\n", "b = [1, 2]\n", "c = {d = 1}\n", 'e = """x\n"""\n', "1979-05-27 07:32:00", "true",
]  # fmt: skip


@given(text=st.lists(st.sampled_from(_BITS), max_size=40).map("".join))
def test_any_valid_text_has_a_line_for_every_key(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = lines_of(text)
    assert set(lines) == set(paths(document))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


_KEYS = st.text(alphabet="ab-_1.\"' \\#é\n", max_size=4)
_SCALARS = st.one_of(st.integers(), st.booleans(), st.text(alphabet="ab\"'\\#[]{}=,.é\n", max_size=8))
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=8
)


def test_key_of_many_names_is_read_and_one_of_far_too_many_is_refused() -> None:
    assert lines_of("a." * (DEEPEST - 1) + "a = 1")[("a",) * DEEPEST] == 1
    with pytest.raises(RecursionError):
        lines_of("a." * DEEPEST + "a = 1")


@given(document=st.dictionaries(_KEYS, _VALUES, max_size=5), data=st.data())
def test_keys_written_one_a_line_are_found_there(document: dict[str, Any], data: st.DataObject) -> None:
    text, expected = "", {}
    for key, value in document.items():
        text += data.draw(st.sampled_from(["", "\n", "# [x] = \"'\n", "  \t\n\n"]))
        expected[(key,)] = text.count("\n") + 1
        text += f"{_quoted(key)} = {_written(value, data)}\n"
    assert tomllib.loads(text) == document
    lines = lines_of(text)
    assert {path: line for path, line in lines.items() if len(path) == 1} == expected


def _quoted(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'


def _written(value: Any, data: st.DataObject) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)} = {_written(inner, data)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        between = data.draw(st.sampled_from([", ", ",\n", " , # ]\n "]))
        return "[" + between.join(_written(inner, data) for inner in value) + "]"
    if isinstance(value, str):
        # A line feed right after the opening quotes is not part of the text.
        return data.draw(st.sampled_from([_quoted(value), '"""\n' + _quoted(value)[1:-1].replace("\\n", "\n") + '"""']))
    return str(value).lower()
