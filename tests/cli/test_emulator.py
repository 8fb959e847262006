"""`trunkline emulator`: a relay in one command, and the exchange of `make run`."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cli.program import Program, failure_of, trunkline, wrong_usage_of
from trunkline.cli.emulator import MANAGE_RULE, declare, well_known_key

FREE_PORTS = ("--port", "0", "--admin-port", "0")


def test_emulator_gives_all_that_a_client_needs(tmp_path: Path) -> None:
    with Program(
        "emulator", *FREE_PORTS, "--data", str(tmp_path), "-n", "orders", "-n", "orders", "--json"
    ) as emulator:
        facts = json.loads(emulator.read_line())
        assert facts["hybrid_connections"] == ["orders"]
        assert facts["ca_file"] == str(tmp_path / "ca.pem")
        trust = {"TRUNKLINE_CA_FILE": facts["ca_file"]}
        with Program("listen", "--connection-string", facts["listen_connection_string"], env=trust) as listener:
            listener.wait_for("listening on")
            send = ("connect", "--connection-string", facts["send_connection_string"])
            assert trunkline(*send, input=b"hello", env=trust).stdout == b"hello"
            listen_only = ("connect", "--connection-string", facts["listen_connection_string"])
            assert "'Send' claim(s)" in failure_of(*listen_only, status=1, env=trust)
        with urllib.request.urlopen(f"{facts['admin_url']}/readyz") as answer:
            assert answer.status == 200
        assert facts["data"] == str(tmp_path)
        assert trunkline("listeners", "--data", facts["data"]).stdout.startswith(b"ID\tENTITY\tSTATE\t")
        # The same keys everywhere, and in no line that is logged.
        assert well_known_key("listen") in facts["listen_connection_string"]
        assert "SharedAccessKey=" not in emulator.stderr
        assert emulator.interrupt(signal.SIGTERM) == 0
        assert well_known_key("listen") not in emulator.stderr


def test_guide_is_for_people_and_its_last_lines_work(tmp_path: Path) -> None:
    with Program("emulator", *FREE_PORTS, "--data", str(tmp_path)) as emulator:
        lines = []
        while not (line := emulator.read_line().decode()).startswith("Ctrl-C ends"):
            lines.append(line.strip())
        listen, connect = lines[-3:-1]
        assert " listen --ca " in listen and listen.endswith("EntityPath=test'")
        assert connect.startswith("echo hello | ") and " connect --ca " in connect
        for platform in ("Python", "Node", "Java", ".NET"):
            assert any(line.startswith(platform) for line in lines)
        if sys.platform != "win32":
            with subprocess.Popen(listen, shell=True, stderr=subprocess.PIPE, process_group=0) as listener:
                assert listener.stderr is not None
                assert listener.stderr.readline().startswith(b"listening on")
                said = subprocess.run(connect, shell=True, capture_output=True, timeout=30)
                assert (said.returncode, said.stdout) == (0, b"hello\n")
                os.killpg(listener.pid, signal.SIGTERM)
        assert emulator.interrupt() == 0


def test_demonstration_prints_the_exchange_and_ends(tmp_path: Path) -> None:
    """What `make run ONCE=1` runs."""
    done = trunkline("emulator", "--demo", "--once", *FREE_PORTS, "--data", str(tmp_path))
    said = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "You said: Hello through the relay" in said
    assert "sent 1,048,576 random bytes and got the same back" in said


def test_demonstration_without_tls_and_with_the_limits_of_azure(tmp_path: Path) -> None:
    options = ("--tls", "off", "--preset", "azure", "--data", str(tmp_path))
    done = trunkline("emulator", "--demo", "--once", *FREE_PORTS, *options)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ca.pem").exists()


def test_demonstration_that_fails_is_told_by_the_exit_status(tmp_path: Path) -> None:
    # No listener is let in: its token lasts an hour.
    options = ("--max-token-lifetime", "1", "--data", str(tmp_path))
    done = trunkline("emulator", "--demo", "--once", *FREE_PORTS, *options)
    assert done.returncode == 1
    assert b"error: " in done.stderr and b"Traceback" not in done.stderr


def test_authority_and_keys_outlive_the_emulator(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        with Program("emulator", *FREE_PORTS, "--data", str(tmp_path), "--json") as emulator:
            facts = json.loads(emulator.read_line())
            found.append(
                (Path(facts["ca_file"]).read_bytes(), well_known_key("send") in facts["send_connection_string"])
            )
            assert emulator.interrupt() == 0
    assert found[0] == found[1] and found[0][1]
    assert ssl.create_default_context(cafile=tmp_path / "ca.pem").cert_store_stats()["x509_ca"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_terminal_that_is_closed_ends_the_emulator(tmp_path: Path) -> None:
    with Program("emulator", *FREE_PORTS, "--data", str(tmp_path), "--json") as emulator:
        emulator.read_line()
        assert emulator.interrupt(signal.SIGHUP) == 0


def test_environment_of_another_node_does_not_count(tmp_path: Path) -> None:
    env = {"TRUNKLINE_PUBLIC_URL": "https://relay.example.com", "TRUNKLINE_DOMAIN": "example.com"}
    env |= {"TRUNKLINE_HOST": "0.0.0.0", "TRUNKLINE_ADMIN_HOST": "0.0.0.0"}
    done = trunkline("emulator", "--demo", "--once", *FREE_PORTS, "--data", str(tmp_path), env=env)
    assert done.returncode == 0, done.stderr
    assert b"example.com" not in done.stdout + done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "relay.example.com", ""])
def test_emulator_is_for_this_computer_alone(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a loopback address" in wrong_usage_of("emulator", "--host", host, capsys=capsys)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.1 is the only address of its net")
def test_another_loopback_address_is_in_the_connection_strings(tmp_path: Path) -> None:
    options = (*FREE_PORTS, "--host", "127.0.0.2", "--data", str(tmp_path))
    done = trunkline("emulator", "--demo", "--once", *options)
    assert done.returncode == 0, done.stderr


def test_taken_port_names_the_option(tmp_path: Path) -> None:
    with Program("emulator", *FREE_PORTS, "--data", str(tmp_path / "a"), "--json") as emulator:
        facts = json.loads(emulator.read_line())
        port, admin_port = (facts[name].rpartition(":")[2] for name in ("url", "admin_url"))
        other = ("emulator", "--data", str(tmp_path / "b"))
        assert "another --port\n" in failure_of(*other, "--port", port, "--admin-port", "0", status=2)
        assert "another --admin-port\n" in failure_of(*other, "--port", "0", "--admin-port", admin_port, status=2)
        said = failure_of("emulator", *FREE_PORTS, "--data", str(tmp_path / "a"), status=1)
        assert "one node owns its store" in said


@pytest.mark.parametrize(
    "options",
    [
        ("--once",),
        ("--demo", "--json"),
        ("-n", ""),
        ("-n", "a b"),
        ("--port", "99999"),
        ("--tls", "maybe"),
        ("--tls", "off", "--tls-certificate", "a", "--tls-key", "b"),
        ("--tls-key", "b"),
        ("--idle-timeout", "soon"),
        ("--preset", "aws"),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_usage_of("emulator", "--data", str(tmp_path), *options, capsys=capsys)


def test_rules_have_one_right_each_and_keys_of_their_own() -> None:
    [namespace] = declare(["a"]).namespaces
    assert {rule.name: len(rule.rights) for rule in namespace.rules} == {MANAGE_RULE: 3, "listen": 1, "send": 1}
    keys = {key for rule in namespace.rules for key in (rule.primary_key, rule.secondary_key)}
    assert len(keys) == 6
