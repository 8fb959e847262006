"""Which proxy is used, and what each answer of a proxy means; with real ones: tests/e2e/test_proxies.py."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import InvalidSetting
from trunkline.sdk import (
    HybridConnectionClient,
    ProxyAuthenticationFailed,
    ProxyCannotConnect,
    ProxyError,
    ProxyRefused,
    ProxyUnreachable,
)
from trunkline.sdk.proxy import Proxy, is_excluded, open_tunnel, proxy_for, read_proxy, read_setting
from trunkline.sdk.reconnect import may_pass

# --- reading ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://proxy.example:3128", Proxy("http", "proxy.example", 3128)),
        ("HTTP://Proxy.Example/", Proxy("http", "proxy.example", 80)),
        ("proxy.example:8080", Proxy("http", "proxy.example", 8080)),
        ("ada:p%40ss@proxy.example", Proxy("http", "proxy.example", 80, "ada", "p@ss")),
        ("http://ada@proxy.example", Proxy("http", "proxy.example", 80, "ada", "")),
        ("http://a:b:c@[2001:db8::1]:1", Proxy("http", "2001:db8::1", 1, "a", "b:c")),
        ("socks5://proxy.example", Proxy("socks5", "proxy.example", 1080)),
        ("socks5h://a:b@proxy.example:9", Proxy("socks5", "proxy.example", 9, "a", "b")),
        ("socks://127.0.0.1:9050", Proxy("socks5", "127.0.0.1", 9050)),
    ],
)
def test_address_of_a_proxy_is_read(text: str, expected: Proxy) -> None:
    assert read_proxy(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://hush@proxy.example", "TLS"),
        ("socks4://hush:hush@proxy.example", "socks4://, which is not supported"),
        ("ftp://proxy.example", "use http:// or socks5://"),
        ("http://proxy.example/hush", "path"),
        ("http://proxy.example:hush", "cannot be read"),
        ("http://proxy.example:99999", "cannot be read"),
        ("http://", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://user:hu\udcffsh@proxy.example", "cannot be read"),
        ("http://hush%3Ahush:x@proxy.example", "colon"),
        ("socks5://hush@proxy.example", "neither"),
        ("socks5://hush:%C3%A9hush@proxy.example", "ASCII"),
        (f"socks5://hush:{'x' * 256}@proxy.example", "255"),
    ],
)
def test_proxy_that_cannot_be_used_is_refused_without_showing_its_password(text: str, words: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read_proxy(text, origin="HTTPS_PROXY")
    assert words in str(caught.value) and "HTTPS_PROXY" in str(caught.value)
    assert "hush" not in str(caught.value)
    with pytest.raises(InvalidSetting):
        HybridConnectionClient("sb://relay.example/a", proxy=text)


@given(st.text() | st.text(alphabet="htps5ock:/@[].%a1 "))
def test_any_text_is_a_proxy_or_a_wrong_setting(text: str) -> None:
    try:
        proxy = read_proxy(text)
    except InvalidSetting:
        return
    assert proxy.scheme in ("http", "socks5") and 0 < proxy.port < 65_536 and proxy.host


SECRET = st.text(st.characters(codec="ascii", exclude_characters=":"), min_size=6, max_size=20)


@given(SECRET, SECRET)
def test_credentials_are_read_whole_and_never_shown(username: str, password: str) -> None:
    proxy = read_proxy(f"socks5://{quote(username, safe='')}:{quote(password, safe='')}@h:1")
    assert (proxy.username, proxy.password) == (username, password)
    assert (str(proxy), repr(proxy)) == (
        "socks5://h:1",
        "Proxy(scheme='socks5', host='h', port=1, origin='')",
    )
    assert str(ProxyError(proxy, "is away")) == "The proxy socks5://h:1 is away"


def test_argument_is_none_for_the_environment_and_false_for_no_proxy() -> None:
    assert read_setting(None) is None
    assert read_setting(False) is False and read_setting("") is False
    assert read_setting("h:1") == Proxy("http", "h", 1)
    assert read_setting(Proxy("http", "h", 1)) == Proxy("http", "h", 1)


# --- the environment ---


@pytest.mark.parametrize(
    ("variables", "secure", "expected"),
    [
        ({}, True, None),
        ({"HTTPS_PROXY": "http://p:1"}, True, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, False, None),
        ({"https_proxy": "http://p:1", "HTTPS_PROXY": "http://q:1"}, True, "http://p:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://q:1"}, True, None),
        ({"HTTP_PROXY": "http://p:1"}, False, "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, False, None),
        ({"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, False, "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, True, None),
        ({"ALL_PROXY": "socks5h://p:1"}, True, "socks5://p:1"),
        ({"ALL_PROXY": "socks5h://p:1"}, False, "socks5://p:1"),
        ({"ALL_PROXY": "socks5://p:1", "HTTPS_PROXY": "q:1"}, True, "http://q:1"),
        ({"wss_proxy": "socks5://p:1", "HTTPS_PROXY": "q:1"}, True, "socks5://p:1"),
        ({"SOCKS_PROXY": "http://p:1"}, True, "socks5://p:1"),
    ],
)
def test_proxy_comes_from_the_usual_variables(
    variables: dict[str, str], secure: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = proxy_for("relay.example", 443, secure=secure)
    assert (str(found) if found else None) == expected


def test_error_names_the_variable_that_the_proxy_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "ftp://p")
    with pytest.raises(InvalidSetting, match="ALL_PROXY"):
        proxy_for("relay.example", 443, secure=True)
    monkeypatch.setenv("https_proxy", "http://ada:hush@p:1")
    found = proxy_for("relay.example", 443, secure=True)
    assert found is not None
    assert str(ProxyUnreachable(found, "is away")) == "The proxy http://p:1 (https_proxy) is away"


def test_argument_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", "*")
    assert str(proxy_for("relay.example", 443, secure=True, setting="http://q:2")) == "http://q:2"
    monkeypatch.delenv("NO_PROXY")
    for none in ("", False):
        assert proxy_for("relay.example", 443, secure=True, setting=none) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "excluded"),
    [
        ("", "relay.example", False),
        ("*", "relay.example", True),
        ("relay.example", "relay.example", True),
        ("relay.example", "eu.relay.example", True),
        (".example", "relay.example", True),
        ("a, EXAMPLE ,b", "relay.example", True),
        ("lay.example", "relay.example", False),
        ("relay.example:8443", "relay.example", True),
        ("relay.example:443", "relay.example", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.0/8", "127.9.9.9", True),
        ("10.0.0.0/8", "127.0.0.1", False),
        ("10.1.2.3/8", "10.9.9.9", True),
        ("::1", "::1", True),
        ("[::1]", "::1", True),
        ("[::1]:8443", "::1", True),
        ("[::1]:443", "::1", False),
        ("2001:db8::/32", "2001:db8:1::2", True),
        ("127.0.0.0/8", "localhost", False),
        ("nonsense/8,127.0.0.1", "127.0.0.1", True),
    ],
)
def test_no_proxy_names_hosts_endings_ports_and_networks(
    no_proxy: str, host: str, excluded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert is_excluded(host, 8443) is excluded
    assert (proxy_for(host, 8443, secure=True) is None) is excluded


# --- answers ---

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """A port where each connection is served so, and then closed."""

    serving: set[asyncio.Task[None] | None] = set()

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*(task for task in serving if task is not None))


async def failure(scheme: str, serve: Serve, credentials: str = "") -> ProxyError:
    """What going through a proxy that does this raises."""
    async with listening(serve) as port, asyncio.timeout(5):
        with pytest.raises(ProxyError) as caught:
            await open_tunnel(read_proxy(f"{scheme}://{credentials}127.0.0.1:{port}"), "relay.example", 443)
    assert f"The proxy {scheme}://127.0.0.1:{port} " in str(caught.value)
    assert "hush" not in str(caught.value)
    return caught.value


def http_answer(*pieces: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)  # so that each is a read of its own

    return serve


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", ProxyAuthenticationFailed, "asks for a user"),
        (b"HTTP/1.1 407 x\r\n\r\n", ProxyAuthenticationFailed, "(407)"),
        (b"HTTP/1.1 407 x\r\nproxy-authenticate: NTLM\r\n\r\n", ProxyAuthenticationFailed, "asks for ntlm; only Basic"),
        (b"HTTP/1.1 403 Forbidden by policy\r\n\r\n<html>", ProxyRefused, "relay.example:443: 403 Forbidden by policy"),
        (b"HTTP/1.1 405\r\n\r\n", ProxyRefused, "405"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal\r\n\r\n", ProxyRefused, "302 Found"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", ProxyCannotConnect, "cannot reach relay.example:443: 502 Bad Gateway"),
        (b"HTTP/1.0 504 Late\r\n\r\n", ProxyCannotConnect, "504 Late"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", ProxyError, "before it was asked"),
        (b"HTTP/1.1 20 OK\r\n\r\n", ProxyError, "does not answer in HTTP"),
        (b"SSH-2.0-x\r\n", ProxyError, "does not answer in HTTP"),
        (b"\x05\xff", ProxyError, "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 12_000, ProxyError, "does not answer in HTTP"),
        (b"HTTP/1.1 200", ProxyError, "closed the connection without an answer"),
        (b"", ProxyError, "closed the connection without an answer"),
    ],
)
@pytest.mark.loop("uvloop")
async def test_answer_of_an_http_proxy_is_told_apart(answer: bytes, kind: type[ProxyError], words: str) -> None:
    error = await failure("http", http_answer(answer))
    assert type(error) is kind and words in str(error)
    assert error.remedy


async def test_http_proxy_that_refuses_the_password_says_so() -> None:
    error = await failure("http", http_answer(b"HTTP/1.1 407 x\r\n\r\n"), "ada:hush@")
    assert type(error) is ProxyAuthenticationFailed and "refuses the user name and password" in str(error)


@pytest.mark.parametrize("status", [b"200 Connection established", b"201", b"299 Fine"])
async def test_http_answer_in_pieces_is_read_to_its_end_and_not_further(status: bytes) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        for piece in (b"HTTP/1.1 " + status + b"\r", b"\nVia: x\r\n", b"\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        await reader.readexactly(4)  # the tunnel stands when the peer speaks
        writer.write(b"from the relay")
        await writer.drain()

    async with listening(serve) as port, asyncio.timeout(5):
        sock = await open_tunnel(read_proxy(f"ada:\u00e9@127.0.0.1:{port}"), "2001:db8::1", 8443)
        with sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"ping")
            assert await loop.sock_recv(sock, 100) == b"from the relay"
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "CONNECT [2001:db8::1]:8443 HTTP/1.1"
    assert "Host: [2001:db8::1]:8443" in lines and "Proxy-Authorization: Basic YWRhOsOp" in lines


def socks_answer(method: bytes, *rest: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly((await reader.readexactly(2))[1])
        writer.write(method)
        for piece in rest:
            await reader.read(1000)
            writer.write(piece)
        await writer.drain()

    return serve


def reply(code: int) -> bytes:
    return bytes((5, code, 0, 1)) + bytes(6)


@pytest.mark.parametrize(
    ("serve", "kind", "words"),
    [
        (socks_answer(b"\x05\x00", reply(1)), ProxyCannotConnect, "cannot reach relay.example:443: General"),
        (socks_answer(b"\x05\x00", reply(2)), ProxyRefused, "does not connect to relay.example:443: Connection not"),
        (socks_answer(b"\x05\x00", reply(3)), ProxyCannotConnect, "Network unreachable"),
        (socks_answer(b"\x05\x00", reply(4)), ProxyCannotConnect, "Host unreachable"),
        (socks_answer(b"\x05\x00", reply(5)), ProxyCannotConnect, "refused by destination"),
        (socks_answer(b"\x05\x00", reply(6)), ProxyCannotConnect, "TTL"),
        (socks_answer(b"\x05\x00", reply(7)), ProxyRefused, "Command not supported"),
        (socks_answer(b"\x05\x00", reply(99)), ProxyError, "does not answer in SOCKS5"),
        (socks_answer(b"\x05\xff"), ProxyAuthenticationFailed, "asks for a user name"),
        (socks_answer(b"\x05\x02"), ProxyAuthenticationFailed, "asks for a user name"),
        (socks_answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ProxyError, "does not answer in SOCKS5"),
        (socks_answer(b""), ProxyError, "closed the connection without an answer"),
    ],
)
@pytest.mark.loop("uvloop")
async def test_answer_of_a_socks_proxy_is_told_apart(serve: Serve, kind: type[ProxyError], words: str) -> None:
    error = await failure("socks5", serve)
    assert type(error) is kind and words in str(error)


async def test_socks_proxy_that_refuses_the_password_says_so() -> None:
    error = await failure("socks5", socks_answer(b"\x05\x02", b"\x01\x01"), "ada:hush@")
    assert type(error) is ProxyAuthenticationFailed and "refuses the user name and password" in str(error)
    silent = await failure("socks5", socks_answer(b"\x05\x02"), "ada:hush@")
    assert type(silent) is ProxyError and "when user name or password is wrong" in str(silent)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_proxy_that_is_not_there_is_not_taken_for_a_relay_that_is_not_there(scheme: str) -> None:
    async with listening(http_answer()) as port:
        pass
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "no-such-proxy.invalid:1"):
        with pytest.raises(ProxyUnreachable, match=f"The proxy {scheme}://{host} cannot be reached: "):
            await open_tunnel(read_proxy(f"{scheme}://{host}"), "relay.example", 443)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_proxy_that_resets_the_connection_is_named(scheme: str) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    error = await failure(scheme, reset)
    assert type(error) is ProxyError and "closed the connection without an answer" in str(error)


def test_what_a_proxy_says_may_pass_unless_somebody_must_change_something() -> None:
    proxy = read_proxy("p:1")
    assert [may_pass(kind(proxy, "x")) for kind in (ProxyError, ProxyUnreachable, ProxyCannotConnect)] == [True] * 3
    assert [may_pass(kind(proxy, "x")) for kind in (ProxyAuthenticationFailed, ProxyRefused)] == [False] * 2


@pytest.mark.parametrize("host", ["localhost", "relay.localhost", "127.0.0.1", "::1", "127.9.9.9"])
async def test_relay_of_this_computer_is_to_be_excluded_from_the_proxy_of_the_environment(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(http_answer(b"HTTP/1.1 403 Forbidden\r\n\r\n")) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        proxy = proxy_for(host, 8443, secure=True)
        assert proxy is not None
        with pytest.raises(ProxyRefused) as caught:
            await open_tunnel(proxy, host, 8443)
        assert caught.value.remedy == f"go directly to this computer: set NO_PROXY={host}"
        with pytest.raises(ProxyRefused) as caught:
            await open_tunnel(read_proxy(f"127.0.0.1:{port}"), host, 8443)  # asked for
        assert "NO_PROXY" not in caught.value.remedy
