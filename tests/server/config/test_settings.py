from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.limits import LIMITS
from trunkline.server.config.declarative import parse
from trunkline.server.config.errors import InvalidConfiguration
from trunkline.server.config.settings import SETTINGS, NodeSettings, TlsFiles, in_force, load


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)


def test_defaults_serve_this_machine_alone() -> None:
    settings = load()
    assert (settings.host, settings.port) == ("127.0.0.1", 8443)
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", 8081)
    assert settings.tls == "development" and settings.domain == "localhost"
    assert settings.public_url is None and settings.preset == "default" and settings.limits == {}


def test_nearest_layer_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    declaration = parse(
        "[node]\nport = 1\nadmin_port = 1\nmax_senders = 1\nmax_listeners = 1\ndomain = 'a'\n", "a.toml"
    )
    monkeypatch.setenv("TRUNKLINE_PORT", "2")
    monkeypatch.setenv("TRUNKLINE_ADMIN_PORT", "2")
    monkeypatch.setenv("TRUNKLINE_MAX_SENDERS", "2")
    settings = load(declaration, {"port": 3, "max_listeners": "3", "domain": None})
    assert (settings.port, settings.admin_port, settings.domain) == (3, 2, "a")
    assert settings.limits == {"max_senders": 2, "max_listeners": 3}
    assert load().domain == "localhost"


def test_settings_made_directly_do_not_look_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_PORT", "2")
    assert NodeSettings(port=0).port == 0
    assert NodeSettings().port == 8443


@pytest.mark.parametrize("name", list(LIMITS))
def test_every_limit_is_a_setting_in_each_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = LIMITS[name].default
    text = f'"{value}"' if isinstance(value, str) else str(value).lower()
    assert load(parse(f"[node]\n{name} = {text}\n", "a.toml")).limits == {name: value}
    assert load(flags={name: value}).limits == {name: value}
    monkeypatch.setenv(SETTINGS[name].variable, str(value))
    assert load().limits == {name: value}


def test_relative_paths_in_a_file_begin_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[node]\ndata = './data'\ntls = { certificate = 'c.pem', key = '/etc/k.pem' }\n"
    settings = load(parse(text, "a.toml", folder=tmp_path))
    assert settings.data == tmp_path / "data"
    assert settings.tls == TlsFiles(certificate=tmp_path / "c.pem", key=Path("/etc/k.pem"))
    assert load(parse(text, "a.toml", folder=tmp_path), {"data": Path("here")}).data == Path("here")
    monkeypatch.setenv("TRUNKLINE_DATA", "there")
    assert load(parse(text, "a.toml", folder=tmp_path)).data == Path("there")


def test_certificate_files_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_TLS__CERTIFICATE", "c.pem")
    monkeypatch.setenv("TRUNKLINE_TLS__KEY", "k.pem")
    assert load().tls == TlsFiles(certificate=Path("c.pem"), key=Path("k.pem"))
    monkeypatch.setenv("TRUNKLINE_TLS", '{"certificate": "C.pem", "key": "K.pem"}')
    monkeypatch.delenv("TRUNKLINE_TLS__CERTIFICATE")
    monkeypatch.delenv("TRUNKLINE_TLS__KEY")
    assert load().tls == TlsFiles(certificate=Path("C.pem"), key=Path("K.pem"))
    monkeypatch.setenv("TRUNKLINE_TLS", "off")
    assert load().tls == "off"


