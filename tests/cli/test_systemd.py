"""What a service manager hands over and is told; the restart under load is in e2e/test_socket_activation."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trunkline.cli import systemd
from trunkline.cli.systemd import ServiceManager, handed_sockets
from trunkline.protocol.errors import InvalidSetting

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors and Unix sockets")

PID = 4711


class Handed:
    """Descriptors in a row, as systemd leaves them behind."""

    FIRST = 700

    def __init__(self) -> None:
        self.count = 0

    def add(self, descriptor: int) -> None:
        os.dup2(descriptor, self.FIRST + self.count)
        self.count += 1

    def variables(self, *names: str, pid: int = PID) -> dict[str, str]:
        return {"LISTEN_PID": str(pid), "LISTEN_FDS": str(self.count), "LISTEN_FDNAMES": ":".join(names), "HOME": "/"}


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Handed]:
    monkeypatch.setattr(systemd, "_FIRST", Handed.FIRST)
    row = Handed()
    yield row
    for number in range(row.count):
        try:
            os.close(Handed.FIRST + number)
        except OSError:  # closed with its socket
            pass


def listening(address: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((address, 0))


def test_sockets_are_taken_by_their_names_and_the_variables_go(handed: Handed) -> None:
    with listening() as one, listening() as two, listening() as admin:
        for each in (one, admin, two):
            handed.add(each.fileno())
        environment = handed.variables("data", "admin", "trunkline.socket")
        taken = handed_sockets(environment, PID)
        assert environment == {"HOME": "/"}
        assert {name: [each.getsockname() for each in found] for name, found in taken.items()} == {
            "data": [one.getsockname(), two.getsockname()],
            "admin": [admin.getsockname()],
        }
        for each in (*taken["data"], *taken["admin"]):
            assert not each.get_inheritable()
            each.close()


def test_sockets_without_names_are_for_the_data_plane(handed: Handed) -> None:
    with listening() as one:
        handed.add(one.fileno())
        environment = handed.variables()
        del environment["LISTEN_FDNAMES"]
        [taken] = handed_sockets(environment, PID)["data"]
        taken.close()


@pytest.mark.parametrize("change", [{"LISTEN_PID": "1"}, {"LISTEN_FDS": "x"}, {"LISTEN_PID": ""}])
def test_sockets_of_another_process_are_left_alone(change: dict[str, str], handed: Handed) -> None:
    environment = {**handed.variables("data"), **change}
    before = dict(environment)
    assert handed_sockets(environment, PID) == {}
    assert environment == before


def test_process_that_was_handed_nothing_has_no_sockets() -> None:
    assert handed_sockets({}, PID) == {}


def test_what_is_no_tcp_socket_that_listens_is_told_with_the_remedy(handed: Handed, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "a.sock"))
        unix.listen()
        handed.add(unix.fileno())
        with pytest.raises(InvalidSetting, match=r"descriptor 700 is not one of TCP\. .* ListenStream="):
            handed_sockets(handed.variables(), PID)
    with listening() as server, socket.create_connection(server.getsockname()) as connection:
        os.dup2(connection.fileno(), Handed.FIRST)
        with pytest.raises(InvalidSetting, match=r"descriptor 700 is a connection\. Write Accept=no"):
            handed_sockets(handed.variables(), PID)
    with (tmp_path / "file").open("w") as file:
        os.dup2(file.fileno(), Handed.FIRST)
        with pytest.raises(InvalidSetting, match="LISTEN_FDS announces a socket as descriptor 700"):
            handed_sockets(handed.variables(), PID)


# -- being told


class Manager:
    """A service manager that collects what it hears."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(5)
        self.variables = {"NOTIFY_SOCKET": address}

    def heard(self) -> dict[str, str]:
        lines = self.socket.recv(4_096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("names without a file are of Linux")
    found = Manager(str(tmp_path / "notify") if request.param == "file" else f"@trunkline-{os.getpid()}")
    with found.socket:
        yield found


def test_service_manager_is_told_of_start_reload_and_stop(manager: Manager) -> None:
    service = ServiceManager(manager.variables, PID)
    service.ready("ready on https://localhost")
    assert manager.heard() == {"READY": "1", "STATUS": "ready on https://localhost"}
    before = time.monotonic_ns() // 1_000
    service.reloading()
    heard = manager.heard()
    assert heard["RELOADING"] == "1"
    assert before <= int(heard["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1_000
    service.stopping(within=45.5)
    assert manager.heard() == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "45500000"}


@pytest.mark.parametrize(
    ("variables", "patience"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000"}, 0.02),
        ({"WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(PID)}, 0.02),
        ({"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_patience_of_the_service_manager(variables: dict[str, str], patience: float | None) -> None:
    assert ServiceManager(variables, PID).patience == patience


async def test_service_manager_hears_again_and_again_that_the_loop_turns(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    service = ServiceManager({**manager.variables, "WATCHDOG_USEC": "10000"}, PID)
    with manager.socket:
        alive = asyncio.get_running_loop().create_task(service.keep_alive())
        for _ in range(3):
            assert await asyncio.to_thread(manager.heard) == {"WATCHDOG": "1"}
        alive.cancel()
        await asyncio.wait([alive])


def test_service_manager_that_is_gone_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, PID).ready("")
    assert "the service manager was not told READY=1: No such file or directory" in caplog.text


def test_without_a_service_manager_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({}, PID).ready("")
    assert caplog.text == ""
