"""What a test asks a node for."""

from __future__ import annotations

import time

import pytest

from trunkline.protocol import connection_string, sas
from trunkline.protocol.errors import InvalidSetting
from trunkline.testing import relay_node


async def test_rule_is_chosen_by_rights_or_by_name() -> None:
    async with relay_node({"a": {"rules": {"own": ["Send"]}}, "b": {}}) as node:
        names = [
            connection_string.parse(text).key_name
            for text in (
                node.connection_string(),
                node.connection_string(rights=["Send"]),
                node.connection_string("b", rights=["Send"]),
                node.connection_string(rule="LISTEN"),
            )
        ]
        assert names == ["RootManageSharedAccessKey", "own", "send", "listen"]
        assert connection_string.parse(node.connection_string("")).entity_path is None
        assert connection_string.parse(node.connection_string("nowhere")).entity_path == "nowhere"
        with pytest.raises(InvalidSetting, match="there are: own"):
            node.connection_string(rule="nobody")
        with pytest.raises(InvalidSetting, match="the rights are Listen"):
            node.connection_string(rights=["Lisen"])


async def test_token_and_urls_are_for_the_hybrid_connection() -> None:
    async with relay_node(tls=True) as node:
        token = sas.parse(node.token(expires_in=-5))
        assert token.expires_at < time.time()
        assert token.covers(["127.0.0.1"], "test")
        assert node.listen_url(id="x").startswith(f"wss://127.0.0.1:{node.port}/$hc/test?")
        assert "/$hc/other/more?" in node.connect_url("other", suffix="more")
        assert node.client_context()
