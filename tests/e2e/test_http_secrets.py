"""Nothing that a sender or listener of HTTP keeps secret is in a log line, whatever becomes of the request."""

from __future__ import annotations

import asyncio
import json
import logging
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from e2e.quiet_node import quiet_node
from e2e.raw_websocket import BINARY, RawWebSocket
from http_cases import Relay

SECRET = "hunter2-that-nobody-may-see"


@pytest.mark.loop("uvloop")
async def test_no_secret_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [SECRET]
    async with quiet_node(response_timeout=0.3) as node:
        relay = Relay.of(node)
        token = node.token()
        secrets.append(parse_qs(token.removeprefix("SharedAccessSignature "))["sig"][0])
        wrong = token.replace("sig=", "sig=AAAA")
        kept = [("Authorization", f"Bearer {SECRET}"), ("Cookie", f"session={SECRET}"), ("X-Api-Key", SECRET)]
        host = relay.headers[0]
        async with RawWebSocket(node.listen_url(), token=token) as control:
            for answer in ("whole", "streamed", "cut", "late", "left", "malformed"):
                async with relay.connect() as sender:
                    target = f"/{relay.entity}/x?key={SECRET}&sb-hc-token={quote(token, safe='')}"
                    sender.write_request("POST", target, [host, *kept], SECRET.encode())
                    request = json.loads((await control.receive_answering_pings()).payload)["request"]
                    await control.receive()
                    secrets += parse_qs(urlsplit(request["address"]).query)["sb-hc-rendezvous"]
                    head = {"requestId": request["id"], "statusCode": 200, "body": True}
                    head["responseHeaders"] = {"Set-Cookie": f"session={SECRET}"}
                    match answer:
                        case "whole":
                            await control.send_json({"response": head})
                            await control.send(BINARY, SECRET.encode())
                            assert (await sender.answer()).status == 200
                        case "streamed" | "cut" | "malformed":
                            async with RawWebSocket(request["address"]) as rendezvous:
                                await rendezvous.send_json({"response": head} if answer != "malformed" else SECRET)
                                if answer != "malformed":
                                    await rendezvous.send(BINARY, SECRET.encode(), end=answer == "streamed")
                                await sender.head()
                        case "late":
                            assert (await sender.answer()).status == 504
                        case "left":
                            sender.abort()
            for headers, query in (
                ([host, ("ServiceBusAuthorization", wrong), *kept], ""),
                ([host, *kept], f"?sb-hc-token={quote(wrong, safe='')}&key={SECRET}"),
                ([host, ("Authorization", SECRET)], f"?key={SECRET}"),
            ):
                async with relay.connect() as sender:
                    sender.write_request("GET", f"/{relay.entity}/x{query}", headers)
                    refused = await sender.answer()
                    assert refused.status == 401
                    assert SECRET not in refused.reason + refused.body.decode()
            async with relay.connect() as sender:
                headers = [host, ("ServiceBusAuthorization", node.token(""))]
                sender.write_request("GET", f"/nobody/x?key={SECRET}", headers)
                assert (await sender.answer()).status == 404
            await control.send_close(1000)
        await asyncio.sleep(0)
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "7" in logged  # there is a log
    for secret in secrets:
        for form in (secret, quote(secret, safe="")):
            assert form not in logged, [line for line in logged.split("\n") if form in line][:3]
