"""What the emulator tells a newcomer."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trunkline.cli import guide

FACTS = guide.Facts(
    url="https://localhost:8443",
    admin_url="http://127.0.0.1:8081",
    hybrid_connections=["test"],
    http_urls=["https://localhost:8443/test"],
    own_http_urls=["https://test.emulator.localhost:8443/"],
    listen_connection_string="Endpoint=sb://localhost:8443/;SharedAccessKeyName=listen;SharedAccessKey=a;EntityPath=test",
    send_connection_string="Endpoint=sb://localhost:8443/;SharedAccessKeyName=send;SharedAccessKey=b;EntityPath=test",
    manage_connection_string="Endpoint=sb://localhost:8443/;SharedAccessKeyName=all;SharedAccessKey=c",
    ca_file="/my data/ca.pem",
    data="/my data",
)


def test_page_says_how_to_get_in_and_how_to_trust() -> None:
    text = guide.text(FACTS)
    for words in (FACTS.url, FACTS.listen_connection_string, FACTS.send_connection_string, "/my data/ca.pem", "readyz"):
        assert words in text
    assert "HTTP requests to    https://localhost:8443/test, https://test.emulator.localhost:8443/\n" in text
    assert "connections --data '/my data'" in text
    assert "NODE_EXTRA_CA_CERTS='/my data/ca.pem'" in text


def test_page_without_tls_speaks_of_no_authority() -> None:
    text = guide.text(replace(FACTS, ca_file=None))
    assert "CA file" not in text and "To trust it" not in text
    assert text.count("--no-tls") == 2


def test_next_lines_are_quoted_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py"])
    listen, connect = (shlex.split(line) for line in guide.next_lines(FACTS))
    expected = [sys.executable, "-m", "trunkline", "listen", "--ca", "/my data/ca.pem", "--connection-string"]
    assert listen == [*expected, FACTS.listen_connection_string]
    assert connect[:3] == ["echo", "hello", "|"] and connect[-1] == FACTS.send_connection_string


def test_program_is_named_so_that_any_other_terminal_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "trunkline"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/trunkline"])
    # An activated virtual environment is on the path of this terminal alone.
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert shlex.split(guide.next_lines(FACTS)[0])[0] == str(program)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert shlex.split(guide.next_lines(FACTS)[0])[0] == "trunkline"


def test_facts_as_json_are_all_facts() -> None:
    assert FACTS.as_json()["ca_file"] == "/my data/ca.pem" and len(FACTS.as_json()) == 10
