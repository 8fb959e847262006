"""`trunkline disconnect`: what an operator ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.connected import connected, data_of
from trunkline.cli import run
from trunkline.cli.disconnect import _choose
from trunkline.cli.failure import Failure
from trunkline.testing import RelayNodeThread


def row(id: str, tracking_id: str = "t") -> dict[str, Any]:
    return {"id": id, "tracking_id": tracking_id}


def test_connection_is_closed_and_its_sender_is_told(
    relay: RelayNodeThread, entity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with connected(relay, entity) as pair:
        assert run(["connections", *data_of(relay), "--entity", entity, "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out)
        assert run(["disconnect", found["id"], *data_of(relay)]) == 0
        assert capsys.readouterr().out == (
            f"disconnected the connection {found['id']} on {relay.namespace}/{entity}"
            f" from {found['sender']['remote']}\n"
        )
        assert pair.sender.end() == 1
        assert "An operator of the relay closed this" in pair.sender.stderr
        assert run(["disconnect", found["id"], *data_of(relay)]) == 1
        assert capsys.readouterr().err == (
            f"error: There is no listener and no connection {found['id']}\n"
            "remedy: see trunkline listeners and trunkline connections\n"
        )


def test_listener_is_closed_comes_back_and_its_connection_goes_on(
    relay: RelayNodeThread, entity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with connected(relay, entity) as pair:
        assert run(["listeners", *data_of(relay), "--entity", entity, "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out)
        # By its tracking id, as a log names it.
        assert run(["disconnect", found["tracking_id"], *data_of(relay)]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"disconnected the listener {found['id']} on {relay.namespace}/{entity} from 127.0.0.1:")
        assert said.endswith(", rule RootManageSharedAccessKey\n")
        pair.sender.write(b"still here")
        assert pair.sender.read(10) == b"still here"
        # Its SDK logs that it was closed, and registers anew.
        pair.listener.wait_for("An operator of the relay closed this")
        again: list[str] = []
        while not again or again == [found["id"]]:
            assert run(["listeners", *data_of(relay), "--entity", entity, "--json"]) == 0
            again = [each["id"] for each in json.loads(capsys.readouterr().out)]
        assert len(again) == 1


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [("12-4f0c", "12-4f0c"), ("12", "12-4f0c"), ("120", "120-4f0c"), ("3", "34-4f0c"), ("track", "34-4f0c")],
)
def test_id_is_taken_whole_by_its_number_by_its_tracking_id_or_by_what_it_alone_begins_with(
    typed: str, chosen: str
) -> None:
    there = [("listeners", row("12-4f0c")), ("connections", row("120-4f0c")), ("connections", row("34-4f0c", "track"))]
    # As the node filters them.
    found = [(kind, each) for kind, each in there if each["id"].startswith(typed) or each["tracking_id"] == typed]
    assert _choose(found, typed)[1]["id"] == chosen


def test_id_that_may_be_several_is_refused_with_their_names() -> None:
    found = [("listeners", row("12-4f0c")), *(("connections", row(f"12{n}-4f0c")) for n in range(7))]
    with pytest.raises(
        Failure, match=r"^1 may be 12-4f0c \(listener\), 120-4f0c \(connection\), .* and 3 more$"
    ) as caught:
        _choose(found, "1")
    assert caught.value.status == 1 and caught.value.remedy == "type the whole id"
    # A sender chooses its tracking id, and two may have the same.
    with pytest.raises(Failure, match="type the whole id|may be"):
        _choose([("connections", row("1-a", "same")), ("connections", row("2-a", "same"))], "same")
