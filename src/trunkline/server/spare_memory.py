"""Gives memory back to the system after many connections have gone.

What they held is free by then, but the C library keeps it: after 8,000 half-open handshakes 45 MiB of 50 stayed
resident, until it was asked (malloc_trim of glibc, in about a millisecond; seen with glibc 2.36). A few that come and
go all day leave as much: 20 MiB after a hundred TLS connections that were killed in the middle of a transfer.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

#: So many connections have to go before memory is given back at once, and half of all.
ENOUGH = 200
#: Seconds between two times when only some have gone.
EVERY = 30.0


#: Bytes from which on the C library gets a block from the system and gives it back alone. Above all that one read
#: becomes, and below the buffers that a TLS transport gets for its life (`trunkline.server.relay.sockets`).
LARGE = 262_656
#: Bytes that the C library keeps free at the end of its heap before it gives them back; some reads' worth.
KEPT = 4_194_304

# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _of_glibc(name: str) -> Callable[..., Any] | None:
    """A function that musl, and other systems than Linux, do not have."""
    return None if sys.platform != "linux" else getattr(ctypes.CDLL(None), name, None)


def release() -> None:
    """Let the C library give back what it holds free; nothing where it cannot."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def keep_large_blocks_apart() -> None:
    """Let the C library take large blocks from the system one by one, for the whole process; nothing where it cannot.

    By itself it stops doing so after the first of them was freed. Then the buffers of TLS transports lie among small
    blocks on pages that others have touched before: an idle TLS connection held 49 KiB in place of 36. A program that
    only has a node inside decides for itself.
    """
    option = _of_glibc("mallopt")
    if option is not None:
        option(_M_MMAP_THRESHOLD, LARGE)
        option(_M_TRIM_THRESHOLD, KEPT)


class SpareMemory:
    """Decides when it is time.

    Args:
        release: gives it back.
    """

    def __init__(self, release: Callable[[], None] = release) -> None:
        self._release = release
        # The most connections since it was last given back, and how many there were at the last look.
        self._most = 0
        self._last = 0
        # Whether any have gone since then, and when that was.
        self._gone = False
        self._released_at = float("-inf")

    def __repr__(self) -> str:
        return f"<SpareMemory most={self._most}>"

    def tick(self, held: int, now: float) -> None:
        """Look at how many connections there are; to be called about once a second.

        Args:
            held: how many.
            now: seconds, on any one clock.
        """
        self._most = max(self._most, held)
        self._gone = self._gone or held < self._last
        # Not while they still go: what is freed after it stays.
        flood_is_over = held >= self._last and self._most - held >= max(ENOUGH, self._most / 2)
        if flood_is_over or (self._gone and now >= self._released_at + EVERY):
            self._most, self._gone, self._released_at = held, False, now
            self._release()
        self._last = held
