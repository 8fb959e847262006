"""The way to the relay through a proxy: HTTP CONNECT or SOCKS5, named by an argument or by the environment.

    proxy = proxy_for(host, port, secure=True, setting=None)     which one, if any
    sock = await open_tunnel(proxy, host, port)                  connected to the relay, nothing sent yet

The rules of the environment are those of Python's own urllib, which requests and httpx use too: ``HTTPS_PROXY`` for
TLS, ``HTTP_PROXY`` for none (only in lower case within a CGI script, where ``HTTP_PROXY`` may come from a stranger),
``ALL_PROXY`` for both, ``NO_PROXY`` for hosts to go to directly; lower case wins; on macOS and Windows the settings
of the system where no variable is set. As in curl, ``NO_PROXY`` may hold networks (``10.0.0.0/8``). Nothing is left
out by itself, also not localhost.

The relay's host name is resolved by the proxy, with ``socks5://`` too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import os
import re
import socket
import urllib.request
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

import python_socks
from python_socks.async_.asyncio import Proxy as SocksProxy

from trunkline.protocol.errors import InvalidSetting, InvalidUrl, clean_phrase
from trunkline.protocol.urls import split_authority

#: Schemes and the ports they have when none is written (as requests has them). ``socks`` is what desktops write.
_PORTS = {"http": 80, "socks5": 1080, "socks5h": 1080, "socks": 1080}
#: Variables (without ``_PROXY``), by whether TLS is used; the first that is set counts. ``wss`` and ``ws`` as in curl.
_VARIABLES = {True: ("wss", "https", "all", "socks"), False: ("ws", "http", "all", "socks")}
#: Bytes of a proxy's answer to CONNECT.
_HEAD_LIMIT = 65_536
#: Bytes of a user name or password in SOCKS5 (RFC 1929).
_SOCKS_LIMIT = 255
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: ([^\r\n]*))?\r\n")
_CHALLENGE = re.compile(rb"\r\nproxy-authenticate:[ \t]*([A-Za-z]+)", re.IGNORECASE)

_HOW = "write it as http://[user:password@]host:port or socks5://..., with special characters percent-encoded"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy as it was read. Neither ``str()`` nor ``repr()`` shows its credentials."""

    #: ``http`` or ``socks5``.
    scheme: Literal["http", "socks5"]
    #: Name or IP address, without brackets.
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    #: The variable that it comes from; empty for an argument.
    origin: str = ""

    def __str__(self) -> str:
        """``http://host:port``."""
        return f"{self.scheme}://{_authority(self.host, self.port)}"


#: What the argument ``proxy`` may be: a URL; None to look at the environment; False or "" for none.
ProxySetting = Proxy | str | Literal[False] | None


class ProxyError(OSError):
    """A proxy stood in the way; whether the relay is reachable is not known.

        ProxyError                      it answered nonsense, or ended the connection
        ├── ProxyUnreachable            nobody answers there
        ├── ProxyAuthenticationFailed   it wants a user name and password, or others
        ├── ProxyRefused                it does not let anybody go there
        └── ProxyCannotConnect          it tried, and did not reach the relay

    Parameters
    ----------
    proxy: which one.
    message: what went wrong, a sentence that goes on behind "The proxy http://host:port".
    """

    #: Whether the same attempt may succeed later without anybody changing anything.
    transient = True
    #: What to do about it.
    remedy = "check that it is a proxy of this kind: http:// speaks HTTP CONNECT, socks5:// speaks SOCKS5"

    def __init__(self, proxy: Proxy, message: str) -> None:
        origin = f" ({proxy.origin})" if proxy.origin else ""
        super().__init__(f"The proxy {proxy}{origin} {message}")
        #: Its address, without credentials.
        self.proxy = str(proxy)


class ProxyUnreachable(ProxyError):
    """No connection to the proxy itself."""

    remedy = "check the address of the proxy, or go without one: NO_PROXY names hosts to reach directly"


class ProxyAuthenticationFailed(ProxyError):
    """The proxy does not accept who we are (407; RFC 1929)."""

    transient = False
    remedy = "give the user name and password within the address: http://user:password@host:port"


class ProxyRefused(ProxyError):
    """The proxy does not allow connections to the relay (403; SOCKS reply 2)."""

    transient = False
    remedy = "ask whoever runs the proxy to allow CONNECT to the relay's host and port"


class ProxyCannotConnect(ProxyError):
    """The proxy did not reach the relay (502, 503, 504; SOCKS replies 1, 3 to 6)."""

    remedy = "check host and port of the relay as the proxy sees them: it resolves the name and connects"


# --- which proxy ---


