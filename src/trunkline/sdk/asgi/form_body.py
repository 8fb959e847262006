"""Forms whose length is not known: collected first, so that it is.

The relay takes Content-Length from a request, as Azure's does. Of a small body the listener knows the length, because
it is here as a whole. A larger one is still on its way; Starlette and Quart read it as it comes, but Django takes a
form without a Content-Length for an empty one. Forms carry files, which frameworks write to disk before the
application sees them, so nothing is lost by doing that here.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator

from trunkline.sdk.relayed_http import HttpRequest

#: Bytes of a form that are kept in memory; a longer one goes to a temporary file.
IN_MEMORY = 1_048_576
_PIECE = 65_536


def must_be_collected(request: HttpRequest) -> bool:
    """Whether a framework may need the length of this body before it reads it."""
    if request.length is not None:
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
    async def of(cls, request: HttpRequest) -> CollectedForm:
        """Collect it.

        Raises:
            ConnectionLost: the sender has left before the end of the body.
            OSError: the temporary file cannot be written.
        """
        form = cls()
        try:
            async for piece in request:
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
