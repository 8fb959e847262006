"""`python -m trunkline`."""

from __future__ import annotations

import subprocess
import sys

from trunkline import __version__


def test_module_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "trunkline", "--version"], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout.decode().split()) == (0, ["trunkline", __version__])
