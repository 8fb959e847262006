"""A listener and a sender that are connected through the relay of the tests, and a terminal to look at them."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.program import PATIENCE, Program
from trunkline.testing import RelayNodeThread

try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows; the tests that need a terminal say so
    pass


@dataclass
class Connected:
    """An echo on `entity`, and a sender that has said hello to it."""

    entity: str
    listener: Program
    sender: Program


@contextmanager
def connected(relay: RelayNodeThread, entity: str) -> Iterator[Connected]:
    environment = {
        "TRUNKLINE_CONNECTION_STRING": relay.connection_string(entity),
        "TRUNKLINE_CA_FILE": str(relay.ca_file),
    }
    with Program("listen", env=environment) as listener:
        listener.wait_for("listening on")
        with Program("connect", env=environment) as sender:
            sender.write(b"hello")
            assert sender.read(5) == b"hello"
            yield Connected(entity, listener, sender)


def data_of(relay: RelayNodeThread) -> tuple[str, str]:
    """The option that names the data folder of the relay."""
    assert relay.ca_file is not None
    return "--data", str(relay.ca_file.parent)


def token_file_of(relay: RelayNodeThread) -> Path:
    return Path(data_of(relay)[1]) / "admin-token"


class Terminal:
    """A terminal for the output of a program.

    Args:
        columns, rows: its size.
    """

    def __init__(self, columns: int = 100, rows: int = 24) -> None:
        self._ours, self.fd = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._ours)
        os.close(self.fd)

    def wait_for(self, text: str, *, times: int = 1) -> str:
        """Everything that was written, when it holds `text`."""
        deadline = time.monotonic() + PATIENCE
        while self.text.count(text) < times:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not in:\n{self.text}"
            self.text += os.read(self._ours, 65_536).decode()
        return self.text
