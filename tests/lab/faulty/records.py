"""What the faulty authority knows: accounts, orders, authorizations, certificates; and how it behaves when well.

Tests look at all of it, and may change it while the authority runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

DAY = timedelta(days=1)
Name = tuple[str, str]  # type and value of an identifier


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Profile:
    """What certificates of a profile are like."""

    description: str = "https://example.org/profiles"
    validity: timedelta = 90 * DAY
    most_names: int = 100
    addresses: bool = False  # whether IP addresses may be certified


@dataclass(frozen=True, slots=True)
class Window:
    """What renewalInfo says of a certificate (RFC 9773)."""

    start: datetime
    end: datetime
    explanation_url: str | None = None


@dataclass(slots=True)
class Behaviour:
    """How the authority behaves when nothing is wrong; `retry_after` and the like in seconds."""

    fetches: int = 3  # of every http-01 token, all at once, as from several perspectives
    processing: int = 1  # how many looks at a finalized order still say so
    retry_after: int | None = None  # with pending authorizations and processing orders
    renewal_retry_after: int | None = 21600
    nonce_reject: int = 0  # percent of the good ones
    reuse_orders: bool = False
    reuse_authorizations: bool = False
    order_life: timedelta = 7 * DAY
    authorization_life: timedelta = 30 * DAY
    date_offset: timedelta = timedelta(0)  # of the Date header
    profiles: dict[str, Profile] = field(
        default_factory=lambda: {
            "default": Profile(),
            "shortlived": Profile(validity=6 * DAY, addresses=True),
        }
    )
    external_accounts: dict[str, bytes] = field(
        default_factory=dict
    )  # kid and HMAC key; any makes it required
    renewal_info: bool = True
    blocked: tuple[str, ...] = ("blocked.test",)  # these names and all below them


@dataclass(slots=True, kw_only=True)
class Account:
    url: str
    jwk: dict[str, Any]
    thumbprint: str
    contact: list[str]
    status: str = "valid"
    external: str | None = None  # kid of the external account


@dataclass(slots=True, kw_only=True)
class Challenge:
    kind: str
    url: str
    token: str
    status: str = "pending"
    error: dict[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class Authorization:
    url: str
    account: str
    identifier: Name
    expires: datetime
    wildcard: bool
    challenges: list[Challenge]
    status: str = "pending"


@dataclass(slots=True, kw_only=True)
class Order:
    url: str
    account: str
    identifiers: tuple[Name, ...]
    profile: str | None
    replaces: str | None
    expires: datetime
    authorizations: list[Authorization]
    status: str = "pending"
    looks: int | None = 0  # that still say `processing`; None: all
    error: dict[str, Any] | None = None
    certificate: Issued | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(value for _, value in self.identifiers)


@dataclass(slots=True, kw_only=True)
class Issued:
    """One certificate, as it was issued; `chains` are what is handed out, the default first."""

    url: str
    serial: str  # lower-case hex, no leading zeros
    cert_id: str  # of RFC 9773
    key_hash: str  # SHA-256 of the SubjectPublicKeyInfo, hex
    names: tuple[str, ...]
    account: str
    order: str
    certificate: x509.Certificate
    chains: list[bytes]
    window: Window | None = None  # None: around two thirds of its life
    revoked: int | None = None  # the reason

    @property
    def suggested(self) -> Window:
        if self.window is not None:
            return self.window
        first, last = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        if self.revoked is not None:
            return Window(first, first + timedelta(seconds=1))
        middle = first + (last - first) * 2 / 3
        return Window(middle - (last - first) / 60, middle + (last - first) / 60)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request: its number from 1, what it was about, its payload, and how it was answered (0: it was not)."""

    number: int
    kind: str
    path: str
    names: tuple[str, ...]
    protected: dict[str, Any] | None
    payload: Any
    status: int = 0


class Records:
    """Everything that was made, by URL. Read from any thread: what is gone through is copied first."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.orders: dict[str, Order] = {}
        self.authorizations: dict[str, Authorization] = {}
        self.certificates: dict[str, Issued] = {}
        self.exchanges: list[Exchange] = []

    def account_of(self, thumbprint: str) -> Account | None:
        """Return the account of a key."""
        return next((one for one in list(self.accounts.values()) if one.thumbprint == thumbprint), None)

    def orders_with(self, authorization: Authorization) -> list[Order]:
        """Return every order that needs an authorization."""
        return [one for one in list(self.orders.values()) if authorization in one.authorizations]

    def replacement_of(self, cert_id: str) -> Order | None:
        """Return the order that replaces a certificate, unless nothing comes of it."""
        return next(
            (o for o in list(self.orders.values()) if o.replaces == cert_id and o.status != "invalid"), None
        )

    def by_cert_id(self, cert_id: str) -> Issued | None:
        """Return a certificate by the name that RFC 9773 gives it."""
        return next((one for one in list(self.certificates.values()) if one.cert_id == cert_id), None)

    def by_serial(self, serial: str) -> Issued | None:
        """Return a certificate by its serial, lower-case hex without leading zeros."""
        return next((one for one in list(self.certificates.values()) if one.serial == serial), None)

    def settle(self, orders: Iterable[Order]) -> None:
        """Give every order the status that its authorizations and the clock mean."""
        for order in orders:
            statuses = {one.status for one in order.authorizations}
            if order.status not in {"pending", "ready"}:
                continue
            if order.expires <= now() or statuses - {"pending", "valid"}:
                order.status = "invalid"
            elif statuses == {"valid"}:
                order.status = "ready"
