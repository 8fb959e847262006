"""Which node is asked, by which door, and what is said when it does not answer as it should."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.connected import data_of, token_file_of
from cli.program import Program
from trunkline.cli import run
from trunkline.cli.admin_client import Door, Node, NodeAway
from trunkline.cli.failure import USAGE, Failure
from trunkline.server.config.settings import SETTINGS
from trunkline.testing import RelayNodeThread


@pytest.fixture(autouse=True)
def nobody_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a node in the working folder, nor an emulator of this user, nor settings of this computer."""
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets have paths that the system takes."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


def node(
    data: Path | None = None, config: Path | None = None, admin: str | None = None, token_file: Path | None = None
) -> Node:
    return Node(data, config, admin, token_file, verbose=False)


def total(asked: Node) -> int:
    count: int = asked.ask("GET", "listeners")["total"]
    return count


def folder(relay: RelayNodeThread) -> Path:
    return Path(data_of(relay)[1])


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Something on a port that is no node: its URL, and what it was asked."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                while True:
                    caller, _ = server.accept()
                    with caller:
                        heard.append(caller.recv(65_536))
                        caller.sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", heard
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


# -- by the socket


def test_node_is_found_by_its_data_folder(relay: RelayNodeThread, monkeypatch: pytest.MonkeyPatch) -> None:
    assert total(node(data=folder(relay))) == 0
    monkeypatch.setenv("TRUNKLINE_DATA", str(folder(relay)))
    assert total(node()) == 0


