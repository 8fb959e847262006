"""What the emulator tells a newcomer: how to get in, how to trust it, what to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Facts:
    """What a client of the emulator needs."""

    url: str
    admin_url: str
    hybrid_connections: list[str]
    # Where browsers and other HTTP clients send requests to; the second, with the whole path for itself, are of those
    # whose name can be part of a host name.
    http_urls: list[str]
    own_http_urls: list[str]
    listen_connection_string: str
    send_connection_string: str
    manage_connection_string: str
    # None without TLS.
    ca_file: str | None
    data: str

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return asdict(self)


def trust(ca_file: str) -> list[tuple[str, str]]:
    """How to trust the authority, by platform; the certificate is made for localhost."""
    file = shlex.quote(ca_file)
    return [
        ("Python", f"ssl.create_default_context(cafile={ca_file!r}), or SSL_CERT_FILE={file}"),
        ("Node", f"NODE_EXTRA_CA_CERTS={file} node app.js"),
        (
            "Java",
            f"keytool -importcert -noprompt -alias trunkline -file {file} -keystore trust.p12 -storepass trunkline"
            " && java -Djavax.net.ssl.trustStore=trust.p12 -Djavax.net.ssl.trustStorePassword=trunkline ...",
        ),
        (".NET", f"SSL_CERT_FILE={file} dotnet run (Linux); elsewhere add the file to the system's trusted roots"),
    ]


def next_lines(facts: Facts) -> list[str]:
    """Two commands for another terminal, to be typed as they are."""
    program = _program()
    ca = "--no-tls" if facts.ca_file is None else f"--ca {shlex.quote(facts.ca_file)}"
    return [
        f"{program} listen {ca} --connection-string {shlex.quote(facts.listen_connection_string)}",
        f"echo hello | {program} connect {ca} --connection-string {shlex.quote(facts.send_connection_string)}",
    ]


def text(facts: Facts) -> str:
    """The whole page."""
    lines = [
        f"The emulator is ready on {facts.url} (this computer only). Its keys are well known: never use it for more.",
        "",
        f"hybrid connections  {', '.join(facts.hybrid_connections)}",
        f"to listen           {facts.listen_connection_string}",
        f"to send             {facts.send_connection_string}",
        f"HTTP requests to    {', '.join((*facts.http_urls[-1:], *facts.own_http_urls[-1:]))}",
        f"health              {facts.admin_url}/readyz",
        f"who is connected    {_program()} connections --data {shlex.quote(facts.data)}",
    ]
    if facts.ca_file is not None:
        lines += [f"CA file             {facts.ca_file}", "", "To trust it:"]
        lines += [f"  {platform:7} {how}" for platform, how in trust(facts.ca_file)]
    lines += [
        "",
        "Type next, in two other terminals:",
        *(f"  {line}" for line in next_lines(facts)),
        "",
        "Ctrl-C ends.",
    ]
    return "\n".join(lines)


def _program() -> str:
    """This program in a form that works from any other terminal: what is on the path here may not be there."""
    called = Path(sys.argv[0])
    if called.name != "trunkline":
        return f"{shlex.quote(sys.executable)} -m trunkline"
    found = shutil.which("trunkline")
    in_virtual_environment = sys.prefix != sys.base_prefix  # which puts itself on the path of one terminal
    if found is not None and not in_virtual_environment and Path(found).resolve() == called.resolve():
        return "trunkline"
    return shlex.quote(str(called.absolute()))
