"""The command tree: help, usage errors, exit status, and what is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.program import COMMAND, environment, failure_of, trunkline
from trunkline import __version__
from trunkline.cli import COMMANDS, exit_status, run

NAMED = [pytest.param(name, id=name) for name in COMMANDS]


@pytest.mark.parametrize("command", NAMED)
def test_help_has_examples_and_the_exit_status_and_fits_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: trunkline {command} [OPTIONS]" in text
    examples = text.partition("\n  Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples and all(f"trunkline {command}" in line or f"$(trunkline {command})" in line for line in examples)
    assert "\n  Exit status:\n    0    " in text
    too_long = [line for line in text.splitlines() if len(line) > 80]
    assert not too_long


def test_help_without_a_command_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert name in text and summary.split()[0] in text
    assert run([]) == 2
    assert capsys.readouterr().out == text


def test_help_is_the_same_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in brackets is lost: [node], [default: 60]."""
    assert run(["serve", "--help"]) == 0
    piped = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(["serve", "--help"]) == 0
    assert capsys.readouterr().out == piped
    assert "the [node] table" in piped and "[default: 8443]" in piped


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"trunkline {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lissten"], "listen"),
        (["listen", "--wrong"], "--wrong"),
        (["--wrong"], "--wrong"),
        (["listen", "--timeout"], "--timeout"),
        (["token", "surplus"], "surplus"),
    ],
)
def test_wrong_usage_names_what_is_wrong_and_the_help(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error, remedy = captured.err.splitlines()
    assert error.startswith("error: ") and said in error
    assert remedy.startswith("remedy: see trunkline ") and remedy.endswith("--help")


def test_connection_string_in_the_wrong_place_is_not_repeated() -> None:
    text = "Endpoint=sb://relay.example.com/;SharedAccessKeyName=all;SharedAccessKey=c2VjcmV0;EntityPath=a"
    said = failure_of("listen", text, status=2)
    assert "c2VjcmV0" not in said
    assert "--connection-string" in said


def test_error_that_nobody_foresaw_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.cli.token.seconds", lambda text, option: 1 / 0)
    assert run(["token"]) == 1
    assert "something that must not happen: ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv("TRUNKLINE_DEBUG", "1")
    assert run(["token"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_while_a_command_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(text: str, option: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("trunkline.cli.token.seconds", interrupted)
    assert run(["token"]) == 130


def test_every_command_says_what_its_exit_status_means() -> None:
    for name in COMMANDS:
        assert exit_status(name).count("\n") == 6


def test_errors_have_no_colour_where_nobody_sees_it() -> None:
    assert "\x1b" not in failure_of("token", status=2)


@pytest.mark.skipif(sys.platform == "win32", reason="redirections of a POSIX shell")
@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">&-", 1, b"error: Bad file descriptor"),
        ("<&- 2>&-", 0, b""),
        pytest.param(
            ">/dev/full",
            1,
            b"error: No space left on device",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here"),
        ),
    ],
)
def test_output_that_cannot_be_written_is_a_failure(redirection: str, status: int, said: bytes) -> None:
    text = "Endpoint=sb://relay.example.com/;SharedAccessKeyName=all;SharedAccessKey=c2VjcmV0"
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, "token"],
        env=environment(TRUNKLINE_CONNECTION_STRING=text),
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert b"Exception ignored" not in done.stderr


def test_only_the_module_of_the_command_is_imported() -> None:
    code = (
        "import sys; from trunkline.cli import run; run(['token', '--help'])\n"
        "assert not [name for name in sys.modules if name in ('trunkline.cli.serve', 'trunkline.cli.listen')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)


def test_program_runs_as_a_module() -> None:
    assert trunkline("--version").stdout.decode().split() == ["trunkline", __version__]
