from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.limits import LIMITS
from trunkline.protocol.sas import Right
from trunkline.server.config.declarative import (
    Declaration,
    DeclaredHybridConnection,
    DeclaredNamespace,
    DeclaredRule,
    parse,
    read,
)
from trunkline.server.config.errors import InvalidConfiguration

EXAMPLE = """\
[node]
host = "127.0.0.1"           # bind address
port = 8443                  # data plane
admin_port = 8081            # /healthz, /readyz, later /metrics; loopback unless set
tls = "development"          # or "off", or { certificate = "...", key = "..." }
domain = "localhost"         # a namespace is <name>.<domain>
data = "./data"

[[namespace]]
name = "myRelayNS"
hosts = ["relay.local"]      # further names in URLs, tokens and certificates

[[namespace.rule]]
name = "RootManageSharedAccessKey"
rights = ["Listen", "Send", "Manage"]
primary_key = "secretkey"    # generated and kept when left out

[[namespace.hybrid_connection]]
name = "orders"
max_senders = 50             # any limit
listener_policy = "round-robin"
user_metadata = "anything"

[[namespace.hybrid_connection.rule]]
name = "orders-listener"
rights = ["Listen"]
"""

#: A namespace to which one more line can be added.
NAMESPACE = '[[namespace]]\nname = "my-namespace"\n'
RULE = NAMESPACE + '[[namespace.rule]]\nname = "rule"\n'
ENTITY = NAMESPACE + '[[namespace.hybrid_connection]]\nname = "orders"\n'


def test_example_of_the_documentation_is_understood() -> None:
    declaration = parse(EXAMPLE, "trunkline.toml")
    assert declaration.origin == "trunkline.toml"
    assert declaration.node["port"] == 8443 and declaration.node["data"] == "./data"
    assert declaration.namespaces == (
        DeclaredNamespace(
            name="myRelayNS",
            hosts=("relay.local",),
            rules=(DeclaredRule("RootManageSharedAccessKey", frozenset(Right), "secretkey"),),
            hybrid_connections=(
                DeclaredHybridConnection(
                    name="orders",
                    limits={"max_senders": 50, "listener_policy": "round-robin"},
                    rules=(DeclaredRule("orders-listener", frozenset({Right.LISTEN})),),
                    user_metadata="anything",
                ),
            ),
        ),
    )


def test_empty_file_declares_nothing() -> None:
    assert parse("", "a.toml") == Declaration("a.toml")


def test_file_is_read_with_its_folder_whatever_its_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    file.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.replace("\n", "\r\n").encode())
    declaration = read(file)
    assert declaration.namespaces == parse(EXAMPLE, "x").namespaces
    assert declaration.lines == parse(EXAMPLE, "x").lines
    assert declaration.folder == tmp_path and declaration.origin == "trunkline.toml"


@pytest.mark.parametrize("name", [name for name in LIMITS if "namespace" in LIMITS[name].scopes])
def test_every_limit_of_a_namespace_may_stand_there(name: str) -> None:
    value = LIMITS[name].default
    [namespace] = parse(f"{NAMESPACE}{name} = {_toml(value)}\n", "a.toml").namespaces
    assert namespace.limits == {name: value}


@pytest.mark.parametrize("name", [name for name in LIMITS if "hybrid_connection" in LIMITS[name].scopes])
def test_every_limit_of_a_hybrid_connection_may_stand_there(name: str) -> None:
    value = LIMITS[name].default
    [namespace] = parse(f"{ENTITY}{name} = {_toml(value)}\n", "a.toml").namespaces
    assert namespace.hybrid_connections[0].limits == {name: value}


