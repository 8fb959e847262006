"""The examples run as written: with a relay of their own, and against an emulator."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.program import environment
from trunkline.testing import RelayNodeThread, relay_node_thread

EXAMPLES = Path(__file__).parent.parent / "examples"
TESTS = ["sync_test.py", "use_with_pytest.py"]
#: Each program, and what it prints.
PROGRAMS = {
    "echo_listener.py": ["echoed: hello"],
    "sender.py": ["the listener saw: 7 rooms/7 since=5"],
    "reject_with_status.py": ["with a badge: connected", "without one: 418 No badge"],
    "choose_subprotocol.py": ["both speak: chat.v2 chat.v2"],
    "several_hybrid_connections.py": ["None: test-1", "None: test-2", "customer 7: test-"],
    "byte_stream_half_close.py": ["30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"],
    "token_provider.py": ["a token for test", "listener is online"],
}


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayNodeThread]:
    with relay_node_thread(["test", "test-1", "test-2"], tls=True) as node:
        yield node


def run(name: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name], env=environment(**env), capture_output=True, timeout=50
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode()


@pytest.mark.parametrize("name", PROGRAMS)
def test_example_runs_against_a_given_relay(name: str, relay: RelayNodeThread) -> None:
    said = run(name, TRUNKLINE_CONNECTION_STRING=relay.connection_string(""), TRUNKLINE_CA_FILE=str(relay.ca_file))
    for words in PROGRAMS[name]:
        assert words in said


def test_example_brings_a_relay_of_its_own() -> None:
    assert "echoed: hello" in run("echo_listener.py")


def test_examples_of_tests_pass() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(EXAMPLES / name) for name in TESTS),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=50, cwd=EXAMPLES)
    assert done.returncode == 0, done.stdout.decode()
    assert b"4 passed" in done.stdout


def test_every_example_is_short_listed_and_run() -> None:
    files = {file.name for file in EXAMPLES.glob("*.py")}
    assert files == {*PROGRAMS, *TESTS, "relay.py"}
    table = (EXAMPLES / "README.md").read_text()
    for name in files:
        assert len((EXAMPLES / name).read_text().splitlines()) < 40, name
        assert f"[{name}]({name})" in table
