"""`trunkline connect`, mostly against `trunkline listen`: netcat over the relay."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.program import COMMAND, PATIENCE, Program, environment, failure_of, trunkline, wrong_usage_of
from trunkline.testing import RelayNodeThread, relay_node_thread

Access = Callable[[str], dict[str, str]]
KIB, MIB = 1024, 1024 * 1024


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(0, id="0"),
        pytest.param(KIB, id="1 KiB"),
        pytest.param(4 * MIB, id="4 MiB"),
        pytest.param(64 * MIB, id="64 MiB", marks=pytest.mark.slow),
    ],
)
def test_bytes_arrive_both_ways_at_the_same_time(access: Access, size: int, loop: str) -> None:
    there, back = (random.Random(f"{size} {way}").randbytes(size) for way in ("there", "back"))
    with Program("listen", "--stdio", env={**access("Listen"), "TRUNKLINE_EVENT_LOOP": loop}) as listener:
        listener.wait_for("listening on")
        with Program("connect", env={**access("Send"), "TRUNKLINE_EVENT_LOOP": loop}) as sender:
            feeding = [
                threading.Thread(target=program.feed, args=(data,), daemon=True)
                for program, data in ((sender, there), (listener, back))
            ]
            for thread in feeding:
                thread.start()
            reading: dict[str, bytes] = {}

            def read_listener() -> None:
                reading["listener"] = listener.read(-1)

            thread = threading.Thread(target=read_listener, daemon=True)
            thread.start()
            assert sender.read(-1) == back
            thread.join(PATIENCE)
            assert reading["listener"] == there
            assert sender.end() == 0, sender.stderr
            assert listener.end() == 0, listener.stderr


def test_end_of_input_closes_one_direction_alone(access: Access) -> None:
    with Program("listen", "--stdio", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        with Program("connect", env=access("Send")) as sender:
            sender.feed(b"all of the question")
            assert listener.read(19) == b"all of the question"
            listener.write(b"and the answer ")
            assert sender.read(15) == b"and the answer "
            listener.feed(b"comes after it")
            assert sender.read(-1) == b"comes after it"
            assert (sender.end(), listener.end()) == (0, 0)


def test_end_of_the_answer_leaves_the_question_open(access: Access) -> None:
    with Program("listen", "--stdio", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        with Program("connect", env=access("Send")) as sender:
            listener.feed(b"hello")
            assert sender.read(5) == b"hello"
            sender.feed(b"still talking")
            assert listener.read(-1) == b"still talking"
            assert (sender.end(), listener.end()) == (0, 0)


def test_every_byte_passes_as_it_is(access: Access) -> None:
    data = bytes(range(256)) * 3 + b"\r\n\n\r\x1a\x04\x00"
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        done = trunkline("connect", input=data, env=access("Send"))
        assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_input_from_a_file_from_nothing_and_closed(access: Access, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300_000)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        with source.open("rb") as stdin, target.open("wb") as stdout:
            with Program("connect", env=access("Send"), stdin=stdin, stdout=stdout) as sender:
                assert sender.end() == 0, sender.stderr
        assert target.read_bytes() == data
        with Program("connect", env=access("Send"), stdin=subprocess.DEVNULL) as sender:
            assert sender.read(-1) == b""
            assert sender.end() == 0, sender.stderr
        if sys.platform != "win32":
            for closed in ("<&-", "2>&-"):
                done = _in_a_shell(f'"$@" {closed}', "connect", env=access("Send"))
                assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="redirections of a POSIX shell")
@pytest.mark.parametrize(
    ("redirection", "what"),
    [
        (">&-", b"error: standard output: Bad file descriptor\n"),
        pytest.param(
            ">/dev/full",
            b"error: standard output: No space left on device\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here"),
        ),
    ],
)
def test_output_that_cannot_be_written_is_one_line(access: Access, redirection: str, what: bytes) -> None:
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        done = _in_a_shell(f'echo hello | "$@" {redirection}', "connect", env=access("Send"))
        assert done.returncode == 1
        assert done.stderr.startswith(what)
        assert len(done.stderr.splitlines()) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="redirections of a POSIX shell")
def test_reader_of_the_output_that_leaves_ends_it(access: Access) -> None:
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        done = _in_a_shell('(yes | "$@"; echo status $? >&2) | head -n 1', "connect", env=access("Send"))
        assert done.stdout == b"y\n"
        assert b"error: standard output: Broken pipe\n" in done.stderr
        assert b"status 1\n" in done.stderr
        assert b"Traceback" not in done.stderr


def test_listener_sees_headers_path_and_subprotocol(relay: RelayNodeThread, access: Access) -> None:
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        options = ("-v", "--subprotocol", "chat", "-H", "X-Room: 7", "--path", "rooms/7?since=5")
        done = trunkline("connect", *options, input=b"hello", env=access("Send"))
        assert done.returncode == 0, done.stderr
        assert b" subprotocol chat TrackingId:" in done.stderr


def test_relay_that_dies_in_the_middle_is_a_failure(tmp_path: Path) -> None:
    with relay_node_thread() as relay:
        address = ("--no-tls", "--connection-string", relay.connection_string())
        with Program("listen", *address) as listener:
            listener.wait_for("listening on")
            with Program("connect", *address) as sender:
                sender.write(b"hello")
                assert sender.read(5) == b"hello"
                relay.stop(abrupt=True)
                assert sender.end() == 1
                assert sender.stderr.startswith("error: ")
                assert "Traceback" not in sender.stderr


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signal_ends_it_in_the_middle(access: Access, number: int, status: int) -> None:
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        with Program("connect", env=access("Send")) as sender:
            sender.write(b"hello")
            assert sender.read(5) == b"hello"
            assert sender.interrupt(number) == status
            assert sender.stderr == ""


def test_refusals_name_the_remedy(relay: RelayNodeThread, access: Access, entity: str) -> None:
    assert "trunkline listen" in failure_of("connect", status=1, env=access("Send"))  # 504
    assert "'Send' claim(s)" in failure_of("connect", status=1, env=access("Listen"))  # 403
    text = relay.connection_string("nowhere", rights=["Send"])
    assert "Endpoint does not exist" in failure_of("connect", "--connection-string", text, status=1, env=access("Send"))
    key = text.partition("SharedAccessKey=")[2].partition(";")[0]
    wrong = relay.connection_string(entity, rights=["Send"]).replace(key, "d3Jvbmc=")
    said = failure_of("connect", "--connection-string", wrong, status=1, env=access("Send"))  # 401
    assert "InvalidSignature" in said and "d3Jvbmc=" not in said


def test_full_hybrid_connection_names_the_limit(relay: RelayNodeThread, access: Access, entity: str) -> None:
    relay.change_hybrid_connection(entity, max_senders=1)
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        with Program("connect", env=access("Send")) as first:
            first.write(b"hello")
            assert first.read(5) == b"hello"
            assert "max_senders" in failure_of("connect", status=1, env=access("Send"))  # 429


def test_expired_token_is_told(relay: RelayNodeThread, access: Access, entity: str) -> None:
    token = relay.token(entity, rights=["Send"], expires_in=-600)
    text = f"Endpoint=sb://{relay.host}:{relay.port}/;SharedAccessSignature={token};EntityPath={entity}"
    said = failure_of("connect", "--connection-string", text, status=1, env=access("Send"))
    assert "ExpiredToken" in said and "get a new token" in said and token not in said


def test_relay_that_cannot_be_reached_is_named(relay: RelayNodeThread, access: Access) -> None:
    nobody = "Endpoint=sb://localhost:1/;SharedAccessKeyName=a;SharedAccessKey=secret;EntityPath=b"
    said = failure_of("connect", "--connection-string", nobody, status=1)
    assert "sb://localhost:1/b cannot be reached: Connection refused" in said and "trunkline emulator" in said
    unknown = nobody.replace("localhost", "name.invalid")
    assert "sb://name.invalid:1/b cannot be reached" in failure_of("connect", "--connection-string", unknown, status=1)
    untrusted = {"TRUNKLINE_CONNECTION_STRING": access("Send")["TRUNKLINE_CONNECTION_STRING"]}
    assert "--ca FILE" in failure_of("connect", status=1, env=untrusted)
    assert "leave --no-tls out" in failure_of("connect", "--no-tls", status=1, env=untrusted)


@pytest.mark.parametrize(
    "options",
    [
        ("-H", "no colon"),
        ("-H", "a b: c"),
        ("-H", "a: b\nc: d"),
        ("-H", "Upgrade: none"),
        ("--subprotocol", "a b"),
        ("--timeout", "nan"),
        ("--timeout", "soon"),
    ],
)
def test_wrong_options_are_refused(options: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    text = "Endpoint=sb://localhost:1/;SharedAccessKeyName=a;SharedAccessKey=secret;EntityPath=b"
    wrong_usage_of("connect", "--connection-string", text, "--no-tls", *options, capsys=capsys)


def _in_a_shell(script: str, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, *arguments],
        env=environment(**env),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
    )
