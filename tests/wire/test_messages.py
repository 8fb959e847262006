"""Messages through the node with hyco-ws on both sides: every byte, every order, both ways at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import pytest

from trunkline.testing import relay_node
from wire.addresses import Addresses
from wire.node_script import NodeScript, content

pytestmark = pytest.mark.loop("uvloop")

KINDS = ("text", "binary")
# Empty; the borders of the three length forms of a frame; the frame limit and its neighbours; several fragments.
SIZES = (0, 1, 125, 126, 65_535, 65_536, 65_537, 1 << 20, 4 << 20)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_hyco_listener_echoes_text_and_binary_of_every_size_to_hyco_sender(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            await sender.expect("opened", n=1)
            for kind in KINDS:
                for size in SIZES:
                    sender.tell("send", n=1, kind=kind, size=size, seed=f"{kind}-{size}")
                    wanted = sha256(content(kind, size, f"{kind}-{size}"))
                    heard = await listener.expect("message", n=1)
                    assert (heard["kind"], heard["sha256"]) == (kind, wanted)
                    echo = await sender.expect("message", n=1)
                    assert (echo["kind"], echo["sha256"]) == (kind, wanted)


async def test_hyco_sender_cuts_a_message_into_frames_and_the_listener_gets_one_message(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            await sender.expect("opened", n=1)
            for kind in KINDS:
                sender.tell("send", n=1, kind=kind, size=500_000, seed="cut", fragments=6)
                heard = await listener.expect("message", n=1)
                assert (heard["kind"], heard["sha256"]) == (kind, sha256(content(kind, 500_000, "cut")))
                echo = await sender.expect("message", n=1)
                assert echo["sha256"] == heard["sha256"]
            assert len(sender.said("message")) == len(KINDS)


async def test_hyco_sender_and_listener_send_a_thousand_messages_at_the_same_time(
    node_script: Callable[..., NodeScript],
) -> None:
    count, size = 1_000, 3_000
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script(
                "listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options(), echo=False
            ) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            await sender.expect("opened", n=1)
            await listener.expect("opened", n=1)
            sender.tell("send", n=1, kind="binary", size=size, seed="up", count=count)
            listener.tell("send", n=1, kind="text", size=size, seed="down", count=count)
            up = [await listener.expect("message", n=1) for _ in range(count)]
            down = [await sender.expect("message", n=1) for _ in range(count)]
            assert [m["sha256"] for m in up] == [sha256(content("binary", size, f"up-{i}")) for i in range(count)]
            assert [m["sha256"] for m in down] == [sha256(content("text", size, f"down-{i}")) for i in range(count)]


async def test_fifty_hyco_senders_at_once_each_get_their_own_bytes_back(
    node_script: Callable[..., NodeScript],
) -> None:
    senders = range(1, 51)
    async with relay_node(tls=True, max_senders=50) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            for n in senders:
                sender.tell("open", n=n, url=at.connect_url, token=at.token())
            for n in senders:
                await sender.expect("opened", n=n)
            for n in senders:
                sender.tell("send", n=n, kind="binary", size=100_000 + n, seed=f"sender {n}")
            for n in senders:
                echo = await sender.expect("message", n=n)
                assert echo["sha256"] == sha256(content("binary", 100_000 + n, f"sender {n}"))
            # One more is over the limit; when one leaves, there is room again.
            sender.tell("open", n=51, url=at.connect_url, token=at.token())
            refused = await sender.expect("rejected", n=51)
            assert refused["status"] == 429 and "QuotaExceeded" in refused["phrase"]
            sender.tell("close", n=7, code=1000, reason="enough")
            await sender.expect("closed", n=7)
            await listener.expect("closed", code=1000, reason="enough")


@pytest.mark.slow
async def test_hyco_listener_echoes_a_message_of_64_mib(node_script: Callable[..., NodeScript]) -> None:
    size = 64 << 20
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            await sender.expect("opened", n=1)
            wanted = await asyncio.to_thread(lambda: sha256(content("binary", size, "long")))
            sender.tell("send", n=1, kind="binary", size=size, seed="long")
            assert (await listener.expect("message", n=1, within=50))["sha256"] == wanted
            assert (await sender.expect("message", n=1, within=50))["sha256"] == wanted