def test_port_that_kubernetes_announces_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_PORT", "tcp://10.0.0.1:8443")
    assert load().port == 8443


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://Relay.Example.com", "https://relay.example.com"),
        ("https://relay.example.com:443/", "https://relay.example.com:443"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_public_url_is_kept_in_one_form(written: str, kept: str) -> None:
    assert load(flags={"public_url": written}).public_url == kept


TLS = 'it must be "development", "off" or { certificate = "FILE", key = "FILE" }'
PORT = "it must be a number from 0 to 65535"
URL = "it must be https://HOST[:PORT] or http://HOST[:PORT]"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prot = 1", "a.toml:3: node.prot: there is no such setting; did you mean port?"),
        ("limits = {}", "a.toml:3: node.limits: there is no such setting"),
        ("port = 65536", f"a.toml:3: node.port: 65536 is not allowed: {PORT}"),
        ("port = true", f"a.toml:3: node.port: True is not allowed: {PORT}"),
        ("admin_port = -1", f"a.toml:3: node.admin_port: -1 is not allowed: {PORT}"),
        ("host = 1", "a.toml:3: node.host: 1 is not allowed: "),
        ("host = 'a:1'", "a.toml:3: node.host: 'a:1' is not allowed: a host is a DNS name or an IP address"),
        ("tls = 'on'", f"a.toml:3: node.tls: 'on' is not allowed: {TLS}"),
        ("tls = {certificate = 'a'}", "a.toml:3: node.tls: "),
        ("tls = {certificate = 'a', key = 'b', more = 'c'}", "a.toml:3: node.tls: "),
        ("tls = {certificate = 'a', key = 3}", "a.toml:3: node.tls: "),
        ("data = 1", "a.toml:3: node.data: 1 is not allowed: "),
        ('data = "a\\u0000b"', "a.toml:3: node.data: "),
        ("public_url = 'relay'", f"a.toml:3: node.public_url: 'relay' is not allowed: {URL}"),
        ("public_url = 'https://a/b'", f"a.toml:3: node.public_url: 'https://a/b' is not allowed: {URL}"),
        ("public_url = 'https://u@a'", f"a.toml:3: node.public_url: 'https://u@a' is not allowed: {URL}"),
        ("public_url = 'https://a:x'", f"a.toml:3: node.public_url: 'https://a:x' is not allowed: {URL}"),
        ("public_url = 'https://a?b'", "a.toml:3: node.public_url: 'https://a?b' is not allowed: it must have neither"),
        ("preset = 'azur'", "a.toml:3: node.preset: 'azur' is not allowed: "),
        ("max_senders = '5'", "a.toml:3: node.max_senders: '5' is not allowed: it must be a whole number"),
    ],
)
def test_mistake_in_the_file_is_told_with_its_line(line: str, message: str) -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        load(parse(f"[node]\n\n{line}\n", "a.toml"))
    assert str(refused.value).startswith(message)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TRUNKLINE_PORT", "abc", f"TRUNKLINE_PORT: 'abc' is not allowed: {PORT}"),
        ("TRUNKLINE_PORT", "٣", f"TRUNKLINE_PORT: '٣' is not allowed: {PORT}"),
        ("TRUNKLINE_TLS", '{"certificate"', "TRUNKLINE_TLS: "),
        ("TRUNKLINE_TLS", '{"certificate": 1}', "TRUNKLINE_TLS: "),
        ("TRUNKLINE_LIMITS", "{", "environment: error parsing"),
        ("TRUNKLINE_MAX_SENDERS", "many", "TRUNKLINE_MAX_SENDERS: max_senders = 'many' is not allowed: "),
        ("TRUNKLINE_REQUIRES_CLIENT_AUTHORIZATION", "perhaps", "TRUNKLINE_REQUIRES_CLIENT_AUTHORIZATION: "),
    ],
)
def test_mistake_in_the_environment_names_the_variable(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidConfiguration) as refused:
        load()
    assert str(refused.value).startswith(message)


def test_mistake_in_a_flag_names_the_flag() -> None:
    with pytest.raises(InvalidConfiguration, match="^--admin-port: 'x' is not allowed: it must be a number"):
        load(flags={"admin_port": "x"})
    with pytest.raises(InvalidConfiguration, match="^--max-senders: max_senders = -1 is not allowed"):
        load(flags={"max_senders": -1})


def test_table_has_every_setting_once_with_its_help() -> None:
    assert list(SETTINGS) == [name for name in NodeSettings.model_fields if name != "limits"] + list(LIMITS)
    assert all(setting.help for setting in SETTINGS.values())
    assert SETTINGS["admin_port"].variable == "TRUNKLINE_ADMIN_PORT"
    assert SETTINGS["admin_port"].flag == "--admin-port"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@given(flags=st.dictionaries(st.sampled_from(list(SETTINGS)), _VALUES, max_size=3))
def test_any_value_is_taken_or_refused_with_its_place(flags: dict[str, object]) -> None:
    try:
        settings = load(flags=flags)
    except InvalidConfiguration as error:
        assert error.place in {SETTINGS[name].flag for name in flags}
        assert str(error).isprintable()
    else:
        assert set(settings.limits) <= set(flags)


def test_admin_socket_is_in_the_data_folder_unless_told_otherwise() -> None:
    assert load().admin_socket == Path("admin.sock")
    assert load(flags={"admin_socket": "off"}).admin_socket == Path("off")
    assert load(parse("[node]\nadmin_socket = '/run/t.sock'\n", "a.toml")).admin_socket == Path("/run/t.sock")


def test_admin_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "correct-horse-battery"
    declaration = parse(f"[node]\nadmin_token = '{secret}'\n", "a.toml")
    settings = load(declaration)
    assert settings.admin_token is not None and settings.admin_token.get_secret_value() == secret
    assert secret not in f"{settings!r} {settings} {declaration!r} {settings.model_dump_json()}"
    monkeypatch.setenv("TRUNKLINE_ADMIN_TOKEN", secret[::-1])
    token = load(declaration).admin_token
    assert token is not None and token.get_secret_value() == secret[::-1]


