"""The command line as a program of its own: `trunkline` runs it to its end, `Program` beside the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pytest

from trunkline.cli import run

#: Seconds that a test waits for a program; it takes less than one unless something is wrong.
PATIENCE = 30.0

COMMAND = (sys.executable, "-m", "trunkline")


def environment(**extra: str) -> dict[str, str]:
    """The environment without what the caller of the tests has set for programs of his own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    # What is looked for in the log is written for people.
    return {**kept, "COLUMNS": "80", "TRUNKLINE_LOG_FORMAT": "text", **extra}


def trunkline(
    *arguments: str, input: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end. `env` is added to `environment`."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=input,
        capture_output=True,
        env=environment(**(env or {})),
        cwd=cwd,
        timeout=PATIENCE * 2,
    )


def failure_of(*arguments: str, status: int, env: Mapping[str, str] | None = None) -> str:
    """What a command that must fail says on stderr: one line, at most one more with the remedy, no traceback."""
    done = trunkline(*arguments, env=env)
    return _checked(done.returncode, done.stdout.decode(), done.stderr.decode(), status)


def wrong_usage_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The same for a command that ends with 2 before it does anything: in this process, which takes less time."""
    status = run(arguments)
    return _checked(status, *capsys.readouterr(), 2)


def _checked(status: int, output: str, text: str, expected: int) -> str:
    assert status == expected, text
    assert output == ""
    assert "Traceback" not in text and "must not happen" not in text
    lines = text.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert all(line.startswith("remedy: ") for line in lines[lines.index(errors[0]) + 1 :])
    return text


class Program:
    """A command that runs beside the test, and is killed at the end of its block if it still does."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.PIPE,
        stdout: int | IO[bytes] = subprocess.PIPE,
    ) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment(**(env or {})),
        )
        self._news = threading.Condition()
        self._stderr = ""
        self._stderr_ended = False
        self._reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # what was not read before the end
                    pass

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._stderr

    def wait_for(self, text: str, *, times: int = 1) -> str:
        """Wait until stderr holds `text`; gives everything that was said."""
        with self._news:
            found = self._news.wait_for(lambda: self._stderr.count(text) >= times or self._stderr_ended, PATIENCE)
        assert found and self._stderr.count(text) >= times, f"{text!r} is not in:\n{self._stderr}"
        return self._stderr

    def write(self, data: bytes) -> None:
        """Give it input."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def read(self, size: int) -> bytes:
        """Take exactly so much of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def read_line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def interrupt(self, number: int = signal.SIGINT) -> int:
        """Send a signal and give the exit status."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """Wait for the end and give the exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def finish(self, input: bytes = b"") -> bytes:
        """Give it `input`, end that, and give all its output; it must succeed."""
        threading.Thread(target=self.feed, args=(input,), daemon=True).start()
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        assert self.end() == 0, self._stderr
        return output

    def feed(self, data: bytes) -> None:
        """Give it `data` and end its input."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._stderr += line.decode(errors="replace")
                self._news.notify_all()
        with self._news:
            self._stderr_ended = True
            self._news.notify_all()
