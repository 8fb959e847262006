"""Every fuzz target, in one table: what `make fuzz` runs under atheris, and `make test` under hypothesis.

    check(TARGETS["token"], b"...")     raises when a rule is broken, and when the time it takes is out of proportion

Inputs that once broke a rule are kept in `corpus/NAME/`; the tests try them for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzz import frame_targets, http_targets, proxy_targets, text_targets
from fuzz.text_targets import SECRET

CORPUS = Path(__file__).parent / "corpus"

#: Seconds of processor time that one input may take: so much at least, and so much for each byte. Both are a hundred
#: times what it takes, so that only a cost that grows with the square of the length is found, not a slow machine.
SECONDS = 2.0
SECONDS_PER_BYTE = 0.000_1


@dataclass(frozen=True)
class Target:
    """One rule book, and what helps to find inputs that matter."""

    name: str
    run: Callable[[bytes], None]
    #: Inputs to begin with.
    seeds: tuple[bytes, ...]
    #: Words that matter to the parser, to be put anywhere.
    words: tuple[bytes, ...]

    @property
    def found(self) -> list[Path]:
        """Inputs that once broke a rule."""
        return sorted(file for file in (CORPUS / self.name).glob("*") if file.is_file())


def check(target: Target, data: bytes) -> None:
    """Try one input. Raises whatever the target raises, and AssertionError when it takes too long."""
    before = time.thread_time()
    target.run(data)
    took = time.thread_time() - before
    assert took < SECONDS + len(data) * SECONDS_PER_BYTE, f"{len(data)} bytes take {took:.1f} s"


_KEY = SECRET.encode()
_TOKEN = b"SharedAccessSignature sr=http%3a%2f%2fns.localhost%2fa%2fb&sig=" + _KEY + b"%3D&se=1800003600&skn=root"
_HEAD = (
    b"GET /$hc/a/b?sb-hc-action=listen&sb-hc-token=" + _KEY + b" HTTP/1.1\r\nHost: ns.localhost:8443\r\n"
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nServiceBusAuthorization: " + _KEY + b"\r\n\r\n"
)
_FILE = (
    b'[node]\nport = 8443\ntls = "off"\n\n[[namespace]]\nname = "ns"\nhosts = ["relay.example.com"]\n'
    b"max_senders = 5\n\n"
    b'[[namespace.rule]]\nname = "root"\nrights = ["Listen", "Send", "Manage"]\nprimary_key = "' + _KEY + b'"\n\n'
    b'[[namespace.hybrid_connection]]\nname = "a/b"\nidle_timeout = 60\nrule = [{ name = "r", rights = ["Send"] }]\n'
)
# "ab" as masked text, in one frame and in two with a Ping between them; a Close 1000; a Pong; a head of 126 bytes; one
# of 2^63 bytes; a reserved opcode.
_MASKED = (
    b"\x81\x82\x01\x02\x03\x04\x60\x60",
    b"\x01\x81\x00\x00\x00\x00a\x89\x81\x01\x02\x03\x04x\x80\x81\x00\x00\x00\x00b",
    b"\x88\x82\x00\x00\x00\x00\x03\xe8",
    b"\x8a\x80\x00\x00\x00\x00",
    b"\x82\xfe\x00\x7e\x00\x00\x00\x00" + bytes(126),
    b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x01\x01\x02\x03\x04" + bytes(50),
    b"\x83\x80\x00\x00\x00\x00",
    b"\xc1\x81\x00\x00\x00\x00z",
)
_PLAIN = (b"\x81\x02ab", b"\x01\x01a\x89\x01x\x80\x01b", b"\x88\x05\x03\xe8bye", b"\x82\x7e\x00\x7e" + bytes(126))
_FRAME_WORDS = (
    *_MASKED,
    *_PLAIN,
    b"\x00\x81\x00\x00\x00\x00",
    b"\x00\x80\x00\x00\x00\x00",
    b"\x01\x80\x00\x00\x00\x00",
    b"\x03\xe9",
    b"\x03\xed",
    b"\x0b\xb8",
    b"\xff",
    b"\x7e\x00\x7d",
    b"\x7f\x00\x00\x00\x00\x00\x00\x00\x00",
)


# Both announce a body.
_RESPONSE = b"\x81\xbb\x00\x00\x00\x00" + b'{"response":{"requestId":"i","statusCode":200,"body":true}}'
_REQUEST = b"\x81\x47" + b'{"request":{"address":"wss://h/?","id":"i","method":"PUT","body":true}}'


def _words(text: str) -> tuple[bytes, ...]:
    return tuple(word.encode() for word in text.split())


_CHUNK_WORDS = (
    *_words('0 5 a F 00 0x5 -1 ffffffffffffffff 7fffffff ; ;a=b ;a="b" A: b : hello'),
    b"\r\n",
    b"\r",
    b"\n",
    b"0\r\n\r\n",
    b"1\r\nz\r\n",
    b" ",
    b"\x00",
    b"\xff",
)

_ALL = (
    Target(
        "token",
        text_targets.token,
        (
            _TOKEN,
            b"sharedaccesssignature+sr%3Dns.localhost%26sig%3Dx%26se%3D1%26skn%3Droot",
            b"Bearer eyJ.a.b",
            b"eyJ.a.b",
        ),
        (
            *_words("SharedAccessSignature sr= sig= se= skn= & %26 %3D %2525 + eyJ . Bearer bearer 1800003600 0.5"),
            *_words("http%3a%2f%2f sb:// ns.localhost :443 /$hc/ a/b ? # [::1] \u00df \u0130"),
            b"Bearer ",
            b" ",
            _KEY,
            b"\xff",
        ),
    ),
    Target(
        "control_message",
        text_targets.control_message,
        (
            b'{"accept":{"address":"wss://h/$hc/a?sb-hc-action=accept","id":"9a8b2d6c-0c3f-4f6e-8a6f-5f1f0a0b0c0d",'
            b'"connectHeaders":{"Host":"h"},"remoteEndpoint":{"address":"::1","port":5}}}',
            b'{"request":{"address":"wss://h/","id":"i","requestTarget":"/a?b","method":"GET","requestHeaders":{},"body":false}}',
            b'{"response":{"requestId":"i","statusCode":"200","statusDescription":"OK","responseHeaders":{"A":["1",2]},"body":true}}',
            b'{"renewToken":{"token":"' + _KEY + b'"}}',
        ),
        (
            *_words('{ } [ ] : , " null true false 1e999 -0 200 200.0 1E2 NaN Infinity \\ud800 \\u0000 \\n \\r \u00fc'),
            *_words('"accept" "request" "response" "renewToken" "token" "address" "id" "connectHeaders" "port"'),
            *_words('"remoteEndpoint" "requestId" "statusCode" "statusDescription" "responseHeaders" "body" "method"'),
            b"[" * 64,
            b'{"a":' * 16,
            _KEY,
            b"\xff",
        ),
    ),
    Target(
        "url",
        text_targets.url,
        (
            b"/$hc/a/b?sb-hc-action=connect&sb-hc-id=9a8b2d6c-0c3f-4f6e-8a6f-5f1f0a0b0c0d&sb-hc-token=" + _KEY,
            b"/%24HC/a%20b/c%2Fd/?x=1&&y&sb-hc-action=accept&sb-hc-rendezvous=s&statusCode=400&statusDescription=No+way",
            b"http://ns.localhost/a/b?c#d",
        ),
        (
            *_words("/ $hc %24hc // /./ /../ %2e%2e %252e %2F %5C \\ ? & = + % %zz %00 %ff # : @ ; | ^ ` { } < >"),
            *_words(
                "sb-hc-action= sb-hc-id= sb-hc-token= sb-hc-rendezvous= sb-hc-statusCode= statusDescription= SB-HC-"
            ),
            *_words("listen connect accept request wss:// sb-hc- sb%2Dhc-"),
            _KEY,
            b"\xe4",
        ),
    ),
    Target(
        "address",
        text_targets.address,
        (b"sb://ns.localhost:8443/a/b", b"wss://[::1]:1/$hc/a%20b?x=" + _KEY, b"HTTPS://Host//%24hc/a//b/#f"),
        (
            *_words(
                "sb:// ws:// wss:// http:// https:// / : @ [ ] [::1] ? # $hc %24hc %2e. .. %2F %5C %25 %ff 65535 0"
            ),
            _KEY,
            "\u00fc".encode(),
            b"\xff",
        ),
    ),
    Target(
        "connection_strings",
        text_targets.connection_strings,
        (
            b"Endpoint=sb://ns.localhost:8443/;SharedAccessKeyName=root;SharedAccessKey=" + _KEY + b"=;EntityPath=a/b",
            b"endpoint = sb://h ; SharedAccessSignature=" + _TOKEN + b";OperationTimeout=1.02:03:04.5;",
            b"Endpoint=sb://[::1]/;Authentication=Managed Identity;OperationTimeout=0.25",
        ),
        (
            *_words("Endpoint= SharedAccessKeyName= SharedAccessKey= EntityPath= SharedAccessSignature= ; = sb:// / :"),
            *_words(
                "OperationTimeout= Authentication= ManagedIdentity 00:01:00 99999.23:59:59.9999999 999999999 0.0000001"
            ),
            b" ",
            _KEY,
            b"\xff",
        ),
    ),
    Target(
        "declarative_file",
        text_targets.declarative_file,
        (_FILE, _FILE.replace(b"\n", b"\r\n"), b'node.port = 1\nnamespace = [{ name = """\nns"""}, ]\n'),
        (
            *_words(
                "[node] [[namespace]] [[namespace.rule]] [[namespace.hybrid_connection]] name rights hosts enabled"
            ),
            *_words(
                "primary_key secondary_key port tls data preset true false 0 -1 1e3 inf nan 0x10 1979-05-27 07:32:00"
            ),
            *_words('= . , { } [ ] " """ \' \'\'\' # \\ \\u0000 \\ud800 "Listen" "Send" "Manage" "off" "unlimited"'),
            *_words("max_senders idle_timeout listener_policy frame_limit user_metadata hybrid_connection rule a.b.c"),
            b"\n",
            b"\r\n",
            b"[" * 64,
            b"a." * 32,
            b"\x00",
            "\u2028\u00fc".encode(),
        ),
    ),
    Target(
        "request_head",
        text_targets.request_head,
        (
            _HEAD,
            b"GET / HTTP/1.0\r\n\r\n",
            b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET http://h/$hc/a HTTP/1.1\r\nHost: h\r\nCookie: a\r\ncookie: b\r\nAuthorization: " + _KEY + b"\r\n\r\n",
        ),
        (
            *_words(
                "GET POST CONNECT OPTIONS * HTTP/1.1 HTTP/0.9 HTTP/2.0 / /$hc/ Host: Upgrade: Connection: websocket"
            ),
            *_words(
                "Sec-WebSocket-Key: Sec-WebSocket-Version: Content-Length: Transfer-Encoding: chunked Cookie: h2c 13"
            ),
            *_words("ServiceBusAuthorization: Authorization: Expect: Microsoft-Relay-AllowedListeners: : , ;"),
            b"\r\n",
            b"\n",
            b"\r\n ",
            b" ",
            b"\x00",
            b"\xff",
            _KEY,
        ),
    ),
    Target(
        "http_body",
        http_targets.http_body,
        (b"5\r\nhello\r\n0\r\n\r\nGET", b'a;b="c"\r\n0123456789\r\n000\r\nA: b\r\nC:\r\n\r\n'),
        _CHUNK_WORDS,
    ),
    Target(
        "http_forwarding",
        http_targets.http_forwarding,
        (
            b"/a%20b/%C3%B8%2f%ff//?x=%c3&sb-hc-id=1&y\nHost:h\nConnection:x-a, close\nX-A:1\nCookie:a=1\nCookie:b=2",
            b"//x/%25%41\nSet-Cookie:a=1; Expires=Wed, 21 Oct 2015 07:28:00 GMT, b=2\nVia:1.0 x\nContent-Length:5",
        ),
        (
            b"%2F",
            b"%c3%b8",
            b"%00",
            b"Connection:",
            b"Set-Cookie:",
            b"Via:",
            b"Authorization:",
            b"\n",
            b", b=",
            b"sb-hc-",
        ),
    ),
    Target(
        "http_connection",
        http_targets.http_connection,
        (
            b"GET /a?b HTTP/1.1\r\nHost: h\r\n\r\nGET /c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /d",
            b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.0\r\n\r\n",
            b"PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
            b"5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        (
            *_CHUNK_WORDS,
            *_words("GET POST HEAD CONNECT HTTP/1.1 HTTP/1.0 HTTP/1.2 / * http://h/ Host: h Content-Length: 0 5 +5"),
            *_words(
                "Transfer-Encoding: chunked Chunked identity gzip Connection: close keep-alive Upgrade: websocket h2c"
            ),
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Host: h\r\n",
            b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n",
            b" HTTP/1.1\r\n",
            b"\t",
            b"\x0b",
        ),
    ),
    Target(
        "proxy_header",
        proxy_targets.proxy_header,
        (
            b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nGET / HTTP/1.1\r\n",
            b"PROXY TCP6 2001:db8::7 ::1 40000 443\r\n",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x9c\x40\x01\xbbGET",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x27" + bytes(39),
            b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
        ),
        (
            *_words("PROXY TCP4 TCP6 UNKNOWN 192.0.2.7 2001:db8::7 ::ffff:192.0.2.7 fe80::1%eth0 65535 065 -1 \u0661"),
            b" ",
            b"\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"\x21\x11\x00\x0c",
            b"\x21\x31\x00\xd8",
            b"\x20\x00\x10\x00",
        ),
    ),
    Target(
        "forwarded",
        proxy_targets.forwarded,
        (b"203.0.113.7, 192.0.2.5\nhttps, http", b"[2001:db8::7]:443, unknown, 192.0.2.9:80\nwss", b"_hidden"),
        (
            *_words(", [ ] : 192.0.2.5 203.0.113.7 2001:db8::7 ::ffff:192.0.2.7 fe80::1%eth0 65535 99999 unknown"),
            *_words("https http wss ws \u0661"),
            b" ",
            b"\n",
        ),
    ),
    Target(
        "proxy_url",
        proxy_targets.proxy_url,
        (b"http://user:" + _KEY + b"@proxy:3128", b"socks5h://[::1]", b"proxy.example:80", b"socks5://u%20:p@h:1080/"),
        (
            *_words(
                "http:// https:// socks5:// socks5h:// socks:// @ : / ? # % %40 %0d%0a %00 [ ] [::1] 65535 0 \u00fc"
            ),
            b":" + _KEY + b"@",
            b"\n",
            b"\xff",
        ),
    ),
    Target(
        "proxy_answer",
        proxy_targets.proxy_answer,
        (
            b"HTTP/1.1 200 Connection established\r\nVia: 1.1 p\r\n\r\n",
            b"HTTP/1.0 407 Who are you\r\nProxy-Authenticate: Basic realm=x\r\nproxy-authenticate: NTLM\r\n\r\n",
            b"HTTP/1.1 503\r\n\r\nbody",
        ),
        (
            *_words("HTTP/1.1 HTTP/1.0 HTTP/2 200 299 403 407 500 999 Proxy-Authenticate: Basic Negotiate \u0085"),
            b"\r\n",
            b"\r\n\r\n",
            b" ",
            b"\x1b[2J",
        ),
    ),
    Target(
        "frames",
        frame_targets.frames,
        (*(b"\x01\x03" + stream for stream in _MASKED), *(b"\x00\x04" + stream for stream in _PLAIN)),
        _FRAME_WORDS,
    ),
    Target(
        "http_rendezvous",
        frame_targets.http_rendezvous,
        (
            b"\x01\x03" + _RESPONSE + b"\x02\x83\x00\x00\x00\x00abc\x80\x80\x00\x00\x00\x00" + _MASKED[2],
            b"\x01\x01" + _RESPONSE + b"\x02\x82\x01\x02\x03\x04ab" + _MASKED[2],
            b"\x00\x02" + _REQUEST + b"\x02\x02ab\x89\x01x\x80\x01c" + _PLAIN[2],
        ),
        (*_FRAME_WORDS, _RESPONSE, _REQUEST, b"\x82\x81\x00\x00\x00\x00z", b"\x82\x01z"),
    ),
    Target(
        "lane",
        frame_targets.lane,
        tuple(bytes((number, number + 2)) + stream for number, stream in enumerate(_MASKED)),
        _FRAME_WORDS,
    ),
    Target(
        "splice",
        frame_targets.splice,
        (
            *(b"\x02\x00\x0c" + bytes((len(stream),)) + stream for stream in _MASKED if len(stream) < 256),
            b"\x00\x00\x0c\x08\x88\x82\x00\x00\x00\x00\x03\xe8\x0d\x08\x88\x82\x00\x00\x00\x00\x03\xe8",
            b"\x00\x00\x0c\x08\x02\xff\x00\x00\x00\x00\x00\x01\x01",
            b"\x00\x00\x02\x0d\x07\x89\x81\x01\x02\x03\x04x\x04",
        ),
        (*_FRAME_WORDS, b"\x0c", b"\x0d", b"\x00", b"\x01", b"\x02\x04", b"\xf6", b"\xf8", b"\xfa"),
    ),
)

#: The table.
TARGETS = {target.name: target for target in _ALL}
