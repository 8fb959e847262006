"""The body of an HTTP/1.1 request: which one a head announces, and its bytes out of what comes behind the head.

    announced_length(headers, version)   0: none    n: Content-Length    None: chunked    or it is refused
    decoder(length).decode(data)         -> (bytes of the body, what is behind it)

Rules from RFC 9112 sections 6 and 7.1, read strictly: wherever the standard lets a recipient guess, the request is
refused, because two recipients that guess differently disagree where it ends, and the rest of one is then a request to
the other (section 11.2). Chunk extensions and trailers are read within limits and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

from trunkline.protocol.errors import HeadersTooLarge, InvalidRequest, UnsupportedRequest

#: Digits of a Content-Length, and hexadecimal ones of the size of a chunk: more than any body has, and few enough for
#: every recipient's integers.
LENGTH_DIGITS, SIZE_DIGITS = 18, 15
#: Bytes of the line in which the size of a chunk stands, with its extension and line end.
CHUNK_LINE_LIMIT = 256
#: Bytes of all chunk extensions of one body.
EXTENSIONS_LIMIT = 8_192
#: Bytes of all trailers of one body.
TRAILERS_LIMIT = 8_192
#: Chunks that one call decodes: so many of one byte take about 2 ms.
CHUNKS_AT_ONCE = 2_048

_DIGITS = re.compile(r"[0-9]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Without whitespace around the semicolon: a sender must not write it (RFC 9112 section 7.1.1), and recipients differ.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,%d})(;[\t\x20-\x7e\x80-\xff]*)?\r\n" % SIZE_DIGITS)
_SIZE_LINE_BEGINS = re.compile(rb"([0-9A-Fa-f]{1,%d}(;[\t\x20-\x7e\x80-\xff]*)?\r?)?" % SIZE_DIGITS)
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_LINE_BEGINS = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\r?")


def announced_length(headers: Iterable[tuple[str, str]], version: str = "1.1") -> int | None:
    """Bytes of the body that a request has by its headers; None: it is chunked, and its length is not known.

    Args:
        headers: names in any case and values, without the spaces around them.
        version: of the protocol, "1.1" or "1.0".

    Raises:
        InvalidRequest: there is no saying where the request ends (RFC 9112 section 6.3).
        UnsupportedRequest: a transfer coding other than chunked (section 6.1).
    """
    length: str | None = None
    codings: str | None = None
    for name, value in headers:
        lower = name.lower()
        if lower == "content-length":
            if length is not None:
                raise InvalidRequest("The request has several Content-Length headers")
            length = value
        elif lower == "transfer-encoding":
            codings = value if codings is None else f"{codings},{value}"
    if codings is not None:
        if length is not None:
            raise InvalidRequest("The request has both Content-Length and Transfer-Encoding")
        if version == "1.0":
            raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding")
        _check_codings([coding.strip(" \t").lower() for coding in codings.split(",")])
        return None
    if length is None:
        return 0
    if _DIGITS.fullmatch(length) is None or len(length) > LENGTH_DIGITS:
        raise InvalidRequest("The Content-Length is no number of bytes")
    return int(length)


def _check_codings(codings: list[str]) -> None:
    if codings == ["chunked"]:
        return
    others, last = codings[:-1], codings[-1]
    if last != "chunked" or "chunked" in others or not all(map(_TOKEN.fullmatch, others)):
        raise InvalidRequest("The Transfer-Encoding of a request is chunked, and that once")
    raise UnsupportedRequest("No Transfer-Encoding but chunked is known here")


class BodyDecoder(Protocol):
    """Takes the bytes of one body out of what comes behind its head."""

    @property
    def is_whole(self) -> bool:
        """True when all of the body has been given."""

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Bytes of the body, and what is not decoded: all behind the body, or what to give again while it is not whole.

        Raises:
            InvalidRequest, HeadersTooLarge: it is malformed or beyond a limit; the decoder is of no use any more.
        """


