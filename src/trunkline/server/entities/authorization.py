"""Who may do what: a token becomes a `Grant`, from memory, in constant time.

The rules of shared access signatures: the signature covers ``sr`` exactly as it was sent; a rule of the
entity comes before a rule of its namespace, a primary key before a secondary one; the audience must be the
namespace or lie above the entity's path. A rule of an entity may sign for the whole namespace (the Java sender
does: seen) and still grants its rights on that entity alone.

A caller with a bad token learns nothing about which entities exist: the same work is done, and the same error
given, whether or not there is one.

A good token comes again with each plain HTTP request. What was granted is remembered for a while, under a digest of the
token that nobody outside of this process can make, and until anything in the catalog changes. A bad token is checked
each time.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from trunkline.protocol import sas
from trunkline.protocol.errors import (
    AccessDenied,
    ExpiredToken,
    InvalidAudience,
    InvalidSignature,
    InvalidToken,
    MissingToken,
    TokenLifetimeExceeded,
)
from trunkline.protocol.limits import CLOCK_SKEW, Limits
from trunkline.protocol.sas import Right, SharedAccessSignature
from trunkline.server.entities.catalog import Catalog
from trunkline.server.entities.model import Entity, HybridConnection, Namespace, Rule

#: Grants that are remembered; the one that was not asked for longest goes first.
REMEMBERED = 2_048

#: Stands in for a rule that does not exist, so that its absence takes as long as a wrong key.
_NO_RULE = Rule("-", frozenset(), primary_key="-" * 44, secondary_key="-" * 44)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a checked token allows its holder on one entity, and what it rests on."""

    #: Name of the rule whose key signed.
    rule: str
    #: ARM id of the entity that holds the rule.
    scope: str
    #: With what they imply: Manage holds Listen and Send.
    rights: frozenset[Right]
    #: When the token ends, in seconds since the epoch; nothing is added for skew or grace.
    expires_at: float
    #: Tells the key from others, in this process alone, without holding it.
    key_digest: str = field(repr=False)

    def require(self, right: Right) -> None:
        """Raises AccessDenied without that right."""
        if right not in self.rights:
            raise AccessDenied(f"Unauthorized access. '{right.value}' claim(s) are required to perform this operation")


@dataclass(frozen=True, slots=True)
class _Known:
    """A grant with what it was made from; it holds for these very objects, which nobody changes in place."""

    grant: Grant
    namespace: Namespace
    entity: HybridConnection
    limits: Limits
    #: When it was checked, in seconds since the epoch.
    checked_at: float

    def holds(self, namespace: Namespace, entity: HybridConnection | None, limits: Limits, now: float) -> bool:
        """Whether to check again would end the same. A clock that was set back may make a lifetime too long."""
        return (
            self.entity is entity
            and self.namespace is namespace
            and self.limits is limits
            and self.checked_at <= now <= self.grant.expires_at + CLOCK_SKEW
        )


#: Checks a bearer token: (token, namespace, entity or None, now) -> Grant; raises AuthorizationFailed.
BearerVerifier = Callable[[str, Namespace, HybridConnection | None, float], Grant]


