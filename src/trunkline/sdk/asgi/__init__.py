"""ASGI hosting: any ASGI 3 application behind a hybrid connection, with no open port.

    async with AsgiHost(app, connection_string) as host:
        print(host.url)
        await host.wait_closed()

    await serve(app, connection_string)        # the same, until it is cancelled

`host` joins the pieces and owns every task: it is an application of `HybridConnectionListener`. `lifespan` starts and
stops the application; `scopes` says what it is told of a request; `http_exchange` and `websocket_session` run it for
one request or one WebSocket; `form_body` collects what has to have a length.
"""

from trunkline.sdk.asgi.host import AsgiHost, Served, serve
from trunkline.sdk.asgi.lifespan import LifespanFailed

__all__ = ["AsgiHost", "LifespanFailed", "Served", "serve"]
