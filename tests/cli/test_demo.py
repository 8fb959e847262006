"""The exchange of ``trunkline emulator --demo``; as a program in test_emulator."""

from __future__ import annotations

import pytest

from trunkline.cli import demo
from trunkline.cli.failure import Failure
from trunkline.protocol.errors import AuthorizationFailed
from trunkline.sdk import Connection
from trunkline.testing import relay_node


async def test_exchange_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    async with relay_node(tls=True) as node:
        to_listen, to_send = (node.connection_string(rights=[right]) for right in ("Listen", "Send"))
        await demo.exchange(to_listen, to_send, str(node.ca_file))
    said = capsys.readouterr().out
    assert "You said: Hello through the relay" in said
    assert "listener  the sender has closed" in said
    last = said.splitlines()[-1]
    assert last.startswith(f"sender    posted a text to {node.url}/test and got back: 'You said: Hello over HTTP', ")


async def test_wrong_key_fails() -> None:
    async with relay_node() as node:
        wrong = node.connection_string(rights=["Listen"]).replace("SharedAccessKey=", "SharedAccessKey=x")
        with pytest.raises(AuthorizationFailed):
            await demo.exchange(wrong, node.connection_string(rights=["Send"]), None)


async def test_other_bytes_than_were_sent_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Connection.send

    async def spoil(self: Connection, message: str | bytes) -> None:
        if isinstance(message, bytes) and self.request:
            message = message[:-1] + bytes([message[-1] ^ 1])
        await send(self, message)

    monkeypatch.setattr(Connection, "send", spoil)
    async with relay_node() as node:
        to_listen, to_send = (node.connection_string(rights=[right]) for right in ("Listen", "Send"))
        with pytest.raises(BaseExceptionGroup) as caught:
            await demo.exchange(to_listen, to_send, None)
        assert caught.value.subgroup(Failure)
