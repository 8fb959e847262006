"""An HTTP function in the cloud that asks an on-premises web API, through the hybrid connection that it listens on.

RELAY_CONNECTION_STRING holds a rule with the right Send. SSL_CERT_FILE names the authority of the node, where that is
none that the platform trusts.
"""

import os

import azure.functions as func
import httpx

from trunkline.sdk.httpx_auth import RelayAuth

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)

auth = RelayAuth(os.environ["RELAY_CONNECTION_STRING"])
# One for all invocations: it keeps its connections to the relay.
client = httpx.AsyncClient(base_url=auth.base_url, auth=auth, timeout=65)


@app.route(route="orders/{id}", methods=["GET"])
async def order(req: func.HttpRequest) -> func.HttpResponse:
    """One order, as the web API behind the firewall has it."""
    try:
        answer = await client.get(f"orders/{req.route_params['id']}")
    except httpx.HTTPError as error:
        return func.HttpResponse(f"The relay cannot be reached: {error}", status_code=502)
    # Also what the relay says itself, for example that nobody listens (504).
    return func.HttpResponse(
        answer.content, status_code=answer.status_code, mimetype=answer.headers.get("Content-Type")
    )
