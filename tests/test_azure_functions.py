"""The functions of examples/azure_functions, called as the Functions host calls them, and through a relay."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import azure.functions as func
import httpx
import pytest

from cli.program import Program
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.sdk.httpx_auth import RelayAuth
from trunkline.testing import relay_node, relay_node_thread

EXAMPLES = Path(__file__).parent.parent / "examples" / "azure_functions"
GUIDE = Path(__file__).parent.parent / "docs" / "azure-functions.md"

pytestmark = pytest.mark.loop("asyncio")  # the Functions host runs no other


def load(name: str) -> ModuleType:
    """The `function_app` of that folder, anew."""
    spec = importlib.util.spec_from_file_location("function_app", EXAMPLES / name / "function_app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_of(module: ModuleType) -> Any:
    """Its one function, as the host calls it."""
    [function] = module.app.get_functions()
    return function.get_user_function()


async def test_a_function_asks_a_service_behind_the_firewall(monkeypatch: pytest.MonkeyPatch) -> None:
    async def order(request: HttpRequest) -> HttpResponse:
        assert request.headers.get("Authorization") is None
        return HttpResponse(200, f"{request.method} {request.suffix}", headers={"Content-Type": "text/special"})

    async with relay_node("onPremises", tls=True) as node:
        monkeypatch.setenv("RELAY_CONNECTION_STRING", node.connection_string("onPremises", rule="send"))
        monkeypatch.setenv("SSL_CERT_FILE", str(node.ca_file))
        module = load("sender")
        called = function_of(module)
        request = func.HttpRequest("GET", "https://cloud/orders/17", route_params={"id": "17"}, body=b"")
        async with node.listener(http_handler=order):
            answer = await called(request)
            assert (answer.status_code, answer.get_body(), answer.mimetype) == (200, b"GET orders/17", "text/special")
        nobody = await called(request)
        assert nobody.status_code == 504 and b"There are no listeners connected" in nobody.get_body()
        await node.stop()
        away = await called(request)
        assert away.status_code == 502 and b"The relay cannot be reached" in away.get_body()
        await module.client.aclose()


class Context:
    """What the adapter reads of the context of an invocation."""

    invocation_id = "1"
    thread_local_storage = None
    function_name = "http_app_func"
    function_directory = "."
    trace_context = None
    retry_context = None


async def test_functions_are_reached_by_the_adapter_of_the_functions_host() -> None:
    module = load("receiver")
    url = "http://localhost:7071/stock/nuts/reservations?amount=3"
    request = func.HttpRequest("POST", url, params={"amount": "3"}, body=b"")
    answer = await function_of(module)(request, Context())
    assert (answer.status_code, json.loads(answer.get_body())) == (201, {"article": "nuts", "reserved": 3})
    await module.app.middleware.notify_shutdown()


def test_functions_are_reached_through_the_relay() -> None:
    with relay_node_thread("stock", tls=True) as relay:
        env = {"TRUNKLINE_CONNECTION_STRING": relay.connection_string("", rule="listen")}
        env["SSL_CERT_FILE"] = str(relay.ca_file)
        place = str(EXAMPLES / "receiver")
        with Program("host", "function_app:api", "--app-dir", place, "--hybrid-connection", "stock", env=env) as host:
            host.wait_for(f"{relay.url}/stock/")
            auth = RelayAuth(relay.connection_string("stock", rule="send"))
            client = httpx.Client(base_url=auth.base_url, auth=auth, verify=relay.client_context())
            with client:
                answer = client.post("stock/nuts/reservations?amount=3")
                assert (answer.status_code, answer.json()) == (201, {"article": "nuts", "reserved": 3})
                assert client.get("stock/nuts").json() == {"article": "nuts", "in_stock": 4}


def test_the_guide_shows_the_programs_that_are_tested() -> None:
    shown = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for block, name in zip(shown, ("sender", "receiver"), strict=True):
        program = (EXAMPLES / name / "function_app.py").read_text(encoding="utf-8")
        for line in block.splitlines():
            assert line in program.splitlines(), (name, line)


def test_the_programs_load_without_each_other() -> None:
    assert sys.modules.get("function_app") is None
