"""The application that MODULE:ATTRIBUTE names, and what is said when there is none."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trunkline.cli.asgi_application import load
from trunkline.cli.failure import Failure

SOURCE = """
import functools

async def app(scope, receive, send): ...

class Application:
    async def __call__(self, scope, receive, send): ...

    def wsgi(self, environ, start_response): ...

site = Application()
part = functools.partial(lambda prefix, scope, receive, send: None, "x")

def create_app():
    return site

async def create_later():
    return site

def broken():
    return 1 / 0

def create_number():
    return 7

number = 7
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with modules; what is imported from it is forgotten again."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "web.py").write_text(SOURCE)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        ("shop.web:app", False),
        ("shop.web:site", False),
        ("shop.web:part", False),
        ("shop.web:create_app", True),
    ],
)
def test_application_is_found(folder: Path, name: str, factory: bool) -> None:
    found = load(name, factory=factory, folder=folder)
    assert callable(found)
    if factory:
        assert found is load("shop.web:site", factory=False, folder=folder)


@pytest.mark.parametrize(
    ("name", "factory", "what", "remedy"),
    [
        ("shop.web", False, "'shop.web' does not name an application", "shop.web:app"),
        (":app", False, "':app' does not name an application", "main:app"),
        ("shop/web.py:app", False, "shop/web.py:app is a file", "write shop.web:app"),
        ("main.py", False, "main.py is a file", "write main:app"),
        ("stop.web:app", False, "There is no module stop in", "--app-dir"),
        ("shop.wab:app", False, "There is no module shop.wab in", "--app-dir"),
        ("shop.web:nothing", False, "shop.web has no attribute nothing", "it has app, site"),
        ("shop:app", False, "shop has no attribute app", "define it there"),
        ("shop.web:app.inner", False, "shop.web has no attribute app.inner", "it has app, site"),
        ("shop.web:number", False, "shop.web:number is no ASGI application but a int", "the application itself"),
        ("shop.web:functools", False, "shop.web:functools is no ASGI application but a module", "itself"),
        ("shop.web:create_app", False, "shop.web:create_app takes no arguments", "add --factory"),
        ("shop.web:Application", False, "shop.web:Application takes no arguments", "--factory"),
        ("shop.web:site.wsgi", False, "looks like WSGI", "WsgiToAsgi"),
        ("shop.web:app", True, "shop.web:app is no factory", "leave --factory out"),
        ("shop.web:create_later", True, "What shop.web:create_later makes is a coroutine", "plain function"),
        ("shop.web:create_number", True, "What shop.web:create_number makes is no ASGI application", "itself"),
    ],
)
def test_wrong_name_is_wrong_usage_with_its_remedy(
    folder: Path, name: str, factory: bool, what: str, remedy: str
) -> None:
    with pytest.raises(Failure) as failed:
        load(name, factory=factory, folder=folder)
    assert what in failed.value.what
    assert remedy in failed.value.remedy
    assert failed.value.status == 2


def test_folder_that_is_none_is_wrong_usage(folder: Path) -> None:
    with pytest.raises(Failure, match="nowhere is no folder"):
        load("shop.web:app", factory=False, folder=folder / "nowhere")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import no_such_package_here", "bad needs the module no_such_package_here, which is not installed"),
        ("x = 1 / 0", "bad cannot be imported: ZeroDivisionError: division by zero (FILE, line 1)"),
        ("def f(:\n", "bad cannot be imported: SyntaxError: invalid syntax (FILE, line 1)"),
        ("import sys; sys.exit(3)", "bad cannot be imported: SystemExit: 3 (FILE, line 1)"),
    ],
)
def test_module_that_fails_says_what_and_where(folder: Path, source: str, what: str) -> None:
    file = folder / "bad.py"
    file.write_text(source)
    with pytest.raises(Failure) as failed:
        load("bad:app", factory=False, folder=folder)
    assert failed.value.what.startswith(what.replace("FILE", str(file)))
    assert failed.value.status == 1


def test_factory_that_fails_says_what_and_where(folder: Path) -> None:
    with pytest.raises(Failure, match=r"shop.web:broken failed: ZeroDivisionError: division by zero \(.*web.py, line"):
        load("shop.web:broken", factory=True, folder=folder)
