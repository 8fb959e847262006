"""TLS of the data plane: certificates that somebody gave the node, or those of its own development authority.

The authority is made once and kept in the data folder: ``ca.pem`` is what clients are told to trust,
``ca-key.pem`` never leaves the folder. The node's certificate is made anew in each process and holds every name
the node is known by; when a namespace brings a new name, or the end of the certificate comes near, another one
takes its place on the live context, and no connection notices.

One certificate with all names, and not one for each name chosen while a client says whom it wants (SNI): the
transports that carry the data plane (aiofastnet) do without Python's object for a TLS connection, and the
interpreter crashes in ``SSLContext.sni_callback`` when that is missing.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trunkline.protocol.errors import InvalidSetting

_DAY = timedelta(days=1)
#: Ten years: whoever trusts the authority wants to do so once.
AUTHORITY_LIFETIME = 3650 * _DAY
#: Apple's clients refuse more than 398 days, also from an authority that the user added.
CERTIFICATE_LIFETIME = 397 * _DAY
#: A certificate that ends sooner than that is replaced.
RENEW_BEFORE = 30 * _DAY
#: Clocks of clients may be behind.
_BACKDATED = 1 * _DAY
#: Names in one certificate. Clients read about 100 KB of certificates (OpenSSL), and 2,500 names are that long.
MOST_NAMES = 1000


class DevelopmentAuthority:
    """Makes certificates that are good for whoever trusts `ca_file`; not for the public.

    Parameters
    ----------
    folder: where the authority is kept; made when missing, as is the authority. Several processes may start in
        the same folder at once, they end up with the same one.
    clock: seconds since the epoch.

    Raises InvalidSetting when what is kept there cannot be used.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.ca_file = folder / "ca.pem"
        self._folder = folder
        self._clock = clock
        key_file = folder / "ca-key.pem"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not key_file.exists():
                self._keep(_new_authority(self._now()), key_file)
            elif key_file.stat().st_mode & 0o077:
                key_file.chmod(0o600)  # a restored backup, or a volume whose files the system opens to a group
            pem = key_file.read_bytes()
            self._key, self._certificate = _read_authority(pem, key_file)
            certificate = self._certificate.public_bytes(serialization.Encoding.PEM)
            if not self.ca_file.exists() or self.ca_file.read_bytes() != certificate:
                self._publish(certificate)
        except OSError as error:
            raise InvalidSetting(f"the folder {folder} cannot be used: {error.strerror}; check who owns it") from None
        if self._now() > self.ends - RENEW_BEFORE:
            raise InvalidSetting(
                f"the development authority in {folder} ends on {self.ends:%Y-%m-%d}:"
                f" remove {key_file.name} for a new one, and let clients trust the new {self.ca_file.name}"
            )

    def issue(self, names: Collection[str]) -> tuple[bytes, datetime]:
        """A new key and its certificate, as PEM in one text, and when the certificate ends.

        Parameters
        ----------
        names: host names, also with a ``*`` as their first label, and IP addresses.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        ends = min(self._now() + CERTIFICATE_LIFETIME - _BACKDATED, self.ends)
        certificate = (
            _signed_by(self._certificate.subject, _subject("Trunkline development node"), key, self._now(), ends)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                # Python 3.13 and others in strict mode ask for it (RFC 5280 section 4.2.1.1).
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return _pem(key) + certificate.public_bytes(serialization.Encoding.PEM), ends

    @property
    def ends(self) -> datetime:
        """When the authority ends, and with it every certificate of it."""
        return self._certificate.not_valid_after_utc

    def load(self, context: ssl.SSLContext, names: Collection[str]) -> datetime:
        """Puts a new certificate for ``names`` on a context, and gives its end. Raises InvalidSetting."""
        pem, ends = self.issue(names)
        # The ssl module reads certificates from files alone; this one is ours alone and gone in a moment.
        try:
            descriptor, file = tempfile.mkstemp(dir=self._folder, prefix=".certificate-")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(pem)
                context.load_cert_chain(file)
            finally:
                os.unlink(file)
        except OSError as error:
            raise InvalidSetting(f"no certificate can be written in {self._folder}: {error.strerror}") from None
        return ends

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _keep(self, pem: bytes, file: Path) -> None:
        """Writes ``file`` whole or not at all, and leaves one alone that another process wrote first."""
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".ca-key-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(pem)
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(temporary, file)
            except FileExistsError:
                pass
            except OSError:  # a file system without links; here two first starts in one moment could differ
                os.replace(temporary, file)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _publish(self, certificate: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".ca-")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(certificate)
        os.chmod(temporary, 0o644)  # the one file here that everybody may read
        os.replace(temporary, self.ca_file)


class TlsFiles(Protocol):
    """A certificate and its key; `trunkline.server.config.settings.TlsFiles` is one."""

    @property
    def certificate(self) -> Path: ...
    @property
    def key(self) -> Path: ...


class TlsSettings(Protocol):
    """What TLS needs of the settings of a node."""

    @property
    def tls(self) -> str | TlsFiles: ...
    @property
    def data(self) -> Path: ...
    @property
    def domain(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def public_url(self) -> str | None: ...


class KnownHosts(Protocol):
    """Who knows the host names of the node, and when they change; the catalog of entities is one."""

    def certificate_names(self) -> tuple[str, ...]: ...
    def subscribe(self, callback: Callable[[object], None], /) -> Callable[[], None]: ...


class FileCertificates:
    """Certificates from files, read again by `reload`.

    Raises InvalidSetting, which names the file and what is wrong with it.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._ends = 0.0
        self.context = _new_context()
        self.reload()

    def check(self, files: TlsFiles) -> None:
        """Raises InvalidSetting when these files could not be used; takes nothing."""
        _load(files, _new_context())

    @property
    def ends(self) -> float:
        """When the certificate ends, in seconds since the epoch."""
        return self._ends

    def reload(self, files: TlsFiles | None = None) -> None:
        """Takes its files, or others, as they are now.

        Raises InvalidSetting and keeps what it had when they do not fit.
        """
        files = files or self._files
        self.check(files)  # a pair that does not fit would leave half of it on the live context
        _load(files, self.context)
        self._files = files
        # The first one is that of the node. Those behind it are not its business: it cannot renew them.
        leaf = x509.load_pem_x509_certificates(files.certificate.read_bytes())[0]
        self._ends = leaf.not_valid_after_utc.timestamp()


