"""The lines of `trunkline expose`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from dataclasses import replace

import pytest

from trunkline.cli import request_view
from trunkline.cli.log_stream import patient
from trunkline.cli.request_view import JsonView, LineView, Opened, QuietView, TerminalView, line_of, style_of, view_of
from trunkline.expose import Kind, Record

DONE = Record(Kind.REQUEST, "GET", "/docs/", 200, 0.0123, 0, 4213, "192.0.2.7", "an-id")
OPENED = Opened("https://relay/myHC/", "http://localhost:3000", "myHC", ["Anybody gets in."])


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (DONE, "10:00:00  GET      200     12 ms    4.1 KiB  /docs/"),
        (
            replace(DONE, method="POST", received=1 << 20, sent=2, seconds=1.5),
            "10:00:00  POST     200   1500 ms  2 B (1024.0 KiB in)  /docs/",
        ),
        (
            replace(DONE, status=502, error="target down: connection refused"),
            "10:00:00  GET      502     12 ms    4.1 KiB  /docs/  (target down: connection refused)",
        ),
        (
            replace(DONE, status=0, sent=0, error="the sender left"),
            "10:00:00  GET        -     12 ms        0 B  /docs/  (the sender left)",
        ),
        (
            replace(DONE, kind=Kind.OPENED, status=101, sent=0, path="/live"),
            "10:00:00  WS       101     12 ms        0 B  /live",
        ),
        (
            replace(DONE, kind=Kind.CLOSED, status=1000, seconds=125.4, path="/live"),
            "10:00:00  CLOSE   1000      2m5s    4.1 KiB  /live",
        ),
        (replace(DONE, path="/a\x1b[31m\n"), "10:00:00  GET      200     12 ms    4.1 KiB  /a?[31m?"),
    ],
)
def test_request_is_one_harmless_line(record: Record, line: str) -> None:
    assert line_of(record, "10:00:00") == line.replace("1024.0 KiB", "1.0 MiB")


def test_colour_says_how_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert style_of(DONE) == "green"
    assert style_of(replace(DONE, status=304)) == ""
    assert style_of(replace(DONE, status=404)) == "yellow"
    assert style_of(replace(DONE, status=500)) == style_of(replace(DONE, error="x")) == "red"
    assert style_of(replace(DONE, kind=Kind.CLOSED, status=1000)) == "cyan"
    monkeypatch.setenv("NO_COLOR", "1")
    assert style_of(DONE) == ""


class Pipe:
    """Where a view writes."""

    def __init__(self) -> None:
        self._reads, writes = os.pipe()
        self.stream = patient(open(writes, "w", encoding="utf-8", closefd=False), lambda count: None)
        self._writes = writes

    def text(self) -> str:
        os.close(self._writes)
        with open(self._reads, encoding="utf-8") as file:
            return file.read()


def everything(view: request_view.View) -> None:
    view.opened(OPENED)
    view.record(DONE)
    view.target_changed(False, "connection refused")
    view.target_changed(True, "")
    view.relay_changed(False, "The control channel was closed")
    view.relay_changed(True, "")
    view.close()


def test_requests_go_to_stdout_and_all_else_to_stderr() -> None:
    pipe, events = Pipe(), io.StringIO()
    everything(LineView("http://localhost:3000", pipe.stream, events))
    [line] = pipe.text().splitlines()
    assert line.endswith("GET      200     12 ms    4.1 KiB  /docs/")
    assert events.getvalue().splitlines() == [
        "https://relay/myHC/ -> http://localhost:3000",
        "Anybody gets in.",
        "Ctrl-C ends",
        "",
        "target http://localhost:3000 is down: connection refused; senders get 502 until it is back",
        "target http://localhost:3000 is back",
        "the relay is away, trying again: The control channel was closed",
        "the relay is back",
    ]


def test_everything_is_an_object_for_programs() -> None:
    pipe = Pipe()
    everything(JsonView(pipe.stream))
    rows = [json.loads(line) for line in pipe.text().splitlines()]
    assert all(row.pop("time") > 0 for row in rows)
    assert rows == [
        {
            "event": "opened",
            "url": "https://relay/myHC/",
            "target": "http://localhost:3000",
            "entity": "myHC",
            "access": ["Anybody gets in."],
        },
        {
            "event": "request",
            "method": "GET",
            "path": "/docs/",
            "status": 200,
            "seconds": 0.0123,
            "received": 0,
            "sent": 4213,
            "remote": "192.0.2.7",
            "tracking_id": "an-id",
            "error": "",
        },
        {"event": "target-down", "reason": "connection refused"},
        {"event": "target-up"},
        {"event": "relay-lost", "reason": "The control channel was closed"},
        {"event": "relay-back"},
    ]


def test_readers_that_are_gone_harm_nobody() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w", encoding="utf-8") as gone:
        for view in (
            LineView("t", patient(gone, print), patient(gone, print)),
            JsonView(patient(gone, print)),
        ):
            everything(view)


def test_quiet_view_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    everything(view_of("t", as_json=False, quiet=True))
    assert capfd.readouterr() == ("", "")


async def test_terminal_shows_lines_and_how_things_stand() -> None:
    output = io.StringIO()
    view = TerminalView("http://localhost:3000", output)
    everything(view)
    text = output.getvalue()
    assert "https://relay/myHC/ -> http://localhost:3000" in text and "/docs/" in text
    assert "target http://localhost:3000 is down: connection refused" in text
    assert "relay connected | target up | 1 request | Ctrl-C ends" in text


async def test_terminal_takes_what_a_sender_chooses_as_text() -> None:
    output = io.StringIO()
    view = TerminalView("t", output)
    view.opened(OPENED)
    view.record(replace(DONE, path="/[bold]x[/bold]"))
    view.close()
    assert "/[bold]x[/bold]" in output.getvalue()


async def test_terminal_is_written_now_and_then_and_never_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_view, "REFRESH", 0.001)
    written = asyncio.Event()

    class Output(io.StringIO):
        def write(self, text: str) -> int:
            if "more" in text:
                written.set()
            return super().write(text)

    output = Output()
    view = TerminalView("t", output)
    view.opened(OPENED)
    for _ in range(1000):
        view.record(DONE)
    assert output.getvalue().count("/docs/") == 0
    await written.wait()
    assert output.getvalue().count("/docs/") == request_view.MOST_LINES
    assert "and 900 more" in output.getvalue()
    view.close()
    assert "1000 requests" in output.getvalue()


def test_view_fits_what_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(terminal: bool, **options: bool) -> type[request_view.View]:
        class Stream(io.StringIO):
            encoding = "utf-8"
            isatty = staticmethod(lambda: terminal)
            fileno = staticmethod(lambda: 1)

        monkeypatch.setattr(sys, "stdout", Stream())
        monkeypatch.setattr(sys, "stderr", Stream())
        return type(view_of("t", **{"as_json": False, "quiet": False, **options}))

    assert kind(True) is TerminalView
    assert kind(False) is LineView
    assert kind(True, as_json=True) is JsonView
    assert kind(True, quiet=True) is QuietView
