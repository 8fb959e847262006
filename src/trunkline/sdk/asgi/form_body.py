"""Forms whose length is not known: collected first, for frameworks that read none without its length.

The relay takes Content-Length from a request, as Azure's does. Of a small body the listener knows the length, because
it is here as a whole. A larger one is still on its way. Starlette and Quart read it as it comes; Django, and what is
behind asgiref's adapter for WSGI, take a form without a Content-Length for an empty one. Both write the whole body to
a temporary file of their own before the application sees it, so collecting it here costs disk, and delays nothing.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterable, AsyncIterator

from trunkline.sdk.relayed_http import HttpRequest

#: Where one of these is loaded, a form must have its length.
_NEED_THE_LENGTH = ("django.core.handlers.asgi", "asgiref.wsgi")
#: Bytes of a form that are kept in memory; a longer one goes to a temporary file.
IN_MEMORY = 1_048_576
_PIECE = 65_536


def must_be_collected(request: HttpRequest) -> bool:
    """Whether the application may need the length of this body before it reads it."""
    if request.length is not None or not any(name in sys.modules for name in _NEED_THE_LENGTH):
        return False
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return content_type == "multipart/form-data"


class CollectedForm:
    """The body of a form, to be read once. Iterating goes on where the last iteration has stopped."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)
        #: Bytes.
        self.length = 0

    @classmethod
    async def of(cls, body: AsyncIterable[bytes]) -> CollectedForm:
        """Collect the body of a request.

        Raises:
            ConnectionLost: the sender has left before the end of the body.
            OSError: the temporary file cannot be written.
        """
        form = cls()
        try:
            async for piece in body:
                # In a thread: it may be a slow disk.
                await asyncio.to_thread(form._file.write, piece)
                form.length += len(piece)
            form._file.seek(0)
        except BaseException:
            form.close()
            raise
        return form

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(self._file.read, _PIECE):
            yield piece

    def close(self) -> None:
        """Delete it."""
        self._file.close()
