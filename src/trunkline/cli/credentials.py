"""Who a command is and whom it trusts: one rule for all commands.

The connection string is that of ``--connection-string``, else of ``TRUNKLINE_CONNECTION_STRING``. It holds only what
Azure's own hold; how to trust the relay is said beside it, with ``--ca`` or ``TRUNKLINE_CA_FILE``, or ``--no-tls``,
and the way there with ``--proxy`` or the usual variables (``HTTPS_PROXY`` and so on, see `trunkline.sdk.proxy`).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trunkline.cli.failure import UNREACHABLE, Failure, explain, usage
from trunkline.protocol import connection_string
from trunkline.protocol.errors import ConnectionLost

if TYPE_CHECKING:
    from trunkline.sdk import HybridConnectionClient, HybridConnectionListener
    from trunkline.sdk.endpoint import Endpoint

CONNECTION_STRING_VARIABLE = "TRUNKLINE_CONNECTION_STRING"
CA_VARIABLE = "TRUNKLINE_CA_FILE"

ConnectionStringOption = Annotated[
    str | None,
    typer.Option(
        "--connection-string",
        metavar="TEXT",
        envvar=CONNECTION_STRING_VARIABLE,
        help="Where the relay is and the key to get in; other users of this computer may see options, not variables.",
    ),
]
EntityOption = Annotated[
    str | None,
    typer.Option(
        "--entity",
        "--hybrid-connection",
        metavar="PATH",
        help="Hybrid connection, when the connection string names none.",
    ),
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca", metavar="FILE", envvar=CA_VARIABLE, help="Trust this authority (PEM) instead of the computer's own."
    ),
]
NoTlsOption = Annotated[bool, typer.Option("--no-tls", help="The relay speaks no TLS on this port.")]
ProxyOption = Annotated[
    str | None,
    typer.Option(
        "--proxy",
        metavar="URL",
        help='Go through this proxy, http://... or socks5://...; "" for none. Otherwise HTTPS_PROXY and so on count.',
    ),
]


@dataclass(frozen=True)
class Credentials:
    """What listeners and senders of the SDK are made from."""

    #: The connection string, with its key.
    text: str = field(repr=False)
    #: Path of the hybrid connection.
    entity: str
    #: For messages: ``sb://host:port/path``.
    address: str
    #: As the SDK takes it.
    ssl: ssl.SSLContext | Literal[False] | None
    #: URL of a proxy, which may hold credentials; "" for none, None to look at the environment.
    proxy: str | None = field(default=None, repr=False)
    #: The authority that is trusted instead of the computer's own; None for those.
    ca: Path | None = None

    def listener(self, **options: Any) -> HybridConnectionListener:
        """A listener, not opened yet."""
        from trunkline.sdk import HybridConnectionListener

        return HybridConnectionListener(self.text, entity_path=self.entity, ssl=self.ssl, proxy=self.proxy, **options)

    def endpoint(self) -> Endpoint:
        """The hybrid connection, as the SDK reaches it."""
        from trunkline.sdk.endpoint import read_endpoint

        return read_endpoint(
            self.text,
            entity_path=self.entity,
            token_provider=None,
            key_name=None,
            key=None,
            ssl=self.ssl,
            proxy=self.proxy,
        )

    def client(self) -> HybridConnectionClient:
        """A sender."""
        from trunkline.sdk import HybridConnectionClient

        return HybridConnectionClient(self.text, entity_path=self.entity, ssl=self.ssl, proxy=self.proxy)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Around the attempt to connect: an error of the network says which relay was not reached."""
        try:
            yield
        except (OSError, ConnectionLost) as error:
            cause = error.__cause__ if isinstance(error, TimeoutError) else error
            failure = explain(error)
            what, remedy = failure.what, failure.remedy
            if isinstance(cause, ConnectionLost) and self.ssl is False:
                remedy = "check that the relay speaks no TLS on this port; where it does, leave --no-tls out"
            elif isinstance(cause, OSError) and not remedy:
                remedy = UNREACHABLE
            if not isinstance(error, TimeoutError):
                what = f"{self.address} cannot be reached: {what}"
            raise Failure(what, remedy, status=failure.status) from error


def required(text: str | None) -> str:
    """The connection string that was given, or a usage error that says how to give one."""
    if text:
        return text
    raise usage(
        "No connection string is given",
        f"pass --connection-string TEXT or set {CONNECTION_STRING_VARIABLE}; `trunkline emulator` prints one",
    )


def read(text: str | None, entity: str | None, ca: Path | None, no_tls: bool, proxy: str | None = None) -> Credentials:
    """The credentials that the options above give. Raises Failure, InvalidConnectionString."""
    parts = connection_string.parse(required(text))
    path = (entity or "").strip("/") or parts.entity_path
    if not path:
        raise usage(
            "The connection string names no hybrid connection", "add --entity PATH, or EntityPath=PATH to the string"
        )
    if entity and parts.entity_path and parts.entity_path.lower() != path.lower():
        raise usage(
            f"--entity is {path}, and the connection string is for {parts.entity_path}",
            "leave one of them out, or use a connection string of the namespace",
        )
    return Credentials(str(parts), path, f"{parts.endpoint}{path}", False if no_tls else _context(ca), proxy, ca)


def _context(ca: Path | None) -> ssl.SSLContext | None:
    if ca is None:
        return None
    remedy = "name the ca.pem of the node's data folder"
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise usage(f"{ca} holds no certificate in PEM form", remedy) from None
    except OSError as error:
        raise usage(f"{ca} cannot be read: {error.strerror}", remedy) from None
