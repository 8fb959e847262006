"""One reading of a sensor as it travels: 200 bytes, numbered by its gateway, so that the worker sees what is missing,
came twice or came changed.

    number (8 bytes), digest (8 bytes), JSON padded with spaces
"""

import hashlib
import json
import struct
from typing import NamedTuple

SIZE = 200

_HEAD = struct.Struct(">Q8s")


class Reading(NamedTuple):
    number: int
    sensor: int
    value: float
    #: Seconds since 1970, on the clock of the gateway.
    at: float


def encode(gateway: str, reading: Reading) -> bytes:
    """The message for a reading of `gateway`."""
    fields = {"sensor": reading.sensor, "value": reading.value, "at": reading.at}
    body = json.dumps(fields).encode().ljust(SIZE - _HEAD.size)
    return _HEAD.pack(reading.number, _digest(gateway, reading.number, body)) + body


def decode(gateway: str, message: bytes) -> Reading:
    """The reading in a message of `gateway`. Raises ValueError when it is not what was sent."""
    number, digest = _HEAD.unpack_from(message)
    body = message[_HEAD.size :]
    if len(message) != SIZE or digest != _digest(gateway, number, body):
        raise ValueError(f"a message of {gateway} came changed")
    return Reading(number, **json.loads(body))


def _digest(gateway: str, number: int, body: bytes) -> bytes:
    return hashlib.blake2b(b"%s %d %s" % (gateway.encode(), number, body), digest_size=8).digest()