@pytest.mark.parametrize("value", ["too-short-secre", "a secret with spaces", "secret-of-fünfzehn", 1234567890123456])
def test_wrong_admin_token_is_not_shown_either(value: object) -> None:
    with pytest.raises(InvalidConfiguration, match="at least 16 characters") as caught:
        load(flags={"admin_token": value})
    assert str(value) not in str(caught.value) and "--admin-token" in str(caught.value)


#: Another value for each setting, than the default.
OTHERS = {
    "host": "0.0.0.0",
    "port": 1,
    "admin_host": "0.0.0.0",
    "admin_port": 1,
    "admin_socket": Path("elsewhere"),
    "admin_token": "a-token-of-the-operator",
    "tls": "off",
    "domain": "example.com",
    "data": Path("elsewhere"),
    "public_url": "https://relay.example.com",
    "preset": "azure",
    "trusted_proxies": ["10.0.0.0/8"],
    "proxy_protocol": True,
    "event_loop": "asyncio",
    "log_format": "json",
    "log_level": "debug",
    "opentelemetry": True,
}
#: What else a value needs.
WITH = {"proxy_protocol": {"trusted_proxies": ["10.0.0.0/8"]}}


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in LIMITS])
def test_running_node_takes_over_what_the_table_says(name: str) -> None:
    together = WITH.get(name, {})
    running = NodeSettings.model_validate(together)
    wanted = NodeSettings.model_validate({**together, name: OTHERS[name]})
    settings, waiting = in_force(running, wanted)
    assert running != wanted
    if SETTINGS[name].effect == "at once":
        assert (settings, waiting) == (wanted, ())
    else:
        assert (settings, waiting) == (running, (name,))


@pytest.mark.parametrize("name", LIMITS)
def test_running_node_takes_over_every_limit(name: str) -> None:
    wanted = NodeSettings(limits={name: LIMITS[name].azure})
    assert in_force(NodeSettings(), wanted) == (wanted, ())


def test_running_node_takes_over_other_certificate_files_but_not_another_kind_of_tls() -> None:
    def files(name: str) -> NodeSettings:
        return NodeSettings(tls=TlsFiles(certificate=Path(f"{name}.pem"), key=Path(f"{name}.key")))

    assert in_force(files("a"), files("b")) == (files("b"), ())
    for before, after in ((files("a"), NodeSettings()), (NodeSettings(), files("a"))):
        assert in_force(before, after) == (before, ("tls",))


def test_what_waits_for_a_restart_keeps_nothing_else_waiting() -> None:
    wanted = NodeSettings(port=1, domain="example.com", limits={"max_senders": 1})
    settings, waiting = in_force(NodeSettings(), wanted)
    assert waiting == ("port",)
    assert settings == NodeSettings(domain="example.com", limits={"max_senders": 1})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("", ()),
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        ("127.0.0.1, ::1 ,2001:db8::/32,", ("127.0.0.1/32", "::1/128", "2001:db8::/32")),
        (["192.0.2.7", "0.0.0.0/0"], ("192.0.2.7/32", "0.0.0.0/0")),
        ([], ()),
    ],
)
def test_trusted_proxies_are_addresses_and_networks(
    written: str | list[str], read: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuple(map(str, NodeSettings.model_validate({"trusted_proxies": written}).trusted_proxies)) == read
    if isinstance(written, str):
        assert tuple(map(str, load(flags={"trusted_proxies": written}).trusted_proxies)) == read
        monkeypatch.setenv("TRUNKLINE_TRUSTED_PROXIES", written)
        assert tuple(map(str, load().trusted_proxies)) == read
    else:
        assert tuple(map(str, load(parse(f"[node]\ntrusted_proxies = {written}\n", "a.toml")).trusted_proxies)) == read


@pytest.mark.parametrize("written", ["10.0.0.0/33", "nginx", "10.0.0.1/8", [1.5], [["10.0.0.1"]], 7, {"a": "b"}])
def test_what_is_no_network_is_told_as_it_was_written(written: object) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        load(flags={"trusted_proxies": written})
    assert str(caught.value).startswith("--trusted-proxies: ")
    assert "10.0.0.0/8" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("proxy_protocol = true\ntls = 'off'", "it needs trusted_proxies"),
        ("proxy_protocol = 'yes'", "it must be true or false"),
    ],
)
def test_proxy_protocol_needs_somebody_who_may_speak_it(text: str, problem: str) -> None:
    with pytest.raises(InvalidConfiguration, match=problem) as caught:
        load(parse(f"[node]\n{text}\n", "a.toml"))
    assert "a.toml:2: node.proxy_protocol" in str(caught.value)
    right = "proxy_protocol = true\ntrusted_proxies = ['10.0.0.1']"
    assert load(parse(f"[node]\n{right}\n", "a.toml")).proxy_protocol
