"""Asks the admin port of a node: which node, by which door, and what its refusals mean.

    --admin URL      that port, with a token: --admin-token-file, TRUNKLINE_ADMIN_TOKEN, or that of the data folder
    else             the Unix socket in the data folder of the settings; where there can be none, the port with a token
    nothing given    the node whose data folder is in the working folder, else the emulator of this user

A token is never sent to a port only because nobody answered on the socket: anybody may listen there when the node does
not run.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode, urlsplit

import typer

from trunkline.cli.data_folder import emulator_folder
from trunkline.cli.failure import Failure, usage
from trunkline.protocol.errors import InvalidSetting
from trunkline.server.admin.doors import TOKEN_FILE, read_token, socket_path
from trunkline.server.config import declarative
from trunkline.server.config.settings import SETTINGS, NodeSettings, load

#: Seconds for one answer.
TIMEOUT = 10.0

TOKEN_VARIABLE = SETTINGS["admin_token"].variable

DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Data folder of the node. [default: data, else emulator's]")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Declarative file of the node (trunkline.toml).")
]
AdminOption = Annotated[
    str | None, typer.Option("--admin", metavar="URL", help="Its admin port, http://HOST:PORT, with a token.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--admin-token-file", metavar="FILE", help=f"Holds the token for --admin; or set {TOKEN_VARIABLE}."),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr which node is asked.")]


class NodeAway(Failure):
    """Nobody answers; it may be different in a moment."""


@dataclass(frozen=True)
class Door:
    """One way in to the admin port of a node."""

    #: For messages: the path of the socket, or the URL.
    name: str
    #: None: by `url`.
    socket: Path | None = None
    url: str = ""
    token: str | None = field(default=None, repr=False)
    #: What to do when nobody answers.
    remedy: str = "check that the node runs there"

    def ask(self, method: str, *path: str, query: Mapping[str, str] | None = None) -> Any:
        """What the node answers.

        Raises:
            NodeAway: nobody answers.
            Failure: the node refuses, in its own words, or it is no node.
        """
        target = "/" + "/".join(quote(part, safe="") for part in path)
        if query:
            target += "?" + urlencode(query)
        headers = {"Authorization": f"Bearer {self.token}"} if self.token and self.socket is None else {}
        connection = self._connection()
        try:
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            body = response.read()
        except PermissionError as error:
            raise Failure(
                f"{self.name}: {error.strerror}", "run this as the user of the node, or use --admin URL with its token"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NodeAway(f"No node answers on {self.name}: {why}", self.remedy) from None
        finally:
            connection.close()
        return self._content(response.status, body)

    def _content(self, status: int, body: bytes) -> Any:
        try:
            content = json.loads(body)
        except ValueError:
            raise Failure(
                f"{self.name} is not the admin port of a node", "check the URL: it is admin_host and admin_port"
            ) from None
        if status == 401:
            what = "needs the admin token" if self.token is None else "does not know this admin token"
            raise Failure(
                f"{self.name} {what}",
                f"name {TOKEN_FILE} of the node's data folder with --admin-token-file, or set {TOKEN_VARIABLE}",
            )
        if status != 200:
            raise Failure(str(content.get("error", f"the node answers {status}")))
        return content

    def _connection(self) -> http.client.HTTPConnection:
        if self.socket is not None:
            return _SocketConnection(self.socket)
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=TIMEOUT)


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


class Node:
    """The node that the options mean. It is looked for with the first question, and kept.

    Raises:
        Failure: an option, a setting or a token file cannot be used.
    """

    def __init__(
        self, data: Path | None, config: Path | None, admin: str | None, token_file: Path | None, *, verbose: bool
    ) -> None:
        self._verbose = verbose
        # In the order in which they are tried; one is left once it has answered.
        self._doors = _doors(data, config, admin, token_file)

    def ask(self, method: str, *path: str, query: Mapping[str, str] | None = None) -> Any:
        """What the first node that is there answers; see `Door.ask`."""
        for door in self._doors:
            try:
                content = door.ask(method, *path, query=query)
            except NodeAway as error:
                if len(self._doors) == 1:
                    raise
                away = error
                continue
            if self._verbose:
                print(f"the node at {door.name} answers", file=sys.stderr)
                self._verbose = False
            self._doors = [door]
            return content
        names = " or ".join(door.name for door in self._doors)
        raise NodeAway(f"No node answers on {names}", away.remedy)

    def rows(self, what: str, **wanted: str | None) -> list[dict[str, Any]]:
        """The rows of a listing.

        Args:
            what: "listeners" or "connections".
            wanted: what they must have, by name: namespace, entity, id; None: anything.
        """
        query = {name: value for name, value in wanted.items() if value is not None}
        found: list[dict[str, Any]] = self.ask("GET", what, query=query)[what]
        return found


def _doors(data: Path | None, config: Path | None, admin: str | None, token_file: Path | None) -> list[Door]:
    settings = load(
        None if config is None else declarative.read(config), {"data": None if data is None else str(data.absolute())}
    )
    if admin is not None:
        return [_port(_url(admin), _token(settings, token_file, named=data is not None or config is not None))]
    if token_file is not None:
        raise usage(
            "--admin-token-file goes with --admin", "add --admin URL, or leave it out: the socket asks for none"
        )
    doors = [_own(settings)]
    is_named = data is not None or config is not None or bool(os.environ.get(SETTINGS["data"].variable))
    if not is_named:
        emulator = settings.model_copy(update={"data": emulator_folder(), "admin_socket": Path("admin.sock")})
        doors.append(_own(emulator))
    return doors


def _own(settings: NodeSettings) -> Door:
    """The door of a node on this computer whose settings are known."""
    path = socket_path(settings)
    if path is not None and len(os.fsencode(path)) <= _LONGEST:
        remedy = "start one (trunkline serve, trunkline emulator), or name it: --data DIR, --config FILE, --admin URL"
        return Door(str(path), socket=path, remedy=remedy)
    host = f"[{settings.admin_host}]" if ":" in settings.admin_host else settings.admin_host
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return _port(f"http://{host}:{settings.admin_port}", _token(settings, None, named=True))


# Bytes of a path that every system takes for a socket: 107 on Linux, 103 on macOS.
_LONGEST = 107 if sys.platform == "linux" else 103


def _port(url: str, token: str | None) -> Door:
    return Door(url, url=url, token=token, remedy="check that the node runs, and its admin_host and admin_port")


def _url(text: str) -> str:
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or "@" in text:
        raise usage(f"--admin {text} is no address of an admin port", "write http://HOST:PORT")
    if port is None and parts.netloc.rpartition(":")[2].isdigit():
        raise usage(f"--admin {text} has no such port", "write http://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}"


def _token(settings: NodeSettings, file: Path | None, *, named: bool) -> str | None:
    """The token for a port: of the file, else of the settings, else of the data folder if that was named."""
    if file is None and settings.admin_token is not None:
        return settings.admin_token.get_secret_value()
    if file is None:
        file = settings.data / TOKEN_FILE
        if not named or not file.exists():
            return None
    try:
        return read_token(file)
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror}", "it is for the user of the node alone") from None
    except InvalidSetting as error:
        raise usage(error.message) from None
