"""Forms that are collected so that their length is known."""

from __future__ import annotations

import sys

import pytest

from http_echo import content
from sdk.asgi.asked import Asked
from trunkline.protocol.errors import ConnectionLost
from trunkline.sdk.asgi.form_body import IN_MEMORY, CollectedForm, must_be_collected

FORM = {"content-type": 'Multipart/Form-Data; boundary="x"'}


async def test_only_forms_whose_length_is_not_known_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", {})
    assert not must_be_collected(Asked("POST", headers=FORM).as_request())
    monkeypatch.setattr(sys, "modules", {"django.core.handlers.asgi": None})
    assert must_be_collected(Asked("POST", headers=FORM).as_request())
    assert not must_be_collected(Asked("POST", headers=FORM, length=7).as_request())
    assert not must_be_collected(Asked("POST", headers={"Content-Type": "application/json"}).as_request())
    assert not must_be_collected(Asked("POST").as_request())


@pytest.mark.parametrize("size", [1, 65_536, IN_MEMORY + 1])
async def test_form_is_read_as_it_came_also_in_two_goes(size: int) -> None:
    data = content(size, "form")
    pieces = [data[start : start + 60_000] for start in range(0, size, 60_000)]
    form = await CollectedForm.of(Asked("POST", body=pieces).as_request())
    assert form.length == size
    got = await anext(aiter(form))
    async for piece in form:
        got += piece
    assert got == data
    form.close()


async def test_form_whose_sender_leaves_is_given_up() -> None:
    with pytest.raises(ConnectionLost):
        await CollectedForm.of(Asked("POST", body=[b"begun", b"LOST"]).as_request())
