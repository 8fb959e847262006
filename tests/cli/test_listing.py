"""Tables for people and for programs, once and again."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from cli.connected import Terminal, data_of
from cli.program import Program
from trunkline.cli.admin_client import NodeAway
from trunkline.cli.figures import size
from trunkline.cli.listing import Column, Row, show, table
from trunkline.testing import RelayNodeThread

COLUMNS = (
    Column("ID", "id"),
    Column("ENTITY", "path"),
    Column("BYTES", "sent.bytes", size, is_number=True, rank=1),
    Column("CLIENT", "client", rank=2),
)
ROWS: list[Row] = [
    {"id": "1-ab", "namespace": "ns", "entity": "orders", "sent": {"bytes": 2_048}, "client": "one [bold]"},
    {"id": "2-ab", "namespace": "ns", "entity": "bills", "sent": {"bytes": 0}, "client": None},
]

needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals")


def drawn(width: int, rows: list[Row] = ROWS) -> list[str]:
    lines = table(rows, COLUMNS, width)
    assert all(len(line) <= width for line in lines)
    return lines


# -- once


def test_programs_get_values_as_they_are_between_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    show(lambda: ROWS, COLUMNS, what="rows", as_json=False, watch=False, every=None)
    assert capsys.readouterr().out == (
        "ID\tENTITY\tBYTES\tCLIENT\n1-ab\tns/orders\t2048\tone [bold]\n2-ab\tns/bills\t0\t\n"
    )
    show(list, COLUMNS, what="rows", as_json=False, watch=False, every=None)
    assert capsys.readouterr().out == "ID\tENTITY\tBYTES\tCLIENT\n"


def test_json_is_all_that_the_node_says_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show(lambda: ROWS, COLUMNS, what="rows", as_json=True, watch=False, every=None)
    output = capsys.readouterr().out
    assert json.loads(output) == ROWS and output.count("\n") == 1


def test_people_get_units_and_what_a_peer_wrote_is_no_markup() -> None:
    assert drawn(80) == [
        "ID    ENTITY       BYTES  CLIENT",
        "1-ab  ns/orders  2.0 KiB  one [bold]",
        "2-ab  ns/bills       0 B  -",
    ]


def test_columns_are_left_out_by_rank_where_there_is_no_room_and_an_id_never_is_cut() -> None:
    assert drawn(30)[0].split() == ["ID", "ENTITY", "BYTES"]
    assert drawn(20)[1].split() == ["1-ab", "ns/orders"]
    assert drawn(13)[1:] == ["1-ab  ns/ord…", "2-ab  ns/bil…"]
    assert drawn(4)[1:] == ["1-ab", "2-ab"]


# -- again and again


def test_watch_writes_blocks_and_waits_for_a_node_that_is_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> list[Row]:
        raise NodeAway("No node answers on here", "start it")

    def interrupt() -> list[Row]:
        raise KeyboardInterrupt

    looks = iter([lambda: ROWS[:1], away, away, lambda: ROWS[1:], away, interrupt])
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        show(lambda: next(looks)(), COLUMNS[:1], what="rows", as_json=False, watch=True, every=None)
    output, errors = capsys.readouterr()
    assert output == "ID\n1-ab\n\nID\n2-ab\n\n"
    assert errors == "No node answers on here; trying again\n" * 2
    assert naps == [2.0] * 5
    assert signal.getsignal(signal.SIGTERM) is before


def test_watch_that_finds_nobody_at_first_is_an_error() -> None:
    def away() -> list[Row]:
        raise NodeAway("No node answers on here", "start it")

    with pytest.raises(NodeAway):
        show(away, COLUMNS, what="rows", as_json=True, watch=True, every=1)


@needs_terminal
def test_watched_table_is_redrawn_in_place_until_ctrl_c(relay: RelayNodeThread) -> None:
    with (
        Terminal() as terminal,
        Program("listeners", "--every", "0.1", *data_of(relay), stdout=terminal.fd) as watch,
    ):
        text = terminal.wait_for("0 listeners, every 0.1 s; Ctrl-C ends", times=3)
        # The line before is erased, and the cursor is away meanwhile.
        assert "\x1b[2K" in text and "\x1b[?25l" in text
        assert watch.interrupt() == 130
        assert terminal.wait_for("\x1b[?25h")
        assert watch.stderr == ""


@needs_terminal
def test_sigterm_ends_a_watch_with_the_terminal_as_it_was(relay: RelayNodeThread) -> None:
    with Terminal() as terminal, Program("connections", "-w", *data_of(relay), stdout=terminal.fd) as watch:
        terminal.wait_for("0 connections, every 2 s")
        assert watch.interrupt(signal.SIGTERM) == 143
        assert terminal.wait_for("\x1b[?25h")


@needs_terminal
def test_watch_goes_on_when_the_node_is_started_again() -> None:
    from trunkline.testing import relay_node_thread

    with (
        relay_node_thread(tls=True) as relay,
        Terminal() as terminal,
        Program("listeners", "--every", "0.1", *data_of(relay), stdout=terminal.fd) as watch,
    ):
        terminal.wait_for("0 listeners")
        relay.stop()
        terminal.wait_for("No node answers on")
        relay.start()
        terminal.wait_for("0 listeners", times=terminal.text.count("0 listeners") + 1)
        assert watch.interrupt() == 130
