"""Connection strings, as portals show them and people paste them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.connection_string import ConnectionString, build, parse
from trunkline.protocol.errors import InvalidConnectionString

KEY = "aGVsbG8gd29ybGQ+/w=="


def test_user_pastes_what_the_portal_shows() -> None:
    text = (
        "Endpoint=sb://myrelayns.servicebus.windows.net/;SharedAccessKeyName=RootManageSharedAccessKey;"
        f"SharedAccessKey={KEY};EntityPath=a/b"
    )
    found = parse(text)
    assert found == ConnectionString(
        "myrelayns.servicebus.windows.net",
        key_name="RootManageSharedAccessKey",
        key=KEY,
        entity_path="a/b",
    )
    assert found.endpoint == "sb://myrelayns.servicebus.windows.net/"
    assert str(found) == text


def test_user_may_write_names_in_any_case_and_white_space_anywhere() -> None:
    found = parse(
        f" endpoint = SB://Relay.Local:8443 ;; sharedaccesskeyname= r ;SHAREDACCESSKEY={KEY}; entitypath=/a/ ;\n"
    )
    assert (found.host, found.port, found.endpoint) == ("relay.local", 8443, "sb://relay.local:8443/")
    assert (found.key_name, found.key, found.entity_path) == ("r", KEY, "a")


def test_user_may_have_a_ready_token_or_an_identity_or_nothing() -> None:
    token = "SharedAccessSignature sr=http%3A%2F%2Fh%2F&sig=a%3D&se=1&skn=r"
    assert parse(f"Endpoint=sb://h/;SharedAccessSignature={token}").shared_access_signature == token
    assert parse("Endpoint=sb://h/;Authentication=managedidentity").authentication == "Managed Identity"
    assert parse("Endpoint=sb://h/") == ConnectionString("h")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:01:00", 60.0),
        ("1.02:03:04.5", 93_784.5),
        ("60", 60.0),
        ("0.5", 0.5),
    ],
)
def test_user_may_write_the_timeout_as_dotnet_or_java_do(text: str, seconds: float) -> None:
    found = parse(f"Endpoint=sb://h/;OperationTimeout={text}")
    assert found.operation_timeout == seconds
    assert parse(str(found)) == found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (60.0, "00:01:00"),
        (93_784.5, "1.02:03:04.5000000"),
        (0.000_001, "00:00:00.0000010"),
        (59.999_999_99, "00:01:00"),
    ],
)
def test_dotnet_can_read_the_timeout(seconds: float, text: str) -> None:
    assert str(ConnectionString("h", operation_timeout=seconds)).endswith(f"OperationTimeout={text}")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "no Endpoint"),
        (";;", "no Endpoint"),
        ("SharedAccessKeyName=r;SharedAccessKey=s3cret", "no Endpoint"),
        ("Endpoint=sb://h/;SharedAccessKeyName=r", "SharedAccessKeyName but no SharedAccessKey"),
        ("Endpoint=sb://h/;SharedAccessKey=s3cret", "SharedAccessKey but no SharedAccessKeyName"),
        (
            "Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey=",
            "SharedAccessKey in the connection string is empty",
        ),
        ("Endpoint=sb://h/;EntityPath=", "EntityPath in the connection string is empty"),
        ("Endpoint=sb://h/;EntityPath=/", "EntityPath in the connection string is empty"),
        ("Endpoint=sb://h/;EntityPath=a\x00b", "EntityPath in the connection string is empty or holds"),
        ("Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey=s3cret;SharedAccessSignature=s3cret", "only one of"),
        ("Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey=s3cret;Authentication=Managed Identity", "only one"),
        ("Endpoint=sb://h/;SharedAccessSignature=s3cret;SharedAccessKeyName=r;SharedAccessKey=s3cret", "only one of"),
        ("Endpoint=sb://h/;Endpoint=sb://h/", "Endpoint twice"),
        ("Endpoint=sb://h/;UseDevelopmentEmulator=true", "unknown part UseDevelopmentEmulator; parts are Endpoint,"),
        ("Endpoint=sb://h/;s3cretWithoutName", "unknown part; parts are"),
        ("Endpoint=sb://h/;s3cret+/x==", "unknown part; parts are"),
        ("Endpoint=sb://h/;EntityPath", "unknown part; parts are"),
        ("Endpoint=sb://h/;Authentication=s3cret", "only be Managed Identity"),
        ("Endpoint=https://h/", "must look like sb://"),
        ("Endpoint=h", "must look like sb://"),
        ("Endpoint=sb://h/orders", "a path belongs into EntityPath"),
        ("Endpoint=sb://h/?s3cret", "must look like sb://"),
        ("Endpoint=sb://", "host of the address is malformed"),
        ("Endpoint=sb://u:s3cret@h/", "must not hold a user name or password"),
        ("Endpoint=sb://h:0/", "port of the address"),
        ("Endpoint=sb://h:s3cret/", "port of the address"),
        ("Endpoint=sb://h/;OperationTimeout=soon", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=0", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=00:00:00", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=-5", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=inf", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=nan", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=1e400", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=٣", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=99999.00:00:00", "OperationTimeout"),
        ("Endpoint=sb://h/;OperationTimeout=" + "9" * 5_000, "OperationTimeout"),
    ],
)
def test_user_is_told_which_part_is_wrong_and_no_secret_is_shown(text: str, hint: str) -> None:
    with pytest.raises(InvalidConnectionString) as caught:
        parse(text)
    assert hint in caught.value.message
    assert "s3cret" not in repr(caught.value)


def test_node_builds_what_clients_read() -> None:
    text = build("Relay.Local", port=8443, key_name="orders-listener", key=KEY, entity_path="/orders")
    assert text == (
        f"Endpoint=sb://relay.local:8443/;SharedAccessKeyName=orders-listener;SharedAccessKey={KEY};EntityPath=orders"
    )
    assert build("::1", shared_access_signature="SharedAccessSignature sr=x") == (
        "Endpoint=sb://[::1]/;SharedAccessSignature=SharedAccessSignature sr=x"
    )


@pytest.mark.parametrize(
    ("host", "port", "key"),
    [("h/x", None, "k"), ("", None, "k"), ("h", 0, "k"), ("h", 65_536, "k"), ("h", -1, "k"), ("h;x", 1, "k")]
    + [("h", None, "s3cret;x"), ("h", None, " s3cret"), ("h", None, "s3cret\r\n"), ("h", None, "s3cret\ud800")],
)
def test_node_builds_nothing_that_clients_cannot_read(host: str, port: int | None, key: str) -> None:
    with pytest.raises(InvalidConnectionString) as caught:
        build(host, port=port, key_name="r", key=key)
    assert "s3cret" not in repr(caught.value)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e9, float("nan"), float("inf")])
def test_node_builds_no_timeout_that_clients_cannot_read(seconds: float) -> None:
    with pytest.raises(InvalidConnectionString, match="OperationTimeout"):
        ConnectionString("h", operation_timeout=seconds)


def test_caller_who_fills_the_fields_in_is_held_to_one_spelling_of_the_host() -> None:
    with pytest.raises(InvalidConnectionString, match="host in lower case"):
        ConnectionString("Relay.Local")


def test_log_shows_neither_key_nor_token() -> None:
    assert "s3cret" not in repr(ConnectionString("h", key_name="r", key="s3cret"))
    assert "s3cret" not in repr(ConnectionString("h", shared_access_signature="s3cret"))
    assert "'r'" in repr(ConnectionString("h", key_name="r", key="s3cret"))


ANY_TEXT = st.text(alphabet=st.characters(codec=None, exclude_categories=()))  # half surrogate pairs too
VALUES = st.one_of(
    ANY_TEXT,
    st.sampled_from(["sb://h/", "sb://h:1/", "sb://[::1]", "00:01:00", "5", "Managed Identity", "a/b", "k="]),
)
NAMES = ["Endpoint", "endPOINT", "SharedAccessKeyName", "SharedAccessKey", "EntityPath", "SharedAccessSignature"]
PARTS = st.lists(st.tuples(st.sampled_from([*NAMES, "OperationTimeout", "Authentication", "x"]), VALUES), max_size=5)


@given(text=st.one_of(ANY_TEXT, PARTS.map(lambda parts: ";".join(f"{name}={value}" for name, value in parts))))
def test_parser_reads_any_text_or_refuses_it(text: str) -> None:
    for whole in (text, "Endpoint=sb://h/;" + text):
        try:
            found = parse(whole)
        except InvalidConnectionString:
            continue
        again = parse(str(found))
        assert (again.endpoint, again.key_name, again.key) == (found.endpoint, found.key_name, found.key)
        assert (again.entity_path, again.authentication) == (found.entity_path, found.authentication)
        assert again.shared_access_signature == found.shared_access_signature
        assert again.operation_timeout == pytest.approx(found.operation_timeout)


NAME = st.text(min_size=1).filter(lambda text: text.isprintable() and text.strip() == text and ";" not in text)


@given(
    port=st.one_of(st.none(), st.integers(1, 65_535)),
    rule=st.one_of(st.just((None, None)), st.tuples(NAME, NAME)),
    path=st.one_of(st.none(), st.lists(st.text("abc-._ ", min_size=1), min_size=1).map("/".join).filter(
        lambda text: text.strip() == text)),
)  # fmt: skip
def test_parser_reads_back_what_is_built(
    port: int | None, rule: tuple[str | None, str | None], path: str | None
) -> None:
    text = build("relay.local", port=port, key_name=rule[0], key=rule[1], entity_path=path)
    assert parse(text) == ConnectionString("relay.local", port=port, key_name=rule[0], key=rule[1], entity_path=path)
