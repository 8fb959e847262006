"""Functions that are reached through a hybrid connection, wherever they run: an ASGI application, in two ways.

func start                              the Functions host serves it on its port, by its ASGI adapter
trunkline host function_app:api         a hybrid connection serves it, and no port is open
"""

import azure.functions as func
from fastapi import FastAPI

api = FastAPI()
app = func.AsgiFunctionApp(app=api, http_auth_level=func.AuthLevel.ANONYMOUS)


@api.get("/stock/{article}")
async def stock(article: str) -> dict[str, object]:
    """How many there are of an article."""
    return {"article": article, "in_stock": len(article)}


@api.post("/stock/{article}/reservations", status_code=201)
async def reserve(article: str, amount: int) -> dict[str, object]:
    """Put some aside."""
    return {"article": article, "reserved": amount}
