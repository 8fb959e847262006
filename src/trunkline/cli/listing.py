"""Rows of a node as a table: for people on a terminal, tab-separated when piped, JSON for programs; once or again.

On a terminal a watched table is redrawn in place. Piped, each look is a block, or with JSON a line, of its own. A node
that is away is waited for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from trunkline.cli.admin_client import NodeAway

Row = dict[str, Any]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: a list of objects, on one line.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")]
EveryOption = Annotated[
    float | None, typer.Option("--every", metavar="SECONDS", min=0.1, help="With --watch: how often. [default: 2]")
]
EVERY = 2.0


@dataclass(frozen=True)
class Column:
    """One column."""

    title: str
    #: Where its value stands in a row: ``sender.remote``. Programs get the value as it is.
    key: str
    #: Makes of the value what people read.
    shown: Callable[[Any], str] = str
    is_number: bool = False
    #: Where a terminal is too narrow, the column of the highest rank is left out first, and those of 0 never.
    rank: int = 0

    def of(self, row: Row) -> Any:
        """Its value in a row; None: not known."""
        if self.key == "path":
            return path_of(row)
        value: Any = row
        for part in self.key.split("."):
            value = value[part]
        return value

    def cell(self, row: Row) -> str:
        """The same for people."""
        value = self.of(row)
        return "-" if value is None else self.shown(value)


def show(
    rows: Callable[[], list[Row]],
    columns: Sequence[Column],
    *,
    what: str,
    as_json: bool,
    watch: bool,
    every: float | None,
) -> None:
    """Print what `rows` gives: once, or with `watch` or `every` until Ctrl-C.

    Args:
        rows: asks the node.
        columns: of the table.
        what: in the plural, for messages: "listeners".
        every: seconds between two looks.

    Raises:
        Failure: the node refuses, or is not there at the first look.
    """
    if not watch and every is None:
        _print(rows(), columns, what=what, as_json=as_json)
        return
    with _sigterm_ends():
        if not as_json and sys.stdout.isatty():
            _watch_on_terminal(rows, columns, what, every or EVERY)
        else:
            for found in _again(rows, every or EVERY):
                if isinstance(found, NodeAway):
                    print(f"{found.what}; trying again", file=sys.stderr, flush=True)
                else:
                    _print(found, columns, what=what, as_json=as_json)
                    if not as_json:
                        print()
                    sys.stdout.flush()


def _again(rows: Callable[[], list[Row]], every: float) -> Iterator[list[Row] | NodeAway]:
    """What each look finds; that the node is away is told once, until it is back."""
    yield rows()
    away = False
    while True:
        time.sleep(every)
        try:
            found = rows()
        except NodeAway as error:
            if not away:
                yield error
            away = True
        else:
            away = False
            yield found


def _print(found: list[Row], columns: Sequence[Column], *, what: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
    elif sys.stdout.isatty():
        head, *lines = table(found, columns, shutil.get_terminal_size().columns) if found else [f"no {what}"]
        typer.secho(head, bold=bool(lines), color=False if os.environ.get("NO_COLOR") else None)
        for line in lines:
            print(line)
    else:
        print("\t".join(column.title for column in columns))
        for row in found:
            print("\t".join("" if (value := column.of(row)) is None else str(value) for column in columns))


def _watch_on_terminal(rows: Callable[[], list[Row]], columns: Sequence[Column], what: str, every: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    body = Text()
    with Live(console=console, auto_refresh=False) as live:
        for found in _again(rows, every):
            now = time.strftime("%H:%M:%S")
            if isinstance(found, NodeAway):
                # What was there stays to be read.
                first = Text(f"{now}  {found.what}; trying again\n", style="red")
            else:
                first = Text(f"{now}  {len(found)} {what}, every {every:g} s; Ctrl-C ends\n", style="dim")
                # As text, and not as markup: a peer chooses some of it.
                room = max(1, console.height - 3)
                head, *lines = table(found[:room], columns, console.width) if found else [""]
                more = [f"and {len(found) - room} more"] if len(found) > room else []
                body = Text.assemble((head, "bold"), "\n", "\n".join((*lines, *more)))
            live.update(Text.assemble(first, body, no_wrap=True, overflow="crop"), refresh=True)


def table(found: Sequence[Row], columns: Sequence[Column], width: int) -> list[str]:
    """The rows as people read them, below a head, in lines of at most `width` characters.

    Not a table of Rich: that takes seconds for the thousands of rows that a node may have.
    """
    cells = {column.title: [column.title, *map(column.cell, found)] for column in columns}
    widths = {title: max(map(len, texts)) for title, texts in cells.items()}
    kept = list(columns)

    def needed() -> int:
        return sum(widths[column.title] + len(_GAP) for column in kept) - len(_GAP)

    while needed() > width and (least := max(kept, key=_rank)).rank:
        kept.remove(least)
    for column in kept:
        if column.key == "path":  # the only one that may be long, and is known by its beginning
            widths[column.title] = max(len(column.title), widths[column.title] - max(0, needed() - width))

    def fitted(column: Column, number: int) -> str:
        text, room = cells[column.title][number], widths[column.title]
        text = text if len(text) <= room else text[: room - 1] + "…"
        return text.rjust(room) if column.is_number else text.ljust(room)

    lines = (_GAP.join(fitted(column, number) for column in kept) for number in range(len(found) + 1))
    return [line.rstrip()[:width] for line in lines]


# Between two columns.
_GAP = "  "


def _rank(column: Column) -> int:
    return column.rank


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """SIGTERM ends a watch as Ctrl-C does, with the terminal as it was."""

    def end(*_: object) -> None:
        raise typer.Exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def path_of(row: Row) -> str:
    """Names the hybrid connection, as the log does."""
    return f"{row['namespace']}/{row['entity']}"
