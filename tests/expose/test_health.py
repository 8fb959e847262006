"""Whether the target is there."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from expose.raw_target import raw_target
from trunkline.expose import health
from trunkline.expose.health import Health, dial, reason_of
from trunkline.expose.target import Target


class Dialled:
    """What `Health` dials, and what it told."""

    def __init__(self, *failures: OSError) -> None:
        self._failures = list(failures)
        self.told: list[tuple[bool, str]] = []
        self.back = asyncio.Event()
        self.health = Health(self.dial, self.changed)

    async def dial(self) -> None:
        if self._failures:
            raise self._failures.pop(0)

    def changed(self, up: bool, reason: str) -> None:
        self.told.append((up, reason))
        if up:
            self.back.set()


async def test_target_that_goes_and_comes_back_is_told_once_each() -> None:
    it = Dialled()
    it.health.worked()
    assert it.told == [] and repr(it.health) == "<Health up>"
    it.health.failed("connection refused")
    it.health.failed("connection refused")
    assert not it.health.up and repr(it.health) == "<Health down>"
    it.health.worked()
    it.health.worked()
    assert it.told == [(False, "connection refused"), (True, "")]


async def test_target_that_is_away_is_dialled_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FIRST_PROBE", 0.001)
    it = Dialled(ConnectionRefusedError(), ConnectionRefusedError(), ConnectionRefusedError())
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(it.health.watch())
        await it.health.check()
        await it.back.wait()
        watching.cancel()
    assert it.told == [(False, "connection refused"), (True, "")]


async def test_target_is_dialled_and_left_alone() -> None:
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ended.set_result(await reader.read())
        except ConnectionError:
            ended.set_result(b"")

    async with raw_target(play) as server:
        await dial(server.target, 5)
        assert await ended == b""
    with pytest.raises(ConnectionRefusedError):
        await dial(server.target, 5)


async def test_target_at_a_socket_that_is_not_there_is_down() -> None:
    with pytest.raises(OSError) as failure:
        await dial(Target("http", "localhost", 80, unix_socket="/nowhere/app.sock"), 5)
    assert reason_of(failure.value) == "no such socket"


def connector_error(error: OSError) -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(ConnectionKey("secret.lan", 80, False, True, None, None, None), error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 80)"), "connection refused"),
        (connector_error(ConnectionRefusedError(111, "Connect call failed")), "connection refused"),
        (connector_error(OSError(113, "No route to host")), "no route to host"),
        (OSError(None, "Multiple exceptions: [Errno 111] Connect call failed"), "connection refused"),
        (TimeoutError(), "no connection in time"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "it speaks no TLS"),
        (OSError(), "no connection"),
        (ExceptionGroup("several", [ConnectionRefusedError()]), "connection refused"),
    ],
)
def test_reason_says_what_and_not_where(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason
