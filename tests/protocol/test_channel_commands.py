from __future__ import annotations

from trunkline.protocol.channel_commands import CheckToken, Requested, Send
from trunkline.protocol.frames import Opcode, encode_message
from trunkline.protocol.messages import Request


def test_no_command_shows_what_travels() -> None:
    frame = encode_message(Opcode.TEXT, b'{"renewToken": {"token": "secret"}}', frame_limit=65_536)
    assert repr(Send(frame)) == f"Send(TEXT, {len(frame)} bytes)"
    assert "secret" not in repr(CheckToken("SharedAccessSignature sig=secret"))
    request = Request("wss://relay/?sb-hc-rendezvous=secret", "id", "/a", "GET", {"Cookie": "secret"}, None, True)
    assert "secret" not in repr(Requested(request, b"secret"))
