"""Both ends of a control channel as the tests make them, frames as a peer sends them, and how commands are told."""

from __future__ import annotations

import json
from typing import Any

from trunkline.protocol.control_channel import Ended, ListenerControlChannel, RelayControlChannel, Send
from trunkline.protocol.frames import Control, Message, MessageDecoder, Opcode, encode_frame, parse_close
from trunkline.protocol.limits import resolve
from trunkline.protocol.messages import Accept, RemoteEndpoint

MASK = b"\x01\x02\x03\x04"
TRACKING_ID = "11111111-2222-3333-4444-555555555555_G1"
TRAIL = f". TrackingId:{TRACKING_ID}"


# -- the peer's frames


def from_listener(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    return encode_frame(opcode, payload, fin=fin, mask=MASK)


def from_relay(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    return encode_frame(opcode, payload, fin=fin)


def text_from_listener(command: object) -> bytes:
    return from_listener(Opcode.TEXT, json.dumps(command).encode())


def response(request_id: str = "r1", *, body: bool = False) -> dict[str, object]:
    return {"response": {"requestId": request_id, "statusCode": 200, "responseHeaders": {"A": "b"}, "body": body}}


def accept(**headers: str) -> Accept:
    return Accept(
        address="wss://relay.local/$hc/orders?sb-hc-action=accept&sb-hc-id=id-1",
        id="id-1",
        connect_headers=headers,
        remote_endpoint=RemoteEndpoint("192.0.2.7", 40000),
    )


# -- the two ends


def relay_end(*, ping_phase: float = 0.0, expires_at: float = 3600.0, **limits: object) -> RelayControlChannel:
    return RelayControlChannel(
        limits=resolve("default", limits),
        expires_at=expires_at,
        now=0.0,
        tracking_id=TRACKING_ID,
        ping_phase=ping_phase,
    )


def listener_end(
    *, expires_at: float | None = None, heartbeat: float = 30.0, renew_margin: float = 300.0
) -> ListenerControlChannel:
    return ListenerControlChannel(
        now=0.0, expires_at=expires_at, new_mask=lambda: MASK, heartbeat=heartbeat, renew_margin=renew_margin
    )


class Sends:
    """Equal to a Send of one message or control frame, whatever its framing; a Close is told by its code."""

    def __init__(self, opcode: Opcode, payload: bytes | None = None, *, code: int | None = None) -> None:
        self.opcode = opcode
        self.payload = payload
        self.code = code

    def __repr__(self) -> str:
        return f"Sends({self.opcode.name}, {self.payload!r}, code={self.code})"

    def __eq__(self, command: object) -> bool:
        if not isinstance(command, Send):
            return False
        [item] = decode(command.data)
        if item.opcode is not self.opcode:
            return False
        if self.opcode is Opcode.CLOSE and self.payload is None:
            return parse_close(item.payload).code == self.code
        return item.payload == self.payload


def decode(data: bytes) -> list[Message | Control]:
    masked = bool(data[1] & 0x80)
    decoder = MessageDecoder(masked=masked, text_limit=1 << 20, binary_limit=1 << 20)
    return list(decoder.feed(data))


PING = Sends(Opcode.PING, b"")


def closes(code: int) -> Sends:
    return Sends(Opcode.CLOSE, code=code)


def ends(code: int | None, text: str = "", *, loss: bool = True) -> Any:
    """Equal to an Ended whose reason holds `text`."""

    class Matcher:
        def __eq__(self, command: object) -> bool:
            return (
                isinstance(command, Ended) and (command.loss, command.code) == (loss, code) and text in command.reason
            )

        def __repr__(self) -> str:
            return f"Ended(loss={loss}, code={code}, reason=...{text}...)"

    return Matcher()