class LengthDecoder:
    """A body of so many bytes."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        #: Bytes that are still to come.
        self.left = length

    def __repr__(self) -> str:
        return f"<LengthDecoder left={self.left}>"

    @property
    def is_whole(self) -> bool:
        """True when all of the body has been given."""
        return not self.left

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Bytes of the body, and what is behind it."""
        left = self.left
        if len(data) <= left:
            self.left = left - len(data)
            return data, b""
        self.left = 0
        return data[:left], data[left:]


_SIZE, _DATA, _DATA_END, _TRAILERS, _WHOLE = "size", "data", "end of data", "trailers", "whole"


class ChunkedDecoder:
    """A body in chunks (RFC 9112 section 7.1)."""

    __slots__ = ("_extensions", "_held", "_left", "_state", "_trailers")

    def __init__(self) -> None:
        self._state = _SIZE
        # Of the chunk that is read now.
        self._left = 0
        # The beginning of a line whose end has not come.
        self._held = b""
        # Bytes of all of them so far.
        self._extensions = 0
        self._trailers = 0

    def __repr__(self) -> str:
        return f"<ChunkedDecoder {self._state} left={self._left}>"

    @property
    def is_whole(self) -> bool:
        """True when the last chunk and the trailers behind it have come."""
        return self._state is _WHOLE

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Bytes of the body, and what is behind it; while it is not whole, what to give again.

        Raises:
            InvalidRequest: it is malformed, or a chunk extension is too long.
            HeadersTooLarge: the trailers are.
        """
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        at, chunks = 0, 0
        while at < len(data) and self._state is not _WHOLE:
            if self._state is _DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _DATA_END
            elif self._state is _DATA_END:
                end = data[at : at + 2]
                if end == b"\r\n":
                    self._state = _SIZE
                    at += 2
                elif end == b"\r":
                    self._held, at = end, len(data)
                else:
                    raise InvalidRequest("The body is malformed: a chunk is longer than it says")
            elif self._state is _SIZE:
                if chunks == CHUNKS_AT_ONCE:
                    break
                chunks += 1
                at = self._read_size(data, at)
            else:
                at = self._read_trailer(data, at)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), data[at:]

    def _read_size(self, data: bytes, at: int) -> int:
        """Read the line with the size of a chunk; return where the next thing begins."""
        found = _SIZE_LINE.match(data, at)
        if (found.end() if found is not None else len(data)) - at > CHUNK_LINE_LIMIT:
            raise InvalidRequest(f"The body is malformed: the size of a chunk takes more than {CHUNK_LINE_LIMIT} bytes")
        if found is None:
            if _SIZE_LINE_BEGINS.fullmatch(data, at) is None:
                raise InvalidRequest("The body is malformed: a chunk has no size")
            self._held = data[at:]
            return len(data)
        self._extensions += len(found[2] or b"")
        if self._extensions > EXTENSIONS_LIMIT:
            raise InvalidRequest(f"The chunk extensions take more than {EXTENSIONS_LIMIT} bytes")
        self._left = int(found[1], 16)
        self._state = _DATA if self._left else _TRAILERS
        return found.end()

    def _read_trailer(self, data: bytes, at: int) -> int:
        """Read a trailer or the empty line behind them; return where the next thing begins."""
        end = data.find(b"\r\n", at)
        if self._trailers + (end if end >= 0 else len(data)) - at > TRAILERS_LIMIT:
            raise HeadersTooLarge(f"The trailers take more than {TRAILERS_LIMIT} bytes")
        if end == at:
            self._state = _WHOLE
            return end + 2
        if (_LINE_BEGINS.fullmatch(data, at) if end < 0 else _TRAILER.fullmatch(data, at, end)) is None:
            raise InvalidRequest("The body is malformed: there is no saying what a trailer is")
        if end < 0:
            self._held = data[at:]
            return len(data)
        self._trailers += end + 2 - at
        return end + 2


def decoder(length: int | None) -> BodyDecoder:
    """What reads the body that `announced_length` found."""
    return ChunkedDecoder() if length is None else LengthDecoder(length)
