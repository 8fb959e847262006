"""Listener and sender through real proxies: proxy.py with HTTP CONNECT, pproxy with SOCKS5 and HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from proxy_servers import ProxyServer, http_proxy, socks_proxy
from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.sdk import (
    ListenerState,
    ProxyAuthenticationFailed,
    ProxyCannotConnect,
    ProxyError,
    ProxyRefused,
    ProxyUnreachable,
)
from trunkline.testing import relay_node

KINDS: dict[str, Callable[[], AbstractContextManager[ProxyServer]]] = {
    "http with password": lambda: http_proxy("ada:s3cret"),
    "socks5 with password": lambda: socks_proxy("ada:s3cret"),
    "socks5": socks_proxy,
    "http of pproxy": lambda: socks_proxy("ada:s3cret", scheme="http"),
}


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest) -> Iterator[ProxyServer]:
    with KINDS[request.param]() as server:
        yield server


@pytest.fixture(scope="module")
def socks() -> Iterator[ProxyServer]:
    with socks_proxy() as server:
        yield server


async def logged(proxy: ProxyServer, port: int) -> int:
    """Connections to `port` in the proxy's log, once three are there."""
    async with asyncio.timeout(10):
        while proxy.connections_to(port) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return proxy.connections_to(port)


async def echo_once(listener: HybridConnectionListener, client: HybridConnectionClient) -> None:
    """One connection, with frames longer than one read."""

    async def answer() -> None:
        async with await listener.accept() as connection:
            async for message in connection:
                await connection.send(message)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(answer())
        async with await client.create_connection(timeout=10) as connection:
            for message in ("hello", bytes(range(256)) * 2000):
                await connection.send(message)
                assert await connection.recv() == message


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_control_channel_rendezvous_and_sender_go_through_the_proxy(proxy: ProxyServer, tls: bool) -> None:
    async with relay_node(tls=tls) as node:
        # By name, so that it is the proxy that resolves it.
        address = f"sb://localhost:{node.port}/test"
        text = node.connection_string().replace("sb://127.0.0.1", "sb://localhost")
        options = {"ssl": node.client_context(), "proxy": proxy.url}
        async with HybridConnectionListener(text, **options) as listener:  # type: ignore[arg-type]
            await echo_once(listener, HybridConnectionClient(text, **options))  # type: ignore[arg-type]
            assert "s3cret" not in repr(listener) and address.partition("//")[2] in repr(listener)
        assert await logged(proxy, node.port) == 3
    if proxy.scheme == "socks5":
        assert f"-> localhost:{node.port}" in proxy.log()


async def test_proxy_of_the_environment_is_used_unless_no_proxy_names_the_relay(
    socks: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", socks.url)
    async with relay_node() as node:
        text = node.connection_string()
        async with HybridConnectionListener(text, ssl=False) as listener:
            await echo_once(listener, HybridConnectionClient(text, ssl=False))
            assert socks.connections_to(node.port) == 3
            monkeypatch.setenv("NO_PROXY", f"127.0.0.0/8,localhost:{node.port}")
            # The rendezvous address decides for itself: its host is excluded too.
            await echo_once(listener, HybridConnectionClient(text, ssl=False))
            await echo_once(listener, node.client())
        assert socks.connections_to(node.port) == 3
        monkeypatch.delenv("NO_PROXY")
        async with node.listener() as listener:  # a node in this process is never behind a proxy
            await echo_once(listener, node.client())
        assert socks.connections_to(node.port) == 3


async def test_wrong_password_is_told_at_once() -> None:
    async with relay_node() as node:
        with http_proxy("ada:s3cret") as proxy:
            for wrong in ("", "ada:hush"):
                url = proxy.with_credentials(wrong)
                words = "refuses the user name and password" if wrong else "asks for a user name and password"
                with pytest.raises(ProxyAuthenticationFailed, match=f"The proxy {proxy.address} {words} \\(407\\)"):
                    await node.client(proxy=url).create_connection()
                with pytest.raises(ProxyAuthenticationFailed) as caught:
                    await node.listener(proxy=url).open()  # and not tried for a minute
                assert "hush" not in str(caught.value)
        with socks_proxy("ada:s3cret") as proxy:  # it ends the connection instead of answering
            for wrong, words in (
                ("", "when they want a user name"),
                ("ada:hush", "when user name or password is wrong"),
            ):
                with pytest.raises(ProxyError, match=f"The proxy {proxy.address} closed .* {words}"):
                    await node.client(proxy=proxy.with_credentials(wrong)).create_connection()


async def test_relay_that_the_proxy_does_not_reach_is_told_from_a_proxy_that_is_not_there() -> None:
    async with relay_node() as node:
        port = node.port
        text = node.connection_string()
    with http_proxy() as proxy:
        client = HybridConnectionClient(text, ssl=False, proxy=proxy.url)
        with pytest.raises(ProxyCannotConnect, match=f"The proxy {proxy.address} cannot reach 127.0.0.1:{port}: 502"):
            await client.create_connection()
    with pytest.raises(ProxyUnreachable, match=f"The proxy {proxy.address} cannot be reached: Connection refused"):
        await client.create_connection()


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_proxy_that_says_nothing_is_named_by_the_timeout(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system takes the connection, and nobody answers
        port = silent.getsockname()[1]
        through = f"through the proxy {scheme}://127.0.0.1:{port}"
        options = {"proxy": f"{scheme}://ada:hush@127.0.0.1:{port}", "ssl": False}
        client = HybridConnectionClient("sb://relay.example/a", **options)  # type: ignore[arg-type]
        with pytest.raises(TimeoutError, match=f"No connection to ws://relay.example/a {through} within 0.2 s"):
            await client.create_connection(timeout=0.2)
        listener = HybridConnectionListener(
            "sb://relay.example/a",
            key_name="k",
            key="k",
            connect_timeout=0.1,
            **options,  # type: ignore[arg-type]
        )
        with pytest.raises(TimeoutError, match=f"{through} is not online within 0.3 s: No WebSocket to .* {through}"):
            await listener.open(0.3)


@pytest.mark.loop("uvloop")
async def test_listener_comes_back_when_the_proxy_does() -> None:
    lost, online = asyncio.Event(), asyncio.Event()
    async with relay_node() as node:
        with socks_proxy() as proxy:
            listener = node.listener(
                proxy=proxy.url, on_connecting=lambda _: lost.set(), on_online=lambda _: online.set()
            )
            lost.clear()
            async with asyncio.timeout(10):
                await listener.open()
            lost.clear()
            online.clear()
        async with asyncio.timeout(20):
            await lost.wait()
            while not isinstance(listener.last_error, ProxyUnreachable):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with socks_proxy(port=proxy.port):
                await online.wait()
                assert listener.state == ListenerState.ONLINE
                await listener.close()


def test_refusals_of_a_proxy_have_their_own_names() -> None:
    assert {ProxyAuthenticationFailed, ProxyCannotConnect, ProxyRefused, ProxyUnreachable} == set(
        ProxyError.__subclasses__()
    )
