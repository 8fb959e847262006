"""The two ways in to the admin port, and who may use which.

    Unix socket    in the data folder, for the user of the node alone: the system says who that is, so nothing is asked
    port           for whoever knows the token: the setting, or what the file `admin-token` of the data folder holds

What is open on the port without a token (health, and metrics while the port is on a loopback address) is open to this
computer, and not to a web page that a browser on it shows: such a page reaches the port under a name of its own (DNS
rebinding), and the Host header says which.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import os
import secrets
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.protocol.errors import InvalidSetting, InvalidUrl
from trunkline.protocol.urls import split_authority
from trunkline.server.config.settings import NodeSettings

if TYPE_CHECKING:
    from trunkline.server.relay.request_head import RequestHead

log = logging.getLogger("trunkline.node")

TOKEN_FILE = "admin-token"

# Random bytes in a token that the node makes.
_TOKEN_BYTES = 32

# Characters of a token file that are read; it holds one line.
_TOKEN_FILE_LIMIT = 4_096


# -- the token


def token_of(settings: NodeSettings) -> str:
    """The token of the setting, else of the file in the data folder, which is made when it is not there.

    A node that keeps nothing has no data folder: its token is made anew, and is in this process alone.

    Raises:
        InvalidSetting: the file cannot be read, written or used.
    """
    if settings.admin_token is not None:
        return settings.admin_token.get_secret_value()
    file = settings.data / TOKEN_FILE
    if not settings.data.is_dir():
        return secrets.token_urlsafe(_TOKEN_BYTES)
    try:
        if not file.exists():
            _keep(secrets.token_urlsafe(_TOKEN_BYTES), file)
        elif file.stat().st_mode & 0o077:
            file.chmod(0o600)  # a restored backup, or a volume whose files the system opens to a group
        return read_token(file)
    except OSError as error:
        raise InvalidSetting(f"{file} cannot be used: {error.strerror}; check who owns it and its folder") from None


def read_token(file: Path) -> str:
    """The token that a file holds.

    Raises:
        OSError: the file cannot be read.
        InvalidSetting: it holds no token; the message shows nothing of it.
    """
    with file.open("rb") as stream:
        text = stream.read(_TOKEN_FILE_LIMIT).strip()
    if not text or not all(0x21 <= character <= 0x7E for character in text):
        raise InvalidSetting(f"{file} holds no token: remove it, and the node makes a new one when it starts")
    return text.decode("ascii")


def _keep(token: str, file: Path) -> None:
    """Write it whole or not at all, readable by its owner alone from the first moment."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(token + "\n")
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def bears(head: RequestHead, token: str) -> bool:
    """Whether the request carries this token as `Authorization: Bearer TOKEN` (RFC 6750 section 2.1)."""
    scheme, _, given = (head.get("Authorization") or "").strip().partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode("latin-1"))


# -- the port


def is_loopback(host: str) -> bool:
    """Whether a name or an address always leads to this computer (RFC 6761 section 6.3)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_meant_for(head: RequestHead, admin_host: str) -> bool:
    """Whether the Host header names this computer or the address of the admin port."""
    try:
        host, _ = split_authority(head.get("Host") or "")
    except InvalidUrl:
        return False
    return is_loopback(host) or host == admin_host


# -- the socket


def socket_path(settings: NodeSettings) -> Path | None:
    """Where the Unix socket is; None: there is none, by its setting or by the system."""
    if str(settings.admin_socket) == "off" or not hasattr(socket, "AF_UNIX"):
        return None
    return settings.data / settings.admin_socket


def bind_socket(path: Path) -> socket.socket | None:
    """A Unix socket at `path` for the user of this process alone, not listening yet.

    One that a node left behind is replaced. Where the system cannot do it (a path of more than about 100 bytes, a file
    system without sockets) that is logged, and the result is None: the port is there.

    Raises:
        InvalidSetting: another process answers there, or something else is there.
    """
    if path.is_socket():
        if _is_answered(path):
            raise InvalidSetting(f"Another node answers on {path}. Stop that one, or set another admin_socket")
    elif path.exists():
        raise InvalidSetting(f"{path} is there and is no socket. Set another admin_socket")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        # Nobody could connect before: it does not listen.
        path.chmod(0o600)
    except OSError as error:
        sock.close()
        why = error.strerror or str(error)
        log.warning("no admin socket at %s (%s); the admin port is there", path, why)
        return None
    return sock


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except BlockingIOError:  # a full queue: somebody listens
            return True
        except OSError:
            return False
        return True
