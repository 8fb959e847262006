"""`trunkline expose`: a web server under an address of the relay, and what its terminal says."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.program import PATIENCE, Program, failure_of, wrong_usage_of
from trunkline.cli.expose import access_lines
from trunkline.testing import RelayNodeThread, relay_node_thread

Access = Callable[[str], dict[str, str]]


class Site(BaseHTTPRequestHandler):
    """Says hello, and waits for a word where it is asked to."""

    protocol_version = "HTTP/1.1"
    arrived = threading.Event()
    goes_on = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.arrived.set()
            self.goes_on.wait(PATIENCE)
        body = f"hello {self.path} {self.headers['Host']}".encode()
        self.send_response(404 if "none" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/last":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site(port: int = 0) -> Iterator[int]:
    """A web server in a thread; gives its port."""
    Site.arrived.clear()
    Site.goes_on.clear()
    server = ThreadingHTTPServer(("127.0.0.1", port), Site)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Sender:
    """Asks for pages, as curl does."""

    def __init__(self, relay: RelayNodeThread, entity: str) -> None:
        self._relay, self._entity = relay, entity
        self.host = f"{relay.host}:{relay.port}"

    def get(self, path: str) -> tuple[int, str]:
        url = f"https://{self.host}/{self._entity}{path}"
        token = self._relay.token(self._entity)
        request = urllib.request.Request(url, headers={"ServiceBusAuthorization": token})
        context = ssl.create_default_context(cafile=str(self._relay.ca_file))
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def sender(relay: RelayNodeThread, entity: str) -> Sender:
    return Sender(relay, entity)


def test_requests_reach_the_server_and_are_told(access: Access, sender: Sender, entity: str) -> None:
    with site() as port, Program("expose", str(port), env=access("Listen")) as expose:
        said = expose.wait_for("Ctrl-C ends")
        assert f"/{entity}/ -> http://localhost:{port}\n" in said
        assert "Senders need a token; with a connection string that has the right Send:\n  curl --cacert " in said
        assert sender.get("/a/b?secret=1") == (200, f"hello /a/b?secret=1 localhost:{port}")
        line = expose.read_line().decode()
        assert line.split()[1:3] == ["GET", "200"] and line.endswith("B  /a/b\n")
        assert sender.get("/none")[0] == 404
        assert expose.read_line().split()[1:3] == [b"GET", b"404"]
        assert expose.interrupt() == 130
        assert "Traceback" not in expose.stderr and "error" not in expose.stderr


def test_everything_is_json_for_programs(access: Access, sender: Sender, entity: str) -> None:
    with site() as port, Program("expose", f"http://127.0.0.1:{port}", "--json", env=access("Listen")) as expose:
        opened = json.loads(expose.read_line())
        assert opened["event"] == "opened" and opened["url"].endswith(f"/{entity}/")
        assert sender.get("/x")[0] == 200
        row = json.loads(expose.read_line())
        assert (row["event"], row["method"], row["path"], row["status"]) == ("request", "GET", "/x", 200)
        assert expose.interrupt(15) == 143
        assert expose.stderr == ""


def test_quiet_says_nothing(access: Access, sender: Sender, relay: RelayNodeThread, entity: str) -> None:
    with site() as port, Program("expose", str(port), "--quiet", env=access("Listen")) as expose:
        relay.until(lambda _: relay._inner.listener_count(entity) == 1, timeout=PATIENCE)
        assert sender.get("/x")[0] == 200
        assert expose.interrupt() == 130
        assert expose.stderr == "" and expose.read(-1) == b""


def test_target_that_goes_and_comes_back_is_told(access: Access, sender: Sender) -> None:
    with site() as port:
        pass
    with Program("expose", str(port), env=access("Listen")) as expose:
        down = f"target http://localhost:{port} is down: connection refused; senders get 502 until it is back"
        expose.wait_for(down)
        status, body = sender.get("/")
        assert status == 502
        error = json.loads(body)["error"]
        assert error["code"] == "TargetDown" and "start it" in error["message"] and str(port) not in body
        assert expose.read_line().decode().endswith("(target down: connection refused)\n")
        with site(port):
            expose.wait_for(f"target http://localhost:{port} is back")
            assert sender.get("/last")[0] == 200  # and no connection is kept
        assert sender.get("/")[0] == 502
        expose.wait_for(down, times=2)
        assert expose.interrupt() == 130


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_request_in_hand_is_finished_at_the_end(access: Access, sender: Sender) -> None:
    with site() as port, Program("expose", str(port), env=access("Listen")) as expose:
        expose.wait_for("Ctrl-C ends")
        answers: list[tuple[int, str]] = []
        asking = threading.Thread(target=lambda: answers.append(sender.get("/slow")))
        asking.start()
        assert Site.arrived.wait(PATIENCE)
        expose.process.send_signal(2)
        # Registered no more, and still there.
        while sender.get("/other")[0] == 200:
            pass
        Site.goes_on.set()
        asking.join(PATIENCE)
        assert answers == [(200, f"hello /slow localhost:{port}")]
        assert expose.end() == 130


def test_relay_that_went_away_and_came_back_is_told() -> None:
    with relay_node_thread() as relay, site() as port:
        address = ("--no-tls", "--connection-string", relay.connection_string())
        with Program("expose", str(port), *address) as expose:
            expose.wait_for("Ctrl-C ends")
            relay.restart()
            expose.wait_for("the relay is away, trying again: The control channel was closed")
            expose.wait_for("the relay is back")
            assert expose.interrupt() == 130


def test_host_and_path_are_as_they_are_wanted(access: Access, sender: Sender, entity: str) -> None:
    with site() as port:
        target = f"http://localhost:{port}/base"
        with Program("expose", target, "--host-header", "app.example", env=access("Listen")) as expose:
            expose.wait_for("Ctrl-C ends")
            assert sender.get("/x") == (200, "hello /base/x app.example")
            expose.interrupt()
        with Program("expose", str(port), "--preserve-host", "--keep-path", env=access("Listen")) as expose:
            expose.wait_for("Ctrl-C ends")
            assert sender.get("/x") == (200, f"hello /{entity}/x {sender.host}")
            expose.interrupt()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_terminal_shows_how_things_stand(access: Access, sender: Sender) -> None:
    import pty

    controller, terminal = pty.openpty()
    try:
        with site() as port:
            process = subprocess.Popen(
                [sys.executable, "-m", "trunkline", "expose", str(port)],
                stdin=terminal, stdout=terminal, stderr=terminal,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **access("Listen")},
            )  # fmt: skip
            try:
                text = ""
                while "Ctrl-C ends" not in text:
                    text += os.read(controller, 65_536).decode()
                assert sender.get("/page")[0] == 200
                while "1 request |" not in text:
                    text += os.read(controller, 65_536).decode()
                assert "/page" in text and "relay connected | target up" in text
                process.send_signal(2)
                assert process.wait(PATIENCE) == 130
            finally:
                process.kill()
                process.wait()
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "see trunkline expose --help"),
        (("ftp://host",), "is no address of a web server"),
        (("3000", "--json", "--quiet"), "go not together"),
        (("3000", "--preserve-host", "--host-header", "x"), "go not together"),
        (("3000",), "No connection string is given"),
    ],
)
def test_wrong_usage_says_what_to_do(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRUNKLINE_CONNECTION_STRING", raising=False)
    assert said in wrong_usage_of("expose", *arguments, capsys=capsys)


def test_authority_that_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], access: Access, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in access("Listen").items():
        monkeypatch.setenv(name, value)
    said = wrong_usage_of("expose", "https://localhost:1", "--target-ca", str(tmp_path / "none"), capsys=capsys)
    assert "cannot be read" in said


def test_relay_that_does_not_answer_is_told_at_once_and_ends_it_in_time() -> None:
    nobody = "Endpoint=sb://localhost:1/;SharedAccessKeyName=a;SharedAccessKey=secret;EntityPath=b"
    said = failure_of("expose", "3000", "--timeout", "0.5", "--connection-string", nobody, status=1)
    assert "cannot register" in said and "is not online within 0.5 s" in said and "secret" not in said


def test_listener_whose_hybrid_connection_is_deleted_fails() -> None:
    with relay_node_thread() as relay:
        with Program("expose", "3000", "--no-tls", "--connection-string", relay.connection_string()) as expose:
            expose.wait_for("Ctrl-C ends")
            relay.remove_hybrid_connection("test")
            assert expose.end() == 1
            assert expose.stderr.count("error: Endpoint does not exist") == 1


def test_relay_that_refuses_ends_it(access: Access) -> None:
    assert "'Listen' claim(s)" in failure_of("expose", "3000", status=1, env=access("Send"))


def test_listener_that_may_stand_by_says_so(access: Access, entity: str) -> None:
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        with Program("expose", "3000", env=access("Listen")) as expose:
            assert f"{entity} has 2 listeners" in expose.wait_for("Ctrl-C ends")


TOKEN = '-H "ServiceBusAuthorization: $(trunkline token)"'


@pytest.mark.parametrize(
    ("needs", "ca", "lines"),
    [
        (
            True,
            None,
            [
                "Senders need a token; with a connection string that has the right Send:",
                f"  curl {TOKEN} https://relay/myHC/",
            ],
        ),
        (
            None,
            Path("my ca.pem"),
            [
                "Senders need a token unless the hybrid connection is anonymous; with a connection string that has the"
                " right Send:",
                f"  curl --cacert 'my ca.pem' {TOKEN} https://relay/myHC/",
            ],
        ),
        (False, None, ["Anybody who reaches the relay gets in, without a token: curl https://relay/myHC/"]),
    ],
)
def test_user_is_told_how_senders_get_in(needs: bool | None, ca: Path | None, lines: list[str]) -> None:
    assert access_lines("https://relay/myHC/", needs, ca) == lines
