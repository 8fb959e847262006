"""The live view of requests: one line for each, with a line of state below them on a terminal; or JSON for programs.

Whatever reads it never holds a request up: lines wait for a slow reader, and are lost when too many do.

    TerminalView   colours, and a last line that says how things stand
    LineView       one plain line for each request on stdout, what else happens on stderr
    JsonView       one object for each of both, on stdout
    QuietView      nothing
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from trunkline.cli.failure import harmless
from trunkline.cli.figures import duration, size
from trunkline.cli.log_stream import LogStream, patient
from trunkline.expose import Kind, Record

#: Seconds between two writes to a terminal, and the lines of one: more than that nobody reads.
REFRESH = 0.1
MOST_LINES = 100


@dataclass(frozen=True)
class Opened:
    """What is told once, when the listener is registered."""

    url: str
    target: str
    entity: str
    #: How a sender gets in.
    access: list[str]


class View:
    """A `Watcher` that also hears of the relay. This one shows nothing."""

    def opened(self, opened: Opened) -> None:
        """The listener is registered for the first time."""

    def relay_changed(self, online: bool, reason: str) -> None:
        """The way to the relay was lost, and why; or it is back."""

    def target_changed(self, up: bool, reason: str) -> None:
        """See `Watcher`."""

    def record(self, record: Record) -> None:
        """See `Watcher`."""

    def close(self) -> None:
        """Write what is left."""


QuietView = View


class LineView(View):
    """For pipes, files and logs.

    Args:
        target: as it is told when it goes down.
        requests: where the line of a request goes.
        events: where the rest goes.
    """

    def __init__(self, target: str, requests: TextIO, events: TextIO) -> None:
        self._target = target
        self._requests = requests
        self._events = events

    def opened(self, opened: Opened) -> None:
        self._say("\n".join(opened_lines(opened)))

    def relay_changed(self, online: bool, reason: str) -> None:
        self._say(relay_line(online, reason))

    def target_changed(self, up: bool, reason: str) -> None:
        self._say(target_line(self._target, up, reason))

    def record(self, record: Record) -> None:
        self._requests.write(line_of(record, time.strftime("%H:%M:%S")) + "\n")

    def close(self) -> None:
        _finish(self._requests, self._events)

    def _say(self, text: str) -> None:
        print(text, file=self._events, flush=True)


class JsonView(View):
    """For programs: each line is an object whose ``event`` says what it is."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def opened(self, opened: Opened) -> None:
        self._write("opened", asdict(opened))

    def relay_changed(self, online: bool, reason: str) -> None:
        self._write("relay-back" if online else "relay-lost", {} if online else {"reason": reason})

    def target_changed(self, up: bool, reason: str) -> None:
        self._write("target-up" if up else "target-down", {} if up else {"reason": reason})

    def record(self, record: Record) -> None:
        row = asdict(record)
        event = str(row.pop("kind"))
        row["seconds"] = round(record.seconds, 6)
        self._write(event, row)

    def close(self) -> None:
        _finish(self._output)

    def _write(self, event: str, row: dict[str, Any]) -> None:
        self._output.write(json.dumps({"event": event, "time": round(time.time(), 3), **row}) + "\n")


