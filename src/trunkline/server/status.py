"""What a node says of itself: `/healthz` (is the process alive) and `/readyz` (should it get work).

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
    headers: tuple[tuple[str, str], ...] = ()


def health(path: str, phase: Phase, counts: Mapping[str, int]) -> Answer | None:
    """What is answered on these two paths; None for any other.

    Args:
        path: of the request, without its query.
        phase: where the node stands.
        counts: what it holds now, by name.
    """
    if path == "/healthz":
        return json_answer(200, {"status": "alive"})
    if path == "/readyz":
        return json_answer(200 if phase is Phase.READY else 503, {"status": str(phase), **counts})
    return None


def json_answer(status: int, content: Mapping[str, object], *, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer that is one JSON object on one line."""
    return Answer(status, json.dumps(content).encode() + b"\n", headers=headers)
