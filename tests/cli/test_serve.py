"""`trunkline serve`, and the declarative file as a newcomer writes it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.program import Program, failure_of, trunkline, wrong_usage_of

#: As in the documentation, every key of it.
FILE = """\
[node]
host = "127.0.0.1"           # bind address
port = 8443                  # data plane
admin_port = 8081            # /healthz, /readyz, later /metrics; loopback unless set
tls = "development"          # or "off", or { certificate = "...", key = "..." }
domain = "localhost"         # a namespace is <name>.<domain>
data = "./data"

[[namespace]]
name = "myRelayNS"
hosts = ["relay.local"]      # further names in URLs, tokens and certificates

[[namespace.rule]]
name = "RootManageSharedAccessKey"
rights = ["Listen", "Send", "Manage"]
primary_key = "secretkey"    # generated and kept when left out

[[namespace.hybrid_connection]]
name = "orders"
max_senders = 50             # any key of the table of architecture section 8
listener_policy = "round-robin"
user_metadata = "anything"

[[namespace.hybrid_connection.rule]]
name = "orders-listener"
rights = ["Listen"]
"""


@contextmanager
def served(file: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[tuple[Program, str]]:
    """The node of `file` on free ports, and its HOST:PORT."""
    with Program("serve", "--config", str(file), "--port", "0", "--admin-port", "0", *options, env=env) as node:
        said = node.wait_for("admin on port")
        port = said.partition("ready on ")[2].partition(",")[0].rpartition(":")[2]
        yield node, f"localhost:{port}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "trunkline.toml"
    file.write_text(FILE)
    return file


def connection_string(file: Path, *options: str) -> str:
    done = trunkline("connection-string", "--config", str(file), *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def exchange(to_listen: str, to_send: str, ca: Path) -> None:
    with Program("listen", "--ca", str(ca), "--connection-string", to_listen) as listener:
        listener.wait_for("listening on")
        done = trunkline("connect", "--ca", str(ca), "--connection-string", to_send, input=b"hello")
        assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr


def test_declarative_file_works_as_written(file: Path) -> None:
    with served(file) as (node, endpoint):
        where = ("--entity", "orders", "--endpoint", endpoint)
        # A generated key is in the store of the node that runs.
        to_listen = connection_string(file, "--rights", "Listen", *where)
        assert "SharedAccessKeyName=orders-listener;" in to_listen
        to_send = connection_string(file, "--rule", "RootManageSharedAccessKey", *where)
        assert "SharedAccessKey=secretkey;" in to_send
        exchange(to_listen, to_send, file.parent / "data" / "ca.pem")
        assert node.interrupt(signal.SIGTERM) == 0
        key = to_listen.partition("SharedAccessKey=")[2].partition(";")[0]
        assert "secretkey" not in node.stderr and key not in node.stderr
    with served(file) as (node, endpoint):
        assert connection_string(file, "--rights", "Listen", "--entity", "orders", "--endpoint", endpoint).endswith(
            f";SharedAccessKey={key};EntityPath=orders"
        )


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_node_takes_all_files_and_sockets_that_it_may_have_and_says_how_many(file: Path) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with served(file) as (node, _):
            said = node.stderr
            assert node.interrupt() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert f", at most {hard} files and sockets\n" in said


def test_second_namespace_is_reached_by_its_own_name(file: Path) -> None:
    """Clients resolve it; here --endpoint gives the address, and the audience of the token decides."""
    file.write_text(f'{FILE}\n[[namespace]]\nname = "second"\n[[namespace.rule]]\nname = "all"\nrights = ["Listen"]\n')
    assert "Endpoint=sb://localhost:8443/;" in connection_string(file)
    with served(file):
        text = connection_string(file, "--namespace", "second")
    assert text.startswith("Endpoint=sb://second.localhost:8443/;SharedAccessKeyName=all;")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_sighup_applies_the_file_and_a_broken_one_changes_nothing(file: Path) -> None:
    with served(file) as (node, _):
        file.write_text(f'{FILE}\n[[namespace.hybrid_connection]]\nname = "bills"\n')
        node.process.send_signal(signal.SIGHUP)
        node.wait_for("added hybrid connection myRelayNS/bills")
        node.wait_for("reloaded")
        file.write_text(f'{FILE}\n[[namespace.hybrid_connection]]\nname = "bills"\nmax_sender = 1\n')
        node.process.send_signal(signal.SIGHUP)
        said = node.wait_for("not reloaded, the node goes on as it was: trunkline.toml:30:")
        assert "max_senders" in said
        file.unlink()
        node.process.send_signal(signal.SIGHUP)
        node.wait_for("not reloaded", times=2)
        file.write_text(FILE.replace('host = "127.0.0.1"', 'host = "0.0.0.0"\nmax_listeners = 5'))
        node.process.send_signal(signal.SIGHUP)
        node.wait_for("removed hybrid connection myRelayNS/bills")
        node.wait_for("this waits for a restart: host")
        assert node.interrupt() == 0


def test_where_no_person_looks_every_line_is_json(file: Path) -> None:
    env = {"TRUNKLINE_LOG_FORMAT": ""}
    with Program("serve", "--config", str(file), "--port", "0", "--admin-port", "0", env=env) as node:
        node.wait_for("files and sockets")
        assert node.interrupt() == 0
        lines = [json.loads(line) for line in node.stderr.splitlines()]
    ready = next(line for line in lines if line["message"].startswith("ready on https://"))
    assert (ready["level"], ready["logger"]) == ("info", "trunkline.node")
    assert "draining for at most" in lines[-1]["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_sighup_changes_the_level_and_the_format_of_the_log(file: Path) -> None:
    # Without the variable, which would be nearer than the file.
    with served(file, env={"TRUNKLINE_LOG_FORMAT": ""}) as (node, _):
        other = 'log_level = "warning"\nlog_format = "text"\nhost = "0.0.0.0"'
        file.write_text(FILE.replace('host = "127.0.0.1"', other))
        node.process.send_signal(signal.SIGHUP)
        said = node.wait_for(" WARNING this waits for a restart: host\n")
        assert "reloaded" not in said
        file.write_text(FILE)
        node.process.send_signal(signal.SIGHUP)
        node.wait_for('"level": "info", "logger": "trunkline.node", "message": "reloaded"')
        assert node.interrupt() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_second_signal_ends_a_node_that_drains(file: Path) -> None:
    with served(file, "--drain-timeout", "600") as (node, endpoint):
        text = connection_string(
            file, "--rule", "RootManageSharedAccessKey", "--entity", "orders", "--endpoint", endpoint
        )
        env = {"TRUNKLINE_CONNECTION_STRING": text, "TRUNKLINE_CA_FILE": str(file.parent / "data" / "ca.pem")}
        with Program("listen", env=env) as listener:
            listener.wait_for("listening on")
            with Program("connect", env=env) as sender:
                sender.write(b"hello")
                assert sender.read(5) == b"hello"
                node.process.send_signal(signal.SIGTERM)
                node.wait_for("draining for at most 600 s")
                sender.write(b"still there")
                assert sender.read(11) == b"still there"
                assert node.interrupt(signal.SIGTERM) == 0
                assert sender.end() == 1


def test_peer_that_does_not_trust_the_node_is_one_line_in_the_log(file: Path) -> None:
    with served(file) as (node, endpoint):
        text = connection_string(file, "--endpoint", endpoint)
        failure_of("connect", "--entity", "orders", "--connection-string", text, status=1)
        node.wait_for("SSL handshake failed")
        assert node.interrupt() == 0
        assert "Traceback" not in node.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[node\n", "trunkline.toml:1: is not valid TOML"),
        ("[node]\nprot = 1\n", "did you mean port?"),
        ("[node]\n\nport = 99999\n", "trunkline.toml:3: node.port"),
        ("[[namespace]]\nname = 'a b'\n", "trunkline.toml:2: namespace.name"),
    ],
)
def test_wrong_file_is_told_with_its_line(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trunkline.toml"
    file.write_text(text)
    assert said in wrong_usage_of("serve", "--config", str(file), capsys=capsys)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert "No such file" in failure_of("serve", "--config", str(tmp_path / "none.toml"), status=2)
    wrong = ("--tls-certificate", str(tmp_path / "none"), "--tls-key", str(tmp_path / "none"))
    data = ("--data", str(tmp_path / "data"), "--port", "0", "--admin-port", "0")
    assert "none" in failure_of("serve", *data, *wrong, status=2)
    assert "both --tls-certificate and --tls-key" in failure_of("serve", *data, *wrong[:2], status=2)
    assert "TRUNKLINE_PORT" in failure_of("serve", status=2, env={"TRUNKLINE_PORT": "many"})
    (tmp_path / "data" / "entities.db").write_text("something else, and long enough to be read as a page" * 100)
    assert "no store of Trunkline" in failure_of("serve", *data, status=1)
