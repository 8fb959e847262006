"""The answers that are ours and not the target's.

They say what is wrong and what to do, and name the hybrid connection; the address of the target, which concerns nobody
outside, is told in the terminal of whoever exposes it. The form is that of the relay's own errors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True)
class Refusal:
    """Why a request has no answer of the target."""

    status: int
    #: One word for programs.
    code: str
    #: One sentence for people, with ``{entity}``.
    message: str
    #: What whoever watches the terminal is told, in a few words.
    error: str

    def body(self, entity: str, tracking_id: str) -> bytes:
        """JSON, as the relay's own errors have it."""
        message = f"{self.message.format(entity=entity)}. TrackingId:{tracking_id}"
        return json.dumps({"error": {"code": self.code, "message": message}}).encode()


class Refused(Exception):
    """Raised where it turns out that a request cannot be forwarded."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.error)
        self.refusal = refusal


def target_down(reason: str) -> Refusal:
    """No connection to the target: it has not seen the request."""
    return Refusal(
        502,
        "TargetDown",
        "The web server behind the hybrid connection {entity} does not answer: start it, or check the address that"
        " trunkline expose was given; its terminal says more",
        f"target down: {reason}",
    )


def target_slow(reason: str) -> Refusal:
    """No connection to the target within the time: it has not seen the request."""
    return Refusal(
        504,
        "TargetTimeout",
        "The web server behind the hybrid connection {entity} takes no connection: check that it runs and is not"
        " overloaded; the terminal of trunkline expose says more",
        f"target down: {reason}",
    )


def target_silent() -> Refusal:
    """No answer within the time; the target may have seen the request."""
    return Refusal(
        504,
        "TargetTimeout",
        "The web server behind the hybrid connection {entity} did not answer in time: look at its log, or let it take"
        " longer with --response-timeout of trunkline expose",
        "no answer in time",
    )


def target_lost() -> Refusal:
    """The connection ended before the answer; the target may have seen the request, so nobody tries again for it."""
    return Refusal(
        502,
        "TargetLost",
        "The web server behind the hybrid connection {entity} closed the connection without an answer: look at its log"
        " before you send the request again, as it may have been carried out",
        "the target closed the connection without an answer",
    )


def target_confused(reason: str) -> Refusal:
    """What the target sent is not HTTP."""
    return Refusal(
        502,
        "TargetMalformed",
        "The web server behind the hybrid connection {entity} answered with something that is not HTTP: check the"
        " address that trunkline expose was given, http or https and the port",
        f"the target's answer is not HTTP: {reason}",
    )


def no_room(reason: str) -> Refusal:
    """A long form cannot be collected."""
    return Refusal(
        507,
        "NoRoom",
        "The form for the web server behind the hybrid connection {entity} cannot be kept: make room where trunkline"
        " expose runs, on the disk of its temporary files",
        f"no temporary file: {reason}",
    )


LOOP = Refusal(
    508,
    "LoopDetected",
    "The hybrid connection {entity} leads back to itself: the address that trunkline expose was given is the relay's",
    "loop: the target is the relay itself",
)

OUTSIDE = Refusal(
    400,
    "InvalidPath",
    "The path leaves the part of the web server that the hybrid connection {entity} exposes: send one without ..",
    "the path leaves the base path of the target",
)


def target_takes_no_websocket(status: int) -> Refusal:
    """The target took the request for a plain one."""
    return Refusal(
        502,
        "TargetTakesNoWebSocket",
        "The web server behind the hybrid connection {entity} takes no WebSocket at this path",
        f"the target answered {status} and took no WebSocket",
    )


def target_refused(status: int) -> Refusal:
    """The target refused a WebSocket: its status is the sender's."""
    return Refusal(status, "", _phrase(status), "")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused by the web server"
