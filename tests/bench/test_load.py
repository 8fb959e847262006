"""The load notices when something other than what was sent comes out, and counts what arrives."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.load import Sizes, check_content, round_trip, throughput
from benchmarks.pairs import FRAME_LIMIT, Pair, encode
from benchmarks.processes import Measured
from benchmarks.report import BEGIN, END
from benchmarks.streams import Stream

ROOT = Path(__file__).parents[2]

Change = Callable[[bytes], bytes]


class NothingMeasured(Measured):
    """In place of a process."""

    def __init__(self) -> None:
        pass

    def cpu(self) -> float | None:
        return None


def _joined() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        return here, server.accept()[0]


@contextlib.contextmanager
def through(change: Change) -> Iterator[Callable[[], Pair]]:
    """Makes pairs with threads in between that change what passes."""
    threads = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(262_144):
                target.sendall(change(data))
            target.shutdown(socket.SHUT_RDWR)

    def make() -> Pair:
        (sender, left), (right, listener) = _joined(), _joined()
        for ends in ((left, right), (right, left)):
            threads.append(threading.Thread(target=pump, args=ends))
            threads[-1].start()
        return Pair(Stream(sender, None), Stream(listener, None), masked=True)

    yield make
    for thread in threads:
        thread.join()


class Flip:
    """Flips one bit of the byte at a position of the whole stream."""

    def __init__(self, position: int) -> None:
        self._left = position

    def __call__(self, data: bytes) -> bytes:
        position, self._left = self._left, self._left - len(data)
        if not 0 <= position < len(data):
            return data
        return data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]


def test_content_check_passes_what_is_untouched() -> None:
    with through(lambda data: data) as make:
        assert check_content(make, connections=1) == 9


# In the payload of the second message, of 1 byte behind a head of 6, and far behind in that of 200,000.
@pytest.mark.parametrize("position", [6 + 6, 300_000])
def test_content_check_notices_one_bit(position: int) -> None:
    with through(Flip(position)) as make, pytest.raises(AssertionError, match="came out changed"):
        check_content(make, connections=1)


def test_content_check_notices_a_message_that_ends_elsewhere() -> None:
    # The FIN bit of the second message: it would go on.
    def without_fin(data: bytes) -> bytes:
        return data.replace(b"\x82\x81", b"\x02\x81")

    with through(without_fin) as make, pytest.raises(AssertionError, match="another end"):
        check_content(make, connections=1)


def test_stream_of_messages_is_counted_as_it_arrives() -> None:
    with through(lambda data: data) as make:
        result = throughput(make, NothingMeasured(), Sizes.mixed(), 2, 0.05)

    average = sum(Sizes.mixed().sizes) / len(Sizes.mixed().sizes)
    assert result.bytes_per_second / result.messages_per_second == pytest.approx(average)
    assert result.bytes_per_second > 0
    assert result.cpu_per_gb is None and not result.load_is_the_limit


def test_round_trip_goes_both_ways() -> None:
    with through(lambda data: data) as make:
        assert 0 < round_trip(make, 64, 20) < 10


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, FRAME_LIMIT, FRAME_LIMIT + 1, 3 * FRAME_LIMIT])
def test_size_on_arrival_is_that_of_the_frames(size: int) -> None:
    with through(lambda data: data) as make:
        pair = make()
        pair.sender.send(encode(os.urandom(size)))
        assert len(pair.listener.receive_exactly(pair.arrives(size))) == len(encode(bytes(size)))
        pair.close()


@pytest.mark.slow
def test_bench_measures_each_kind_of_case(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n{BEGIN}\n{END}\n")
    cases = "--only 64KiB+1,rtt+plain,connects+plain,memory+plain,idle --against forwarder,haproxy"
    sizes = "--pairs 1 --seconds 0.05 --many 5 --channels 9 --ping-interval 1"
    arguments = (*cases.split(), *sizes.split())

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments, "--write", page], cwd=ROOT, timeout=100, check=True
    )

    assert done.returncode == 0
    text = page.read_text()
    for title in ("What must hold", "Throughput, without TLS", "Throughput, TLS", "Round trip", "set up", "Memory"):
        assert title in text


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_bench_measures_each_kind_of_request(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n{BEGIN}\n{END}\n")
    cases = "--only http+get+1,http+get+tls,http+constant,http+parallel"
    arguments = f"{cases} --pairs 1 --seconds 0.05 --minute 0.5".split()

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments, "--write", page], cwd=ROOT, timeout=180, check=True
    )

    assert done.returncode == 0
    text = page.read_text()
    for title in (
        "What must hold",
        "HTTP requests, without TLS",
        "HTTP requests, TLS",
        "that a cloud calls",
        "parallel",
    ):
        assert title in text
    for route in ("bare", "handler", "asgi", "uvicorn", "origin"):
        assert f"| {route} |" in text
