"""One process owns a store: a lock beside the file, which the system lets go of when the process ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trunkline.server.entities.store import StoreError, StoreLocked

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    # flock and not lockf: it also tells two stores of one process apart, and closing another descriptor of the
    # same file does not give it up.
    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


#: Behind the number of the process, which others must be able to read while Windows locks this byte.
_LOCKED_BYTE = 1024


class Ownership:
    """Held from construction to `release`.

    Parameters
    ----------
    file: what is owned; the lock is the file of the same name with ``.lock`` behind it, which stays.

    Raises StoreLocked when another process has it, StoreError when the lock file cannot be made.
    """

    def __init__(self, file: Path) -> None:
        lock = file.with_name(file.name + ".lock")
        try:
            self._descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"{lock} cannot be made: {error.strerror}; let this user write to {lock.parent}") from None
        try:
            _try_lock(self._descriptor)
        except OSError:
            owner = os.pread(self._descriptor, 20, 0) if sys.platform != "win32" else b""
            os.close(self._descriptor)
            who = f"process {owner.decode()}" if owner.isdigit() else "another process"
            raise StoreLocked(
                f"{file} is in use by {who}: one node owns its store. Ask that node, stop it, or give this one"
                " another data folder"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Lets another process own the file. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
