"""Chromium without a window: found, or brought, and driven over its DevTools protocol.

    trusted = await key_hash(host, port, context)
    async with Chromium(program, trusted=trusted) as browser, browser.open("https://...") as page:
        assert await page.evaluate("document.title") == "..."

The system's own Chromium is used where there is one. Elsewhere, on Linux on x86-64, it is the one inside an npm
package, with the few libraries that a bare system has not: nothing is installed in the system.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import os
import platform
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.asyncio.client import ClientConnection, connect

from npm_packages import find_node, install

HERE = Path(__file__).parent
PACKAGES = ("package.json", "package-lock.json", ".npmrc")
#: Seconds for the browser to start, and for one thing that a page does.
PATIENCE = 40.0

#: No sandbox, because tests may run as root; the rest keeps it from talking to anybody but the page's own server.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)

_UNPACK = """
const fs = require('fs'), zlib = require('zlib');
for (let i = 1; i + 1 < process.argv.length; i += 2)
  fs.writeFileSync(process.argv[i + 1], zlib.brotliDecompressSync(fs.readFileSync(process.argv[i])));
"""


class Program(NamedTuple):
    """path: the executable. libraries: a folder with what the system may lack; None: it has all."""

    path: str
    libraries: Path | None = None


def find_chromium() -> Program | None:
    """Chromium of the system, else of the npm package; None where there is neither."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return Program(found)
    return chromium_of_npm()


def chromium_of_npm() -> Program | None:
    """The Chromium in the package of package-lock.json, unpacked once; None where it does not run."""
    node = find_node()
    if node is None or sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    packed = install(HERE, PACKAGES, *node) / "@sparticuz" / "chromium" / "bin"
    final = packed.parent / "unpacked"
    if not final.exists():
        with tempfile.TemporaryDirectory(dir=packed.parent) as folder:
            working = Path(folder) / "unpacked"
            working.mkdir()
            pairs = ("chromium.br", "chromium"), ("al2023.tar.br", "libraries.tar")
            arguments = [str(path) for name, to in pairs for path in (packed / name, working / to)]
            subprocess.run([node[0], "-e", _UNPACK, *arguments], check=True, timeout=120)
            (working / "chromium").chmod(0o755)
            with tarfile.open(working / "libraries.tar") as archive:
                archive.extractall(working, filter="data")
            (working / "libraries.tar").unlink()
            with contextlib.suppress(OSError):  # another test process was first
                working.rename(final)
    return Program(str(final / "chromium"), final / "lib")


async def key_hash(host: str, port: int, context: ssl.SSLContext) -> str:
    """The SHA-256 of the key of a server's certificate, as `--ignore-certificate-errors-spki-list` has it."""
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    key = x509.load_der_x509_certificate(der).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


class Chromium:
    """A browser for an ``async with`` block, with a profile of its own.

    Args:
        program: from `find_chromium`.
        trusted: `key_hash` of the one server whose certificate is taken although no known authority signed it.
        hosts: names that are resolved to an address, besides those that the system knows.
    """

    def __init__(self, program: Program, *, trusted: str | None = None, hosts: Mapping[str, str] | None = None) -> None:
        self._program = program
        self._options = [] if trusted is None else [f"--ignore-certificate-errors-spki-list={trusted}"]
        if hosts:
            rules = ", ".join(f"MAP {name} {address}" for name, address in hosts.items())
            self._options.append(f"--host-resolver-rules={rules}")
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        profile = self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        environment = {**os.environ, "HOME": profile}
        if self._program.libraries is not None:
            environment["LD_LIBRARY_PATH"] = str(self._program.libraries)
        process = await asyncio.create_subprocess_exec(
            self._program.path,
            *FLAGS,
            *self._options,
            f"--user-data-dir={profile}",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._stack.push_async_callback(_end, process)
        try:
            async with asyncio.timeout(PATIENCE):
                self.devtools = await _devtools_address(process)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Page]:
        """A new page at `url`."""
        async with connect(self.devtools, max_size=None, proxy=None) as socket:
            calls = itertools.count(1)
            browser = Page(socket, calls, None)
            target = await browser.call("Target.createTarget", url="about:blank")
            attached = await browser.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            page = Page(socket, calls, attached["sessionId"])
            await page.call("Page.enable")
            went = await page.call("Page.navigate", url=url)
            assert "errorText" not in went, went
            # The document of `url` is there; wait until it is loaded.
            await page.evaluate(
                "new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))"
            )
            yield page


class Page:
    """A page that is open. One task uses it at a time."""

    def __init__(self, socket: ClientConnection, calls: itertools.count[int], session: str | None) -> None:
        self._socket = socket
        self._calls = calls
        self._session = session

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        number = next(self._calls)
        command = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        async with asyncio.timeout(PATIENCE):
            await self._socket.send(json.dumps(command))
            while True:
                message = json.loads(await self._socket.recv())
                if message.get("id") == number:
                    assert "error" not in message, (method, message["error"])
                    result: dict[str, Any] = message["result"]
                    return result


async def _devtools_address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said = ""
    async for line in process.stderr:
        said += line.decode(errors="replace")
        if line.startswith(b"DevTools listening on "):
            return line.decode().split()[-1]
    raise AssertionError(f"Chromium has ended:\n{said}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End all its processes, which are one group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    assert process.stderr is not None
    await process.stderr.read()
    await process.wait()
