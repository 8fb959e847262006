"""`trunkline connection-string`: from another one, or as JSON; files and folders are in test_rules."""

from __future__ import annotations

import json

from cli.program import failure_of, trunkline

TEXT = "Endpoint=sb://relay.example.com:8443/;SharedAccessKeyName=all;SharedAccessKey=c2VjcmV0"


def test_hybrid_connection_is_added_and_the_rest_stays() -> None:
    done = trunkline("connection-string", "--entity", "/orders/", "--connection-string", f"{TEXT};OperationTimeout=5")
    expected = f"{TEXT};EntityPath=orders;OperationTimeout=00:00:05\n"
    assert (done.returncode, done.stdout.decode().replace("\r", "")) == (0, expected)


def test_parts_as_json() -> None:
    done = trunkline("connection-string", "--json", env={"TRUNKLINE_CONNECTION_STRING": f"{TEXT};EntityPath=a"})
    facts = json.loads(done.stdout)
    assert facts == {
        "connection_string": f"{TEXT};EntityPath=a",
        "endpoint": "sb://relay.example.com:8443/",
        "entity_path": "a",
        "rule": "all",
    }


def test_option_comes_before_the_environment() -> None:
    env = {"TRUNKLINE_CONNECTION_STRING": TEXT.replace("relay", "other")}
    assert b"relay.example.com" in trunkline("connection-string", "--connection-string", TEXT, env=env).stdout


def test_what_cannot_be_combined() -> None:
    env = {"TRUNKLINE_CONNECTION_STRING": f"{TEXT};EntityPath=a"}
    assert "leave one of them out" in failure_of("connection-string", "--entity", "b", status=2, env=env)
    assert "--config FILE" in failure_of("connection-string", "--rights", "Send", status=2, env=env)
    said = failure_of("connection-string", status=2, env={"TRUNKLINE_CONNECTION_STRING": "c2VjcmV0"})
    assert "c2VjcmV0" not in said
