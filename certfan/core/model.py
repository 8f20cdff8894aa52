"""The nouns: frozen values that every room speaks in. Instants are aware UTC, fingerprints lower-case hex SHA-256.

What must never come in: behaviour that needs a clock, a file or a socket.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

CERTIFICATE_NAME = re.compile(r"(?!.*\.\.)[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
CONSUMER_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class KeyType(StrEnum):
    """Kind and size of a private key."""

    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"

    @property
    def is_slow(self) -> bool:
        """Whether making one takes long enough to be noticed: tenths of a second, or seconds."""
        return self.startswith("rsa-")


class Custody(StrEnum):
    """Where a private key may exist."""

    SHARE = "share"
    SEALED = "sealed"
    CONSUMER = "consumer"


class Reason(StrEnum):
    """Why a step is wanted."""

    MISSING = "missing"
    NAMES_CHANGED = "names_changed"
    KEY_TYPE_CHANGED = "key_type_changed"
    CUSTODY_CHANGED = "custody_changed"
    KEY_LOST = "key_lost"
    RENEWAL_DUE = "renewal_due"
    REVOKED = "revoked"
    NOT_PUBLISHED = "not_published"
    NOT_DEPLOYED = "not_deployed"
    NOT_SERVED = "not_served"
    SUPERSEDED = "superseded"
    ASKED_FOR = "asked_for"


@dataclass(frozen=True, slots=True, order=True)
class Identifier:
    """A DNS name (A-label, lower case) or an IP address in a certificate (RFC 8555, RFC 8738)."""

    value: str

    @property
    def kind(self) -> str:
        """`dns` or `ip`, the words of RFC 8555 section 7.1.4 and RFC 8738."""
        try:
            ipaddress.ip_address(self.value)
        except ValueError:
            return "dns"
        return "ip"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Limit:
    """So many of something in any window of that length."""

    count: int
    window: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an authority says it grants; None: it says nothing. Each is counted for our account there."""

    orders: Limit | None = None
    certificates_per_domain: Limit | None = None  # registered domain, by the Public Suffix List
    certificates_per_set: Limit | None = None  # of exactly the same identifiers
    failures_per_name: Limit | None = None  # authorizations that failed


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority as we use it."""

    name: str
    directory: str
    contact: tuple[str, ...] = field(default=(), kw_only=True)
    profile: str | None = field(default=None, kw_only=True)
    ca_file: str | None = field(
        default=None, kw_only=True
    )  # what its HTTPS is verified by; None: the system's
    roots_file: str | None = field(default=None, kw_only=True)  # what its chains end in; None: the system's
    orders_at_once: int = field(default=8, kw_only=True)
    eab_kid: str | None = field(
        default=None, kw_only=True
    )  # external account binding (RFC 8555 section 7.3.4)
    eab_key_file: str | None = field(default=None, kw_only=True)  # its HMAC key, base64url
    preferred_chain: str | None = field(
        default=None, kw_only=True
    )  # common name that a chain's top names as issuer
    origins: tuple[str, ...] = field(default=(), kw_only=True)  # of its URLs, beside the directory's own
    staging: str | None = field(default=None, kw_only=True)  # the authority that trial orders go to
    limits: Limits = field(default=NO_LIMITS, kw_only=True)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the config asks for."""

    name: str
    identifiers: tuple[Identifier, ...]
    consumers: tuple[str, ...] = field(kw_only=True)
    authority: str = field(kw_only=True)
    key_type: KeyType = field(default=KeyType.ECDSA_P256, kw_only=True)
    profile: str | None = field(default=None, kw_only=True)  # at `authority`; a fallback's own applies there
    custody: Custody = field(default=Custody.SHARE, kw_only=True)
    fallback: tuple[str, ...] = field(
        default=(), kw_only=True
    )  # authorities to go to when `authority` fails lastingly
    fallback_after: timedelta = field(
        default=timedelta(days=1), kw_only=True
    )  # how long one must have failed
    reuse_key: timedelta | None = field(
        default=None, kw_only=True
    )  # how old a key may grow; None: a new one each time

    @property
    def holder(self) -> str:
        """The one consumer that makes its keys and alone has them; "": the daemon makes them."""
        return self.consumers[0] if self.custody is Custody.CONSUMER else ""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A VM with an agent; `group` (name or number) and `mode` are those of its key files on the share."""

    name: str
    group: str = field(default="certfan", kw_only=True)
    mode: int = field(default=0o640, kw_only=True)
    addresses: tuple[str, ...] = field(default=(), kw_only=True)  # from where it mounts its folder


@dataclass(frozen=True, slots=True)
class Desired:
    """The config in force, as the planner sees it."""

    authorities: Mapping[str, Authority]
    certificates: Mapping[str, Certificate]
    consumers: Mapping[str, Consumer]

    # Every (certificate, consumer) that is wanted; kept, as the planner asks for each of them.
    pairs: frozenset[tuple[str, str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = ((c.name, consumer) for c in self.certificates.values() for consumer in c.consumers)
        object.__setattr__(self, "pairs", frozenset(pairs))


NOTHING_DESIRED = Desired(MappingProxyType({}), MappingProxyType({}), MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Generation:
    """One issued, immutable key and chain of a certificate; `www.example.org@7`."""

    certificate: str
    number: int
    fingerprint: str = field(kw_only=True)  # SHA-256 of the leaf's DER
    serial: str = field(kw_only=True)  # lower-case hex, no leading zeros
    identifiers: frozenset[Identifier] = field(kw_only=True)
    key_type: KeyType = field(kw_only=True)
    authority: str = field(kw_only=True)
    not_before: datetime = field(kw_only=True)
    not_after: datetime = field(kw_only=True)
    issued_at: datetime = field(kw_only=True)  # or rolled back to, when it is a copy
    copy_of: int | None = field(default=None, kw_only=True)  # the older generation whose pair it is again
    key: str = field(default="", kw_only=True)  # SHA-256 of its SubjectPublicKeyInfo; "" when issued by 0.1.0
    holder: str = field(
        default="", kw_only=True
    )  # the consumer that alone has its key; "": the daemon has it

    @property
    def origin(self) -> int:
        """The number under which its pair was issued."""
        return self.number if self.copy_of is None else self.copy_of

    def __str__(self) -> str:
        return f"{self.certificate}@{self.number}"


@dataclass(frozen=True, slots=True)
class RenewalInfo:
    """When the authority wants one generation renewed (RFC 9773): its window and the instant drawn in it once."""

    certificate: str
    number: int
    start: datetime = field(kw_only=True)
    end: datetime = field(kw_only=True)
    chosen: datetime = field(kw_only=True)
    ask_again_at: datetime = field(kw_only=True)
    explanation_url: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Problem:
    """An expected failure as a fact. `code` is an error's, `hint` the next command or change to try."""

    code: str
    detail: str
    hint: str = ""
    not_before: datetime | None = None
    output: str = ""  # last lines of a command


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last failure of a thing, how often it failed in a row, and when it may be tried again."""

    subject: str  # a certificate, or `certificate/consumer`
    problem: Problem
    failures: int
    at: datetime
    not_before: datetime
    since: datetime | None = None  # the first failure of the row


@dataclass(frozen=True, slots=True, kw_only=True)
class PathCheck:
    """What we last saw when we asked for a challenge's answer at one identifier, as the authority would."""

    at: datetime
    problem: Problem | None  # None: our own answer came back
    failures: int = 0  # in a row
    since: datetime | None = None  # it has been good, or failing, since then
    mended_at: datetime | None = None  # when it last was good after it had failed


