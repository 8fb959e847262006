"""The first steps of ``trunkline doctor``: proxy, DNS, TCP and TLS. Nothing of the relay's protocol is spoken here."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import time
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from trunkline.cli.diagnosis import Step, Subject, connect_to, since
from trunkline.sdk.proxy import ProxyCannotConnect, ProxyError

_NOBODY = "check host and port in the connection string, that the relay runs there, and what filters in between"
#: Days before the end of a certificate at which it is time to look after it.
EXPIRES_SOON = 14.0

# Of OpenSSL (x509_vfy.h).
_NOT_YET_VALID, _EXPIRED = 9, 10
_WRONG_HOST = (62, 64)  # name, IP address


async def check_proxy(subject: Subject) -> Step:
    """Through the proxy to the relay's port."""
    proxy = subject.proxy
    if proxy is None:
        return Step("proxy", "skipped", "none")
    facts = {"proxy": str(proxy)}
    try:
        (await subject.open()).close()
    except ProxyCannotConnect:
        return Step("proxy", "ok", f"{proxy} answers", facts=facts)  # what it cannot reach is said by the step of TCP
    except ProxyError as error:
        return Step("proxy", "failed", str(error), error.remedy, facts)
    return Step("proxy", "ok", f"{proxy} connects to {subject.host}:{subject.port}", facts=facts)


