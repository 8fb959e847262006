"""A relay for the commands, one for each file of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from trunkline.testing import RelayNodeThread, relay_node_thread


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayNodeThread]:
    """With TLS; the default entity is `test`."""
    with relay_node_thread(["test", "other"], tls=True) as node:
        yield node


@pytest.fixture
def entity(relay: RelayNodeThread, request: pytest.FixtureRequest) -> Iterator[str]:
    """A hybrid connection of the test's own, so that nobody else listens there."""
    name = f"e-{abs(hash(request.node.nodeid)):x}"
    relay.add_hybrid_connection(name)
    yield name
    relay.remove_hybrid_connection(name)


@pytest.fixture
def access(relay: RelayNodeThread, entity: str) -> Callable[[str], dict[str, str]]:
    """The environment of a command that has one right, "Listen" or "Send", on `entity`."""

    def of(right: str) -> dict[str, str]:
        return {
            "TRUNKLINE_CONNECTION_STRING": relay.connection_string(entity, rights=[right]),
            "TRUNKLINE_CA_FILE": str(relay.ca_file),
        }

    return of
