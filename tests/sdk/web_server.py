"""A web server of the standard library that remembers what it was asked, and redirects where it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Asked(NamedTuple):
    """One request: its target, and the two headers that may hold a token."""

    target: str
    authorization: str | None
    service_bus_authorization: str | None


@dataclass
class WebServer:
    """host: as its clients name it. asked: all requests in order. redirect: where GET /away leads to."""

    host: str
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    redirect: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def web_server(host: str = "127.0.0.1") -> Iterator[WebServer]:
    """Serves on 127.0.0.1 until the end of the block."""
    known = WebServer(host)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = self.headers
            known.asked.append(Asked(self.path, headers["Authorization"], headers["ServiceBusAuthorization"]))
            if self.path.endswith("/away"):
                self.send_response(302)
                self.send_header("Location", known.redirect)
            else:
                self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        known.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield known
        finally:
            server.shutdown()
            thread.join()
