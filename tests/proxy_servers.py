"""Proxies that others wrote, as programs of their own: proxy.py (HTTP CONNECT) and pproxy (SOCKS5, and HTTP).

with socks_proxy(credentials="ada:secret") as proxy:
    ... proxy.url, proxy.log()
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 30.0

# By its interface for programs, as its own page shows: only this one tells the port.
_PPROXY = """
import asyncio, sys
import pproxy

async def serve():
    options = {"rserver": [pproxy.Connection("direct://")], "verbose": print, "authtime": 0}
    server = await pproxy.Server(sys.argv[1]).start_server(options)
    print("port", server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()

asyncio.run(serve())
"""


@dataclass
class ProxyServer:
    """A proxy that runs."""

    scheme: str
    port: int
    #: ``user:password``, or empty.
    credentials: str
    file: Path

    @property
    def address(self) -> str:
        """Without credentials."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return self.with_credentials(self.credentials)

    def with_credentials(self, credentials: str) -> str:
        at = f"{credentials}@" if credentials else ""
        return f"{self.scheme}://{at}127.0.0.1:{self.port}"

    def log(self) -> str:
        """What the proxy has written."""
        return self.file.read_text()

    def connections_to(self, port: int) -> int:
        """How many connections to `port` its log tells of."""
        return len(re.findall(rf"(?:->|CONNECT) (?:localhost|127\.0\.0\.1):{port}\b", self.log()))


@contextmanager
def http_proxy(credentials: str = "") -> Iterator[ProxyServer]:
    """proxy.py; it writes a line for each connection when that has ended."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0", "--port-file"]
        command += [str(port_file), "--num-workers", "1", "--num-acceptors", "1", "--log-level", "INFO"]
        if credentials:
            command += ["--basic-auth", credentials]
        with _running(command, Path(folder) / "log") as process:
            _wait(process, lambda: port_file.exists() and port_file.read_text().strip() != "")
            yield ProxyServer("http", int(port_file.read_text()), credentials, Path(folder) / "log")


@contextmanager
def socks_proxy(credentials: str = "", *, scheme: str = "socks5", port: int = 0) -> Iterator[ProxyServer]:
    """pproxy, which speaks HTTP on the same port; it writes a line for each connection when that begins."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        uri = f"socks5+http://127.0.0.1:{port}/{'#' if credentials else ''}{credentials}"
        with _running([sys.executable, "-c", _PPROXY, uri], log) as process:
            _wait(process, lambda: log.read_text().startswith("port "))
            yield ProxyServer(scheme, int(log.read_text().split()[1]), credentials, log)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, "the proxy did not start"
        time.sleep(0.01)


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
