"""What has arrived on a connection and nobody has taken yet, readable as a byte stream and as messages. No I/O.

    add(piece) -> pieces -> front -> take(n), take_message()

Pieces are bounded by the connection, which stops reading from the network. The front is where a reader gathers what
it needs whole (n bytes, a line, a message), and is bounded by what that reader asked for. A reader that is cancelled
leaves its bytes there for the next one.
"""

from __future__ import annotations

from collections import deque

from trunkline.protocol.errors import InvalidMessage, MessageTooLarge
from trunkline.protocol.frames import Data, Opcode

#: What a piece counts besides its payload, so that a flood of empty messages is bounded too.
PIECE_COST = 128


class ReceiveBuffer:
    """Pieces of messages in order of arrival.

    Args:
        max_message_size: bytes of the longest message that `take_message` puts together; None for no limit.
    """

    def __init__(self, *, max_message_size: int | None) -> None:
        self._max_message_size = max_message_size
        self._pieces: deque[Data] = deque()
        # Bytes of the first piece that were taken already.
        self._offset = 0
        self._front = bytearray()
        # Opcode of the message whose beginning is the front; None when the front is empty.
        self._opcode: Opcode | None = None
        #: Bytes in the pieces, with PIECE_COST for each: what the connection bounds.
        self.size = 0

    def __repr__(self) -> str:
        return f"<ReceiveBuffer {len(self)} bytes>"

    def __len__(self) -> int:
        """Bytes that `take` can give."""
        return len(self._front) + self.size - PIECE_COST * len(self._pieces)

    def add(self, piece: Data) -> None:
        """Append a piece."""
        self._pieces.append(piece)
        self.size += len(piece.payload) + PIECE_COST

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._front.clear()
        self._opcode = None
        self._offset = 0
        self.size = 0

    @property
    def in_message(self) -> bool:
        """Whether the beginning of a message waits in the front for its rest."""
        return self._opcode is not None

    def take(self, limit: int) -> bytes:
        """Up to `limit` bytes, whatever messages they belong to."""
        taken = []
        if self._front:
            taken.append(bytes(self._front[:limit]))
            limit -= len(taken[0])
            del self._front[: len(taken[0])]
        if not self._front:
            self._opcode = None
        while self._pieces and limit:
            payload = self._pieces[0].payload
            rest = len(payload) - self._offset
            if rest > limit:
                taken.append(payload[self._offset : self._offset + limit])
                self._offset += limit
                self.size -= limit
                break
            limit -= rest
            taken.append(self._next().payload)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def gather(self) -> None:
        """Move all pieces to the front, for a reader that needs more than there is."""
        while self._pieces:
            piece = self._next()
            if piece.payload:
                self._opcode = self._opcode or piece.opcode
                self._front += piece.payload

    def find(self, separator: bytes, start: int, end: int) -> int:
        """Index of `separator` within ``[start:end]`` of the front; -1 if it is not there."""
        return self._front.find(separator, start, end)

    def take_message(self) -> str | bytes | None:
        """The next whole message; None when its end has not arrived.

        Raises:
            MessageTooLarge: it is longer than ``max_message_size``.
            InvalidMessage: it is a text message and not UTF-8.
        """
        while self._pieces:
            piece = self._next()
            size = len(self._front) + len(piece.payload)
            if self._max_message_size is not None and size > self._max_message_size:
                raise MessageTooLarge(f"A message is longer than {self._max_message_size} bytes (max_message_size)")
            if self._opcode is None and piece.end:
                return _decode(piece.opcode, piece.payload)
            self._opcode = self._opcode or piece.opcode
            self._front += piece.payload
            if piece.end:
                opcode, payload = self._opcode, bytes(self._front)
                self._front, self._opcode = bytearray(), None
                return _decode(opcode, payload)
        return None

    def _next(self) -> Data:
        """The first piece, without what was taken of it."""
        piece = self._pieces.popleft()
        if self._offset:
            piece = Data(piece.opcode, piece.payload[self._offset :], piece.end)
            self._offset = 0
        self.size -= len(piece.payload) + PIECE_COST
        return piece


def _decode(opcode: Opcode, payload: bytes) -> str | bytes:
    if opcode is not Opcode.TEXT:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise InvalidMessage("A text message is not UTF-8") from None
