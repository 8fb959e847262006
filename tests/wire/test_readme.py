"""The programs for Node that the README and docs/http.md show, as they stand there; only the address is the test's."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

from http_cases import Relay
from trunkline.sdk import Connection
from trunkline.testing import relay_node
from wire.conftest import Runtime

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"


async def echo(connection: Connection) -> None:
    async for message in connection:
        await connection.send(message)


@pytest.mark.loop("uvloop")
async def test_sender_of_the_readme_prints_what_the_readme_says(node_runtime: Runtime, tmp_path: Path) -> None:
    [(program, output)] = re.findall(
        r"^```js\n(.*?)^```\n\nIt prints:\n\n```text\n(.*?)^```$", README.read_text(), re.M | re.S
    )
    async with relay_node("test", tls=True) as node, node.listener() as listener, asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.serve(echo))
        assert "localhost:8443" in program
        file = tmp_path / "sender.js"
        file.write_text(program.replace("localhost:8443", f"{node.host}:{node.port}").replace("localhost", node.host))
        process = await asyncio.create_subprocess_exec(
            node_runtime.node,
            str(file),
            env={
                **os.environ,
                "NODE_PATH": str(node_runtime.modules),
                "NODE_EXTRA_CA_CERTS": str(node.ca_file),
                "TRUNKLINE_CONNECTION_STRING": node.connection_string(rights=["Send"]),
            },
            stdout=subprocess.PIPE,
        )
        printed, _ = await asyncio.wait_for(process.communicate(), 30)
        await listener.close()
    assert printed.decode() == output


@pytest.mark.loop("uvloop")
async def test_listener_of_the_page_about_http_answers_as_the_page_says(node_runtime: Runtime, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    [(program, output)] = re.findall(r"^```js\n(.*?)^```\n\nA sender gets:\n\n```text\n(.*?)^```$", page, re.M | re.S)
    async with relay_node("test", tls=True) as node:
        assert "localhost:8443" in program
        file = tmp_path / "listener.js"
        file.write_text(program.replace("localhost:8443", f"{node.host}:{node.port}"))
        process = await asyncio.create_subprocess_exec(
            node_runtime.node,
            str(file),
            env={
                **os.environ,
                "NODE_PATH": str(node_runtime.modules),
                "NODE_EXTRA_CA_CERTS": str(node.ca_file),
                "TRUNKLINE_CONNECTION_STRING": node.connection_string(rights=["Listen"]),
            },
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(30):
                assert await process.stdout.readline() == b"listening\n"
            relay = Relay.of(node)
            async with relay.connect() as sender:
                sender.write_request("GET", "/test/seat/12?row=3", relay.headers)
                answer = await sender.answer()
            assert answer.body.decode() == output and answer.get("content-type") == "text/plain"
        finally:
            process.kill()
            await process.wait()