async def check_dns(subject: Subject) -> Step:
    """The addresses of the relay."""
    if subject.proxy is not None:
        return Step("dns", "skipped", "the proxy resolves the name")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(subject.host)
        subject.addresses = [subject.host]
        return Step("dns", "skipped", f"{subject.host} is an address already")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(subject.host, subject.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        why = error.strerror or str(error)
        remedy = "check Endpoint in the connection string for a misspelled name, and the name server of this computer"
        return Step("dns", "failed", f"{subject.host} is not known: {why}", remedy)
    subject.addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    facts = {
        "v4": [address for address in subject.addresses if ":" not in address],
        "v6": [address for address in subject.addresses if ":" in address],
    }
    return Step("dns", "ok", f"{subject.host} is {', '.join(subject.addresses)}", facts=facts)


async def check_tcp(subject: Subject) -> Step:
    """A connection to each of the addresses, in the order in which clients try them; the first is used from here on."""
    if subject.proxy is not None:
        try:
            (await subject.open()).close()
        except ProxyCannotConnect as error:
            return Step("tcp", "failed", str(error), error.remedy)
        return Step("tcp", "ok", f"{subject.host}:{subject.port} through the proxy")
    # One that drops what it is sent must not take the time of the others.
    results = await asyncio.gather(*(_reach(address, subject) for address in subject.addresses))
    reached = [(address, ms) for address, ms, _ in results if ms is not None]
    words = [f"{address} {why}" for address, _, why in results if why]
    facts: dict[str, Any] = {"addresses": {address: ms if ms is not None else why for address, ms, why in results}}
    if not reached:
        return Step("tcp", "failed", f"port {subject.port}: {', '.join(words)}", _NOBODY, facts)
    subject.address, ms = reached[0]
    text = f"{subject.address} port {subject.port}"
    if words:
        text += f" ({', '.join(words)})"
    facts |= {"address": subject.address, "ms": ms}
    # Whoever refuses costs no time; whoever says nothing holds every client up.
    if any("refused" not in why for why in words):
        remedy = "take the address out of DNS, or mend the way to it: clients try it first and wait"
        return Step("tcp", "warned", text, remedy, facts)
    return Step("tcp", "ok", text, facts=facts)


async def _reach(address: str, subject: Subject) -> tuple[str, float | None, str]:
    """An address, the milliseconds that TCP took, and why it failed."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(subject.timeout * 0.8):
            (await connect_to(address, subject.port)).close()
    except TimeoutError:
        return address, None, "does not answer"
    except OSError as error:
        return address, None, (os.strerror(error.errno) if error.errno else str(error)).lower()
    return address, since(started), ""


# --- TLS ---


async def check_tls(subject: Subject) -> Step:
    """A handshake that verifies, as clients do; when it fails, what was shown instead."""
    context = subject.endpoint.ssl
    if context is None:
        return Step("tls", "skipped", "not used (--no-tls)")
    started = time.perf_counter()
    try:
        async with subject.stream(context) as (_, writer):
            ms = since(started)
            connection = writer.get_extra_info("ssl_object")
            certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
            chain = _verified_chain(connection)
            version = connection.version()
    except ssl.SSLCertVerificationError as error:
        return await _not_trusted(subject, error)
    except (ssl.SSLError, ConnectionError) as error:
        return await _no_handshake(subject, error)
    days = _days_left(certificate)
    facts = {"ms": ms, "version": version, "chain": chain, "trusted_by": _trust(subject), **_facts(certificate)}
    text = f"{version}; the certificate is {_for(certificate)}, issued by {_name(certificate.issuer)}"
    if len(chain) > 2:
        text += f" below {chain[-1]}"
    text += f", for {days:.0f} days"
    if days < EXPIRES_SOON:
        return Step("tls", "warned", text, "renew the certificate of the relay before it ends", facts)
    return Step("tls", "ok", text, facts=facts)


async def _not_trusted(subject: Subject, error: ssl.SSLCertVerificationError) -> Step:
    anything = ssl.create_default_context()
    anything.check_hostname = False
    anything.verify_mode = ssl.CERT_NONE
    async with subject.stream(anything) as (_, writer):
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    certificate = x509.load_der_x509_certificate(shown)
    facts = {"verify_code": error.verify_code, **_facts(certificate)}
    issuer = _name(certificate.issuer)
    if error.verify_code == _EXPIRED:
        text = f"the certificate has ended {-_days_left(certificate):.0f} days ago"
        if _days_left(certificate) > 0:  # another one of the chain, or our clock is the relay's future
            text = f"an authority of the certificate has expired; it was issued by {issuer}"
        remedy = "renew the certificate of the relay, and check the clock of this computer"
    elif error.verify_code == _NOT_YET_VALID:
        text = f"the certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        remedy = "check the clock of this computer"
    elif error.verify_code in _WRONG_HOST:
        text = f"the certificate is {_for(certificate)}, and not for {subject.host}"
        remedy = "use one of its names in Endpoint of the connection string, or give the relay a certificate for this"
    else:
        itself = certificate.issuer == certificate.subject
        text = f"the certificate, {_for(certificate)}, issued by {'itself' if itself else issuer}, is not trusted"
        text += f" by {_trust(subject)} ({error.verify_message})"
        remedy = (
            "trust its authority with --ca FILE or TRUNKLINE_CA_FILE (a node's own is ca.pem in its data folder);"
            " if you do not know it, a proxy in between opens TLS; if you do, the relay may not send the certificates"
            " in between"
        )
    return Step("tls", "failed", text, remedy, facts)


async def _no_handshake(subject: Subject, error: OSError) -> Step:
    with contextlib.suppress(OSError):
        if (await subject.get(None)).startswith(b"HTTP/"):
            text = f"port {subject.port} speaks HTTP without TLS"
            return Step("tls", "failed", text, "use --no-tls (ssl=False in Python, ws:// or http:// in an address)")
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    words = str(reason).replace("_", " ").lower()
    text = f"port {subject.port} does not complete a TLS handshake: {words}"
    return Step("tls", "failed", text, "check that it is the relay's port, and that both sides speak TLS 1.2 or 1.3")


def _trust(subject: Subject) -> str:
    """Whose word is taken for a certificate."""
    return "the authorities of this computer" if subject.who.ca is None else str(subject.who.ca)


def _verified_chain(connection: Any) -> list[str]:
    """Names from the certificate of the relay up to the authority that is trusted.

    Public from Python 3.13 on; before that the same is there under another name.
    """
    if hasattr(connection, "get_verified_chain"):
        encoded = connection.get_verified_chain()
    else:
        der = 2  # _ssl.ENCODING_DER
        encoded = [each.public_bytes(der) for each in connection._sslobj.get_verified_chain()]
    return [_name(x509.load_der_x509_certificate(each).subject) for each in encoded]


def _days_left(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86_400


def _facts(certificate: x509.Certificate) -> dict[str, Any]:
    return {
        "names": _names(certificate),
        "issuer": certificate.issuer.rfc4514_string(),
        "expires_at": certificate.not_valid_after_utc.isoformat(),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }


def _for(certificate: x509.Certificate) -> str:
    """Whom it is for, in a few words."""
    names = _names(certificate)
    if not names:
        return "for nobody"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"for {', '.join(names[:3])}{more}"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(each.value) for each in names if isinstance(each, x509.DNSName | x509.IPAddress)]


def _name(name: x509.Name) -> str:
    """The most telling part of a distinguished name."""
    for part in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        found = name.get_attributes_for_oid(part)
        if found:
            return str(found[0].value)
    return name.rfc4514_string() or "nobody"
