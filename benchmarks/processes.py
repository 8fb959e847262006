"""Starts what is measured, and asks the system what it has used: processor time and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trustme

Number = TypeVar("Number", int, float)

_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@dataclass(frozen=True)
class Files:
    """One certificate for everything that is measured, and the context of the clients that trust it."""

    certificate: Path
    key: Path
    # Both in one file, as haproxy and socat want it.
    both: Path
    # Whom the clients trust.
    authority: Path
    client: ssl.SSLContext
    server: ssl.SSLContext

    @classmethod
    def make(cls, folder: Path) -> Files:
        """An authority and a certificate (ECDSA P-256) for `localhost`."""
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        certificate, key, both, trusted = (
            folder / name for name in ("certificate.pem", "key.pem", "both.pem", "authority.pem")
        )
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        trusted.write_bytes(authority.cert_pem.bytes())
        client = ssl.create_default_context()
        authority.configure_trust(client)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issued.configure_cert(server)
        return cls(certificate, key, both, trusted, client, server)


class Measured:
    """A running process and those that it started itself."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def cpu(self) -> float | None:
        """Seconds of processor time so far, user and system; None where the system does not tell."""
        return _sum(_cpu_of(pid) for pid in self._pids())

    def memory(self) -> int | None:
        """Resident bytes; None where the system does not tell."""
        return _sum(_memory_of(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found


def _cpu_of(pid: int) -> float | None:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, ValueError):
        return None


def _memory_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        text = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        return int(text) * 1024 if text else None


def _sum(parts: Iterable[Number | None]) -> Number | None:
    known = [part for part in parts if part is not None]
    return sum(known[1:], start=known[0]) if known else None


def measured_core() -> set[int]:
    """The processor for what is measured; empty where the system does not let us choose."""
    return {min(_CORES)} if len(_CORES) > 1 else set()


def take_load_core() -> None:
    """Keep this process, the load, away from the processor of what is measured."""
    if len(_CORES) > 1:
        os.sched_setaffinity(0, _CORES - measured_core())


@contextlib.contextmanager
def python_server(
    kind: str, *arguments: str, files: Files | None = None, module: str = "servers", beside_load: bool = False
) -> Iterator[Measured]:
    """Run a process of this package.

    Args:
        kind: the first argument.
        arguments: the others.
        files: for TLS; None for none.
        module: its name in `benchmarks`.
        beside_load: it runs on the processor of the load: something else is measured.
    """
    tls = () if files is None else ("--certificate", str(files.certificate), "--key", str(files.key))
    command = [sys.executable, "-m", f"benchmarks.{module}", kind, *tls, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if not beside_load:
            _pin(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{kind} did not start")
        yield Measured(process, int(line))
    finally:
        _end(process)


@contextlib.contextmanager
def program(command: list[str], port: int) -> Iterator[Measured]:
    """Run another program until its port is open, and then for as long as it is measured."""
    process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _pin(process)
        _wait_for_port(process, port)
        yield Measured(process, port)
    finally:
        _end(process)


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _pin(process: subprocess.Popen[str]) -> None:
    if core := measured_core():
        os.sched_setaffinity(process.pid, core)


def _wait_for_port(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
