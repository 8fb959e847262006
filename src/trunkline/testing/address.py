"""What a test asks a node for: connection strings, tokens and URLs of what is declared there now."""

from __future__ import annotations

import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from trunkline.protocol import connection_string, sas, urls
from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.limits import DEFAULT_TOKEN_LIFETIME
from trunkline.server.entities.catalog import Catalog
from trunkline.server.entities.model import Rule
from trunkline.testing.declared import checked_rights


class Address(ABC):
    """Where a node is and how to get in; the same for a node in this loop and for one in a thread."""

    #: Host name or address in URLs and connection strings.
    host: str
    #: Name of the namespace.
    namespace: str
    #: The hybrid connection that is meant when a call names none; empty when the node was started without one.
    entity: str
    #: Whether it speaks TLS.
    tls: bool

    @property
    @abstractmethod
    def port(self) -> int:
        """Port of the data plane."""

    @property
    @abstractmethod
    def ca_file(self) -> Path | None:
        """The certificate authority that clients must trust, as PEM; None without TLS."""

    @abstractmethod
    def _catalog(self) -> Catalog:
        """What the node knows of its entities."""

    # --- how programs of others connect ---

    @property
    def url(self) -> str:
        """``https://127.0.0.1:40123``, or ``http`` without TLS."""
        return f"{'https' if self.tls else 'http'}://{self._authority}"

    @property
    def websocket_url(self) -> str:
        """``wss://127.0.0.1:40123``, or ``ws`` without TLS."""
        return urls.base_url(self.host, self.port, secure=self.tls)

    def connection_string(
        self, entity: str | None = None, *, rights: Iterable[str] | None = None, rule: str | None = None
    ) -> str:
        """A connection string, as a portal would show it.

        Args:
            entity: path of a hybrid connection, which need not exist; None: the first one declared; ``""``: none, for
                the namespace.
            rights: choose the rule with exactly these rights, ``["Send"]``; of the hybrid connection before one of
                the namespace.
            rule: choose the rule of that name. Without either: the first rule of the namespace.

        Raises:
            InvalidSetting: no rule is like that; the message names those there are.
        """
        path, chosen = self._rule(entity, rights, rule)
        return connection_string.build(
            self.host, port=self.port, key_name=chosen.name, key=chosen.primary_key, entity_path=path or None
        )

    def token(
        self,
        entity: str | None = None,
        *,
        rights: Iterable[str] | None = None,
        rule: str | None = None,
        expires_in: float = DEFAULT_TOKEN_LIFETIME,
    ) -> str:
        """A shared access signature; arguments as in `connection_string`.

        Args:
            expires_in: seconds from now; negative: it has expired already.
        """
        path, chosen = self._rule(entity, rights, rule)
        host = f"[{self.host}]" if ":" in self.host else self.host
        expires_at = int(time.time() + expires_in)
        return sas.sign(sas.audience(host, path), chosen.name, chosen.primary_key, expires_at=expires_at)

    def listen_url(self, entity: str | None = None, **options: Any) -> str:
        """The WebSocket address of a listener; options as in `trunkline.protocol.urls.listen_url` (id, token)."""
        return urls.listen_url(self.websocket_url, self.entity if entity is None else entity, **options)

    def connect_url(self, entity: str | None = None, **options: Any) -> str:
        """The WebSocket address of a sender; options as in `trunkline.protocol.urls.connect_url` (suffix, query...)."""
        return urls.connect_url(self.websocket_url, self.entity if entity is None else entity, **options)

    def client_context(self) -> ssl.SSLContext | Literal[False]:
        """What clients in Python take as ``ssl``: trusts this node and nothing else; False without TLS."""
        if not self.tls:
            return False
        return ssl.create_default_context(cafile=self.ca_file)

    # --- inside ---

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _rule(self, entity: str | None, rights: Iterable[str] | None, name: str | None) -> tuple[str, Rule]:
        """The path that is meant, and the rule to use for it."""
        path = self.entity if entity is None else entity.strip("/")
        catalog = self._catalog()
        namespace = catalog.namespace(self.namespace)
        if namespace is None:
            raise InvalidSetting(f"There is no namespace {self.namespace}: has the node been started?")
        found = catalog.find(namespace, path)
        own = () if found is None else found.rules
        if name is not None:
            matching = [rule for rule in (*own, *namespace.rules) if rule.name.lower() == name.lower()]
        elif rights is not None:
            wanted = checked_rights(rights)
            matching = [rule for rule in (*own, *namespace.rules) if rule.rights == wanted]
        else:
            matching = [*namespace.rules, *own]
        if not matching:
            there = ", ".join(f"{rule.name} ({', '.join(sorted(rule.rights))})" for rule in (*own, *namespace.rules))
            raise InvalidSetting(f"No rule for {path or self.namespace} is like that; there are: {there or 'none'}")
        return path, matching[0]
