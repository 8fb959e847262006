"""The web server that is exposed: what a person types for it, and where a request goes."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from yarl import URL

from trunkline.protocol.errors import InvalidSetting

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOW = "write it as http://localhost:3000, https://host:port/path, 3000, or unix:/path/to/socket"


@dataclass(frozen=True)
class Target:
    """A web server that requests are forwarded to."""

    #: ``http`` or ``https``.
    scheme: str
    #: Host name or IP address, without brackets.
    host: str
    port: int
    #: Goes in front of every path; empty, or ``/app`` without a slash at its end.
    base_path: str = ""
    #: Path of a Unix socket to dial in place of host and port; empty for none.
    unix_socket: str = ""

    def __str__(self) -> str:
        if self.unix_socket:
            return f"unix:{self.unix_socket}"
        return f"{self.origin}{self.base_path}"

    @property
    def authority(self) -> str:
        """Its own ``Host``: without the port where that is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """``scheme://authority``."""
        return f"{self.scheme}://{self.authority}"

    def url(self, path_and_query: str) -> URL:
        """The address of a path below the base path; what is given travels byte for byte."""
        return URL(f"{self.origin}{self.base_path}{path_and_query}", encoded=True)


def parse_target(text: str) -> Target:
    """What a person types.

    Args:
        text: an address of http or https; ``3000``, ``:3000`` or ``host:3000``, which mean http; ``unix:/path``.

    Raises:
        InvalidSetting: it is no address of a web server, or holds what would not be used.
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = "/" + text.removeprefix("unix:").lstrip("/")
        if path == "/":
            raise InvalidSetting(f"The target {text!r} names no socket: {_HOW}")
        return Target("http", "localhost", 80, unix_socket=unquote(path))
    if text.lstrip(":").isdigit():
        text = f"localhost:{text.lstrip(':')}"
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidSetting(f"The target {text!r} is no address: {_HOW}") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port == 0:
        raise InvalidSetting(f"The target {text!r} is no address of a web server: {_HOW}")
    if parts.username is not None or parts.password is not None:
        raise InvalidSetting("The target holds a user or a password, which senders would all use: leave them out")
    if parts.query or parts.fragment:
        raise InvalidSetting(f"The target {text!r} has a query or a fragment, which come from the sender: {_HOW}")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=-._~")
    return Target(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], path.rstrip("/"))


def tls_settings(*, insecure: bool, ca: str | None) -> ssl.SSLContext | bool:
    """How the certificate of an https target is checked, as aiohttp takes it.

    Args:
        insecure: not at all.
        ca: file of the authority (PEM) to trust in place of the computer's own.

    Raises:
        InvalidSetting: the file cannot be used.
    """
    if insecure:
        return False
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise InvalidSetting(f"{ca} holds no certificate in PEM form") from None
    except OSError as error:
        raise InvalidSetting(f"{ca} cannot be read: {error.strerror}") from None
