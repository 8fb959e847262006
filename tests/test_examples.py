"""The examples run as written: with a relay of their own, and against an emulator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    "http_handler.py": ["201 Order taken", "{'customer': 1, 'pieces': 1} 404"],
    "host_fastapi.py": ["answer: {'item': 7, 'next': '/test/items/8'}", "['data:', '0', 'data:', '1', 'data:', '2']"],
    "http_streaming.py": ["data: 0 data: 1 data: 2", "1000000 bytes"],
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


def factory(*arguments: str) -> dict[str, Any]:
    """The report of iot_gateway: 50 gateways whose network is cut in the middle."""
    command = [sys.executable, str(EXAMPLES / "iot_gateway" / "run.py"), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(1, 51):
        assert f"ALERT gateway-{number:02} was lost at reading " in done.stderr
        assert f"gateway-{number:02} is back; " in done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["losses"] >= 50
    return report


def test_iot_gateway_loses_and_reorders_nothing_when_its_network_is_cut() -> None:
    report = factory("--rate", "20", "--seconds", "3", "--cut", "0.3")
    assert report["recorded"] == report["stored"] == 3_000
    assert not (report["dropped"] or report["missing"] or report["reordered"])


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_iot_gateway_relays_ten_thousand_readings_a_second_for_a_minute(
    tls: bool, record_property: Callable[[str, object], None]
) -> None:
    report = factory("--seconds", "60", *(["--tls"] if tls else []))
    assert report["recorded"] == report["stored"] == 600_000
    assert not (report["dropped"] or report["missing"] or report["reordered"])
    share = report["relay"]["share of a core"]
    record_property("share of a core", share)
    print(f"the relay took {share:.1%} of a core")
    assert tls or not share >= 0.4  # NaN where the system does not tell


def test_reading_that_came_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "iot_gateway")
    import reading

    message = reading.encode("gateway-01", reading.Reading(7, 3, 21.5, 1_800_000_000.25))
    assert len(message) == reading.SIZE == 200
    assert reading.decode("gateway-01", message) == reading.Reading(7, 3, 21.5, 1_800_000_000.25)
    for changed in (message[:7] + b"\x08" + message[8:], message.replace(b"21.5", b"21.6"), message + b" "):
        with pytest.raises(ValueError, match="came changed"):
            reading.decode("gateway-01", changed)
    with pytest.raises(ValueError, match="came changed"):
        reading.decode("gateway-02", message)
