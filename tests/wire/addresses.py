"""The addresses and tokens that a test hands to a foreign client, made from a connection string."""

from __future__ import annotations

import time
from urllib.parse import quote

from trunkline.protocol import connection_string, sas


class Addresses:
    """URLs of one hybrid connection, and tokens of one rule.

    hyco-ws and hyco-https have functions that make the URLs, with wss and port 443 fixed; so a test spells them, as
    an application with another port must.
    """

    def __init__(self, text: str, *, secure: bool = True) -> None:
        parsed = connection_string.parse(text)
        assert parsed.key_name is not None and parsed.key is not None and parsed.entity_path is not None
        self.rule, self.key, self.entity = parsed.key_name, parsed.key, parsed.entity_path
        self.host = parsed.host
        self.base = f"{'wss' if secure else 'ws'}://{parsed.host}:{parsed.port}/$hc/{self.entity}"
        self.listen_url = f"{self.base}?sb-hc-action=listen"
        self.connect_url = f"{self.base}?sb-hc-action=connect"

    def token_options(self, *, seconds: int = 3600, key: str | None = None) -> dict[str, object]:
        """For hyco-ws's own createRelayToken."""
        return {"uri": self.listen_url, "rule": self.rule, "key": key or self.key, "seconds": seconds}

    def token(self, *, seconds: float = 3600, key: str | None = None) -> str:
        """A token that ends in so many seconds from now; negative: it has ended."""
        audience = sas.audience(self.host, self.entity)
        return sas.sign(audience, self.rule, key or self.key, expires_at=int(time.time() + seconds))

    def connect_url_with_token(self) -> str:
        """As browsers do it: the token in the query."""
        return f"{self.connect_url}&sb-hc-token={quote(self.token(), safe='')}"
