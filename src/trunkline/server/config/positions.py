"""On which line each key of a TOML text stands; the standard library's reader does not tell.

The text has been read by ``tomllib`` before, so it is valid: here is only walked along the structure, over
strings, comments and brackets, without understanding values. https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import bisect
import re
import tomllib

#: Keys and indexes from the top: ``("namespace", 0, "rule", 1, "rights")``.
Path = tuple[str | int, ...]

#: Names in one dotted key. Nothing that can be configured is nearly as deep, and the path of each name is kept.
DEEPEST = 100

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_SCALAR = re.compile(
    # Three quotes close a string together with up to two more that belong to it.
    r'"""(?:[^\\]|\\.)*?""""{0,2}'
    r"|'''.*?''''{0,2}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|[^,\]}\n#]*",
    re.DOTALL,
)


def lines_of(text: str) -> dict[Path, int]:
    """The line, from 1, of each key, table and array element of a valid TOML text.

    Raises RecursionError: it is nested too deeply.
    """
    return _Walk(text).lines


class _Walk:
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line_ends = [match.start() for match in re.finditer("\n", text)]
        #: Index of the last element of each array of tables.
        self._last: dict[Path, int] = {}
        table: Path = ()
        self._skip()
        while self._at < len(text):
            if text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip()

    def _skip(self) -> None:
        match = _BLANK.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _note(self, path: Path) -> None:
        self.lines.setdefault(path, bisect.bisect_left(self._line_ends, self._at) + 1)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            match = _KEY.match(self._text, self._at)
            assert match is not None, "the text is not valid TOML"
            self._at = match.end()
            word = match[0]
            keys.append(tomllib.loads(f"key = {word}")["key"] if word[0] in "\"'" else word)
            dot = _DOT.match(self._text, self._at)
            if dot is None:
                return keys
            if len(keys) == DEEPEST:
                raise RecursionError
            self._at = dot.end()

    def _header(self) -> Path:
        """``[a.b]`` or ``[[a.b]]``; the path of the table that it opens."""
        double = self._text.startswith("[[", self._at)
        start = self._at
        self._at += 2 if double else 1
        self._skip()
        *above, name = self._keys()
        self._skip()
        end = self._at + (2 if double else 1)
        self._at = start
        path: Path = ()
        for key in above:
            path = self._enter((*path, key))
        path = (*path, name)
        self._note(path)
        if double:
            self._last[path] = self._last.get(path, -1) + 1
            path = (*path, self._last[path])
            self._note(path)
        self._at = end
        return path

    def _enter(self, path: Path) -> Path:
        """A name in a header means the last element where it is an array."""
        self._note(path)
        return (*path, self._last[path]) if path in self._last else path

    def _pair(self, table: Path) -> None:
        start = self._at
        keys = self._keys()
        after, self._at = self._at, start
        path = table
        for key in keys:
            path = (*path, key)
            self._note(path)
        self._at = after
        self._skip()
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip()
        opening = self._text[self._at]
        if opening not in "[{":
            match = _SCALAR.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            return
        self._at += 1
        index = 0
        while True:
            self._skip()
            if self._text[self._at] in "]}":
                self._at += 1
                return
            if self._text[self._at] == ",":
                self._at += 1
            elif opening == "[":
                self._note((*path, index))
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
