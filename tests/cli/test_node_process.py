"""A node as a process; signals are in test_serve and in e2e/test_served_node."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest

from trunkline.cli import node_process
from trunkline.cli.failure import Failure
from trunkline.cli.node_process import LOOP_ERRORS_TOLD, LoopErrors, NodeProcess
from trunkline.server.config.settings import NodeSettings
from trunkline.server.node import Node

SETTINGS = {"port": 0, "admin_port": 0, "tls": "off"}


def settings(folder: Path, **others: object) -> NodeSettings:
    return NodeSettings.model_validate({**SETTINGS, "data": folder, **others})


async def nothing(node: Node) -> None:
    pass


def test_whoever_set_logging_up_keeps_it(tmp_path: Path) -> None:
    before, level = list(logging.root.handlers), logging.getLogger("trunkline").level
    assert before  # of pytest
    try:
        node_process.log_to_stderr(settings(tmp_path, log_level="debug"))
        assert logging.root.handlers == before
        assert logging.getLogger("trunkline.relay").isEnabledFor(logging.DEBUG)
    finally:
        logging.getLogger("trunkline").setLevel(level)
        logging.getLogger("trunkline.sdk").setLevel(logging.NOTSET)


@pytest.mark.parametrize("chosen", ["text", "json"])
def test_node_that_is_ready_says_so_in_the_format_of_the_log(
    chosen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trunkline.node")
    node_process.tell_ready("ready on https://localhost", settings(tmp_path, log_format=chosen))
    plain = "ready on https://localhost\n"
    told = [record.getMessage() + "\n" for record in caplog.records]
    assert (capsys.readouterr().err, told) == ((plain, []) if chosen == "text" else ("", [plain]))


async def test_node_runs_until_it_is_stopped(tmp_path: Path) -> None:
    process = NodeProcess(settings(tmp_path), None)
    ports: list[int] = []

    async def beside(node: Node) -> None:
        ports.append(node.port)
        process.stop()

    await process.run(beside)
    assert ports and process.ended_by is None


async def test_error_beside_the_node_stops_it(tmp_path: Path) -> None:
    async def beside(node: Node) -> None:
        raise Failure("that was nothing")

    with pytest.raises(BaseExceptionGroup) as caught:
        await NodeProcess(settings(tmp_path), None).run(beside)
    assert caught.value.subgroup(Failure)


@pytest.mark.parametrize(("setting", "option"), [("port", " --port"), ("admin_port", " --admin-port")])
async def test_taken_port_is_told_with_the_option(tmp_path: Path, setting: str, option: str) -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        taken = server.sockets[0].getsockname()[1]
        with pytest.raises(Failure) as caught:
            await NodeProcess(settings(tmp_path, **{setting: taken}), None).run(nothing)
    assert caught.value.status == 2
    assert caught.value.remedy.endswith(option)


async def test_admin_socket_that_cannot_be_is_told_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(Failure, match="is no socket") as caught:
        await NodeProcess(settings(tmp_path, admin_socket="mine"), None).run(nothing)
    assert (caught.value.status, caught.value.remedy) == (2, "Set another --admin-socket")


async def test_what_the_loop_caught_is_one_line_when_a_peer_did_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trunkline.node")
    loop = asyncio.get_running_loop()
    for error in (ssl.SSLError(1, "no shared cipher"), object(), ValueError("ours")):
        LoopErrors()(loop, {"message": "handshake failed\nprotocol: x", "exception": error})
    levels = [(record.levelname, record.exc_info is not None) for record in caplog.records]
    assert levels == [("INFO", False), ("INFO", False), ("ERROR", True)]
    assert all("protocol" not in record.getMessage() for record in caplog.records)


async def test_flood_of_the_same_is_told_in_part_and_counted_in_whole(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trunkline.node")
    handler, loop = LoopErrors(), asyncio.get_running_loop()
    for _ in range(LOOP_ERRORS_TOLD + 1_234):
        handler(loop, {"message": "SSL handshake failed", "exception": object()})
    handler(loop, {"message": "something else", "exception": object()})
    assert [record.getMessage() for record in caplog.records].count("SSL handshake failed") == LOOP_ERRORS_TOLD
    async with asyncio.timeout(5):
        while "and 1,234 more" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert caplog.records[-1].getMessage().endswith("s: SSL handshake failed")


@pytest.mark.parametrize(("limit", "said"), [(1_024, True), (8_191, True), (8_192, False)])
def test_few_open_files_are_told_with_the_remedy(
    limit: int, said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node_process, "raise_descriptor_limit", lambda: limit)
    node_process.open_all_descriptors()
    assert (f"open only {limit} files and sockets" in caplog.text) == said
    assert ("LimitNOFILE=" in caplog.text) == said