class TerminalView(View):
    """For people: lines scroll, and below them one says how things stand."""

    def __init__(self, target: str, output: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._target = target
        self._output = output
        self._console = Console(file=output, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._count = self._errors = 0
        self._online, self._up = True, True
        # Lines that wait for the next write, with their style, and how many more there would be.
        self._lines: list[tuple[str, str]] = []
        self._left_out = 0
        self._timer: asyncio.TimerHandle | None = None

    def opened(self, opened: Opened) -> None:
        for line in opened_lines(opened):
            self._lines.append((line, "bold" if line.startswith(opened.url) else ""))
        self._live.start()
        self._refresh()

    def relay_changed(self, online: bool, reason: str) -> None:
        self._online = online
        self._event(relay_line(online, reason), "green" if online else "red")

    def target_changed(self, up: bool, reason: str) -> None:
        self._up = up
        self._event(target_line(self._target, up, reason), "green" if up else "red")

    def record(self, record: Record) -> None:
        if record.kind is not Kind.CLOSED:
            self._count += 1
            self._errors += bool(record.error)
        if len(self._lines) < MOST_LINES:
            self._lines.append((line_of(record, time.strftime("%H:%M:%S")), style_of(record)))
        else:
            self._left_out += 1
        self._soon()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._refresh()
        self._live.stop()
        _finish(self._output)

    def _event(self, line: str, style: str) -> None:
        self._lines.append((f"{time.strftime('%H:%M:%S')}  {line}", style))
        self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REFRESH, self._refresh)

    def _refresh(self) -> None:
        from rich.text import Text

        self._timer = None
        lines, self._lines = self._lines, []
        if self._left_out:
            lines.append((f"          and {self._left_out} more", "dim"))
            self._left_out = 0
        # As text, and not as markup: a sender chooses some of it. In one piece, which costs a tenth.
        if lines:
            text = Text("\n").join(Text(line, style=style) for line, style in lines)
            self._console.print(text, soft_wrap=True)
        self._live.update(Text(self._state(), style="dim", no_wrap=True, overflow="crop"), refresh=True)

    def _state(self) -> str:
        relay = "relay connected" if self._online else "relay away"
        target = "target up" if self._up else "target down"
        errors = f", {self._errors} failed" if self._errors else ""
        requests = "1 request" if self._count == 1 else f"{self._count} requests"
        return f"{relay} | {target} | {requests}{errors} | Ctrl-C ends"


def view_of(target: str, *, as_json: bool, quiet: bool) -> View:
    """The view that fits the options, and what stdout and stderr are."""
    if quiet:
        return QuietView()
    if as_json:
        return JsonView(patient(sys.stdout, _lost))
    if sys.stdout.isatty() and sys.stderr.isatty():
        return TerminalView(target, patient(sys.stdout, _lost))
    return line_view(target)


def line_view(target: str = "") -> LineView:
    """One plain line for each request on stdout."""
    return LineView(target, patient(sys.stdout, _lost), patient(sys.stderr, lambda _: None))


def _lost(count: int) -> None:
    with suppress(OSError):
        print(f"{count} lines were lost: nobody read them in time", file=sys.stderr, flush=True)


def _finish(*streams: TextIO) -> None:
    """Give whoever reads these a moment to take what is left."""
    for stream in streams:
        if isinstance(stream, LogStream):
            stream.finish()


# --- lines ---


def opened_lines(opened: Opened) -> list[str]:
    """What people are told first."""
    return [f"{opened.url} -> {opened.target}", *opened.access, "Ctrl-C ends", ""]


def relay_line(online: bool, reason: str) -> str:
    """The relay went away or is back."""
    return "the relay is back" if online else f"the relay is away, trying again: {harmless(reason)}"


def target_line(target: str, up: bool, reason: str) -> str:
    """The target went away or is back."""
    if up:
        return f"target {target} is back"
    return f"target {target} is down: {harmless(reason)}; senders get 502 until it is back"


def line_of(record: Record, at: str) -> str:
    """One request in one line: time, method, status, milliseconds, bytes there and back, path."""
    path = "".join(character if character.isprintable() else "?" for character in record.path)
    method, status = record.method, str(record.status or "-")
    took = f"{record.seconds * 1000:.0f} ms"
    if record.kind is Kind.CLOSED:
        method, took = "CLOSE", duration(record.seconds)
    elif record.kind is Kind.OPENED:
        method = "WS"
    amount = size(record.sent)
    if record.received:
        amount = f"{amount} ({size(record.received)} in)"
    error = f"  ({harmless(record.error)})" if record.error else ""
    return f"{at}  {method:<7} {status:>4}  {took:>8}  {amount:>9}  {path}{error}"


def style_of(record: Record) -> str:
    """The colour of a line, for Rich."""
    if os.environ.get("NO_COLOR"):
        return ""
    if record.error or record.status >= 500 and record.kind is Kind.REQUEST:
        return "red"
    if record.kind is not Kind.REQUEST:
        return "cyan"
    return "yellow" if record.status >= 400 else "" if record.status >= 300 else "green"
