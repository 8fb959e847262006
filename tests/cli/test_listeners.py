"""`trunkline listeners`: who listens."""

from __future__ import annotations

import json
import sys

import pytest

from cli.connected import Terminal, connected, data_of, token_file_of
from cli.program import Program, trunkline, wrong_usage_of
from trunkline.cli import run
from trunkline.testing import RelayNodeThread


def test_listener_is_shown_with_all_that_an_operator_asks(
    relay: RelayNodeThread, entity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    by_port = ("--admin", relay.admin_url, "--admin-token-file", str(token_file_of(relay)))
    with connected(relay, entity):
        for door in (data_of(relay), by_port):
            assert run(["listeners", *door, "--entity", entity, "--json"]) == 0
            [row] = json.loads(capsys.readouterr().out)
            assert (row["namespace"], row["entity"], row["state"]) == (relay.namespace, entity, "active")
            assert row["remote"].startswith("127.0.0.1:") and row["client"].startswith("trunkline/")
            assert (row["rule"], row["connections"], row["offers"]) == ("RootManageSharedAccessKey", 1, 1)
            assert 0 < row["token_seconds"] <= 3_601 and row["seconds"] < 60
        assert run(["listeners", *data_of(relay), "--namespace", relay.namespace.upper()]) == 0
        head, *lines = capsys.readouterr().out.splitlines()
        assert head.split("\t")[:5] == ["ID", "ENTITY", "STATE", "FOR", "FROM"]
        assert [line.split("\t")[1] for line in lines] == [f"{relay.namespace}/{entity}"]
        assert run(["listeners", *data_of(relay), "--entity", "other"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_second_listener_stands_by(relay: RelayNodeThread, entity: str, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {
        "TRUNKLINE_CONNECTION_STRING": relay.connection_string(entity),
        "TRUNKLINE_CA_FILE": str(relay.ca_file),
    }
    with Program("listen", env=environment) as first, Program("listen", env=environment) as second:
        first.wait_for("listening on")
        second.wait_for("listening on")
        assert run(["listeners", *data_of(relay), "--entity", entity, "--json"]) == 0
        assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["active", "standby"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals")
def test_terminal_gets_a_table_in_its_width(relay: RelayNodeThread, entity: str) -> None:
    with connected(relay, entity), Terminal(columns=80) as terminal:
        with Program("listeners", *data_of(relay), stdout=terminal.fd) as program:
            assert program.end() == 0
        text = terminal.wait_for("active")
        assert "CONNECTIONS" in text or "TOKEN" in text
        assert all(len(line) <= 80 for line in text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines())


def test_nothing_is_coloured_when_piped(relay: RelayNodeThread) -> None:
    done = trunkline("listeners", *data_of(relay), env={"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert done.returncode == 0 and b"\x1b" not in done.stdout + done.stderr


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--admin" in wrong_usage_of("listeners", "--admin", "gopher://here", capsys=capsys)
    assert "--every" in wrong_usage_of("listeners", "--every", "0", capsys=capsys)
