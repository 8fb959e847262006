"""What systemd hands a service and what a service tells it; other supervisors do the same.

    LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES    sockets that listen already, from descriptor 3 on (sd_listen_fds(3))
    NOTIFY_SOCKET                             where to say that the service is ready, reloads or stops (sd_notify(3))
    WATCHDOG_PID, WATCHDOG_USEC               how often to say that it is alive (sd_watchdog_enabled(3))

Where the variables are not set, nothing of this happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import NoReturn

from trunkline.protocol.errors import InvalidSetting

log = logging.getLogger("trunkline.node")

#: The first descriptor that is handed over.
_FIRST = 3
#: Sockets that are not called so are for the data plane; systemd's own default is the name of the unit.
ADMIN = "admin"
DATA = "data"


def handed_sockets(environment: MutableMapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """The sockets that this process was handed, for `ADMIN` and for `DATA`.

    They are taken: the variables go, and programs that this one starts get neither.

    Args:
        environment: of the process.
        pid: its id; sockets for another process are not touched.

    Raises:
        InvalidSetting: what was handed is no TCP socket that listens.
    """
    given = {name: environment.get(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if given["LISTEN_PID"] != str(pid) or not given["LISTEN_FDS"].isdigit():
        return {}
    for name in given:
        environment.pop(name, None)
    names = given["LISTEN_FDNAMES"].split(":")
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(given["LISTEN_FDS"])):
        name = ADMIN if index < len(names) and names[index] == ADMIN else DATA
        found.setdefault(name, []).append(_listening(_FIRST + index))
    return found


def _listening(descriptor: int) -> socket.socket:
    try:
        handed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise InvalidSetting(f"LISTEN_FDS announces a socket as descriptor {descriptor}: {error.strerror}") from None
    handed.set_inheritable(False)
    if handed.family not in (socket.AF_INET, socket.AF_INET6) or handed.type != socket.SOCK_STREAM:
        handed.close()
        raise InvalidSetting(
            f"The socket that was handed over as descriptor {descriptor} is not one of TCP."
            " Write a port, or an address and a port, behind ListenStream="
        )
    if not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        handed.close()
        raise InvalidSetting(
            f"The socket that was handed over as descriptor {descriptor} is a connection. Write Accept=no in the unit"
        )
    return handed


class ServiceManager:
    """Whoever started this process and wants to know how it is.

    Args:
        environment: of the process.
        pid: its id.
    """

    def __init__(self, environment: MutableMapping[str, str], pid: int) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A name that begins with "@" is one without a file (unix(7), abstract).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_for_us = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        #: Seconds after which it takes the process for dead; None: it does not look.
        self.patience = int(microseconds) / 1e6 if is_for_us and microseconds.isdigit() and int(microseconds) else None

    def ready(self, status: str) -> None:
        """The service serves, for the first time or after a reload. `status` is for people."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The service takes over another configuration, until it is ready again."""
        # The time tells systemd which `ready` it is that answers its request (Type=notify-reload).
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self, within: float) -> None:
        """The service ends, in at most so many seconds."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(within * 1e6)}")

    async def keep_alive(self) -> NoReturn:
        """Say again and again that the event loop turns."""
        while True:
            await asyncio.sleep(3600 if self.patience is None else self.patience / 2)
            if self.patience is not None:
                self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
                to.setblocking(False)
                to.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the service manager was not told %s: %s", lines[0], error.strerror)


def from_environment() -> ServiceManager:
    """The service manager of this process."""
    return ServiceManager(os.environ, os.getpid())
