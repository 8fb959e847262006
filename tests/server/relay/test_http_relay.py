"""Plain HTTP requests and listeners over real sockets: what each sees of the other."""

from __future__ import annotations

from server.relay.peers import HOST, Relay


async def test_a_request_goes_to_the_listener_and_its_answer_comes_back() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.ask("/orders/a%20b?x=1&sb-hc-id=2", [("X-One", "1"), ("x-one", "2")])
        request, body = await listener.asked()
        own = sender.writer.get_extra_info("sockname")
        assert body is None
        assert request == {
            "address": request["address"],
            "id": request["id"],
            "requestTarget": "/orders/a b?x=1",
            "method": "GET",
            "requestHeaders": {"Host": HOST, "X-One": "1, 2", "Via": f"1.1 {HOST}"},
            "remoteEndpoint": {"address": own[0], "port": own[1]},
            "body": False,
        }
        listener.respond(request["id"], 201, b"made", headers={"X-Two": "2"}, statusDescription="Done, and well")
        answer, content = await sender.response()
        assert (answer.status, answer.phrase, content) == (201, "Done, and well", b"made")
        assert answer.all("X-Two") == ["2"]
        assert answer.all("Via") == [f"1.1 {HOST}"]
        assert answer.all("Content-Type") == ["application/octet-stream"]
        assert answer.all("Content-Length") == ["4"]
        assert relay.counts() == {"listeners": 1, "channels": 1, "handshakes": 1}


async def test_a_small_body_follows_its_request_on_the_control_channel() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        content = bytes(range(256)) * 256
        sender = await relay.ask(body=content, method="POST")
        request, body = await listener.asked()
        assert (request["method"], request["body"], body) == ("POST", True, content)
        listener.respond(request["id"], 200, content[::-1])
        answer, content_back = await sender.response()
        assert (answer.status, content_back) == (200, content[::-1])
