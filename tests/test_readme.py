"""What the README has people type about `trunkline expose`, typed: in shells, against the emulator, with curl."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.program import environment
from required_program import required

README = Path(__file__).parent.parent / "README.md"

#: Seconds for one command of a person.
PATIENCE = 40


def shown(after: str) -> tuple[list[str], list[str]]:
    """What is typed, and what is printed, in the first console block behind some words of the README."""
    text = README.read_text(encoding="utf-8")
    found = re.search(r"^```console\n(.*?)^```$", text[text.index(after) :], re.MULTILINE | re.DOTALL)
    assert found is not None
    lines = found[1].splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")], [line for line in lines if line[:2] != "$ "]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Terminal:
    """A shell in the folder of the tour, where `trunkline` and `python` are those of the tests."""

    def __init__(self, folder: Path, path: str, renumbered: Callable[[str], str]) -> None:
        self._folder, self._renumbered = folder, renumbered
        self._env = environment(PATH=path)
        self._before: list[str] = []

    def exports(self, commands: list[str]) -> None:
        """What was typed here to set variables."""
        self._before += [command for command in commands if command.startswith("export ")]

    def type(self, commands: list[str]) -> str:
        """Everything that these print."""
        done = subprocess.run(
            self._script(commands), cwd=self._folder, env=self._env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def typing(self, commands: list[str]) -> Iterator[subprocess.Popen[str]]:
        """These, of which the last goes on until the end of the block; with its output, both streams as one."""
        process = subprocess.Popen(
            self._script(commands), cwd=self._folder, env=self._env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=PATIENCE)

    def _script(self, commands: list[str]) -> list[str]:
        return ["bash", "-c", self._renumbered("\n".join((*self._before, *commands)))]


@pytest.mark.skipif(sys.platform == "win32", reason="shells of POSIX")
def test_exposing_a_web_server_is_as_the_readme_shows_it(tmp_path: Path) -> None:
    required(shutil.which("curl"), "curl is needed, from the system")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, rest in (("trunkline", " -m trunkline"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{rest} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    relay_port, site_port = str(free_port()), str(free_port())

    def renumbered(text: str) -> str:
        # A connection string out of a folder is for the usual port, unless it is told another one.
        text = text.replace("--data relay --entity", "--data relay --endpoint sb://localhost:8443/ --entity")
        return text.replace("8443", relay_port).replace("3000", site_port)

    folder = tmp_path / "tour"
    folder.mkdir()
    first, second, third = (Terminal(folder, path, renumbered) for _ in range(3))
    second.exports(shown("Terminal 2, same folder")[0])
    third.exports(shown("Terminal 3, same folder")[0])
    exposing, told = shown("Terminal 2, after Ctrl-C")
    asking, answered = shown("Terminal 3, as it is told to")

    emulator = f"exec trunkline emulator --data relay --port 8443 --admin-port {free_port()}"
    with first.typing([emulator]) as relay:
        assert relay.stdout is not None
        while not relay.stdout.readline().startswith("The emulator is ready"):
            pass
        with second.typing(exposing) as expose:
            assert expose.stdout is not None
            for line in told[:-1]:
                assert expose.stdout.readline() == renumbered(line + "\n")
            assert third.type(asking) == "".join(f"{line}\n" for line in answered)
            seen, expected = expose.stdout.readline().split(), told[-1].split()
            took = expected.index("ms") - 1
            assert seen[1:took] + seen[took + 1 :] == expected[1:took] + expected[took + 1 :]


def test_the_readme_tells_what_to_type_as_the_command_does() -> None:
    """The line that `trunkline expose` prints is the one that the README then types."""
    _, told = shown("Terminal 2, after Ctrl-C")
    asking, _ = shown("Terminal 3, as it is told to")
    assert told[2].strip() == asking[0]
