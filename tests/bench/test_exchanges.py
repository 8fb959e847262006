"""The load of HTTP requests: it sees what is wrong in whatever pieces it comes, and counts from when it was due."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from benchmarks.exchanges import Request, Result, Sender, chunks, constant, saturate, senders
from hypothesis import given
from hypothesis import strategies as st

from bench.test_load import NothingMeasured

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\ny\r\n2;a=b\r\nes\r\n0\r\n\r\n"
REQUEST = Request.of("get", "GET", "/", b"", b"yes")


@contextlib.contextmanager
def answering(*answers: Sequence[bytes]) -> Iterator[int]:
    """A server that gives each request the next of the answers, and the last one from then on, in its pieces."""
    left = list(answers)
    threads = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65_536):
                assert data.endswith(b"\r\n\r\n") and data.count(b"GET / ") == 1
                for piece in left.pop(0) if len(left) > 1 else left[0]:
                    connection.sendall(piece)
                    if not piece:
                        return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=(listening.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
    for thread in threads:
        thread.join()


def asked(*answers: Sequence[bytes]) -> Result:
    with answering(*answers) as port, senders(port, None, 2) as made:
        return saturate(made, REQUEST, NothingMeasured(), 0, fewest=10)


@pytest.mark.parametrize("pieces", [[GOOD], [GOOD[:9], GOOD[9:-2], GOOD[-2:]], [CHUNKED], [CHUNKED[:-9], CHUNKED[-9:]]])
def test_whole_answers_are_counted(pieces: list[bytes]) -> None:
    result = asked(pieces)

    assert not result.errors and len(result.times) == 10
    assert result.per_second == pytest.approx(len(result.times) / result.took)
    assert 0 < result.at(0.5) <= result.at(1.0) < 1
    assert result.share is None


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ([GOOD.replace(b"200", b"502")], "502"),
        ([GOOD.replace(b"yes", b"yet")], "another body"),
        ([GOOD + b"more"], "another body"),
        ([GOOD[:-1], b""], "connection lost (ConnectionError)"),
    ],
)
def test_one_answer_that_is_wrong_is_an_error_and_the_next_is_not(answer: list[bytes], what: str) -> None:
    result = asked([GOOD], answer, [GOOD])

    assert dict(result.errors) == {what: 1}
    assert len(result.times) == 10


def test_answer_without_a_length_is_refused() -> None:
    with pytest.raises(AssertionError, match="no length"):
        asked([b"HTTP/1.1 200 OK\r\n\r\nyes"])


def test_requests_at_a_constant_rate_are_all_sent() -> None:
    with answering([GOOD]) as port, senders(port, None, 3) as made:
        result = constant(made, REQUEST, NothingMeasured(), 200, 0.2)

    assert len(result.times) == 40 and not result.errors
    # The last one was due then.
    assert result.took >= 39 / 200


def test_request_that_waits_for_a_connection_counts_from_when_it_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Sender):
        def read(self) -> str | None:
            time.sleep(0.02)
            return super().read()

    with answering([GOOD]) as port, senders(port, None, 1) as made:
        made[0].__class__ = Slow
        result = constant(made, REQUEST, NothingMeasured(), 1_000, 0.01)

    # The tenth was due after 9 ms and waited for nine others of 20 ms.
    assert len(result.times) == 10
    assert result.at(1.0) >= 10 * 0.02 - 0.009


@given(st.lists(st.binary(min_size=1, max_size=300)))
def test_chunked_body_is_put_together(pieces: list[bytes]) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"

    assert list(chunks(data)) == pieces


def test_post_carries_its_body_and_its_headers() -> None:
    request = Request.of("post", "POST", "/a", b"body", b"", "Token: t")

    head, _, body = request.data.partition(b"\r\n\r\n")
    assert body == b"body"
    assert {b"Host: localhost", b"Token: t", b"Content-Length: 4"} <= set(head.split(b"\r\n")[1:])
