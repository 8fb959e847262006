"""`trunkline log-level`: what a node that runs writes into its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.program import Program
from trunkline.cli import run


def test_level_is_changed_while_the_node_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", str(tmp_path))
    with Program("serve", *data, "--port", "0", "--admin-port", "0") as node:
        node.wait_for("admin on port")
        assert run(["log-level", *data]) == 0
        assert "trunkline\tINFO\n" in capsys.readouterr().out
        assert run(["log-level", "debug", "--logger", "trunkline.relay", *data]) == 0
        assert "trunkline.relay\tDEBUG\n" in capsys.readouterr().out
        node.wait_for("the log level of trunkline.relay is DEBUG from now on, by an operator")
        assert run(["log-level", "loud", *data]) == 1
        assert capsys.readouterr().err == ("error: level 'loud' is none: use one of DEBUG, INFO, WARNING, ERROR\n")
        assert run(["log-level", "debug", "--logger", "root", *data]) == 1
        assert "the logger 'root' is not the node's" in capsys.readouterr().err
