"""Fixtures for pytest that give a real relay node.

    def test_sender_is_refused_when_the_entity_is_full(trunkline_node):
        subprocess.run(["my-sender", trunkline_node.connection_string()], check=True)

    @pytest.mark.trunkline({"orders": {"max_senders": 2}}, tls=True)
    def test_the_third_order_waits(trunkline_node): ...

    def test_two_relays(trunkline_node_factory):
        here, there = trunkline_node_factory(), trunkline_node_factory("orders", preset="azure")

Both give a `trunkline.testing.RelayNodeThread`: a node in a thread of its own, so a test may be a plain function, or
run under pytest-asyncio, anyio or whatever else. A test with a loop of its own can as well say ``async with
trunkline.testing.relay_node() as node``. Installed with Trunkline; nothing is imported until a test asks for a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trunkline.testing import RelayNodeThread


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark, for users who run with ``--strict-markers``."""
    config.addinivalue_line(
        "markers",
        "trunkline(hybrid_connections, *, tls=False, ...): how the fixture trunkline_node starts its node; takes what"
        " trunkline.testing.relay_node takes",
    )


@pytest.fixture
def trunkline_node_factory() -> Iterator[Callable[..., RelayNodeThread]]:
    """Starts a node with each call, with the arguments of `trunkline.testing.relay_node`; the test's end stops all."""
    from trunkline.testing import relay_node_thread

    with ExitStack() as nodes:
        yield lambda *args, **options: nodes.enter_context(relay_node_thread(*args, **options))


@pytest.fixture
def trunkline_node(
    request: pytest.FixtureRequest, trunkline_node_factory: Callable[..., RelayNodeThread]
) -> RelayNodeThread:
    """A node for this test alone, with one hybrid connection, ``test``, unless the mark `trunkline` says otherwise."""
    mark = request.node.get_closest_marker("trunkline")
    return trunkline_node_factory(*mark.args, **mark.kwargs) if mark else trunkline_node_factory()
