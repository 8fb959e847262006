"""What the machines of WebSockets say: of either end of a control channel, and of the rendezvous of a request.

`trunkline.protocol.control_channel` and `http_rendezvous` return lists of these, to be run in their order. `Send`,
`CloseTransport` and `AbortTransport` are for the transport; the others tell what the peer said, and that it is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trunkline.protocol.causes import Cause
from trunkline.protocol.frames import Opcode
from trunkline.protocol.messages import Accept, Request, Response
from trunkline.protocol.records import record


@record
class Send:
    """Write these bytes to the peer: one frame, the fragments of one message, or a command with the body behind it."""

    data: bytes

    def __repr__(self) -> str:
        # Not the bytes: they may hold a token, or the address of a rendezvous.
        return f"Send({Opcode(self.data[0] & 0x0F).name}, {len(self.data)} bytes)"


@dataclass(frozen=True, slots=True)
class CheckToken:
    """The listener sent a new token: check it, then call `token_accepted` or `token_refused`."""

    token: str = field(repr=False)


@record
class Deliver:
    """The listener's response to a request, with the body that followed it; None when it announced none."""

    response: Response
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Offered:
    """The relay offers a sender's connection."""

    accept: Accept


@dataclass(frozen=True, slots=True)
class Requested:
    """The relay passes on a sender's HTTP request, with the body that followed it; None when it announced none.

    A request without a method is only told of: it is to be fetched from its address (`HttpRendezvous`).
    """

    request: Request
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class NeedToken:
    """The token is due: get a new one and call `renew`. Comes again, after a pause, until that is done."""


@dataclass(frozen=True, slots=True)
class CloseTransport:
    """Both Close frames are exchanged: close the socket once what was sent is written."""


@dataclass(frozen=True, slots=True)
class AbortTransport:
    """Nobody answers: drop the socket at once."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The channel is over. Exactly one, ever.

    `loss`: the listener was lost, as `on_listener_loss` means it. `code` and `reason`: of the Close frame that ended
    it, the peer's or ours; `code` is None when there was none or it held none. `cause` is for counters.
    """

    loss: bool
    code: int | None
    reason: str
    cause: Cause


Command = Send | CheckToken | Deliver | Offered | Requested | NeedToken | CloseTransport | AbortTransport | Ended
