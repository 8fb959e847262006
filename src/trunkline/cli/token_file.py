"""A token that is kept fresh in a file, for programs that cannot make one themselves.

A program that reads the file always finds a whole token, of which at least half of its life is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from trunkline.cli.failure import explain, usage
from trunkline.sdk.clock import SYSTEM_CLOCK, Clock
from trunkline.sdk.tokens import Token

#: Stands for the token in a template.
PLACEHOLDER = "{token}"
#: Tells the command of ``--exec`` where the token is.
FILE_VARIABLE = "TRUNKLINE_TOKEN_FILE"

#: Seconds between two looks at the wall clock: a computer that slept wakes up without its timers having run.
LOOK_AT_THE_CLOCK = 15.0
#: Seconds until a write, or the making of a token, that failed is tried again.
TRY_AGAIN = 30.0


class TokenFile:
    """One file with one token.

    Args:
        path: the file; a link is followed.
        template: what to write, with `PLACEHOLDER` where the token goes.
        command: for the shell, run after each write; empty for none.

    Raises:
        Failure: the template has no place for the token, or the path is none to write to.
    """

    def __init__(self, path: Path, *, template: str = PLACEHOLDER, command: str = "") -> None:
        if PLACEHOLDER not in template:
            raise usage(f"--template {template!r} has no place for the token", f"write {PLACEHOLDER} where it goes")
        self.path = Path(os.path.realpath(path))
        if self.path.exists() and not self.path.is_file():
            raise usage(f"{path} is no file", "name a file for --write: it is replaced each time")
        self._template = template
        self._command = command

    def __repr__(self) -> str:
        return f"<TokenFile {self.path}>"

    def write(self, token: Token) -> None:
        """Replace the file, at once and whole: mode 0600, and the owner that it had. Raises OSError."""
        new = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(f"{self._template.replace(PLACEHOLDER, token.text)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
                _keep_owner(self.path, file.fileno())
            os.replace(new, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    async def run_command(self, timeout: float | None = None) -> None:
        """Run the command, if there is one, to its end; when it fails, that is one line on stderr.

        Args:
            timeout: seconds after which it is ended; the next token must not wait for it. None for no limit.
        """
        if not self._command:
            return
        environment = {**os.environ, FILE_VARIABLE: str(self.path)}
        process = await asyncio.create_subprocess_shell(
            self._command, stdin=asyncio.subprocess.DEVNULL, env=environment
        )
        try:
            async with asyncio.timeout(timeout):
                status = await process.wait()
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
        except TimeoutError:
            status, how = -1, f"no end within {timeout:g} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
        if status != 0:
            say(f"--exec failed: {how}; the token in {self.path} is new all the same")


async def keep_fresh(
    file: TokenFile,
    make: Callable[[], Awaitable[Token]],
    *,
    every: float,
    lifetime: float,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Write a token now and then for ever; ended by cancelling it.

    The first must succeed. Later ones that fail are tried again: the token that is there is good for a while.

    Args:
        make: makes a token.
        every: seconds between two writes.
        lifetime: seconds that each token lasts; a new one is written when half of it is left, at the latest.

    Raises:
        Exception: the first token cannot be made or written.
    """
    written_at: float | None = None
    while True:
        now = clock.time()
        wait = 0.0 if written_at is None else until_next(written_at, now, every=every, lifetime=lifetime)
        if wait > 0:
            await clock.sleep(min(wait, LOOK_AT_THE_CLOCK))
            continue
        try:
            token = await make()
            file.write(token)
        except Exception as error:
            if written_at is None:
                raise
            say(f"{explain(error).what}; the token in {file.path} stays, and the next try is in {TRY_AGAIN:g} s")
            await clock.sleep(TRY_AGAIN)
            continue
        written_at = now
        say(f"wrote {file.path}: good until {_moment(token)}")
        await file.run_command(min(every, lifetime / 2))


def until_next(written_at: float, now: float, *, every: float, lifetime: float) -> float:
    """Seconds until the next write is due, by the wall clock; 0 or less for now.

    A clock that was set back has made the token that is there one of the future.
    """
    return 0.0 if now < written_at else written_at + min(every, lifetime / 2) - now


def say(text: str) -> None:
    """One line for whoever looks after the program."""
    print(text, file=sys.stderr, flush=True)


def _moment(token: Token) -> str:
    return f"{datetime.fromtimestamp(token.expires_at or time.time(), UTC):%Y-%m-%d %H:%M:%S} UTC"


def _keep_owner(path: Path, descriptor: int) -> None:
    """Give the open file to whom `path` belongs; only root can, and only for root does it make a difference."""
    if not hasattr(os, "fchown"):  # Windows
        return
    with contextlib.suppress(FileNotFoundError, PermissionError):
        before = path.stat()
        os.fchown(descriptor, before.st_uid, before.st_gid)
