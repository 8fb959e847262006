"""From the address that a sender asked for to the path that the target gets, and back for redirects and cookies.

sender   https://relay/myHC/docs/a%20b?x=1         own host: https://myHC.relay/docs/a%20b?x=1
relay    "/myHC/docs/a b?x=1"                      the same: requestTarget always begins with the entity
target   "/docs/a%20b?x=1"                         with keep: "/myHC/docs/a%20b?x=1"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from trunkline.expose.target import Target

# What may stand in a path as it is (RFC 3986 section 3.3), and the percent sign of an escape.
_SAFE = "/:@!$&'()*+,;=-._~%"
_LONELY_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
# A query keeps its bytes; only what would end the request line is escaped.
_NOT_IN_A_QUERY = re.compile(r"[^\x21-\x7e]|#")
_STEPS = re.compile(r"/|\\|%2f|%5c", re.IGNORECASE)
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_COOKIE_PATH = re.compile(r"(;\s*path\s*=\s*)(/[^;]*)", re.IGNORECASE)


@dataclass(frozen=True)
class PublicPath:
    """Under which path senders see what the target serves under ``/``."""

    #: ``/myHC``; empty where the whole path is the target's: an own host, or nothing is stripped.
    prefix: str
    #: What stands for the target in its absolute addresses, lower case: its own host, the ``Host`` that it is sent, and
    #: the one that the sender used.
    hosts: frozenset[str] = frozenset()

    def location(self, value: str, target: Target) -> str:
        """A ``Location`` of the target as a sender can follow it.

        An address of the target becomes a path, as it leads nowhere outside; with either scheme, because a server
        that is told that the sender came by https says so. A path gets the prefix, unless the target knows it already
        (from ``X-Forwarded-Prefix``). Other hosts and relative references stay.
        """
        path = value
        if (found := _ABSOLUTE.match(value)) and found[1].lower() in {target.authority, *self.hosts}:
            path = value[found.end() :]
            path = path if path.startswith("/") else f"/{path}"
        if not path.startswith("/") or (path is value and path.startswith("//")):
            return value
        public = self._public(_without_base(path, target.base_path))
        # Two slashes in front would be a host.
        return f"/{public.lstrip('/')}"

    def cookie(self, value: str, target: Target) -> str:
        """A ``Set-Cookie`` whose ``Path`` is the public one: the cookie comes back, and to this target alone."""
        if not self.prefix and not target.base_path:
            return value
        return _COOKIE_PATH.sub(lambda found: found[1] + self._public(_without_base(found[2], target.base_path)), value)

    def _public(self, path: str) -> str:
        if not self.prefix or path == self.prefix or path.startswith((f"{self.prefix}/", f"{self.prefix}?")):
            return path
        return self.prefix + path


def target_path(request_target: str, entity: str, *, keep: bool) -> str:
    """Path and query for the target.

    Args:
        request_target: as the relay sends it: the path decoded, the query as the sender wrote it.
        entity: path of the hybrid connection, which the relay puts in front.
        keep: leave it there.

    Returns:
        ASCII that begins with a slash and may stand in a request line. Escapes that the relay left stay as they are.
    """
    path, mark, query = request_target.partition("?")
    path = path if path.startswith("/") else f"/{path}"
    if not keep:
        path = _without_entity(path, entity)
    path = quote(_LONELY_PERCENT.sub("%25", path), safe=_SAFE, errors="replace")
    query = _NOT_IN_A_QUERY.sub(lambda found: quote(found[0], errors="replace"), query)
    return f"{path}{mark}{query}"


def leaves_root(path_and_query: str) -> bool:
    """Whether a path climbs above its root, in any spelling of ``..`` that some server understands."""
    depth = 0
    for step in _STEPS.split(path_and_query.partition("?")[0]):
        name = re.sub("%2e", ".", step, flags=re.IGNORECASE)
        depth += -1 if name == ".." else 1 if name not in ("", ".") else 0
        if depth < 0:
            return True
    return False


def _without_entity(path: str, entity: str) -> str:
    prefix = f"/{entity}"
    if path[: len(prefix)].lower() != prefix.lower() or path[len(prefix) : len(prefix) + 1] not in ("", "/"):
        return path
    return path[len(prefix) :] or "/"


def _without_base(path: str, base_path: str) -> str:
    if base_path and (path == base_path or path.startswith((f"{base_path}/", f"{base_path}?"))):
        rest = path[len(base_path) :]
        return rest if rest.startswith("/") else f"/{rest}"
    return path
