"""Whether the target is there: told when it goes and when it is back, without asking it while all is well.

Requests show that it is away. From then on a probe dials it, and closes at once, until somebody answers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from trunkline.expose.target import Target

#: Seconds between two probes; the first one comes soon, because a server that restarts is back soon.
FIRST_PROBE, LONGEST_PROBE = 0.25, 5.0


class Health:
    """The state of the target.

    Args:
        dial: makes a connection to the target and closes it; raises OSError when that fails.
        changed: called with whether it is there, and the reason when it is not.
    """

    def __init__(self, dial: Callable[[], Awaitable[None]], changed: Callable[[bool, str], None]) -> None:
        self._dial = dial
        self._changed = changed
        self._up = True
        # Set while the target is away.
        self._away = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Health {'up' if self._up else 'down'}>"

    @property
    def up(self) -> bool:
        """False from the first failure to connect until a connection is made again."""
        return self._up

    def worked(self) -> None:
        """The target has answered."""
        if not self._up:
            self._up = True
            self._away.clear()
            self._changed(True, "")

    def failed(self, reason: str) -> None:
        """No connection to the target could be made."""
        if self._up:
            self._up = False
            self._away.set()
            self._changed(False, reason)

    async def check(self) -> None:
        """Dial the target once."""
        try:
            await self._dial()
        except OSError as error:
            self.failed(reason_of(error))
        else:
            self.worked()

    async def watch(self) -> None:
        """Look after a target that is away, for ever."""
        while True:
            await self._away.wait()
            delay = FIRST_PROBE
            while not self._up:
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_PROBE)
                if not self._up:
                    await self.check()


async def dial(target: Target, timeout: float) -> None:
    """Make a connection to the target and close it. Raises OSError."""
    try:
        async with asyncio.timeout(timeout):
            if target.unix_socket:
                _, writer = await asyncio.open_unix_connection(target.unix_socket)
            else:
                _, writer = await asyncio.open_connection(target.host, target.port)
    except TimeoutError:
        raise TimeoutError(f"no connection within {timeout:g} s") from None
    writer.transport.abort()


def reason_of(error: BaseException) -> str:
    """An error of the network in a few words, without the address: who reads it knows that, or must not."""
    inner = getattr(error, "os_error", None)
    if isinstance(inner, BaseException) and inner is not error:
        return reason_of(inner)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "it speaks no TLS"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, ExceptionGroup):  # of several addresses of a name
        return reason_of(error.exceptions[0])
    if isinstance(error, OSError) and error.strerror and not error.strerror.startswith(("Connect call", "Multiple")):
        return error.strerror.lower()
    return "connection refused" if "Multiple exceptions" in str(error) else "no connection"
