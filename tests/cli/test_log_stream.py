"""The log of a node on a standard error that is slow, full, closed, or was never there."""

from __future__ import annotations

import io
import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trunkline.cli.log_stream import LogStream, patient


def nothing_is_lost(count: int) -> None:
    raise AssertionError(f"{count} lines were lost")


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends; those that are closed already stay so."""
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        for end in (reading, writing):
            try:
                os.close(end)
            except OSError:
                pass


def read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


def test_what_is_written_arrives_whole_and_in_order() -> None:
    with pipe() as (reading, writing):
        stream = LogStream(writing, "utf-8", nothing_is_lost)
        lines = [f"line {number} — \udc80\n" for number in range(1_000)]
        for line in lines:
            assert stream.write(line) == len(line)
            stream.flush()
        expected = "".join(lines).encode("utf-8", "backslashreplace")
        assert read(reading, len(expected)) == expected
        stream.finish()
        assert repr(stream) == f"<LogStream fd={writing} waiting=0 lost=0>"


def test_reader_that_stands_still_holds_nobody_up_and_is_told_what_it_missed() -> None:
    with pipe() as (reading, writing):
        missed: queue.Queue[int] = queue.Queue()
        stream = LogStream(writing, "utf-8", missed.put, most_waiting=100_000)
        line = "x" * 999 + "\n"
        for _ in range(1_000):
            stream.write(line)
        stream.finish(within=0.01)
        # A pipe holds 64 KiB, the thread what it was given first, and at most 100,000 bytes wait.
        kept = 1_000 - stream._lost
        assert 100 <= kept <= 300
        assert read(reading, kept * 1_000) == line.encode() * kept
        assert missed.get(timeout=5) == 1_000 - kept
        stream.write("and on\n")
        assert read(reading, 7) == b"and on\n"


def test_reader_that_is_gone_is_no_error() -> None:
    with pipe() as (reading, writing):
        os.close(reading)
        stream = LogStream(writing, "utf-8", nothing_is_lost)
        stream.write("is anybody there?\n")
        stream.finish()
        stream.write("nobody\n")
        stream.finish()
        assert stream._lost == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_full_disk_is_no_error_and_ends() -> None:
    with pipe() as (reading, writing):
        full, there = os.open("/dev/full", os.O_WRONLY), os.dup(writing)
        missed: queue.Queue[int] = queue.Queue()
        os.dup2(full, writing)
        stream = LogStream(writing, "utf-8", missed.put)
        stream.write("no room\n")
        stream.finish()
        os.dup2(there, writing)  # somebody has made room
        stream.write("room\n")
        assert read(reading, 5) == b"room\n"
        assert missed.get(timeout=5) == 1
        os.close(full)
        os.close(there)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes as Unix has them")
def test_descriptor_that_others_have_made_non_blocking_loses_nothing() -> None:
    with pipe() as (reading, writing):
        os.set_blocking(writing, False)
        stream = LogStream(writing, "utf-8", nothing_is_lost)
        stream.write("x" * 300_000)
        assert read(reading, 300_000) == b"x" * 300_000


def test_stream_without_a_descriptor_stays_what_it_is_and_none_takes_everything() -> None:
    memory = io.StringIO()
    assert patient(memory, nothing_is_lost) is memory
    nothing = patient(None, nothing_is_lost)
    nothing.write("said to nobody")
    nothing.close()
    with open(os.devnull, "w") as there:
        assert isinstance(patient(there, nothing_is_lost), LogStream)
        assert not patient(there, nothing_is_lost).isatty()
