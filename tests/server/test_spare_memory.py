"""When memory is given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trunkline.server.relay.legs import PLAIN_READ
from trunkline.server.relay.sockets import TLS_READ_SIZE
from trunkline.server.spare_memory import ENOUGH, EVERY, LARGE, SpareMemory, release


def released(*held: int, each: float = 0.0) -> list[int]:
    """At which of these looks memory is given back, once it was in the beginning; `each` seconds lie between them."""
    times: list[int] = []
    looks: list[int] = []
    memory = SpareMemory(lambda: times.append(len(looks)))
    memory.tick(1, 0)
    memory.tick(0, 0)
    times.clear()
    for count in held:
        memory.tick(count, len(looks) * each)
        looks.append(count)
    return times


def test_memory_is_given_back_once_when_a_flood_is_over() -> None:
    assert released(5, 2_000, 2_000, 900, 5, 5, 5) == [5]
    assert released(0, 2_000, 1_000, 1_000, 0, 2_000, 0, 1) == [3, 7]


def test_memory_stays_while_connections_come_and_go() -> None:
    assert released(1_000, 900, 1_000, 700, 1_000) == []
    assert released(0, ENOUGH - 1, 0, 0, ENOUGH - 1) == []


def test_memory_of_a_few_is_given_back_now_and_then_if_any_have_gone() -> None:
    assert released(3, 2, 3, 2, 3, 2, each=EVERY / 3) == [3]
    assert released(3, 3, 3, 3, 4, 4, each=EVERY) == []


def test_what_the_c_library_holds_free_can_be_given_back() -> None:
    release()


def test_repr_says_what_it_saw() -> None:
    assert repr(SpareMemory()) == "<SpareMemory most=0>"


def test_large_block_is_larger_than_a_read_and_smaller_than_a_buffer_of_tls() -> None:
    assert len(PLAIN_READ) + 64 < LARGE < TLS_READ_SIZE


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_block_that_was_touched_and_freed_is_fresh_when_it_is_used_again() -> None:
    # In a process of its own: it is for the whole process, and for good.
    program = """
import ctypes, resource, sys
from trunkline.server.relay.sockets import TLS_READ_SIZE
from trunkline.server.spare_memory import keep_large_blocks_apart

if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit()
keep_large_blocks_apart()
for _ in range(3):
    ctypes.memset((block := ctypes.create_string_buffer(TLS_READ_SIZE)), 1, TLS_READ_SIZE)
    del block
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
block = libc.malloc(TLS_READ_SIZE)
assert block % 4096 == 16, "the block lies among others"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
