"""What is known of a plain HTTP request."""

from __future__ import annotations

from server.relay.peers import Relay
from server.relay.requests_made import begun


def test_a_request_says_how_far_it_is() -> None:
    relay = Relay()
    record = begun(relay)
    assert (record.state, record.listener, record.answered) == ("seeking", None, None)
    relay.journal.request_told(record, "id-1")
    assert record.state == "asked"
    record.to_listener += 5
    relay.journal.request_answered(record, 200)
    assert (record.state, record.status) == ("answering", 200)
    assert repr(record) == f"<RequestRecord {record.admitted.tracking_id} answering 5/0>"
