"""The arguments of a test as a declaration."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.protocol.errors import InvalidSetting
from trunkline.testing.declared import DEFAULT_RULES, HybridConnections, checked_rights, declare


def test_name_names_and_names_with_options() -> None:
    several: list[HybridConnections] = ["a", ["a"], {"a": {}}]
    for given in several:
        [namespace] = declare("testing", ["x.test"], DEFAULT_RULES, given).namespaces
        assert [each.name for each in namespace.hybrid_connections] == ["a"]
    options = {"a": {"max_senders": 2, "rules": {"r": ["Send"]}, "user_metadata": "m", "enabled": False}}
    [entity] = declare("testing", [], {}, options).namespaces[0].hybrid_connections
    assert (entity.limits, entity.user_metadata, entity.enabled) == ({"max_senders": 2}, "m", False)
    assert entity.rules[0].primary_key is None  # made by the node


@pytest.mark.parametrize(
    "options",
    [{"max_sender": 1}, {"max_senders": -1}, {"rules": ["Listen"]}, {"rules": {"r": ["Lsten"]}}, {"enabled": 1}],
)
def test_wrong_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        declare("testing", [], {}, {"a": options})


def test_single_right_may_stand_alone() -> None:
    assert checked_rights("Send") == {"Send"}