def read_proxy(text: str, *, origin: str = "") -> Proxy:
    """Read the URL of a proxy; without a scheme it is an HTTP proxy, as in curl.

    Parameters
    ----------
    text: ``http://[user:password@]host[:port]``, or ``socks5``, ``socks5h``, ``socks`` instead of ``http``.
    origin: the variable it comes from.

    Raises InvalidSetting; the text is not shown, because it may hold a password.
    """
    which = f"The proxy in {origin}" if origin else "The proxy"
    if "://" not in text:
        text = f"http://{text}"
    try:
        text.encode()  # a variable of the environment may hold bytes that are no text
        parts = urlsplit(text.strip())
        credentials, at, authority = parts.netloc.rpartition("@")
        host, port = split_authority(authority)
    except (ValueError, InvalidUrl):
        raise InvalidSetting(f"{which} cannot be read: {_HOW}") from None
    scheme = parts.scheme.lower()
    if scheme == "https":
        raise InvalidSetting(f"{which} is one with TLS (https://), which is not supported: use its http:// port")
    if scheme not in _PORTS:
        raise InvalidSetting(f"{which} has the scheme {scheme}://, which is not supported: use http:// or socks5://")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidSetting(f"{which} cannot be read, it has a path: {_HOW}")
    username = password = None
    if at:
        name, _, secret = credentials.partition(":")
        username, password = unquote(name), unquote(secret)
    if scheme == "http":
        if username is not None and ":" in username:
            raise InvalidSetting(f"{which} has a user name with a colon, which Basic credentials cannot carry")
        return Proxy("http", host, port or _PORTS[scheme], username, password, origin)
    for value in (username, password):
        if value is not None and not (value.isascii() and 0 < len(value) <= _SOCKS_LIMIT):
            raise InvalidSetting(
                f"{which} needs a user name and a password of 1 to {_SOCKS_LIMIT} ASCII characters, or neither"
            )
    return Proxy("socks5", host, port or _PORTS[scheme], username, password, origin)


def read_setting(setting: ProxySetting) -> Proxy | Literal[False] | None:
    """An argument ``proxy``, read once. Raises InvalidSetting."""
    if setting is None or isinstance(setting, Proxy):
        return setting
    return read_proxy(setting) if setting else False


def proxy_for(host: str, port: int, *, secure: bool, setting: ProxySetting = None) -> Proxy | None:
    """The proxy for connections to `host`, or None to go there directly.

    Raises InvalidSetting: the proxy cannot be read.
    """
    if setting is not None:
        return read_setting(setting) or None
    proxies = urllib.request.getproxies()
    scheme = next((name for name in _VARIABLES[secure] if proxies.get(name)), None)
    if scheme is None or is_excluded(host, port):
        return None
    variable = f"{scheme}_proxy"
    text = proxies[scheme]
    if variable not in os.environ:
        variable = variable.upper()
    if scheme == "socks":  # macOS writes http:// there
        text = f"socks5://{text.rpartition('://')[2]}"
    return read_proxy(text, origin=variable if variable in os.environ else "settings of the system")


def is_excluded(host: str, port: int) -> bool:
    """Whether ``NO_PROXY`` (or the settings of the system) says to go to `host` directly.

    Names and endings of names, with or without a port, and ``*`` as in urllib; addresses and networks as in curl.
    """
    if urllib.request.proxy_bypass(_authority(host, port)):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in urllib.request.getproxies().get("no", "").split(","):
        with contextlib.suppress(ValueError):
            if address in ipaddress.ip_network(_network(entry.strip(), port), strict=False):
                return True
    return False


def _network(entry: str, port: int) -> str:
    """An entry of ``NO_PROXY`` without its brackets, and without its port when that is ours."""
    bracketed, _, behind = entry.rpartition("]")
    if bracketed:
        return bracketed.lstrip("[") if behind in ("", f":{port}") else entry
    return entry


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- through it ---


async def open_tunnel(proxy: Proxy, host: str, port: int) -> socket.socket:
    """Connect to `host` through `proxy`. Set no timeout here: the caller's covers the proxy too.

    Returns a connected socket that does not block; the caller owns it.

    Raises
    ------
    ProxyError, or one of its classes.
    """
    try:
        return await _open_tunnel(proxy, host, port)
    except ProxyError as error:
        if proxy.origin and is_loopback(host):  # an emulator, behind the proxy of a company
            error.remedy = f"go directly to this computer: set NO_PROXY={host}"
        raise


def is_loopback(host: str) -> bool:
    """Whether `host` is this computer, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


async def _open_tunnel(proxy: Proxy, host: str, port: int) -> socket.socket:
    through = _through_http if proxy.scheme == "http" else _through_socks
    failure: OSError | None = None
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ProxyUnreachable(proxy, f"cannot be reached: {error.strerror or error}") from error
    for address in dict.fromkeys(found[4][0] for found in addresses):
        try:
            return await through(proxy, str(address), host, port)
        except _NotThere as error:
            failure = failure or error.why
    assert failure is not None
    why = os.strerror(failure.errno) if failure.errno else str(failure)
    raise ProxyUnreachable(proxy, f"cannot be reached: {why}") from failure


class _NotThere(Exception):
    """Nobody listens at one of the proxy's addresses."""

    def __init__(self, why: OSError) -> None:
        super().__init__(str(why))
        self.why = why


