"""The cases of HTTP: what a client sends, the requests that are read out of it, and the status where it is refused.

Every case is the beginning of a connection. What is read of it, and by whom, is in `conformance.http_ends`. `rule` is
the section of RFC 9112 that the case is about, or of another RFC where it says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Read(NamedTuple):
    """A request as it was read."""

    method: str
    target: str
    body: bytes = b""


class HttpCase(NamedTuple):
    """What a client sends, and what is to be made of it."""

    name: str
    sent: bytes
    rule: str
    #: Requests that are read, in their order.
    requests: tuple[Read, ...] = ()
    #: Of the refusal behind them; None when nothing is refused.
    refused: int | None = None
    #: False where a node gives it to no listener, because it names no host.
    names_host: bool = True

    @property
    def answers(self) -> int:
        """How many there are."""
        return len(self.requests) + (self.refused is not None)


#: Methods that llhttp knows and that are served: those of HTTP, WebDAV and a few others.
METHODS = (
    *("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "QUERY"),
    *("COPY", "LOCK", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "SEARCH", "UNLOCK", "BIND", "REBIND", "UNBIND", "ACL"),
    *("REPORT", "MKACTIVITY", "CHECKOUT", "MERGE", "M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "PURGE"),
    *("MKCALENDAR", "LINK", "UNLINK", "SOURCE"),
)

_NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
_HELLO = Read("POST", "/a", b"hello")
_FOLLOWING = Read("GET", "/next")


def _line(line: bytes) -> bytes:
    return line + b"\r\nHost: x\r\n\r\n"


def _headers(*lines: bytes, line: bytes = b"GET /a HTTP/1.1", host: bytes = b"Host: x\r\n", body: bytes = b"") -> bytes:
    return line + b"\r\n" + host + b"".join(each + b"\r\n" for each in lines) + b"\r\n" + body


def _post(*lines: bytes, body: bytes = b"", line: bytes = b"POST /a HTTP/1.1") -> bytes:
    return _headers(*lines, line=line, body=body)


def _chunked(body: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", body=body)


def _methods() -> Iterator[HttpCase]:
    for method in METHODS:
        yield HttpCase(method, _line(method.encode() + b" /a HTTP/1.1"), "9110 9", (Read(method, "/a"),))
    yield HttpCase("CONNECT, which is not served", _line(b"CONNECT x:443 HTTP/1.1"), "9110 9.3.6", refused=501)
    yield HttpCase("PRI, what HTTP/2 begins with", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "9113 3.4", refused=505)
    yield HttpCase("a method that nobody knows", _line(b"BREW /a HTTP/1.1"), "9110 9.1", refused=501)
    yield HttpCase("a known method with a letter more", _line(b"GETS /a HTTP/1.1"), "9110 9.1", refused=501)
    yield HttpCase("a method in mixed case", _line(b"Get /a HTTP/1.1"), "9110 9.1", refused=501)
    yield HttpCase("a method in lower case", _line(b"get /a HTTP/1.1"), "9110 9.1", refused=400)
    yield HttpCase("a method of RTSP", _line(b"ANNOUNCE /a HTTP/1.1"), "9110 9.1", refused=501)
    yield HttpCase("a method that is no token", _line(b"GE(T /a HTTP/1.1"), "3.1", refused=400)
    yield HttpCase("a NUL in the method", _line(b"GE\0T /a HTTP/1.1"), "3.1", refused=400)


def _request_lines() -> Iterator[HttpCase]:
    good = (Read("GET", "/a"),)
    yield HttpCase("a good request", _line(b"GET /a HTTP/1.1"), "3", good)
    yield HttpCase("empty lines ahead of it", b"\r\n\r\n" + _line(b"GET /a HTTP/1.1"), "2.2", good)
    yield HttpCase("a query", _line(b"GET /a?b=c&d HTTP/1.1"), "3.2.1", (Read("GET", "/a?b=c&d"),))
    yield HttpCase(
        "escapes and marks in the target", _line(b"GET /%2F/;,~! HTTP/1.1"), "3.2.1", (Read("GET", "/%2F/;,~!"),)
    )
    yield HttpCase("two slashes ahead", _line(b"GET //a HTTP/1.1"), "3.2.1", (Read("GET", "//a"),))
    yield HttpCase("the absolute form", _line(b"GET http://x/a HTTP/1.1"), "3.2.2", (Read("GET", "http://x/a"),))
    yield HttpCase("the absolute form of another host", _line(b"GET http://y/a HTTP/1.1"), "3.2.2", refused=400)
    yield HttpCase("the absolute form with a user", _line(b"GET http://u@x/a HTTP/1.1"), "9110 4.2.4", refused=400)
    yield HttpCase("the asterisk form", _line(b"OPTIONS * HTTP/1.1"), "3.2.4", (Read("OPTIONS", "*"),))
    yield HttpCase("a space ahead of the method", _line(b" GET /a HTTP/1.1"), "3", refused=400)
    yield HttpCase("two spaces behind the method", _line(b"GET  /a HTTP/1.1"), "3", refused=400)
    yield HttpCase("two spaces behind the target", _line(b"GET /a  HTTP/1.1"), "3", refused=400)
    yield HttpCase("a space behind the version", _line(b"GET /a HTTP/1.1 "), "3", refused=400)
    yield HttpCase("tabs in place of spaces", _line(b"GET\t/a\tHTTP/1.1"), "3", refused=400)
    yield HttpCase("a vertical tab for a space", _line(b"GET\x0b/a HTTP/1.1"), "3", refused=400)
    yield HttpCase("no target", _line(b"GET HTTP/1.1"), "3", refused=400)
    yield HttpCase("an empty target", _line(b"GET  HTTP/1.1"), "3", refused=400)
    yield HttpCase("a space in the target", _line(b"GET /a b HTTP/1.1"), "3.2", refused=400)
    yield HttpCase("a NUL in the target", _line(b"GET /a\0 HTTP/1.1"), "3.2", refused=400)
    yield HttpCase("a CR in the target", _line(b"GET /a\rb HTTP/1.1"), "2.2", refused=400)
    yield HttpCase("a byte that is no ASCII in the target", _line(b"GET /\xc3\xbc HTTP/1.1"), "3.2", refused=400)
    yield HttpCase("a target that never ends", b"GET /" + b"a" * 40_000, "3", refused=414)
    yield HttpCase("HTTP/1.0", _line(b"GET /a HTTP/1.0"), "2.3", good)
    yield HttpCase("HTTP/1.0 without a Host", _headers(line=b"GET /a HTTP/1.0", host=b""), "3.2", good, None, False)
    yield HttpCase("no version, as in HTTP/0.9", b"GET /a\r\n\r\n", "2.3", refused=400)
    yield HttpCase("HTTP/0.9 by name", _line(b"GET /a HTTP/0.9"), "2.3", refused=505)
    yield HttpCase("HTTP/1.2", _line(b"GET /a HTTP/1.2"), "2.3", refused=505)
    yield HttpCase("HTTP/2.0", _line(b"GET /a HTTP/2.0"), "2.3", refused=505)
    yield HttpCase("HTTP/3.0", _line(b"GET /a HTTP/3.0"), "2.3", refused=505)
    yield HttpCase("HTTP/1", _line(b"GET /a HTTP/1"), "2.3", refused=400)
    yield HttpCase("HTTP/1.10", _line(b"GET /a HTTP/1.10"), "2.3", refused=400)
    yield HttpCase("HTTP/01.1", _line(b"GET /a HTTP/01.1"), "2.3", refused=400)
    yield HttpCase("a version in lower case", _line(b"GET /a http/1.1"), "2.3", refused=400)
    yield HttpCase("another protocol", _line(b"GET /a RTSP/1.0"), "2.3", refused=400)
    yield HttpCase("a line that ends in LF", b"GET /a HTTP/1.1\nHost: x\r\n\r\n", "2.2", refused=400)
    yield HttpCase("a line that ends in CR", b"GET /a HTTP/1.1\rHost: x\r\n\r\n", "2.2", refused=400)
    yield HttpCase("nothing but LFs", b"GET /a HTTP/1.1\nHost: x\n\n", "2.2", refused=400)
    yield HttpCase("bytes of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "2", refused=400)


def _header_lines() -> Iterator[HttpCase]:
    good = (Read("GET", "/a"),)
    for name, line in {
        "no space behind the colon": b"A:b",
        "spaces and tabs around a value": b"A: \t b \t",
        "an empty value": b"A:",
        "a tab in a value": b"A: b\tc",
        "every character of a token in a name": b"!#$%&'*+-.^_`|~09azAZ: b",
        "bytes that are no ASCII in a value": b"A: \xc3\xbc\xff",
        "quotes and brackets in a value": b'A: "b", <c>, (d), [e], {f}',
        "the same header twice": b"A: b\r\na: c",
        "an offered upgrade to h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA",
    }.items():
        yield HttpCase(name, _headers(line) + _NEXT, "5", (*good, _FOLLOWING))
    yield HttpCase("990 headers", _headers(*[b"a: b"] * 990), "5", good)
    yield HttpCase("1,100 headers", _headers(*[b"a: b"] * 1_100), "5", refused=431)
    yield HttpCase("a header of 40,000 bytes", _headers(b"a: " + b"b" * 40_000), "5", refused=431)
    yield HttpCase("a head that never ends", b"GET /a HTTP/1.1\r\nA: " + b"b" * 40_000, "5", refused=431)
    yield HttpCase("no Host", _headers(host=b""), "3.2", refused=400)
    yield HttpCase("two Hosts", _headers(b"Host: x"), "3.2", refused=400)
    yield HttpCase("two Hosts, both empty", _headers(b"Host:", host=b"Host:\r\n"), "3.2", refused=400)
    yield HttpCase("an empty Host", _headers(host=b"Host:\r\n"), "3.2", good, None, False)
    for name, rule, line in (
        ("a space ahead of the colon", "5.1", b"A : b"),
        ("a tab ahead of the colon", "5.1", b"A\t: b"),
        ("a space ahead of the first header", "2.2", b" A: b"),
        ("a header without a colon", "5", b"A b"),
        ("an empty name", "5", b": b"),
        ("a space in a name", "5", b"A B: c"),
        ("a bracket in a name", "5", b"A(B: c"),
        ("a NUL in a name", "5", b"A\0: b"),
        ("a byte that is no ASCII in a name", "5", b"\xc3\xbc: b"),
        ("a NUL in a value", "9110 5.5", b"A: b\0c"),
        ("a control character in a value", "9110 5.5", b"A: b\x01c"),
        ("a DEL in a value", "9110 5.5", b"A: b\x7f"),
        ("a CR in a value", "2.2", b"A: b\rc"),
        ("a header that ends in LF", "2.2", b"A: b\nC: d"),
        ("a header that ends in CR CR LF", "2.2", b"A: b\r"),
        ("a folded header", "5.2", b"A: b\r\n c"),
        ("a folded header, with a tab", "5.2", b"A: b\r\n\tc"),
        ("a fold of nothing", "5.2", b"A: b\r\n "),
        ("a folded Host", "5.2", b"A:\r\n b"),
        ("a line of spaces", "5", b"   "),
    ):
        yield HttpCase(name, _headers(line) + _NEXT, rule, refused=400)
    yield HttpCase(
        "a folded Transfer-Encoding", _post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"), "5.2", refused=400
    )
    yield HttpCase("an end that is LF LF", b"GET /a HTTP/1.1\r\nHost: x\n\n" + _NEXT, "2.2", refused=400)
    yield HttpCase("an end that is CR LF LF", b"GET /a HTTP/1.1\r\nHost: x\r\n\n" + _NEXT, "2.2", refused=400)


def _lengths() -> Iterator[HttpCase]:
    for name, value in {"5": b"5", "with leading zeros": b"0005", "spaces around": b" \t5 "}.items():
        sent = _post(b"Content-Length:" + value, body=b"hello") + _NEXT
        yield HttpCase(f"Content-Length {name}", sent, "6.2", (_HELLO, _FOLLOWING))
    nothing = Read("POST", "/a")
    yield HttpCase("Content-Length 0", _post(b"Content-Length: 0") + _NEXT, "6.2", (nothing, _FOLLOWING))
    yield HttpCase("no length", _post() + _NEXT, "6.3", (nothing, _FOLLOWING))
    yield HttpCase(
        "GET with a body",
        _headers(b"Content-Length: 5", body=b"hello") + _NEXT,
        "9110 9.3.1",
        (Read("GET", "/a", b"hello"), _FOLLOWING),
    )
    yield HttpCase(
        "HTTP/1.0 with a length", _post(b"Content-Length: 5", line=b"POST /a HTTP/1.0", body=b"hello"), "6.2", (_HELLO,)
    )
    yield HttpCase(
        "a body that looks like a request",
        _post(b"Content-Length: %d" % len(_NEXT), body=_NEXT),
        "6.2",
        (Read("POST", "/a", _NEXT),),
    )
    yield HttpCase(
        "a body longer than its length", _post(b"Content-Length: 5", body=b"hello\0") + _NEXT, "6.2", (_HELLO,), 400
    )
    for name, line in {
        "empty": b"Content-Length:",
        "with a sign": b"Content-Length: +5",
        "below nothing": b"Content-Length: -5",
        "hexadecimal": b"Content-Length: 0x5",
        "with a point": b"Content-Length: 5.0",
        "with an underscore": b"Content-Length: 0_5",
        "with a space inside": b"Content-Length: 0 5",
        "with words": b"Content-Length: 5 bytes",
        "of two numbers": b"Content-Length: 5, 5",
        "twice, the same": b"Content-Length: 5\r\nContent-Length: 5",
        "twice, and different": b"Content-Length: 5\r\nContent-Length: 6",
        "twice, in other case": b"Content-Length: 5\r\ncontent-length: 0",
        "beyond 64 bits": b"Content-Length: 18446744073709551621",
        "with digits of another script": b"Content-Length: \xd9\xa5",
        "with a vertical tab": b"Content-Length: \x0b5",
    }.items():
        yield HttpCase(f"Content-Length {name}", _post(line, body=b"hello") + _NEXT, "6.3", refused=400)


def _codings() -> Iterator[HttpCase]:
    chunks = b"5\r\nhello\r\n0\r\n\r\n"
    for name, value in {"chunked": b" chunked", "Chunked": b"Chunked", "spaces around": b"\t chunked "}.items():
        sent = _post(b"Transfer-Encoding:" + value, body=chunks) + _NEXT
        yield HttpCase(f"Transfer-Encoding {name}", sent, "6.1", (_HELLO, _FOLLOWING))
    for name, line, status in (
        ("gzip", b"Transfer-Encoding: gzip", 400),
        ("gzip, chunked", b"Transfer-Encoding: gzip, chunked", 501),
        ("gzip and chunked in two headers", b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501),
        ("chunked, gzip", b"Transfer-Encoding: chunked, gzip", 400),
        ("chunked, chunked", b"Transfer-Encoding: chunked, chunked", 400),
        ("chunked in two headers", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("identity", b"Transfer-Encoding: identity", 400),
        ("chunked, identity", b"Transfer-Encoding: chunked, identity", 400),
        ("empty", b"Transfer-Encoding:", 400),
        ("with a comma too many", b"Transfer-Encoding: chunked,", 400),
        ("xchunked", b"Transfer-Encoding: xchunked", 400),
        ("in quotes", b'Transfer-Encoding: "chunked"', 400),
        ("with a parameter", b"Transfer-Encoding: chunked;q=1", 400),
        ("with a vertical tab", b"Transfer-Encoding: \x0bchunked", 400),
        ("with a byte that is no ASCII", b"Transfer-Encoding: chunked\xa0", 400),
        # llhttp is stricter here than section 5.5, and who sends that means no good.
        ("with a tab behind it", b"Transfer-Encoding: chunked\t", 400),
        ("with a space ahead of its colon", b"Transfer-Encoding : chunked", 400),
        ("and Content-Length", b"Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        ("behind Content-Length", b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("identity and Content-Length", b"Content-Length: 5\r\nTransfer-Encoding: identity", 400),
        ("and Content-Length 0", b"Content-Length: 0\r\nTransfer-Encoding: chunked", 400),
    ):
        yield HttpCase(f"Transfer-Encoding {name}", _post(line, body=chunks) + _NEXT, "6.1", refused=status)
    yield HttpCase(
        "Transfer-Encoding in HTTP/1.0",
        _post(b"Transfer-Encoding: chunked", line=b"POST /a HTTP/1.0", body=chunks),
        "6.1",
        refused=400,
    )
    yield HttpCase(
        "Transfer_Encoding, another header",
        _post(b"Transfer_Encoding: chunked", body=chunks),
        "6.1",
        (Read("POST", "/a"),),
        400,
    )


def _chunks() -> Iterator[HttpCase]:
    both = (_HELLO, _FOLLOWING)
    end = b"0\r\n\r\n"
    for name, body in {
        "two": b"2\r\nhe\r\n3\r\nllo\r\n" + end,
        "a size with leading zeros": b"000005\r\nhello\r\n" + end,
        "an extension": b"5;a=b\r\nhello\r\n" + end,
        "an extension in quotes": b'5;a="b;c"\r\nhello\r\n' + end,
        "an extension of the last one": b"5\r\nhello\r\n0;a\r\n\r\n",
        "a last one of many zeros": b"5\r\nhello\r\n0000\r\n\r\n",
        "a trailer": b"5\r\nhello\r\n0\r\nA: b\r\n\r\n",
        "trailers that would frame it": b"5\r\nhello\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: x\r\n\r\n",
    }.items():
        yield HttpCase(f"chunks: {name}", _chunked(body) + _NEXT, "7.1", both)
    ten = Read("POST", "/a", b"0123456789")
    yield HttpCase("chunks: a size in upper case", _chunked(b"A\r\n0123456789\r\n" + end), "7.1", (ten,))
    yield HttpCase("chunks: none but the last", _chunked(end) + _NEXT, "7.1", (Read("POST", "/a"), _FOLLOWING))
    for name, body in {
        "no size": b"\r\nhello\r\n",
        "a size that is no number": b"g\r\nhello\r\n",
        "a size with a sign": b"+5\r\nhello\r\n",
        "a size below nothing": b"-5\r\nhello\r\n",
        "a size with 0x": b"0x5\r\nhello\r\n",
        "a size with an underscore": b"0_5\r\nhello\r\n",
        "a space ahead of a size": b" 5\r\nhello\r\n",
        "a space behind a size": b"5 \r\nhello\r\n",
        "a size beyond 64 bits": b"10000000000000005\r\nhello\r\n",
        "a size that ends in LF": b"5\nhello\r\n",
        "a size that ends in CR": b"5\rhello\r\n",
        "an extension without a semicolon": b"5 a=b\r\nhello\r\n",
        "an extension with a LF": b"5;a\nb\r\nhello\r\n",
        "an extension with a NUL": b"5;\0\r\nhello\r\n",
        "an extension that is too long": b"5;" + b"a" * 300 + b"\r\nhello\r\n",
        "extensions that are too many": (b"1;" + b"a" * 200 + b"\r\nh\r\n") * 50,
        "data longer than its size": b"5\r\nhello!\r\n",
        "data shorter than its size": b"6\r\nhello\r\n" + end,
        "data that ends in LF": b"5\r\nhello\n",
        "data without an end": b"5\r\nhello0\r\n\r\n",
        "a trailer without a colon": b"0\r\nA b\r\n\r\n",
        "a trailer with a space ahead of its colon": b"0\r\nA : b\r\n\r\n",
        "a trailer with a NUL": b"0\r\nA: \0\r\n\r\n",
        "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
        "a trailer that ends in LF": b"0\r\nA: b\n\r\n",
        "an end that is LF": b"0\r\n\n",
    }.items():
        yield HttpCase(f"chunks: {name}", _chunked(body) + _NEXT, "7.1", refused=400)
    yield HttpCase("chunks: trailers that never end", _chunked(b"0\r\n" + b"A: b\r\n" * 2_000), "7.1.2", refused=431)


def _pipelines() -> Iterator[HttpCase]:
    get = Read("GET", "/a")
    three = tuple(Read("GET", f"/a?{n}") for n in range(3))
    sent = b"".join(_line(b"GET /a?%d HTTP/1.1" % n) for n in range(3))
    yield HttpCase("three requests at once", sent, "9.3.2", three)
    sent = _line(b"GET /a HTTP/1.1") + b"\r\n" + _NEXT
    yield HttpCase("empty lines between two", sent, "2.2", (get, _FOLLOWING))
    sent = _NEXT + b"\0\0\0\r\n\r\n" + _NEXT
    yield HttpCase("a good one, then nonsense", sent, "2.2", (_FOLLOWING,), 400)
    sent = _NEXT + _headers(b"Host: y") + _NEXT
    yield HttpCase("a good one, then one with two Hosts", sent, "3.2", (_FOLLOWING,), 400)
    sent = _headers(b"Connection: close") + _NEXT
    yield HttpCase("one behind Connection: close", sent, "9.6", (get,))
    sent = _line(b"GET /a HTTP/1.0") + _NEXT
    yield HttpCase("one behind HTTP/1.0", sent, "9.3", (get,))
    sent = _post(b"Content-Length: 5", b"Expect: 100-continue", body=b"hello") + _NEXT
    yield HttpCase("a body and Expect: 100-continue", sent, "9110 10.1.1", (_HELLO, _FOLLOWING))
    yield HttpCase("an unfinished body", _post(b"Content-Length: 50", body=b"hello"), "8")
    yield HttpCase("an unfinished chunk", _chunked(b"32\r\nhello"), "8")
    yield HttpCase("an unfinished head", b"GET /a HTTP/1.1\r\nHost: x\r\n", "8")


GROUPS: dict[str, tuple[HttpCase, ...]] = {
    "Methods": tuple(_methods()),
    "Request lines": tuple(_request_lines()),
    "Headers": tuple(_header_lines()),
    "Content-Length": tuple(_lengths()),
    "Transfer-Encoding": tuple(_codings()),
    "Chunks": tuple(_chunks()),
    "Several requests": tuple(_pipelines()),
}
