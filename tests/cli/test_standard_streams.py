"""Standard input and output for the event loop; as programs in test_connect."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from trunkline.cli.standard_streams import PIECE, StandardStream

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")


async def test_pieces_come_as_they_are_written() -> None:
    source, target = os.pipe()
    reading, writing = StandardStream(source), StandardStream(target)
    try:
        data = os.urandom(PIECE * 2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(writing.write(data))
            received = b""
            while len(received) < len(data):
                received += await reading.read()
        assert received == data
        assert not reading.is_terminal
    finally:
        os.close(target)
    assert await reading.read() == b""
    os.close(source)


async def test_streams_that_another_program_made_non_blocking() -> None:
    source, target = os.pipe()
    for fd in (source, target):
        os.set_blocking(fd, False)
    reading, writing = StandardStream(source), StandardStream(target)
    try:
        waiting = asyncio.ensure_future(reading.read())  # noqa: TID251
        await asyncio.sleep(0)
        data = os.urandom(300_000)  # more than a pipe holds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(writing.write(data))
            received = await waiting
            while len(received) < len(data):
                received += await reading.read()
        assert received == data
    finally:
        os.close(target)
        os.close(source)


async def test_reader_that_left_is_a_broken_pipe_with_the_name_of_the_stream() -> None:
    source, target = os.pipe()
    os.close(source)
    try:
        with pytest.raises(BrokenPipeError) as caught:
            await StandardStream(target).write(b"x")
        assert caught.value.filename == "standard output"
    finally:
        os.close(target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_full_disk_is_an_error() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left on device: 'standard output'"):
            await StandardStream(full).write(b"x")
    finally:
        os.close(full)
