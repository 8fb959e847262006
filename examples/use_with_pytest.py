"""The plugin of pytest gives a relay to each test: `pytest examples/use_with_pytest.py`."""

import subprocess
import sys

import pytest

from trunkline.testing import RelayNodeThread

COMMAND = [sys.executable, "-m", "trunkline"]


def test_sender_is_told_that_nobody_listens(trunkline_node: RelayNodeThread) -> None:
    address = ["--no-tls", "--connection-string", trunkline_node.connection_string(rights=["Send"])]
    done = subprocess.run([*COMMAND, "connect", *address], capture_output=True, input=b"hello", timeout=30)
    assert done.returncode == 1
    assert b"no listeners connected" in done.stderr


@pytest.mark.trunkline({"orders": {"max_senders": 2}}, tls=True)
def test_node_as_the_mark_says(trunkline_node: RelayNodeThread) -> None:
    assert trunkline_node.url.startswith("https://")
    assert "EntityPath=orders" in trunkline_node.connection_string()