def _load(files: TlsFiles, context: ssl.SSLContext) -> None:
    certificate, key = files.certificate, files.key
    _check_pem(certificate, key)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidSetting(f"the key in {key} does not belong to the certificate in {certificate}") from None
        raise InvalidSetting(f"{certificate} and {key} cannot be used: {error.reason or error}") from None


class DevelopmentCertificates:
    """The certificate of a node that has an authority of its own, kept in step with the node's names.

    Raises InvalidSetting when the authority cannot be used.
    """

    def __init__(
        self,
        authority: DevelopmentAuthority,
        names: Callable[[], Iterable[str]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._names = names
        self._clock = clock
        self._loaded: frozenset[str] = frozenset()
        self._ends = datetime.min.replace(tzinfo=UTC)
        self.context = _new_context()
        self.take_names()

    @property
    def ends(self) -> float:
        """When the certificate ends, in seconds since the epoch."""
        return self._ends.timestamp()

    def take_names(self) -> None:
        """Makes a new certificate when there is a new name."""
        names = frozenset(list(dict.fromkeys(self._names()))[:MOST_NAMES])
        if not names <= self._loaded:
            self._load(names)

    def refresh(self) -> None:
        """Makes a new certificate when the end of this one comes near, and the authority lasts longer."""
        due = self._ends - RENEW_BEFORE
        if datetime.fromtimestamp(self._clock(), UTC) > due and self._ends < self._authority.ends:
            self._load(self._loaded)

    def _load(self, names: frozenset[str]) -> None:
        self._ends = self._authority.load(self.context, sorted(names))
        self._loaded = names


class Certificates:
    """The TLS side of one node.

    Parameters
    ----------
    settings: say where certificates come from; ``tls`` is ``"development"`` or has a certificate and a key file.
    hosts: the host names that namespaces and hybrid connections have.

    Raises InvalidSetting.
    """

    def __init__(self, settings: TlsSettings, hosts: KnownHosts, *, clock: Callable[[], float] = time.time) -> None:
        self._source: FileCertificates | DevelopmentCertificates
        self._settings = settings
        #: What clients have to trust, when the node makes its certificates itself.
        self.ca_file: Path | None = None
        if isinstance(settings.tls, str):
            authority = DevelopmentAuthority(settings.data, clock=clock)
            self._source = DevelopmentCertificates(
                authority, lambda: [*_own_names(self._settings), *hosts.certificate_names()], clock=clock
            )
            self.ca_file = authority.ca_file
            source = self._source
            hosts.subscribe(lambda _: source.take_names())
        else:
            self._source = FileCertificates(settings.tls)

    @property
    def context(self) -> ssl.SSLContext:
        """For the server's sockets; stays the same while certificates come and go."""
        return self._source.context

    @property
    def ends(self) -> float:
        """When the certificate that clients see ends, in seconds since the epoch."""
        return self._source.ends

    def check(self, settings: TlsSettings) -> None:
        """Raises InvalidSetting when these settings, of the same kind, could not be taken; takes nothing."""
        if isinstance(self._source, FileCertificates) and not isinstance(settings.tls, str):
            self._source.check(settings.tls)

    def reload(self, settings: TlsSettings | None = None) -> None:
        """Reads certificate files again, or makes a certificate when the settings bring another name.

        Parameters
        ----------
        settings: other ones of the same kind: files in place of files, or the node's own authority as before.

        Raises InvalidSetting, and goes on with what it had.
        """
        settings = settings or self._settings
        if isinstance(self._source, FileCertificates):
            assert not isinstance(settings.tls, str)
            self._source.reload(settings.tls)
        self._settings = settings
        if isinstance(self._source, DevelopmentCertificates):
            self._source.take_names()

    def refresh(self) -> None:
        """Replaces an own certificate that ends soon; to be called now and then, costs nothing until it is due."""
        if isinstance(self._source, DevelopmentCertificates):
            self._source.refresh()


def _own_names(settings: TlsSettings) -> list[str]:
    """What the node is reached by apart from its namespaces."""
    names = ["localhost", "127.0.0.1", "::1", settings.domain]
    if isinstance(_general_name(settings.domain), x509.DNSName):
        # For a namespace that somebody only asks for. Clients do not take it for "localhost" or "com".
        names.append(f"*.{settings.domain}")
    if settings.host not in ("0.0.0.0", "::"):
        names.append(settings.host)
    if settings.public_url:
        names.append(urlsplit(settings.public_url).hostname or "localhost")
    return names


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.2; no client needs it, and each one costs a handshake
    # WebSocket and relayed requests are HTTP/1.1 (RFC 6455 section 4.1); a client that offers h2 first must know.
    context.set_alpn_protocols(["http/1.1"])
    return context


def _new_authority(now: datetime) -> bytes:
    """A key and its own certificate, as PEM in one text."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A number of its own in the name: a trust store may hold those of several nodes, and finds them by name.
    name = _subject(f"Trunkline development authority {x509.random_serial_number() % 16**8:08x}")
    certificate = (
        _signed_by(name, name, key, now, now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _read_authority(pem: bytes, file: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key():
            return key, certificate
    except (ValueError, TypeError):
        pass
    raise InvalidSetting(f"{file} is damaged: restore it, or remove it for a new authority that clients trust anew")


def _check_pem(certificate: Path, key: Path) -> None:
    """Says which of two files is wrong, and how; OpenSSL says "PEM lib" for everything."""
    for file in (certificate, key):
        try:
            pem = file.read_bytes()
        except OSError as error:
            raise InvalidSetting(f"{file} cannot be read: {error.strerror}") from None
        try:
            if file is certificate:
                x509.load_pem_x509_certificates(pem)
            else:
                serialization.load_pem_private_key(pem, None)
        except TypeError:
            raise InvalidSetting(f"the key in {file} has a passphrase; give the node one without") from None
        except ValueError:
            what = "certificate" if file is certificate else "private key"
            raise InvalidSetting(f"{file} holds no {what} in PEM form") from None


def _signed_by(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(**used: bool) -> x509.KeyUsage:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: used.get(name, False) for name in every})


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