def test_hybrid_connection_may_be_switched_off() -> None:
    [namespace] = parse(f"{ENTITY}enabled = false\n", "a.toml").namespaces
    assert not namespace.hybrid_connections[0].enabled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nodes]\n", "a.toml:1: nodes: there is no such key here; did you mean node?"),
        ("node = 1\n", "a.toml:1: node: 1 is not allowed: it must be a table"),
        ("[namespace]\n", "a.toml:1: namespace: there can be several: write [[namespace]] with two brackets"),
        ("namespace = [1]\n", "a.toml:1: namespace: 1 is not allowed: it must be a table"),
        ("\n[[namespace]]\n", "a.toml:2: namespace: name is missing"),
        (f"{NAMESPACE}host = []\n", "a.toml:3: namespace.host: there is no such key here; did you mean hosts?"),
        (
            f"{NAMESPACE}hosts = 'a'\n",
            "a.toml:3: namespace.hosts: 'a' is not allowed: it must be a list of host names, [\"relay.example.com\"]",
        ),
        (
            f"{NAMESPACE}hosts = [\n'a:1']\n",
            "a.toml:3: namespace.hosts: a host is a DNS name or an IP address, without scheme, port or path;"
            " 'a:1' is not such a name",
        ),
        (f"{NAMESPACE}drain_timeout = 3\n", "a.toml:3: namespace.drain_timeout: drain_timeout cannot be set on a"),
        (
            f"{ENTITY}max_sendrs = 3\n",
            "a.toml:5: namespace.hybrid_connection.max_sendrs: there is no such key here; did you mean max_senders?",
        ),
        (
            f"{ENTITY}max_senders = '3'\n",
            "a.toml:5: namespace.hybrid_connection.max_senders: '3' is not allowed: it must be a whole number",
        ),
        (f"{ENTITY}max_hybrid_connections = 3\n", "a.toml:5: namespace.hybrid_connection.max_hybrid_connections: max"),
        (f"{ENTITY}enabled = 1\n", "a.toml:5: namespace.hybrid_connection.enabled: 1 is not allowed: it must be true"),
        (f"{ENTITY}user_metadata = 1\n", "a.toml:5: namespace.hybrid_connection.user_metadata: user metadata is text"),
        (f"{ENTITY}'a\\nb' = 1\n", "a.toml:5: namespace.hybrid_connection.'a\\\\nb': there is no such key here"),
        (RULE, "a.toml:3: namespace.rule: rights is missing"),
        (f"{RULE}rights = 'Listen'\n", "a.toml:5: namespace.rule.rights: 'Listen' is not allowed: it must be a list"),
        (f"{RULE}rights = []\n", "a.toml:5: namespace.rule.rights: [] is not allowed: it must be a list of rights"),
        (f"{RULE}rights = [1]\n", "a.toml:5: namespace.rule.rights: 1 is no right; known are Listen, Send, Manage"),
        (f"{RULE}rights = ['listen']\n", "a.toml:5: namespace.rule.rights: 'listen' is no right; did you mean Listen?"),
        (f"{RULE}rights = ['Sned']\n", "a.toml:5: namespace.rule.rights: 'Sned' is no right; did you mean Send?"),
        (
            f"{RULE}rights = ['Manage']\n",
            'a.toml:5: namespace.rule.rights: Manage is granted only with the others: write ["Listen", "Send", "Manage',
        ),
        (
            f"{NAMESPACE}[[namespace]]\nname = 'MY-namespace'\n",
            "a.toml:4: namespace.name: MY-namespace is there already; names are compared without regard to case",
        ),
        (
            f"{ENTITY}[[namespace.hybrid_connection]]\nname = 'Orders'\n",
            "a.toml:6: namespace.hybrid_connection.name: Orders is there already",
        ),
        (
            f"{RULE}rights = ['Send']\n[[namespace.rule]]\nname = 'RULE'\nrights = ['Send']\n",
            "a.toml:7: namespace.rule.name: RULE is there already",
        ),
        (
            f"{NAMESPACE}hosts = ['r.io']\n[[namespace]]\nname = 'another'\nhosts = ['R.io']\n",
            "a.toml:6: namespace.hosts: r.io is a host of my-namespace already",
        ),
        (
            NAMESPACE + "hosts = ['r.io']\n[[namespace.hybrid_connection]]\nname = 'orders'\nhosts = ['R.io']\n",
            "a.toml:6: namespace.hybrid_connection.hosts: r.io is a host of my-namespace already",
        ),
        (
            f"{ENTITY}hosts = ['r.io']\n[[namespace]]\nname = 'another'\nhosts = ['r.io']\n",
            "a.toml:8: namespace.hosts: r.io is a host of my-namespace/orders already",
        ),
        (
            f"{ENTITY}accepts = ['http', 'tcp']\n",
            "a.toml:5: namespace.hybrid_connection.accepts: what a hybrid connection accepts is a list with 'http' or"
            " 'websocket' or both; ['http', 'tcp'] is not such a list",
        ),
        (
            f"{ENTITY}accepts = []\n",
            "a.toml:5: namespace.hybrid_connection.accepts: what a hybrid connection accepts is a list with 'http' or"
            " 'websocket' or both; [] is not such a list",
        ),
        (
            NAMESPACE + "".join(f"[[namespace.rule]]\nname='r{n}'\nrights=['Send']\n" for n in range(13)),
            "a.toml:39: namespace.rule: there can be at most 12 rules in one place",
        ),
        ("a = 1\nb = = 2\n", "a.toml:2: is not valid TOML: Invalid value at column 5"),
        ("a = 1\nb = '''\n\n", "a.toml:2: is not valid TOML: Expected \"'''\""),
        ("a = 1\na = 2\n", "a.toml:2: is not valid TOML: Cannot overwrite a value at column 6"),
        ("a = " + "[" * 100_000, "a.toml:1: is nested too deeply"),
        ("a." * 2000 + "a = 1", "a.toml:1: is nested too deeply"),
        ("a = " + "9" * 5_000, "a.toml:1: is not valid TOML: Exceeds the limit"),
    ],
)  # fmt: skip
def test_mistake_is_told_with_its_line_and_the_remedy(text: str, message: str) -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        parse(text, "a.toml")
    assert str(refused.value).startswith(message)
    assert refused.value.line == int(message.split(":")[1])


