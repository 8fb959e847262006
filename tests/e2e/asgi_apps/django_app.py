"""The application of `contract` in Django, which serves no WebSockets of its own."""

from __future__ import annotations

import hashlib

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse

from e2e.asgi_apps.endless_events import EndlessEvents

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATA_UPLOAD_MAX_MEMORY_SIZE=None,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
    LOGGING_CONFIG=None,
)
django.setup()
events = EndlessEvents()


async def home(_: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


async def item(_: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(f"item {number}")


async def links(request: HttpRequest) -> HttpResponse:
    return JsonResponse(
        {
            "item": request.build_absolute_uri(reverse("item", args=[7])),
            "here": request.build_absolute_uri(),
            "client": request.META["REMOTE_ADDR"],
        }
    )


async def go(_: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect(reverse("item", args=[7]))


async def slash(_: HttpRequest) -> HttpResponse:
    return HttpResponse("with a slash")


async def cookies(_: HttpRequest) -> HttpResponse:
    response = JsonResponse({})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", expires="Wed, 21 Oct 2026 07:28:00 GMT")
    return response


def upload(request: HttpRequest) -> HttpResponse:
    file = request.FILES["file"]
    assert isinstance(file, UploadedFile)
    data = file.read()
    return JsonResponse({"name": file.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body, content_type="application/octet-stream")


async def get_events(_: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(events.tell(), content_type="text/event-stream")


async def get_ended(_: HttpRequest) -> HttpResponse:
    return HttpResponse(await events.ended())


async def fails(_: HttpRequest) -> HttpResponse:
    raise RuntimeError("on purpose")


urlpatterns = [
    path("", home),
    path("items/<int:number>", item, name="item"),
    path("links", links),
    path("go", go),
    path("slash/", slash),
    path("cookies", cookies),
    path("upload", upload),
    path("echo", echo),
    path("events", get_events),
    path("ended", get_ended),
    path("fails", fails),
]
app = get_asgi_application()
