"""Why something ended: names that a counter can have, and the errors that stand for them."""

from __future__ import annotations

import re

import pytest

from trunkline.protocol.causes import Cause, cause_of
from trunkline.protocol.errors import (
    AuthorizationFailed,
    EndpointDisabled,
    EndpointNotFound,
    ExpiredToken,
    InternalError,
    InvalidFrame,
    RelayError,
    ServerBusy,
)


def test_labels_are_names_of_their_own() -> None:
    labels = [cause.label for cause in Cause]
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in labels)
    assert len(set(labels)) == len(labels) == len({cause.value for cause in Cause})
    assert Cause.TOKEN_EXPIRED.label == "token_expired"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ExpiredToken(), Cause.TOKEN_EXPIRED),
        (AuthorizationFailed("The key was removed"), Cause.KEY_REMOVED),
        (EndpointNotFound(), Cause.ENTITY_DELETED),
        (EndpointDisabled(), Cause.ENTITY_DISABLED),
        (ServerBusy(), Cause.NODE_STOPPING),
        (InvalidFrame("reserved bits"), Cause.PROTOCOL_ERROR),
        (RelayError("An operator closed it"), Cause.DISCONNECTED),
        (InternalError(), Cause.DISCONNECTED),
    ],
)
def test_errors_that_end_something_stand_for_a_cause(error: RelayError, cause: Cause) -> None:
    assert cause_of(error) is cause
