"""The plugin in a run of pytest of its own, as its users have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

def test_node(trunkline_node):
    assert "EntityPath=test" in trunkline_node.connection_string()

@pytest.mark.trunkline({"orders": {"max_senders": 2}}, tls=True)
def test_node_of_the_mark(trunkline_node):
    assert trunkline_node.url.startswith("https://") and trunkline_node.entity == "orders"

def test_two_nodes(trunkline_node_factory):
    here, there = trunkline_node_factory(), trunkline_node_factory("orders", preset="azure")
    assert here.port != there.port and there.entity == "orders"
    last.append(there)

last = []

def test_nodes_of_other_tests_are_gone():
    with pytest.raises(RuntimeError):
        last[0].counts()

async def test_plugin_leaves_async_tests_alone(): ...
"""


def test_fixtures_and_mark(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers", "--deselect"]
    command += ["test_theirs.py::test_plugin_leaves_async_tests_alone", "-W", "error", f"--rootdir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=50)
    assert done.returncode == 0, done.stdout.decode()
    assert b"4 passed, 1 deselected" in done.stdout
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--markers"], cwd=tmp_path, capture_output=True, timeout=50
    ).stdout
    assert b"@pytest.mark.trunkline(hybrid_connections, *, tls=False, ...)" in listed


def test_nothing_is_imported_until_a_test_asks_for_a_node(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(
        "import sys\ndef test_lean(): assert 'trunkline.server.node' not in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=50)
    assert done.returncode == 0, done.stdout.decode()
