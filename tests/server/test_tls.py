from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import aiofastnet
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from trunkline.protocol.errors import InvalidSetting
from trunkline.server import tls
from trunkline.server.config.settings import NodeSettings, TlsFiles
from trunkline.server.tls import Certificates, DevelopmentAuthority


class Hosts:
    """The names that namespaces have, and who wants to know of new ones."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)
        self.subscribers: list[Callable[[object], None]] = []

    def certificate_names(self) -> tuple[str, ...]:
        return tuple(sorted(self.names))

    def subscribe(self, callback: Callable[[object], None], /) -> Callable[[], None]:
        self.subscribers.append(callback)
        return lambda: self.subscribers.remove(callback)

    def add(self, name: str) -> None:
        self.names.add(name)
        for subscriber in self.subscribers:
            subscriber(None)


class Clock:
    """Begins at the present, because OpenSSL reads the machine's own."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        return self.now

    def advance(self, days: float) -> None:
        self.now += days * 86_400


def shake_hands(
    server: ssl.SSLContext, ca_file: Path, name: str | None, *, client: ssl.SSLContext | None = None
) -> ssl.SSLObject:
    """A handshake in memory; the client's side of it. Raises what either side raises."""
    if client is None:
        client = ssl.create_default_context(cafile=str(ca_file))
        client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    if name is None:
        client.check_hostname = False
    inbox, outbox = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(inbox, outbox, server_hostname=name)
    server_side = server.wrap_bio(outbox, inbox, server_side=True)
    for _ in range(4):
        for side in (client_side, server_side):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert client_side.version() is not None
    return client_side


def certificate_of(side: ssl.SSLObject) -> x509.Certificate:
    data = side.getpeercert(binary_form=True)
    assert data is not None
    return x509.load_der_x509_certificate(data)


@dataclass
class Development:
    """A node with an authority of its own."""

    certificates: Certificates
    hosts: Hosts
    clock: Clock

    def shake_hands(self, name: str | None, *, client: ssl.SSLContext | None = None) -> ssl.SSLObject:
        assert self.certificates.ca_file is not None
        return shake_hands(self.certificates.context, self.certificates.ca_file, name, client=client)


def development(data: Path, **settings: str) -> Development:
    hosts, clock = Hosts("myrelayns.localhost", "relay.local"), Clock()
    node = NodeSettings.model_validate({"data": data, **settings})
    return Development(Certificates(node, hosts, clock=clock), hosts, clock)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "myrelayns.localhost", "RELAY.local", None])
def test_client_that_trusts_the_authority_finds_every_name(name: str | None, tmp_path: Path) -> None:
    side = development(tmp_path).shake_hands(name)
    assert side.version() == "TLSv1.3"


@pytest.mark.parametrize("name", ["relay.example.com", "any.relay.example.com", "10.1.2.3", "public.example.org"])
def test_certificate_has_the_domain_and_the_addresses_of_the_node(name: str, tmp_path: Path) -> None:
    node = development(
        tmp_path, domain="relay.example.com", host="10.1.2.3", public_url="https://public.example.org:444"
    )
    assert node.shake_hands(name).version() == "TLSv1.3"


def test_certificate_has_the_names_that_other_settings_bring(tmp_path: Path) -> None:
    node = development(tmp_path)
    wanted = NodeSettings(data=tmp_path, domain="relay.example.com", public_url="https://public.example.org")
    node.certificates.check(wanted)
    node.certificates.reload(wanted)
    for name in ("relay.example.com", "any.relay.example.com", "public.example.org", "myrelayns.localhost"):
        assert node.shake_hands(name).version() == "TLSv1.3"


def test_addresses_that_mean_all_are_not_in_the_certificate(tmp_path: Path) -> None:
    node = development(tmp_path, domain="10.0.0.1", host="0.0.0.0")
    names = certificate_of(node.shake_hands("10.0.0.1")).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert "0.0.0.0" not in map(str, names.value.get_values_for_type(x509.IPAddress))
    assert not any(name.startswith("*") for name in names.value.get_values_for_type(x509.DNSName))