def test_node_is_found_by_its_declarative_file(relay: RelayNodeThread, tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    file.write_text(f"[node]\ndata = '{folder(relay)}'\n")
    assert total(node(config=file)) == 0


def test_node_of_the_working_folder_comes_before_the_emulator(
    relay: RelayNodeThread,
    tmp_path: Path,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(short_path))
    emulators = short_path / "trunkline"
    emulators.mkdir()
    (emulators / "emulator").symlink_to(folder(relay))
    assert run(["listeners", "-v"]) == 0
    assert capsys.readouterr().err == f"the node at {emulators / 'emulator' / 'admin.sock'} answers\n"
    (tmp_path / "data").symlink_to(folder(relay))
    assert run(["listeners", "--verbose"]) == 0
    assert capsys.readouterr().err == "the node at data/admin.sock answers\n"


def test_nobody_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["listeners"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: No node answers on data/admin.sock or ")
    assert "trunkline/emulator/admin.sock" in said
    assert "\nremedy: start one (trunkline serve, trunkline emulator), or name it: --data DIR" in said
    with socket.socket(socket.AF_UNIX) as left:
        left.bind("admin.sock")
    with pytest.raises(NodeAway, match=r"No node answers on .*/admin\.sock: Connection refused"):
        node(data=tmp_path).ask("GET", "listeners")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no such users")
def test_socket_of_another_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may open everything; what the system says to others is said here by a socket that refuses.
    class Refusing(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(Failure, match="Permission denied") as caught:
        node(data=tmp_path).ask("GET", "listeners")
    assert "run this as the user of the node" in caught.value.remedy


def test_token_is_not_sent_to_a_port_because_the_socket_is_not_answered(tmp_path: Path) -> None:
    """While the node does not run, anybody on this computer may listen on its port."""
    (tmp_path / "admin-token").write_text("token-of-the-node-0123\n")
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as (url, heard):
        file = tmp_path / "trunkline.toml"
        file.write_text(f"[node]\ndata = '.'\nadmin_port = {url.rpartition(':')[2]}\n")
        with pytest.raises(NodeAway):
            node(config=file).ask("GET", "listeners")
        assert heard == []


# -- by the port


def test_port_is_asked_with_the_token_of_a_file_a_variable_or_the_data_folder(
    relay: RelayNodeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = relay.admin_url
    assert total(node(admin=url, token_file=token_file_of(relay))) == 0
    assert total(node(admin=url.removeprefix("http://"), data=folder(relay))) == 0
    monkeypatch.setenv("TRUNKLINE_ADMIN_TOKEN", token_file_of(relay).read_text().strip())
    assert total(node(admin=url)) == 0


def test_port_is_asked_where_the_settings_say_that_there_is_no_socket(relay: RelayNodeThread, tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    port = relay.admin_url.rpartition(":")[2]
    file.write_text(f"[node]\ndata = '{folder(relay)}'\nadmin_socket = 'off'\nadmin_port = {port}\n")
    assert total(node(config=file)) == 0
    # As a path that is longer than the system takes.
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    (deep / "admin-token").write_text(token_file_of(relay).read_text())
    file.write_text(f"[node]\ndata = '{deep}'\nadmin_host = '0.0.0.0'\nadmin_port = {port}\n")
    assert total(node(config=file)) == 0


def test_port_without_the_right_token_is_told_how_to_give_it(relay: RelayNodeThread, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r":\d+ needs the admin token") as caught:
        node(admin=relay.admin_url).ask("GET", "listeners")
    assert "--admin-token-file" in caught.value.remedy
    wrong = tmp_path / "token"
    wrong.write_text("another-token-0123456789\n")
    with pytest.raises(Failure, match="does not know this admin token") as caught:
        node(admin=relay.admin_url, token_file=wrong).ask("GET", "listeners")
    assert "another-token" not in f"{caught.value} {caught.value.remedy}"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "is not the admin port of a node"),
        (b"HTTP/1.1 418 no\r\nContent-Length: 2\r\n\r\n{}", "the node answers 418"),
        (b"SSH-2.0-OpenSSH\r\n", "No node answers on"),
    ],
)
def test_port_of_something_else_is_told(answer: bytes, said: str) -> None:
    with answering(answer) as (url, _), pytest.raises(Failure, match=said):
        node(admin=url).ask("GET", "listeners")


def test_nobody_on_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(NodeAway, match=f"No node answers on http://localhost:{port}: Connection refused"):
        node(admin=f"localhost:{port}").ask("GET", "listeners")


@pytest.mark.parametrize("url", ["ftp://localhost", "http://", "http://a:99999", "http://a/b", "http://me@a:1", "::"])
def test_address_that_is_none_is_wrong_usage(url: str) -> None:
    with pytest.raises(Failure, match="--admin") as caught:
        node(admin=url)
    assert caught.value.status == USAGE


def test_token_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="goes with --admin"):
        node(token_file=tmp_path / "token")
    with pytest.raises(Failure, match="token cannot be read: No such file"):
        node(admin="http://localhost:1", token_file=tmp_path / "token")
    (tmp_path / "token").write_text("two words")
    with pytest.raises(Failure, match="holds no token"):
        node(admin="http://localhost:1", token_file=tmp_path / "token")


def test_door_does_not_show_its_token() -> None:
    assert "secret" not in repr(Door("http://localhost:1", url="http://localhost:1", token="secret"))


# -- a node process


def test_token_of_a_node_is_in_no_output_of_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"TRUNKLINE_ADMIN_TOKEN": "token-of-the-node-0123"}
    data = ("--data", str(tmp_path / "node"))
    with Program("serve", *data, "--port", "0", "--admin-port", "0", env=own) as process:
        port = process.wait_for("admin on port").partition("admin on port ")[2].partition(",")[0].strip()
        admin = ("--admin", f"http://127.0.0.1:{port}")
        for wanted, token in ((1, None), (1, "another-token-0123456789"), (0, own["TRUNKLINE_ADMIN_TOKEN"])):
            if token is not None:
                monkeypatch.setenv("TRUNKLINE_ADMIN_TOKEN", token)
            assert run(["listeners", "-v", *admin]) == wanted
            assert run(["log-level", "debug", *admin]) == wanted
        process.wait_for("the log level of trunkline is DEBUG from now on")
        assert process.interrupt() == 0
        everything = process.stderr + "".join(capsys.readouterr())
        assert "it needs the admin token" in everything
        assert "token-of-the-node" not in everything and "another-token" not in everything
    assert not (tmp_path / "node" / "admin-token").exists()
    assert not (tmp_path / "node" / "admin.sock").exists()
