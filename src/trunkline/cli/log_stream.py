"""The standard error of a program that must never wait for whoever reads its log.

A pipe whose reader stands still takes 64 KiB; the next line would stop the event loop, and with it every connection of
a node. So a thread writes, and what it cannot write in time is lost and counted. Nor does the node end when there is no
reader any more, no room on the disk, or no standard error at all.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import TextIO, cast

#: Bytes of the log that wait to be written; some thousands of lines.
MOST_WAITING = 1_048_576
#: Seconds that the end of the program waits for what is left.
PATIENCE = 1.0


class LogStream:
    """A text stream over a file descriptor, whose `write` returns at once.

    Args:
        fd: where the text goes.
        encoding: of the text there.
        lost: called, in the thread that writes, with the number of texts that were lost until one could be written.
        most_waiting: bytes that wait, at most.
    """

    def __init__(
        self, fd: int, encoding: str, lost: Callable[[int], object], *, most_waiting: int = MOST_WAITING
    ) -> None:
        self._fd = fd
        self._encoding = encoding
        self._tell_lost = lost
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._size = 0
        # Texts that nobody will read.
        self._lost = 0
        # The thread holds a piece.
        self._writing = False
        # A daemon: it may hang in a write for ever, and the program must be able to end.
        threading.Thread(target=self._work, name="trunkline-log", daemon=True).start()

    def __repr__(self) -> str:
        return f"<LogStream fd={self._fd} waiting={self._size} lost={self._lost}>"

    def isatty(self) -> bool:
        """Whether a person sits there."""
        return os.isatty(self._fd)

    def write(self, text: str) -> int:
        """Take `text` to be written soon, or lose it when too much waits already."""
        data = text.encode(self._encoding, "backslashreplace")
        with self._changed:
            if self._size + len(data) > self._most_waiting:
                self._lost += 1
            else:
                self._waiting.append(data)
                self._size += len(data)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing: nobody waits."""

    def finish(self, within: float = PATIENCE) -> None:
        """Wait until everything is written, at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writing, within)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                texts, self._waiting, self._size = self._waiting, [], 0
                self._writing = True
            written = self._write_all(b"".join(texts))
            with self._changed:
                lost, self._lost = (self._lost, 0) if written else (0, self._lost + len(texts))
            if lost:
                self._tell_lost(lost)

    def _write_all(self, data: bytes) -> bool:
        """False when there is no reader, no room, or nothing to write to."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # made non-blocking by another program that has it too
                select.select([], [self._fd], [])
            except OSError:
                return False
        return True


def patient(stream: TextIO | None, lost: Callable[[int], object]) -> TextIO:
    """`stream` as a `LogStream`; as it is where it has no descriptor, and a place for nothing instead of None."""
    if stream is None:  # the program was started without one (2>&-)
        return open(os.devnull, "w")
    try:
        fd = stream.fileno()
    except (OSError, ValueError):
        return stream
    return cast(TextIO, LogStream(fd, stream.encoding or "utf-8", lost))