class Authorizer:
    """Checks tokens against the rules in the catalog.

    Parameters
    ----------
    jwt: checks bearer tokens; without it they are refused.
    """

    def __init__(self, catalog: Catalog, *, jwt: BearerVerifier | None = None) -> None:
        self._catalog = catalog
        self._jwt = jwt
        # A digest without it could be tried against guessed keys by whoever reads a core dump or a log.
        self._salt = secrets.token_bytes(16)
        #: By digest of the token with host and path; the one that was asked for last is at the end.
        self._known: dict[bytes, _Known] = {}
        # What changes may take keys with it, and nothing may keep them.
        catalog.subscribe(lambda _: self._known.clear())

    def __repr__(self) -> str:
        return f"<Authorizer remembers={len(self._known)}>"

    def authenticate(
        self,
        namespace: Namespace,
        path: str,
        entity: HybridConnection | None,
        token: str | None,
        *,
        host: str,
        limits: Limits,
        now: float,
    ) -> Grant:
        """What ``token`` allows. Whether that is enough is the caller's question: `Grant.require`.

        Parameters
        ----------
        path: the path that was asked for; used where there is no entity.
        entity: what lies at that path; None: only rules of the namespace count, and the caller answers 404 next.
        token: as it came, with or without a scheme word; None or empty: there was none.
        host: host name of the request, lower case, without port; tokens may be made for it.
        limits: in force on the entity, or the namespace.
        now: seconds since the epoch.

        Raises AuthorizationFailed: MissingToken, InvalidToken, InvalidSignature, ExpiredToken, InvalidAudience or
        TokenLifetimeExceeded.
        """
        if not token or not token.strip():
            raise MissingToken()
        bearer = _bearer_token(token)
        if bearer is not None:
            if self._jwt is None:
                raise InvalidToken(
                    "InvalidToken: This relay takes no bearer tokens, because no identity provider is configured;"
                    " send a SharedAccessSignature"
                )
            return self._jwt(bearer, namespace, entity, now)
        path = path if entity is None else entity.name
        # No host or path has a line feed in it. Made also for what does not exist: the time must not tell.
        text = f"{namespace.key}\n{path}\n{host}\n{token}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, key=self._salt, digest_size=32).digest()
        known = self._known.pop(digest, None)
        if known is None or not known.holds(namespace, entity, limits, now):
            grant = self._check(namespace, path, entity, token, host=host, limits=limits, now=now)
            if entity is None:
                return grant
            known = _Known(grant, namespace, entity, limits, now)
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
        self._known[digest] = known
        return known.grant

    def _check(
        self,
        namespace: Namespace,
        path: str,
        entity: HybridConnection | None,
        token: str,
        *,
        host: str,
        limits: Limits,
        now: float,
    ) -> Grant:
        signature = sas.parse(token)
        scope, rule, key = self._signer(signature, namespace, entity)
        self._check_claims(signature, {host, *self._catalog.audiences(namespace)}, path, limits, now)
        return Grant(
            rule=rule.name,
            scope=scope.id,
            rights=sas.implied(rule.rights),
            expires_at=signature.expires_at,
            key_digest=self._digest(key),
        )

    def still_valid(self, grant: Grant, right: Right | None = None) -> bool:
        """Whether the rule and the key that a grant rests on are still there. Time is not looked at.

        Parameters
        ----------
        right: what the holder uses; None: everything that was granted must still be.
        """
        scope = self._catalog.get(grant.scope)
        rule = None if scope is None else scope.rule(grant.rule)
        if rule is None or not any(secrets.compare_digest(self._digest(key), grant.key_digest) for key in rule.keys):
            return False
        needed = grant.rights if right is None else {right}
        return needed <= sas.implied(rule.rights)

    def _signer(
        self, signature: SharedAccessSignature, namespace: Namespace, entity: HybridConnection | None
    ) -> tuple[Entity, Rule, str]:
        """The entity, rule and key that made the signature. Raises InvalidSignature."""
        found: tuple[Entity, Rule, str] | None = None
        for name in signature.key_names():
            for scope in (entity, namespace):
                rule = None if scope is None else scope.rule(name)
                for key in (rule or _NO_RULE).keys:
                    # Every key is tried although one has fitted: the time must not tell which.
                    fits = sas.signed_by(signature, key)
                    if fits and found is None and scope is not None and rule is not None:
                        found = (scope, rule, key)
        if found is None:
            raise InvalidSignature()
        return found

    def _check_claims(
        self, signature: SharedAccessSignature, hosts: Collection[str], path: str, limits: Limits, now: float
    ) -> None:
        if now > signature.expires_at + CLOCK_SKEW:
            raise ExpiredToken()
        if not signature.covers(hosts, path):
            raise InvalidAudience()
        lifetime = signature.expires_at - now
        if limits.max_token_lifetime and lifetime > limits.max_token_lifetime + CLOCK_SKEW:
            raise TokenLifetimeExceeded(
                f"TokenLifetimeExceeded: The token is valid for another {_duration(lifetime)}, and this relay takes"
                f" at most {_duration(limits.max_token_lifetime)} (max_token_lifetime); make it with an earlier expiry"
            )

    def _digest(self, key: str) -> str:
        return hashlib.blake2b(key.encode(), key=self._salt, digest_size=16).hexdigest()


def _bearer_token(token: str) -> str | None:
    """The JWT in ``Bearer <jwt>`` or in a bare one (.NET and Java send it so: seen); None for anything else."""
    word, _, rest = token.strip().partition(" ")
    if word.lower() == "bearer":
        return rest.strip()
    # Two dots and the start of a base64url JSON object: no shared access signature begins like that.
    return word if not rest and word.startswith("eyJ") and word.count(".") == 2 else None


def _duration(seconds: float) -> str:
    """``90000`` as ``25 h``: whole hours where there are some, else minutes or seconds."""
    if seconds >= 3600:
        return f"{seconds / 3600:.4g} h"
    return f"{seconds / 60:.4g} min" if seconds >= 60 else f"{seconds:.4g} s"
