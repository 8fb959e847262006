"""The public names: what users import, and that importing little loads little."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trunkline

ROOT = Path(__file__).parent.parent

PUBLIC = {
    "trunkline": ["HybridConnectionClient", "HybridConnectionListener", "__version__"],
    "trunkline.sdk": [
        "Connection",
        "ConnectionClosed",
        "EntraTokenProvider",
        "HttpRequest",
        "HttpResponse",
        "HybridConnectionClient",
        "HybridConnectionListener",
        "IncomingConnection",
        "ListenerState",
        "ProxyAuthenticationFailed",
        "ProxyCannotConnect",
        "ProxyError",
        "ProxyRefused",
        "ProxyUnreachable",
        "ResponseWriter",
        "Retry",
        "SasTokenProvider",
        "StaticToken",
        "Token",
        "TokenProvider",
    ],
    "trunkline.sdk.asgi": ["AsgiHost", "LifespanFailed", "Served", "serve"],
    "trunkline.testing": ["RelayNode", "RelayNodeThread", "relay_node", "relay_node_thread"],
}


@pytest.mark.parametrize("package", PUBLIC)
def test_package_exports_its_public_names_and_no_others(package: str) -> None:
    """A name that is added or goes is a change for users: it belongs in the changelog, and here."""
    assert sorted(importlib.import_module(package).__all__) == PUBLIC[package]


@pytest.mark.parametrize("package", PUBLIC)
def test_each_public_name_is_there_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in PUBLIC[package]:
        thing = getattr(module, name)
        if name != "__version__":
            assert inspect.getdoc(thing), name


@pytest.mark.parametrize("package", PUBLIC)
def test_each_public_method_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in PUBLIC[package]:
        kind = getattr(module, name)
        if inspect.isclass(kind):
            methods = {key: value for key, value in vars(kind).items() if not key.startswith("_") and callable(value)}
            assert [key for key, value in methods.items() if not inspect.getdoc(value)] == [], name


def test_the_two_entrances_are_those_of_the_sdk() -> None:
    from trunkline import sdk

    assert trunkline.HybridConnectionListener is sdk.HybridConnectionListener
    assert trunkline.HybridConnectionClient is sdk.HybridConnectionClient


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'HybridConnection'"):
        getattr(trunkline, "HybridConnection")  # noqa: B009


def test_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert re.fullmatch(r"\d+\.\d+\.\d+(?:[a-z]+\d+|\.dev\d+)?", trunkline.__version__)
    assert version("trunkline") == trunkline.__version__


def test_package_says_that_it_is_typed() -> None:
    assert Path(trunkline.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import trunkline", ["trunkline.sdk", "trunkline.server", "asyncio", "websockets"]),
        ("import trunkline.protocol.sas", ["trunkline.sdk", "trunkline.server", "asyncio", "websockets"]),
        ("import trunkline.sdk", ["trunkline.server", "uvloop", "httptools", "pydantic", "typer", "cryptography"]),
        ("import trunkline.pytest_plugin", ["trunkline.testing", "trunkline.server", "trunkline.sdk"]),
        ("import trunkline.cli", ["trunkline.sdk", "trunkline.server"]),
    ],
    ids=lambda value: value.removeprefix("import ") if isinstance(value, str) else "",
)
def test_import_loads_nothing_that_it_does_not_need(statement: str, unwanted: list[str]) -> None:
    program = f"import sys; {statement}; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
