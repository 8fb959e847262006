"""TLS 1.2 and 1.3, and nothing older."""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from typing import Any

import pytest
import trustme

from e2e.echo_listener import echo_listener, who_answers
from e2e.quiet_node import quiet_node
from trunkline.sdk import HybridConnectionClient, HybridConnectionListener

HANDSHAKE, ALERT = 22, 21
SERVER_HELLO, FATAL, PROTOCOL_VERSION = 2, 2, 70


def expect_failed_handshakes() -> None:
    """aiofastnet tells the loop of a client that leaves during its handshake; other surprises still fail the test."""
    loop = asyncio.get_running_loop()
    strict = loop.get_exception_handler()

    def tolerant(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context["message"] != "SSL handshake failed" and strict is not None:
            strict(loop, context)

    loop.set_exception_handler(tolerant)


def client_hello(version: int) -> bytes:
    """A ClientHello for at most TLS 1.`version` (RFC 5246 section 7.4.1.2), with what every old client offered."""
    suites = struct.pack("!8H", 0xC02B, 0xC02F, 0xC009, 0xC013, 0xC00A, 0xC014, 0x002F, 0x0035)
    curves = struct.pack("!HHHHHH", 10, 8, 6, 23, 24, 25)
    points = struct.pack("!HHBB", 11, 2, 1, 0)
    algorithms = struct.pack("!HHHHHHH", 13, 10, 8, 0x0403, 0x0401, 0x0203, 0x0201) if version == 2 else b""
    extensions = curves + points + algorithms
    body = (
        bytes([3, version + 1])
        + os.urandom(32)
        + b"\0"
        + struct.pack("!H", len(suites))
        + suites
        + b"\1\0"
        + struct.pack("!H", len(extensions))
        + extensions
    )
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return bytes([HANDSHAKE, 3, 1]) + struct.pack("!H", len(message)) + message


async def answer_to_hello(port: int, version: int) -> tuple[int, bytes] | None:
    """The content type and the content of the first record that comes back; None when the connection just ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(client_hello(version))
    try:
        async with asyncio.timeout(5):
            kind, _, length = struct.unpack("!BHH", await reader.readexactly(5))
            return kind, await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        writer.transport.abort()


# By hand, because a client library of today may be unable to offer what must be refused, and would refuse itself.
@pytest.mark.loop("uvloop")
@pytest.mark.parametrize("version", [0, 1])
async def test_client_that_knows_nothing_newer_than_tls_1_1_is_refused(version: int) -> None:
    async with quiet_node(tls=True) as node:
        # asyncio's transports, of whatever make, end a handshake that failed without sending the alert.
        assert await answer_to_hello(node.port, version) in (None, (ALERT, bytes([FATAL, PROTOCOL_VERSION])))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("version", [0, 1, 2])
def test_server_that_knew_nothing_better_would_answer_these_hellos(version: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(client_hello(version))
    try:
        context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    except ssl.SSLWantReadError:
        answer = outgoing.read()
        assert answer[0] == HANDSHAKE and answer[5] == SERVER_HELLO and answer[9:11] == bytes([3, version + 1])
    except ssl.SSLError as error:
        pytest.skip(f"this OpenSSL speaks no TLS 1.{version}: {error}")


@pytest.mark.loop("uvloop")
async def test_the_same_hello_for_tls_1_2_is_answered() -> None:
    expect_failed_handshakes()
    async with quiet_node(tls=True) as node:
        answer = await answer_to_hello(node.port, 2)
        assert answer is not None
        kind, content = answer
        assert kind == HANDSHAKE and content[0] == SERVER_HELLO and content[4:6] == bytes([3, 3])
        # The client left in the middle of the handshake, and the node goes on.
        async with echo_listener(node):
            assert await who_answers(node.client()) == "listener"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def test_listener_and_sender_speak_tls(version: ssl.TLSVersion) -> None:
    async with quiet_node(tls=True) as node:
        context = ssl.create_default_context(cafile=node.ca_file)
        context.minimum_version = context.maximum_version = version
        text = node.connection_string()
        async with HybridConnectionListener(text, ssl=context) as listener:
            sender = await HybridConnectionClient(text, ssl=context).create_connection()
            accepted = await listener.accept()
            await sender.send("encrypted")
            assert await accepted.recv() == "encrypted"
            await asyncio.gather(sender.close(), accepted.close())


async def test_client_that_does_not_trust_the_authority_of_the_node_does_not_connect() -> None:
    expect_failed_handshakes()
    async with quiet_node(tls=True) as node, echo_listener(node):
        with pytest.raises(ssl.SSLCertVerificationError):
            await HybridConnectionClient(node.connection_string()).create_connection()
        assert await who_answers(node.client()) == "listener"


@pytest.mark.loop("uvloop")
async def test_client_without_tls_is_not_served_on_a_port_with_it() -> None:
    expect_failed_handshakes()
    async with quiet_node(tls=True) as node, echo_listener(node):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(b"GET /$hc/test HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        assert b"HTTP/" not in answer
