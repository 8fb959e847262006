"""What a node says of itself on the admin port: `/healthz` (is the process alive) and `/readyz` (should it get work).

`/readyz` answers 200 while the node takes senders and 503 while it starts or drains, with what it holds, counted:
after any load, all counts are what they were before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a node stands in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response on the admin port."""

    status: int
    body: bytes
    content_type: str = "application/json"


def answer(method: str, path: str, phase: Phase, counts: Mapping[str, int]) -> Answer:
    """What the admin port answers.

    Args:
        method: of the request.
        path: of the request, without its query.
        phase: where the node stands.
        counts: what it holds now, by name.
    """
    if method not in ("GET", "HEAD"):
        return _json(405, {"error": f"{method} is not served here; use GET"})
    if path == "/healthz":
        return _json(200, {"status": "alive"})
    if path == "/readyz":
        return _json(200 if phase is Phase.READY else 503, {"status": str(phase), **counts})
    return _json(404, {"error": "there is nothing here; see /healthz and /readyz"})


def _json(status: int, content: Mapping[str, object]) -> Answer:
    return Answer(status, json.dumps(content).encode() + b"\n")
