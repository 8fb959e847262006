"""`trunkline connections`: who talks to whom."""

from __future__ import annotations

import asyncio
import json
import os

import httpx
import pytest

from cli.connected import connected, data_of
from cli.program import Program
from trunkline.cli import run
from trunkline.sdk import HttpRequest, HybridConnectionListener
from trunkline.testing import RelayNodeThread


def test_connection_is_shown_with_its_two_ends_and_what_passed(
    relay: RelayNodeThread, entity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = os.urandom(100_000)
    with connected(relay, entity) as pair:
        pair.sender.write(payload)
        assert pair.sender.read(len(payload)) == payload
        assert run(["connections", *data_of(relay), "--entity", entity, "--json"]) == 0
        [row] = json.loads(capsys.readouterr().out)
        assert (row["namespace"], row["entity"], row["state"]) == (relay.namespace, entity, "open")
        assert row["to_listener"]["bytes"] == row["to_sender"]["bytes"] == len(payload) + len("hello")
        assert row["sender"]["rule"] == "RootManageSharedAccessKey"
        assert row["sender"]["remote"].startswith("127.0.0.1:") and row["listener"]["remote"] != row["sender"]["remote"]
        assert run(["listeners", *data_of(relay), "--entity", entity, "--json"]) == 0
        [listener] = json.loads(capsys.readouterr().out)
        assert row["listener"]["id"] == listener["id"]
        assert run(["connections", *data_of(relay), "--entity", entity]) == 0
        head, line = capsys.readouterr().out.splitlines()
        shown = dict(zip(head.split("\t"), line.split("\t"), strict=True))
        assert shown["ID"] == row["id"] and shown["TRACKING ID"] == row["tracking_id"]
        assert shown["TO SENDER"] == str(len(payload) + len("hello"))


def test_watch_piped_is_a_line_of_json_for_each_look(relay: RelayNodeThread, entity: str) -> None:
    with connected(relay, entity):
        with Program("connections", *data_of(relay), "--entity", entity, "--json", "-w", "--every", "0.1") as watch:
            looks = [json.loads(watch.read_line()) for _ in range(3)]
            assert [len(look) for look in looks] == [1, 1, 1]
            assert looks[0][0]["id"] == looks[2][0]["id"] and looks[0][0]["seconds"] < looks[2][0]["seconds"]
            assert watch.interrupt() == 130
            assert watch.stderr == ""


def test_rates_show_what_moves(relay: RelayNodeThread, entity: str) -> None:
    with connected(relay, entity) as pair:
        with Program("connections", *data_of(relay), "--entity", entity, "--json", "--every", "0.1") as watch:
            rates = [0]
            while rates[-1] == 0:
                pair.sender.write(b"x" * 1_000)
                rates = [row["to_sender"]["bytes_per_second"] for row in json.loads(watch.read_line())]
            assert rates[0] > 0


async def test_request_in_flight_is_shown_without_its_path_and_can_be_ended(
    relay: RelayNodeThread, entity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = asyncio.Event()

    async def handle(request: HttpRequest) -> None:
        asked.set()
        await request.disconnected

    async def said(*arguments: str) -> str:
        assert await asyncio.to_thread(run, [*arguments, *data_of(relay)]) == 0
        return capsys.readouterr().out

    trust, headers = relay.client_context() or False, {"ServiceBusAuthorization": relay.token(entity)}
    listener = HybridConnectionListener(relay.connection_string(entity), ssl=trust, proxy=False, http_handler=handle)
    async with listener, httpx.AsyncClient(verify=trust, trust_env=False) as client, asyncio.TaskGroup() as tasks:
        url = f"https://{relay.host}:{relay.port}/{entity}/secret?a=secret"
        request = tasks.create_task(client.put(url, content=b"12345", headers=headers))
        await asked.wait()
        head, line = (await said("connections", "--entity", entity)).splitlines()
        shown = dict(zip(head.split("\t"), line.split("\t"), strict=True))
        assert (shown["METHOD"], shown["STATE"], shown["TO LISTENER"]) == ("PUT", "asked", "5")
        assert (shown["RULE"], shown["MESSAGES"]) == ("RootManageSharedAccessKey", "")
        assert "secret" not in line
        ended = await said("disconnect", shown["ID"])
        assert ended == f"ended the request {shown['ID']} on {relay.namespace}/{entity} from {shown['SENDER']}\n"
        response = await request
        assert response.status_code == 403 and "ClosedByOperator" in response.text
