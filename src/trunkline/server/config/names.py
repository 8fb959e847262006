"""What namespaces, hybrid connections, rules, keys and hosts may be called: Azure Relay's rules, in one place.

The declarative file, the entity model and the management API check names here. Each function gives the name
back as it is to be kept and raises `InvalidSetting` with the rule in words.
"""

from __future__ import annotations

import ipaddress
import re

from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.limits import KEY_NAME_LIMIT

#: What senders of a hybrid connection may be: plain HTTP requests, WebSockets.
SENDERS = ("http", "websocket")

#: Characters of user metadata (the classic documentation of Azure Relay; the specification names no limit).
USER_METADATA_LIMIT = 1024

# Azure's "naming rules for resources", Microsoft.Relay. \Z and not $: $ also matches before a final line feed.
_NAMESPACE = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{4,48})[A-Za-z0-9]\Z")
_HYBRID_CONNECTION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,258}[A-Za-z0-9])?\Z")
_RULE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,48}[A-Za-z0-9])?\Z")
# RFC 1123 section 2.1; the underscore is no host name, but containers and test networks have it.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")


def namespace_name(name: object) -> str:
    """6 to 50 letters, digits and hyphens; it is a label of a host name."""
    if isinstance(name, str) and _NAMESPACE.match(name):
        return name
    raise _refused(
        "a namespace is named with 6 to 50 letters, digits and hyphens, a letter first and no hyphen last", name
    )


def hybrid_connection_name(name: object) -> str:
    """1 to 260 characters; slashes make a path of segments, none of which is empty, ``.`` or ``..``."""
    if not isinstance(name, str) or not _HYBRID_CONNECTION.match(name):
        raise _refused(
            "a hybrid connection is named with 1 to 260 letters, digits and . - _ /, a letter or digit first and last",
            name,
        )
    if any(segment in ("", ".", "..") for segment in name.split("/")):
        raise _refused("no part of a hybrid connection's name between slashes may be empty, . or ..", name)
    return name


def rule_name(name: object) -> str:
    """1 to 50 characters."""
    if isinstance(name, str) and _RULE.match(name):
        return name
    raise _refused("a rule is named with 1 to 50 letters, digits and . - _, a letter or digit first and last", name)


def rule_key(key: object) -> str:
    """1 to 256 printable ASCII characters that a connection string can carry; no error ever shows the key."""
    if not isinstance(key, str) or not 1 <= len(key) <= KEY_NAME_LIMIT:
        raise InvalidSetting(f"a key is text of 1 to {KEY_NAME_LIMIT} characters (the value is not shown)")
    if ";" in key or not all("!" <= character <= "~" for character in key):
        raise InvalidSetting(
            "a key has no spaces, no semicolon and only ASCII characters, or no connection string could carry it"
            " (the value is not shown)"
        )
    return key


def user_metadata(text: object) -> str:
    """Up to 1,024 characters."""
    if isinstance(text, str) and len(text) <= USER_METADATA_LIMIT:
        return text
    raise InvalidSetting(f"user metadata is text of at most {USER_METADATA_LIMIT} characters")


def accepts(value: object) -> tuple[str, ...]:
    """A list of what senders may be, each once at most and at least one."""
    if isinstance(value, list | tuple) and value and all(each in SENDERS for each in value):
        return tuple(each for each in SENDERS if each in value)
    raise _refused(f"what a hybrid connection accepts is a list with {' or '.join(map(repr, SENDERS))} or both", value)


def host_name(name: object) -> str:
    """A DNS name or an IP address, without scheme, port and path; given back in lower case."""
    if isinstance(name, str):
        host = name.lower().removesuffix(".")
        try:
            return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
        except ValueError:
            pass
        if len(host) <= 253 and all(_LABEL.match(label) for label in host.split(".")):
            return host
    raise _refused("a host is a DNS name or an IP address, without scheme, port or path", name)


def is_label(name: str) -> bool:
    """Whether the name of a hybrid connection can be the first part of a host name."""
    return _LABEL.match(name) is not None


def _refused(rule: str, name: object) -> InvalidSetting:
    shown = repr(name if not isinstance(name, int) else "a number")
    what = "such a list" if rule.startswith("what") else "such a name"
    return InvalidSetting(f"{rule}; {shown if len(shown) <= 80 else shown[:77] + '...'} is not {what}")
