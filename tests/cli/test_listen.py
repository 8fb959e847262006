"""`trunkline listen`: echo, print, and its life with the relay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.program import COMMAND, PATIENCE, Program, environment, failure_of, trunkline
from trunkline.testing import RelayNodeThread, relay_node_thread

Access = Callable[[str], dict[str, str]]


def test_listener_echoes_one_sender_after_the_other(access: Access) -> None:
    with Program("listen", env=access("Listen")) as listener:
        assert "(echo); Ctrl-C ends" in listener.wait_for("listening on")
        for text in (b"first", b"second"):
            assert trunkline("connect", input=text, env=access("Send")).stdout == text
        listener.wait_for("connected: 127.0.0.1 TrackingId:", times=2)


def test_listener_prints_one_connection_and_ends(access: Access) -> None:
    with Program("listen", "--print", "--once", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        assert trunkline("connect", input=b"\x00\xffbytes", env=access("Send")).returncode == 0
        assert listener.read(-1) == b"\x00\xffbytes"
        assert listener.end() == 0


def test_quiet_listener_says_nothing(access: Access, relay: RelayNodeThread, entity: str) -> None:
    with Program("listen", "--quiet", "--once", env=access("Listen")) as listener:
        relay.until(lambda now: now["listeners"] > 0, timeout=PATIENCE)
        assert trunkline("connect", input=b"x", env=access("Send")).stdout == b"x"
        assert listener.end() == 0
        assert listener.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("mode", ["idle", "connected"])
def test_signal_ends_the_listener(access: Access, number: int, status: int, mode: str) -> None:
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        if mode == "connected":
            with Program("connect", env=access("Send")) as sender:
                sender.write(b"hello")
                assert sender.read(5) == b"hello"
                assert listener.interrupt(number) == status
                assert sender.end() == 1  # the listener has not closed in order
        else:
            assert listener.interrupt(number) == status
        assert "error" not in listener.stderr and "Traceback" not in listener.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signal_ends_a_listener_that_does_not_reach_the_relay() -> None:
    nobody = "Endpoint=sb://localhost:1/;SharedAccessKeyName=a;SharedAccessKey=secret;EntityPath=b"
    with Program("listen", "--connection-string", nobody) as listener:
        listener.wait_for("cannot register")
        assert listener.interrupt() == 130
        assert "Traceback" not in listener.stderr and "secret" not in listener.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("options", [("--print",), ("--print", "--once"), ("--stdio",)])
def test_full_disk_ends_the_listener(access: Access, options: tuple[str, ...]) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        Program("listen", *options, env=access("Listen"), stdout=full) as listener,
    ):
        listener.wait_for("listening on")
        assert trunkline("connect", input=b"hello", env=access("Send")).returncode == 1
        assert listener.end() == 1
        assert "error: standard output: No space left on device" in listener.stderr
        assert "Traceback" not in listener.stderr


def test_listener_comes_back_after_the_relay_was_away() -> None:
    with relay_node_thread() as relay:
        address = ("--no-tls", "--connection-string", relay.connection_string())
        with Program("listen", *address) as listener:
            listener.wait_for("listening on")
            relay.restart()
            relay.until(lambda now: now["listeners"] == 1, timeout=PATIENCE)
            assert trunkline("connect", *address, input=b"again").stdout == b"again"


def test_listener_whose_hybrid_connection_is_deleted_fails() -> None:
    with relay_node_thread() as relay:
        with Program("listen", "--no-tls", "--connection-string", relay.connection_string()) as listener:
            listener.wait_for("listening on")
            relay.remove_hybrid_connection("test")
            assert listener.end() == 1
            assert "error: Endpoint does not exist" in listener.stderr


def test_refusals_are_told_once(relay: RelayNodeThread, access: Access) -> None:
    said = failure_of("listen", status=1, env=access("Send"))
    assert said.count("'Listen' claim(s)") == 1
    said = failure_of("listen", "--entity", "other", status=2, env=access("Listen"))
    assert "leave one of them out" in said


def test_relay_that_does_not_answer_ends_it_in_time() -> None:
    nobody = "Endpoint=sb://localhost:1/;SharedAccessKeyName=a;SharedAccessKey=secret;EntityPath=b"
    said = failure_of("listen", "--quiet", "--timeout", "0.2", "--connection-string", nobody, status=1)
    assert "is not online within 0.2 s" in said and "secret" not in said


def test_print_and_stdio_exclude_each_other() -> None:
    failure_of("listen", "--print", "--stdio", status=2)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_messages_are_lines_at_a_terminal(access: Access, relay: RelayNodeThread, entity: str) -> None:
    import pty

    controller, terminal = pty.openpty()
    try:
        with Program("listen", "--print", "--once", env=access("Listen"), stdout=terminal) as listener:
            listener.wait_for("listening on")
            code = (
                "import asyncio, os, ssl\n"
                "from trunkline import HybridConnectionClient\n"
                "async def main():\n"
                "    trust = ssl.create_default_context(cafile=os.environ['TRUNKLINE_CA_FILE'])\n"
                "    client = HybridConnectionClient(os.environ['TRUNKLINE_CONNECTION_STRING'], ssl=trust)\n"
                "    async with await client.create_connection() as connection:\n"
                "        await connection.send('one')\n"
                "        await connection.send('two')\n"
                "asyncio.run(main())\n"
            )
            subprocess.run([COMMAND[0], "-c", code], env=environment(**access("Send")), check=True, timeout=PATIENCE)
            assert listener.end() == 0, listener.stderr
        assert os.read(controller, 100).replace(b"\r\n", b"\n") == b"one\ntwo\n"
    finally:
        os.close(controller)
        os.close(terminal)
