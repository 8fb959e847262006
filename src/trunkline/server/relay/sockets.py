"""What connections share with the system below them: the receive buffer, and what sockets know that loops do not tell.

Used by `frontend`, `control_channel` and `legs`. Each workaround says what it was seen to be needed for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys

try:
    import fcntl
    import resource
    import termios
except ImportError:  # Windows, where a process has no such limit, and nothing of this is asked
    resource = None  # type: ignore[assignment]

log = logging.getLogger("trunkline.relay")

# What a TLS transport reads from its socket at once: sixteen full records.
TLS_READ_SIZE = 16 * (16_384 + 64)

# What macOS lets a process open at most, whatever its hard limit says (OPEN_MAX in sys/syslimits.h).
_MOST_ON_MACOS = 10_240

# One receive buffer for every connection of the loop: an idle connection owns none. asyncio calls `get_buffer` and
# `buffer_updated` back to back, so what lies in it is taken out before anybody else writes there. It takes all that a
# TLS transport can have decrypted: what aiofastnet has left over when it is paused is not delivered after it is
# resumed, unless more arrives from the network.
RECEIVE_BUFFER = memoryview(bytearray(TLS_READ_SIZE))

# tcpi_probes (the fourth byte), tcpi_unacked (segments), tcpi_last_ack_recv (milliseconds) of Linux' struct tcp_info.
_TCP_INFO = struct.Struct("=3xB20xI28xI")

# struct linger: on, and no second long.
_NO_LINGER = struct.pack("ii", 1, 0)

# States of a TCP connection as the first byte of TCP_INFO gives them (Linux, tcp_states.h).
_TCP_CLOSED = 7
_TCP_CLOSED_BY_PEER = 8


def descriptor_limit() -> int:
    """How many files and sockets the process may have open."""
    if resource is None:
        return sys.maxsize
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> int:
    """Let the process open as many files and sockets as it may at most, and give that number.

    Most systems give a process 1,024 (RLIMIT_NOFILE) and let it take many more by itself. For the whole process, so
    a program that only has a node inside decides for itself.
    """
    if resource is None:
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard
    if sys.platform == "darwin" and (hard == resource.RLIM_INFINITY or hard > _MOST_ON_MACOS):
        wanted = _MOST_ON_MACOS
    if soft != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or soft < wanted):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.warning("the limit of %d open files and sockets cannot be raised: %s", soft, error)
    return descriptor_limit()


def has_descriptors(keep: int) -> bool:
    """Whether the process may open `keep` more files or sockets, and some.

    A listening socket that cannot accept stays ready: aiofastnet 1.2 then turns in circles and fills the log.
    """
    try:
        # The system gives the lowest number that is free.
        lowest = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return False
    os.close(lowest)
    return lowest + keep < descriptor_limit()


def lengthen_backlog(server: asyncio.AbstractServer, size: int) -> None:
    """Let more connections wait in the system than the server takes in one turn of the loop.

    aiofastnet has one number for both, and takes all of them before anybody else has a turn.

    Args:
        server: that is serving.
        size: how many may wait.
    """
    for listening in server.sockets:  # type: ignore[attr-defined]  # all servers have them, the abstract one says nothing
        with listening.dup() as sock:
            sock.listen(size)


def is_lost(transport: asyncio.BaseTransport, *, or_ended: bool = False) -> bool:
    """Whether the peer has reset the connection, asked of the system and not of the event loop.

    uvloop does not tell when the reset comes in the same moment as bytes: those are read, and the socket is never
    looked at again (uv_poll of libuv stops at an error). So whoever was read has to be looked at once more.

    Args:
        transport: of a TCP connection; of any other nothing is known, which is no loss.
        or_ended: also when the peer has only ended its own direction; for a transport that is not read.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sys.platform != "linux":
        return False
    try:
        state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return False
    return state == _TCP_CLOSED or (or_ended and state == _TCP_CLOSED_BY_PEER)


def unheard(transport: asyncio.BaseTransport) -> float:
    """Seconds since the peer's TCP last acknowledged anything, if it owes that; 0 when it owes nothing.

    It tells a peer that is gone, or whose network is, from one that only has nothing to say or does not read: what is
    sent to those is acknowledged. Nothing is owed for one probe: it may have been sent this moment, and while the
    receive window of a slow peer is closed the probe before it was sent up to two minutes ago. Linux alone tells.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sys.platform != "linux":
        return 0.0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return 0.0
    if len(info) != _TCP_INFO.size:
        return 0.0
    probes, unacknowledged, silence = _TCP_INFO.unpack(info)
    return silence / 1000 if unacknowledged or probes > 1 else 0.0


def outstanding(transport: asyncio.Transport) -> int:
    """Bytes that were written and that the peer's TCP has not acknowledged: of the transport and of the system.

    The transport's alone do not tell a slow peer from one that takes nothing: the system holds megabytes, and asks for
    more only when a third of that has gone. Where the system does not tell, it is the transport's.
    """
    held = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is None or sys.platform != "linux":
        return held
    try:
        (queued,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return held
    return held + int(queued)


def end_writing(transport: asyncio.Transport) -> None:
    """Tell the peer that nothing more comes, behind what the transport holds."""
    try:
        transport.write_eof()
    except OSError:
        # The peer has reset the connection, and the loop has not seen it yet.
        transport.abort()


def cut(transport: asyncio.Transport) -> None:
    """Abort a connection so that its peer reads a reset, and not the orderly end of what it has (TCP's SO_LINGER)."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def enable_keepalive(transport: asyncio.BaseTransport, within: float = 60.0) -> None:
    """Let TCP ask a peer that says nothing whether it is there, so that one that is gone is found.

    Also what `unheard` rests on: a healthy peer acknowledges something at least that often.

    Args:
        transport: of a TCP connection; nothing happens to any other.
        within: seconds from the last sign of life until it is taken for gone; at least 5.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Half of the time until the first question, three questions in the other half.
    times = (("TCP_KEEPIDLE", int(within / 2)), ("TCP_KEEPINTVL", int(within / 5)), ("TCP_KEEPCNT", 3))
    for name, value in times:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