def test_client_that_asks_for_another_name_refuses(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        development(tmp_path).shake_hands("elsewhere.com")


def test_name_of_a_new_namespace_is_there_at_once(tmp_path: Path) -> None:
    node = development(tmp_path)
    context = node.certificates.context
    with pytest.raises(ssl.SSLCertVerificationError):
        node.shake_hands("new.localhost")
    node.hosts.add("new.localhost")
    assert node.shake_hands("new.localhost").version() == "TLSv1.3"
    assert node.shake_hands("relay.local").version() == "TLSv1.3"
    assert node.certificates.context is context


def test_certificate_stays_while_nothing_is_new(tmp_path: Path) -> None:
    node = development(tmp_path)
    first = certificate_of(node.shake_hands(None)).serial_number
    node.certificates.refresh()
    node.certificates.reload()
    node.hosts.names.discard("relay.local")
    node.certificates.refresh()
    assert certificate_of(node.shake_hands(None)).serial_number == first


def test_certificate_lasts_less_than_398_days_and_is_replaced_before_its_end(tmp_path: Path) -> None:
    node = development(tmp_path)
    first = certificate_of(node.shake_hands(None))
    lifetime = first.not_valid_after_utc - first.not_valid_before_utc
    assert timedelta(days=365) < lifetime < timedelta(days=398)
    node.clock.advance(360)
    node.certificates.refresh()
    assert certificate_of(node.shake_hands(None)).serial_number == first.serial_number
    node.clock.advance(10)
    node.certificates.refresh()
    # It is made for a time to come, at which OpenSSL does not look from today.
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    second = certificate_of(node.shake_hands(None, client=trusting))
    assert second.not_valid_after_utc > first.not_valid_after_utc + timedelta(days=300)


def test_certificate_that_ends_with_its_authority_is_not_made_again_and_again(tmp_path: Path) -> None:
    node = development(tmp_path)
    node.clock.advance(3650 - 30)
    node.certificates.refresh()
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    last = certificate_of(node.shake_hands(None, client=trusting))
    node.clock.advance(5)
    node.certificates.refresh()
    assert certificate_of(node.shake_hands(None, client=trusting)).serial_number == last.serial_number


def test_certificate_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    node = development(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(InvalidSetting, match="no certificate can be written in .*data: No such file"):
        node.hosts.add("new.localhost")
    assert node.shake_hands(
        "relay.local", client=ssl.create_default_context(cafile=str(tmp_path / "moved" / "ca.pem"))
    ).version()


def test_names_in_one_certificate_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MOST_NAMES", 20)
    node = development(tmp_path)
    for number in range(50):
        node.hosts.add(f"ns{number:03}.localhost")
    certificate = certificate_of(node.shake_hands("localhost"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(names)) == 20
    revision = certificate.serial_number
    node.certificates.refresh()
    assert certificate_of(node.shake_hands("localhost")).serial_number == revision


def test_authority_is_made_once_and_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        first = development(tmp_path / "made")
    finally:
        os.umask(before)
    ca = (tmp_path / "made" / "ca.pem").read_bytes()
    assert first.certificates.ca_file == tmp_path / "made" / "ca.pem"
    assert (tmp_path / "made" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "made" / "ca.pem").stat().st_mode & 0o777 == 0o644
    assert b"PRIVATE" not in ca
    second = development(tmp_path / "made")
    assert (tmp_path / "made" / "ca.pem").read_bytes() == ca
    assert second.shake_hands("localhost").version() == "TLSv1.3"
    assert sorted(each.name for each in (tmp_path / "made").iterdir()) == ["ca-key.pem", "ca.pem"]


def test_authority_has_what_strict_clients_ask_for(tmp_path: Path) -> None:
    ca = x509.load_pem_x509_certificate(DevelopmentAuthority(tmp_path).ca_file.read_bytes())
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign
    own = x509.SubjectKeyIdentifier.from_public_key(ca.public_key())
    assert ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value == own
    assert ca.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3600)


def test_public_part_is_written_again_when_it_was_lost_or_altered(tmp_path: Path) -> None:
    ca = DevelopmentAuthority(tmp_path).ca_file.read_bytes()
    (tmp_path / "ca.pem").unlink()
    assert DevelopmentAuthority(tmp_path).ca_file.read_bytes() == ca
    (tmp_path / "ca.pem").write_text("something else")
    assert DevelopmentAuthority(tmp_path).ca_file.read_bytes() == ca


def test_key_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    DevelopmentAuthority(tmp_path)
    (tmp_path / "ca-key.pem").chmod(0o640)
    DevelopmentAuthority(tmp_path)
    assert (tmp_path / "ca-key.pem").stat().st_mode & 0o777 == 0o600


def test_nodes_that_start_at_once_in_one_folder_have_one_authority(tmp_path: Path) -> None:
    start = threading.Barrier(8)
    found: list[bytes] = []

    def begin() -> None:
        start.wait(30)
        authority = DevelopmentAuthority(tmp_path)
        pem, _ = authority.issue(["localhost"])
        ca = x509.load_pem_x509_certificate(authority.ca_file.read_bytes())
        x509.load_pem_x509_certificate(pem).verify_directly_issued_by(ca)
        found.append(authority.ca_file.read_bytes())

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_file_system_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    DevelopmentAuthority(tmp_path)
    assert (tmp_path / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ca-key.pem", "ca.pem"]


def test_damaged_authority_is_told_and_not_replaced(tmp_path: Path) -> None:
    DevelopmentAuthority(tmp_path)
    (tmp_path / "ca-key.pem").write_text("nothing of use")
    with pytest.raises(InvalidSetting, match="ca-key.pem is damaged: restore it, or remove it for a new authority"):
        DevelopmentAuthority(tmp_path)
    assert (tmp_path / "ca-key.pem").read_text() == "nothing of use"


def test_authority_near_its_end_is_told(tmp_path: Path) -> None:
    clock = Clock()
    DevelopmentAuthority(tmp_path, clock=clock)
    clock.advance(3600)
    pem, ends = DevelopmentAuthority(tmp_path, clock=clock).issue(["localhost"])
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    assert ends == ca.not_valid_after_utc == x509.load_pem_x509_certificate(pem).not_valid_after_utc
    clock.advance(30)
    with pytest.raises(InvalidSetting, match="ends on .*: remove ca-key.pem for a new one"):
        DevelopmentAuthority(tmp_path, clock=clock)


def test_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="/file cannot be used: File exists; check who owns it"):
        DevelopmentAuthority(tmp_path / "file")


# --- certificates from files ---


class Files:
    """A certificate and a key in a folder, of an authority made for the test."""

    def __init__(self, folder: Path) -> None:
        self.settings = TlsFiles(certificate=folder / "certificate.pem", key=folder / "key.pem")
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.issue("relay.example.com")

    def issue(self, name: str, *, not_after: datetime | None = None) -> trustme.LeafCert:
        leaf = self.ca.issue_cert(name, not_after=not_after)
        self.settings.certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        self.settings.key.write_bytes(leaf.private_key_pem.bytes())
        return leaf

    def certificates(self) -> Certificates:
        return Certificates(NodeSettings(tls=self.settings), Hosts())


def test_certificate_files_are_used(tmp_path: Path) -> None:
    files = Files(tmp_path)
    certificates = files.certificates()
    side = shake_hands(certificates.context, files.ca_file, "relay.example.com")
    assert side.version() == "TLSv1.3"
    assert certificates.ca_file is None
    assert certificates.ends == certificate_of(side).not_valid_after_utc.timestamp()


def test_end_of_the_certificate_is_that_of_the_one_in_use(tmp_path: Path) -> None:
    files, node = Files(tmp_path), development(tmp_path / "data")
    certificates = files.certificates()
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    files.issue("relay.example.com", not_after=soon)
    assert certificates.ends > soon.timestamp()
    certificates.reload()
    assert certificates.ends == soon.timestamp()
    # A certificate has whole seconds.
    assert int(node.certificates.ends) == certificate_of(node.shake_hands(None)).not_valid_after_utc.timestamp()


def test_certificate_files_are_read_again_on_the_live_context(tmp_path: Path) -> None:
    files = Files(tmp_path)
    certificates = files.certificates()
    context = certificates.context
    files.issue("new.example.com")
    certificates.refresh()  # that is for certificates of its own
    assert shake_hands(context, files.ca_file, "relay.example.com").version() == "TLSv1.3"
    certificates.reload()
    assert shake_hands(context, files.ca_file, "new.example.com").version() == "TLSv1.3"
    assert certificates.context is context


def test_files_that_do_not_fit_are_told_and_those_before_go_on(tmp_path: Path) -> None:
    files = Files(tmp_path)
    certificates = files.certificates()
    files.settings.key.write_bytes(files.ca.issue_cert("new.example.com").private_key_pem.bytes())
    message = f"the key in {files.settings.key} does not belong to the certificate in {files.settings.certificate}"
    with pytest.raises(InvalidSetting, match=message):
        certificates.reload()
    assert shake_hands(certificates.context, files.ca_file, "relay.example.com").version() == "TLSv1.3"
    with pytest.raises(InvalidSetting, match=message):
        files.certificates()


def test_other_files_take_the_place_of_those_before_on_the_live_context(tmp_path: Path) -> None:
    files = Files(tmp_path)
    certificates = files.certificates()
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    other.issue("other.example.com")
    wanted = NodeSettings(tls=other.settings)
    certificates.check(wanted)
    assert shake_hands(certificates.context, files.ca_file, "relay.example.com").version() == "TLSv1.3"
    certificates.reload(wanted)
    assert shake_hands(certificates.context, other.ca_file, "other.example.com").version() == "TLSv1.3"
    # And from now on they are the ones that are read again.
    other.issue("new.example.com")
    certificates.reload()
    assert shake_hands(certificates.context, other.ca_file, "new.example.com").version() == "TLSv1.3"
    other.settings.key.unlink()
    for call in (certificates.check, certificates.reload):
        with pytest.raises(InvalidSetting, match="cannot be read"):
            call(wanted)
    assert shake_hands(certificates.context, other.ca_file, "new.example.com").version() == "TLSv1.3"


def test_missing_files_are_named(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.settings.key.unlink()
    with pytest.raises(InvalidSetting, match=f"{files.settings.key} cannot be read: No such file"):
        files.certificates()
    files.settings.certificate.unlink()
    with pytest.raises(InvalidSetting, match=f"{files.settings.certificate} cannot be read: No such file"):
        files.certificates()


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.settings.key.write_text("a key")
    with pytest.raises(InvalidSetting, match="key.pem holds no private key in PEM form"):
        files.certificates()
    files.settings.certificate.write_bytes(b"\x00\xff")
    with pytest.raises(InvalidSetting, match="certificate.pem holds no certificate in PEM form"):
        files.certificates()


def test_key_with_a_passphrase_is_told_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    files = Files(tmp_path)
    key = serialization.load_pem_private_key(files.settings.key.read_bytes(), None)
    protected = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    files.settings.key.write_bytes(protected)
    with pytest.raises(InvalidSetting, match="key.pem has a passphrase; give the node one without"):
        files.certificates()


# --- what is spoken ---


def limited(ca_file: Path, lowest: ssl.TLSVersion, highest: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this OpenSSL would not even offer the old versions
    context.options &= ~(ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1)
    context.minimum_version, context.maximum_version = lowest, highest
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:ssl.OP_NO_TLSv1:DeprecationWarning")
def test_tls_1_2_and_1_3_are_spoken_and_1_1_is_not(tmp_path: Path) -> None:
    node = development(tmp_path)
    ca_file = tmp_path / "ca.pem"
    for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
        assert node.shake_hands("localhost", client=limited(ca_file, version, version)).version() == name
    with pytest.raises(ssl.SSLError):
        node.shake_hands("localhost", client=limited(ca_file, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1))


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)])
def test_http_1_1_is_chosen(offered: list[str], chosen: str | None, tmp_path: Path) -> None:
    node = development(tmp_path)
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    if offered:
        client.set_alpn_protocols(offered)
    assert node.shake_hands("localhost", client=client).selected_alpn_protocol() == chosen


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # aiofastnet's are of a class of their own

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def test_transports_of_the_data_plane_carry_it_and_see_a_new_certificate(tmp_path: Path) -> None:
    node = development(tmp_path)
    context = node.certificates.context
    server = await aiofastnet.create_server(asyncio.get_running_loop(), Echo, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    serials = set()
    for name in ("myrelayns.localhost", "new.localhost"):
        node.hosts.add(name)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=name)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        serials.add(certificate_of(writer.get_extra_info("ssl_object")).serial_number)
        writer.transport.abort()
    assert len(serials) == 2
    server.close()
    await server.wait_closed()


def test_importing_it_needs_no_other_part_of_the_server() -> None:
    program = (
        "import sys, trunkline.server.tls; print(*(name for name in sys.modules if name.startswith('trunkline.s')))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert set(ended.stdout.split()) == {"trunkline.server", "trunkline.server.tls"}
