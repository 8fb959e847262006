"""Standard input and output for the event loop, whatever they are.

A pipe and a terminal can be watched by a loop, a regular file cannot (epoll refuses it), and making a terminal
non-blocking would do so for every program that shares it. So each stream has a thread that blocks in its place. One
piece is under way at a time: whoever is slow slows the other down, and memory stays bounded.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import Any

from trunkline.sdk import Connection

#: Bytes read at a time; a pipe gives at most 64 KiB.
PIECE = 262_144


class StandardStream:
    """A file descriptor, read or written by a thread.

    Args:
        fd: 0 for standard input, 1 for standard output.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        # A daemon: it may be blocked in a read that nobody ever ends, and the program must be able to.
        self._thread = threading.Thread(target=self._work, name=f"trunkline-fd-{fd}", daemon=True)
        self._thread.start()

    @property
    def is_terminal(self) -> bool:
        """Whether a person sits there."""
        return os.isatty(self._fd)

    async def read(self) -> bytes:
        """The next piece; ``b""`` at the end."""
        data: bytes = await self._run(self._read)
        return data

    async def write(self, data: bytes) -> None:
        """Write everything. Raises BrokenPipeError when nobody reads it any more."""
        await self._run(lambda: self._write(data))

    async def _run(self, job: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.put((job, future))
        return await future

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._fd, PIECE)
            except BlockingIOError:  # made non-blocking by another program that has it too
                select.select([self._fd], [], [])
            except OSError as error:
                # A terminal whose session ended, or a background job that may not read it.
                if error.errno == errno.EIO:
                    return b""
                raise self._named(error) from None

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError as error:
                raise self._named(error) from None

    def _named(self, error: OSError) -> OSError:
        """The error with the name of the stream, which the system does not know; its class stays."""
        return OSError(error.errno, error.strerror, "standard output" if self._fd else "standard input")

    def _work(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                result, error = job(), None
            except BaseException as failure:
                result, error = None, failure
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop is closed: the program ends
                return


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


async def join(connection: Connection, standard_input: StandardStream, standard_output: StandardStream) -> None:
    """Relay between a connection and this program's own streams until both directions have ended.

    The end of input half-closes the connection; what the peer still sends is written. A peer that has closed leaves
    the input to be sent to its end, unless a person types it: nobody types to somebody who does not answer.

    Raises:
        ConnectionLost, ConnectionClosed: the connection ended abnormally, or the peer took not everything.
        BrokenPipeError: nobody reads standard output.
    """

    async def send() -> None:
        while data := await standard_input.read():
            connection.write(data)
            await connection.drain()
        connection.write_eof()

    async def receive() -> None:
        while data := await connection.read(PIECE):
            await standard_output.write(data)
        if standard_input.is_terminal:
            sending.cancel()

    async with asyncio.TaskGroup() as directions:
        sending = directions.create_task(send())
        directions.create_task(receive())
