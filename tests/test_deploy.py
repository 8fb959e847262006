"""The files in deploy/ are what an operator can use as they are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from trunkline.cli import COMMANDS
from trunkline.server.config.settings import SETTINGS

DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = sorted(path.name for path in DEPLOY.glob("trunkline.*"))


def unit(name: str) -> RawConfigParser:
    """A unit file; a key that stands there twice keeps its last value."""
    parser = RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / name)
    return parser


def test_there_is_a_unit_for_the_node_and_one_for_its_port() -> None:
    assert UNITS == ["trunkline.service", "trunkline.socket"]
    assert unit("trunkline.service")["Unit"]["Requires"] == "trunkline.socket"
    assert unit("trunkline.socket")["Socket"]["FileDescriptorName"] == "data"


def test_command_of_the_unit_exists_with_its_options() -> None:
    _, command, *options = shlex.split(unit("trunkline.service")["Service"]["ExecStart"])
    assert command in COMMANDS
    known = {"--config", *(setting.flag for setting in SETTINGS.values())}
    assert {option for option in options if option.startswith("--")} <= known


def test_data_folder_of_the_unit_is_the_one_that_systemd_makes() -> None:
    service = unit("trunkline.service")["Service"]
    assert f"--data /var/lib/{service['StateDirectory']}" in service["ExecStart"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for name in UNITS:
        # The program is where an operator puts it; systemd wants to see one.
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", (DEPLOY / name).read_text(), flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in UNITS)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