async def _through_http(proxy: Proxy, address: str, host: str, port: int) -> socket.socket:
    """HTTP CONNECT (RFC 9110 section 9.3.6).

    Our own, because python-socks takes what one read brings for the whole answer: a head that comes in two pieces
    would leave its second half in front of what the relay sends.
    """
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, (address, proxy.port))
        except OSError as error:
            raise _NotThere(error) from error
        try:
            await loop.sock_sendall(sock, _connect_request(proxy, host, port))
            head = await _read_head(proxy, sock)
        except ProxyError:
            raise
        except OSError as error:
            raise ProxyError(proxy, "closed the connection without an answer") from error
        _check_answer(proxy, head, host, port)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_request(proxy: Proxy, host: str, port: int) -> bytes:
    target = _authority(host, port)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        credentials = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {credentials}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _read_head(proxy: Proxy, sock: socket.socket) -> bytes:
    """The head of the answer. Nothing may come behind it: in every protocol that we speak, we speak first."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        piece = await asyncio.get_running_loop().sock_recv(sock, 4096)
        if not piece:
            raise ProxyError(proxy, "closed the connection without an answer")
        data += piece
        if not data.startswith(b"HTTP/1."[: len(data)]) or len(data) > _HEAD_LIMIT:
            raise ProxyError(proxy, "does not answer in HTTP")
    return bytes(data)


def _check_answer(proxy: Proxy, data: bytes, host: str, port: int) -> None:
    """Raise unless the proxy has connected."""
    head, _, behind = data.partition(b"\r\n\r\n")
    found = _STATUS_LINE.match(head + b"\r\n")
    if found is None:
        raise ProxyError(proxy, "does not answer in HTTP")
    status, words = int(found[1]), clean_phrase((found[2] or b"").decode("latin-1"))
    if 200 <= status < 300:
        if behind:
            raise ProxyError(proxy, "sent something before it was asked")
        return
    if status == 407:
        schemes = [scheme.decode().lower() for scheme in _CHALLENGE.findall(head)]
        if schemes and "basic" not in schemes:
            raise ProxyAuthenticationFailed(proxy, f"asks for {', '.join(schemes)}; only Basic is spoken here (407)")
        refused = "refuses the user name and password" if proxy.username else "asks for a user name and password"
        raise ProxyAuthenticationFailed(proxy, f"{refused} (407)")
    answer = f"{status} {words}".strip()
    if status >= 500:
        raise ProxyCannotConnect(proxy, f"cannot reach {_authority(host, port)}: {answer}")
    raise ProxyRefused(proxy, f"does not connect to {_authority(host, port)}: {answer}")


#: SOCKS5 replies (RFC 1928 section 6) by which the proxy says that it does not want to; the others: it could not.
_SOCKS_REFUSALS = (2, 7, 8)


async def _through_socks(proxy: Proxy, address: str, host: str, port: int) -> socket.socket:
    socks = SocksProxy(python_socks.ProxyType.SOCKS5, address, proxy.port, proxy.username, proxy.password, rdns=True)
    try:
        # Its own timeout of 60 s must not come before the caller's.
        return await socks.connect(host, port, timeout=86_400)
    except python_socks.ProxyConnectionError as error:
        raise _NotThere(error.__cause__ if isinstance(error.__cause__, OSError) else error) from error
    except python_socks.ProxyError as error:
        raise _socks_error(proxy, error, _authority(host, port)) from error
    except OSError as error:
        raise ProxyError(proxy, "closed the connection without an answer") from error


def _socks_error(proxy: Proxy, error: python_socks.ProxyError, target: str) -> ProxyError:
    words = str(error)
    if error.error_code in _SOCKS_REFUSALS:
        return ProxyRefused(proxy, f"does not connect to {target}: {words}")
    if error.error_code is not None:
        return ProxyCannotConnect(proxy, f"cannot reach {target}: {words}")
    if "authentication" in words and "Malformed" not in words:  # of this, and of the next, it has words only
        refused = "refuses the user name and password" if proxy.username else "asks for a user name and password"
        return ProxyAuthenticationFailed(proxy, refused)
    if "closed" in words:
        hint = "user name or password is wrong" if proxy.username else "they want a user name and password"
        return ProxyError(proxy, f"closed the connection without an answer, which some do when {hint}")
    return ProxyError(proxy, "does not answer in SOCKS5")