class RevocationReason(StrEnum):
    """Why a leaf is revoked (RFC 5280 section 5.3.1), as far as a subscriber may say."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"

    @property
    def code(self) -> int:
        """Its CRLReason number."""
        return {"unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4}.get(self, 5)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A wish to revoke one generation: at once, or when every endpoint proves a newer one with another key."""

    reason: RevocationReason
    at_once: bool
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class Leftover:
    """An order that was given up; what of its authorizations is pending still counts against us there."""

    order_url: str
    authority: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service can be probed. The address is a literal IP, never a name."""

    service: str
    protocol: str  # a probe: tls, smtp, imap, ...
    address: str
    port: int
    server_name: str

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol}://{self.server_name}@{host}:{self.port}"


class Health(StrEnum):
    """What a proof says beside its fingerprint."""

    SERVED = "served"  # a handshake showed a leaf
    REFUSED = "refused"  # something answered, no leaf
    UNREACHABLE = "unreachable"  # nothing answered


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen at an endpoint. `at` is the prober's clock, `heard_at` the daemon's."""

    endpoint: Endpoint
    health: Health
    at: datetime
    fingerprint: str = field(default="", kw_only=True)  # "" unless served
    not_after: datetime | None = field(default=None, kw_only=True)
    not_before: datetime | None = field(default=None, kw_only=True)
    placeholder: bool = field(default=False, kw_only=True)
    detail: str = field(default="", kw_only=True)
    heard_at: datetime | None = field(default=None, kw_only=True)
    since: datetime | None = field(
        default=None, kw_only=True
    )  # the daemon's clock: health and leaf are as now since


class DeploymentState(StrEnum):
    """How far one generation has come on one consumer."""

    OFFERED = "offered"
    INSTALLED = "installed"
    RELOADED = "reloaded"
    PROVEN = "proven"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One generation on one consumer."""

    certificate: str
    consumer: str
    generation: int
    state: DeploymentState
    at: datetime
    problem: Problem | None = None
