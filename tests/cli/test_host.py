"""`trunkline host`: an application behind a hybrid connection, its life with the relay, and its new code."""

from __future__ import annotations

import os
import signal
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.program import Program, failure_of, wrong_usage_of
from trunkline.testing import RelayNodeThread

Access = Callable[[str], dict[str, str]]

SOURCE = """
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

WORDS = "first"

async def home(request: Request):
    return PlainTextResponse(f"{WORDS} {request.url_for('home').path}")

async def fails(request: Request):
    raise RuntimeError("on purpose")

routes = [Route("/", home, name="home"), Route("/fails", fails)]

def create_app():
    return Starlette(routes=routes)

app = create_app()
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with the module `shop`."""
    (tmp_path / "shop.py").write_text(SOURCE)
    return tmp_path


@pytest.fixture
def get(relay: RelayNodeThread, entity: str) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Asks the hosted application for a path; gives status and body."""
    context = ssl.create_default_context(cafile=relay.ca_file)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def ask(path: str) -> tuple[int, str]:
        token = relay.token(entity, rights=["Send"])
        request = urllib.request.Request(
            f"{relay.url}/{entity}{path}", headers={"ServiceBusAuthorization": token, "User-Agent": "test"}
        )
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    yield ask
    opener.close()


Get = Callable[[str], tuple[int, str]]


def hosting(shop: Path, access: Access, *options: str) -> Program:
    return Program("host", "--app-dir", str(shop), *options, env=access("Listen"))


def test_host_serves_and_says_where(shop: Path, access: Access, get: Get, relay: RelayNodeThread, entity: str) -> None:
    with hosting(shop, access, "shop:app") as host:
        said = host.wait_for("Ctrl-C ends")
        assert f"serving shop:app on {relay.url}/{entity}/; Ctrl-C ends" in said
        host.wait_for(f'-H "ServiceBusAuthorization: $(trunkline token)" {relay.url}/{entity}/')
        assert get("") == (200, f"first /{entity}/")
        assert get("/nothing")[0] == 404
        assert host.interrupt() == 130
        assert "Traceback" not in host.stderr


def test_factory_root_path_and_one_line_for_each_request(shop: Path, access: Access, get: Get, entity: str) -> None:
    options = ("--factory", "shop:create_app", "--root-path", "/api/", "--access-log", "--hybrid-connection", entity)
    with hosting(shop, access, *options) as host:
        host.wait_for("serving")
        assert get("/") == (200, "first /api/")
        assert get("/fails?token=secret")[0] == 500
        # The time, and then without the milliseconds.
        lines = [host.read_line().decode().split()[1:] for _ in range(2)]
        assert [[*line[:2], *line[3:]] for line in lines] == [
            ["GET", "200", "ms", "11", "B", "/api/"],
            ["GET", "500", "ms", "21", "B", "/api/fails"],
        ]
        host.wait_for("RuntimeError: on purpose")


def test_application_logs_as_it_likes_and_finds_the_event_loop(tmp_path: Path, access: Access, get: Get) -> None:
    (tmp_path / "logs.py").write_text(
        "import asyncio, logging\n"
        "logging.basicConfig(level=logging.INFO, format='app: %(message)s')\n"
        "loop = asyncio.get_running_loop()\n"
        "async def app(scope, receive, send):\n"
        "    logging.info('%s', scope['type'])\n"
        "    raise RuntimeError('on purpose')\n"
    )
    with hosting(tmp_path, access, "logs:app") as host:
        assert "app: lifespan" in host.wait_for("serving")
        assert get("/")[0] == 500
        said = host.wait_for("RuntimeError: on purpose")
        assert "app: http" in said
        assert said.count("the application failed") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_sigterm_ends_the_host_and_the_application(tmp_path: Path, access: Access) -> None:
    (tmp_path / "lives.py").write_text(
        "async def app(scope, receive, send):\n"
        "    assert scope['type'] == 'lifespan'\n"
        "    for phase in ('startup', 'shutdown'):\n"
        "        await receive()\n"
        "        print(phase, flush=True)\n"
        "        await send({'type': f'lifespan.{phase}.complete'})\n"
    )
    with hosting(tmp_path, access, "lives:app", "--quiet") as host:
        assert host.read_line() == b"startup\n"
        assert host.interrupt(signal.SIGTERM) == 143
        assert host.stderr == ""
        assert host.read_line() == b"shutdown\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("host", "shop"), "'shop' does not name an application"),
        (("host", "nowhere:app"), "There is no module nowhere"),
        (("host", "json:dumps2"), "json has no attribute dumps2"),
        (("host", "json:dumps"), "json:dumps is no ASGI 3 application"),
        (("host", "json:loads", "--reload-dir", "."), "--reload-dir is given without --reload"),
        (("host", "json:loads", "--reload", "--app-dir", "/nowhere"), "/nowhere is no folder"),
        (("host",), "Missing argument 'MODULE:ATTRIBUTE'"),
    ],
)
def test_wrong_usage_has_a_remedy(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    nobody = "Endpoint=sb://localhost:1/;SharedAccessKeyName=a;SharedAccessKey=secret;EntityPath=b"
    said = wrong_usage_of(*arguments, *(("--connection-string", nobody) if len(arguments) > 1 else ()), capsys=capsys)
    assert words in said
    assert "remedy: " in said and "secret" not in said


def test_application_that_cannot_start_ends_the_host(tmp_path: Path, access: Access) -> None:
    (tmp_path / "broken.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'the database is away'})\n"
    )
    said = failure_of("host", "broken:app", "--app-dir", str(tmp_path), status=1, env=access("Listen"))
    assert "error: The application failed to start: the database is away" in said


def test_relay_that_is_not_there_is_named(shop: Path) -> None:
    nobody = "Endpoint=sb://localhost:1/;SharedAccessKeyName=a;SharedAccessKey=secret;EntityPath=b"
    env = {"TRUNKLINE_CONNECTION_STRING": nobody}
    said = failure_of("host", "shop:app", "--app-dir", str(shop), "--timeout", "0.2", status=1, env=env)
    assert "localhost:1/b is not online within 0.2 s" in said and "remedy: " in said and "secret" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_changed_code_is_served_after_a_reload(shop: Path, access: Access, get: Get) -> None:
    with hosting(shop, access, "shop:app", "--reload") as host:
        host.wait_for("serving shop:app")
        assert get("/")[1].startswith("first ")
        replace(shop / "shop.py", SOURCE.replace("first", "second"))
        host.wait_for("shop.py changed: starting again")
        host.wait_for("serving shop:app", times=2)
        assert get("/")[1].startswith("second ")
        assert host.interrupt() == 130
        assert "Traceback" not in host.stderr


def replace(file: Path, text: str) -> None:
    """Write it as an editor does: at once."""
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


def test_no_key_is_in_the_arguments_of_the_reloaded_process(shop: Path, access: Access, monkeypatch: Any) -> None:
    from trunkline.cli import host

    started: list[Any] = []

    async def run_again_on_change(command: list[str], *_: Any, env: dict[str, str]) -> None:
        started.append((command, env["TRUNKLINE_CONNECTION_STRING"]))

    monkeypatch.setattr(host, "run_again_on_change", run_again_on_change)
    text = access("Listen")["TRUNKLINE_CONNECTION_STRING"]
    host.command("shop:app", connection_string=text, app_dir=shop, reload=True)
    [(command, given)] = started
    assert "SharedAccessKey" not in " ".join(command) and "SharedAccessKey=" in given