@pytest.mark.parametrize("key", ["primary_key", "secondary_key"])
def test_wrong_key_is_not_shown(key: str) -> None:
    with pytest.raises(InvalidConfiguration, match=f"a.toml:6: namespace.rule.{key}: ") as refused:
        parse(f"{RULE}rights = ['Send']\n{key} = 'my;secret'\n", "a.toml")
    assert "my;secret" not in str(refused.value)


def test_keys_are_not_in_the_repr() -> None:
    assert "secretkey" not in repr(parse(EXAMPLE, "a.toml").namespaces)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=f"{tmp_path}/none.toml: cannot be read: No such file"):
        read(tmp_path / "none.toml")


def test_text_that_is_not_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"[node]\n# \xff\n")
    with pytest.raises(InvalidConfiguration, match="a.toml:2: is not UTF-8 text"):
        read(tmp_path / "a.toml")


_LINES = [*EXAMPLE.splitlines(), "max_senders = 'unlimited'", "rights = ['Sned']", "[namespace]", "name = 5", "'''"]


@given(text=st.one_of(st.text(), st.lists(st.sampled_from(_LINES), max_size=30).map("\n".join)))
def test_any_text_is_a_declaration_or_an_error_with_a_line(text: str) -> None:
    try:
        declaration = parse(text, "a.toml")
    except InvalidConfiguration as error:
        assert error.line is not None and 1 <= error.line <= text.count("\n") + 1
        assert str(error).isprintable()
        assert str(error).startswith(f"a.toml:{error.line}: ")
    else:
        assert isinstance(declaration, Declaration)


@given(where=st.integers(0, len(EXAMPLE)), length=st.integers(0, 12), by=st.text(max_size=8))
def test_example_with_a_slip_is_a_declaration_or_an_error_with_a_line(where: int, length: int, by: str) -> None:
    text = EXAMPLE[:where] + by + EXAMPLE[where + length :]
    try:
        parse(text, "a.toml")
    except InvalidConfiguration as error:
        assert error.line is not None and 1 <= error.line <= text.count("\n") + 1


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def test_hybrid_connection_has_hosts_of_its_own_and_says_what_it_accepts() -> None:
    more = (
        "hosts = ['Shop.io', '10.0.0.9']\naccepts = ['websocket', 'http']\n[[namespace.hybrid_connection]]\nname='b'\n"
    )
    [namespace] = parse(f"{ENTITY}{more}accepts = ['http']\n", "a.toml").namespaces
    first, second = namespace.hybrid_connections
    assert (first.hosts, first.accepts) == (("shop.io", "10.0.0.9"), ("http", "websocket"))
    assert (second.hosts, second.accepts) == ((), ("http",))
