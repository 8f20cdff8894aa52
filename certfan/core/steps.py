"""What the daemon's plan speaks in: what was observed, and the steps that can follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from certfan.core.custody import SigningRequest
from certfan.core.issuance import Issuance
from certfan.core.ledger import Ledger
from certfan.core.model import (
    Attempt,
    Generation,
    Leftover,
    PathCheck,
    Proof,
    Reason,
    RenewalInfo,
    Revocation,
)

Key: TypeAlias = tuple[str, ...]
Where: TypeAlias = tuple[str, str]  # (certificate, consumer)


@dataclass(frozen=True, slots=True)
class Issue:
    """Get a new generation of a certificate, or resume the order that is open for it."""

    certificate: str
    reason: Reason
    authority: str  # the config's, or a fallback
    exempt: bool = field(default=False, kw_only=True)  # a renewal that the authority itself suggested

    @property
    def key(self) -> Key:
        """One order a certificate."""
        return (self.certificate,)


@dataclass(frozen=True, slots=True)
class AskCsr:
    """Have the consumer that alone is to have the next key make it, and sign a request with it."""

    certificate: str
    consumer: str
    reason: Reason

    @property
    def key(self) -> Key:
        """Shared with Issue: one source of numbers at a time."""
        return (self.certificate,)


@dataclass(frozen=True, slots=True)
class CheckPath:
    """Ask for a challenge's answer at an identifier, as the authority would."""

    identifier: str
    reason: Reason = field(default=Reason.RENEWAL_DUE, kw_only=True)

    @property
    def key(self) -> Key:
        """One look an identifier."""
        return ("path", self.identifier, "check")


@dataclass(frozen=True, slots=True)
class AskRenewal:
    """Ask the authority when it wants a generation renewed (RFC 9773)."""

    certificate: str
    generation: int
    reason: Reason = field(default=Reason.RENEWAL_DUE, kw_only=True)

    @property
    def key(self) -> Key:
        """Not Issue's: an order need not wait for it."""
        return (self.certificate, "renewal", "ask")


@dataclass(frozen=True, slots=True)
class Revoke:
    """Have the authority revoke a generation; one that has expired only counts as revoked here from then on."""

    certificate: str
    generation: int
    expired: bool = field(default=False, kw_only=True)
    reason: Reason = field(default=Reason.ASKED_FOR, kw_only=True)

    @property
    def key(self) -> Key:
        """One a generation."""
        return (self.certificate, str(self.generation), "revoke")


@dataclass(frozen=True, slots=True)
class GiveUpOrder:
    """Close the order that is open for a certificate which has left the config."""

    certificate: str
    generation: int
    reason: Reason = field(default=Reason.SUPERSEDED, kw_only=True)

    @property
    def key(self) -> Key:
        """Shared with Issue."""
        return (self.certificate,)


@dataclass(frozen=True, slots=True)
class TidyOrders:
    """Deactivate what the orders that were given up at an authority left pending."""

    authority: str
    reason: Reason = field(default=Reason.SUPERSEDED, kw_only=True)

    @property
    def key(self) -> Key:
        """One an authority."""
        return ("account", self.authority, "tidy")


@dataclass(frozen=True, slots=True)
class RollAccountKey:
    """Give our account at an authority a new key (RFC 8555 section 7.3.5)."""

    authority: str
    reason: Reason = field(default=Reason.ASKED_FOR, kw_only=True)

    @property
    def key(self) -> Key:
        """One an authority; no order is under way there meanwhile."""
        return ("account", self.authority, "roll")


@dataclass(frozen=True, slots=True)
class Publish:
    """Put a generation's bundle for a consumer on the share, whole, and point `live` at it."""

    certificate: str
    consumer: str
    generation: int
    reason: Reason = field(default=Reason.NOT_PUBLISHED, kw_only=True)

    @property
    def key(self) -> Key:
        """Shared with Retire: one change at a time in one place of the share."""
        return (self.certificate, self.consumer)


@dataclass(frozen=True, slots=True)
class Offer:
    """Assign a generation to a consumer; 0 assigns the certificate before anything was issued."""

    certificate: str
    consumer: str
    generation: int
    reason: Reason = field(default=Reason.NOT_DEPLOYED, kw_only=True)

    @property
    def key(self) -> Key:
        """Not Publish's, so that a publish that hangs holds up no offer."""
        return (self.certificate, self.consumer, "offer")


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Assign a certificate no longer: it left the config. Nothing is removed from the share by it."""

    certificate: str
    consumer: str
    reason: Reason = field(default=Reason.SUPERSEDED, kw_only=True)

    @property
    def key(self) -> Key:
        """Shared with Offer."""
        return (self.certificate, self.consumer, "offer")


@dataclass(frozen=True, slots=True)
class Retire:
    """Remove a generation of a consumer from the share, or one bundle of it, its key last."""

    certificate: str
    consumer: str
    generation: int
    bundle: str | None = field(default=None, kw_only=True)  # None: all of them
    reason: Reason = field(default=Reason.SUPERSEDED, kw_only=True)

    @property
    def key(self) -> Key:
        """Shared with Publish."""
        return (self.certificate, self.consumer)


@dataclass(frozen=True, slots=True)
class RollBack:
    """Make the pair of an older generation the next generation; what cannot be any more is given up."""

    certificate: str
    generation: int  # the older one
    reason: Reason = field(default=Reason.ASKED_FOR, kw_only=True)

    @property
    def key(self) -> Key:
        """Shared with Issue: one source of generations at a time."""
        return (self.certificate,)


@dataclass(frozen=True, slots=True)
class Clear:
    """Take all of an orphaned certificate off one consumer's folder of the share: the pointer first, keys last."""

    certificate: str
    consumer: str
    reason: Reason = field(default=Reason.SUPERSEDED, kw_only=True)

    @property
    def key(self) -> Key:
        """Shared with Publish."""
        return (self.certificate, self.consumer)


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove an orphaned certificate's local generations, then its facts; the journal keeps its events."""

    certificate: str
    reason: Reason = field(default=Reason.SUPERSEDED, kw_only=True)

    @property
    def key(self) -> Key:
        """Shared with Issue."""
        return (self.certificate,)


@dataclass(frozen=True, slots=True)
class ForgetConsumer:
    """Remove an orphaned consumer's folder from the share, then what it said."""

    consumer: str
    reason: Reason = field(default=Reason.ASKED_FOR, kw_only=True)

    @property
    def key(self) -> Key:
        """Its own: nothing else works on a whole folder."""
        return ("consumer", self.consumer, "forget")


UpkeepStep: TypeAlias = CheckPath | AskRenewal | Revoke | GiveUpOrder | TidyOrders | RollAccountKey
Step: TypeAlias = (
    Issue
    | AskCsr
    | UpkeepStep
    | Publish
    | Offer
    | Withdraw
    | Retire
    | RollBack
    | Clear
    | Forget
    | ForgetConsumer
)
Wish: TypeAlias = Step | datetime  # a rule's answer: a step, or an instant at which it may answer otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything the plan looks at beside the config. Each field may be late; none may be invented.

    Nothing in it is changed afterwards: the next plan compares with what it was.
    """

    generations: Mapping[str, tuple[Generation, ...]] = field(default_factory=dict)  # ascending, verified
    published: Mapping[Where, frozenset[int]] = field(default_factory=dict)  # complete on the share
    live: Mapping[Where, int] = field(default_factory=dict)  # the share's pointer
    outdated: Mapping[Where, frozenset[tuple[int, str]]] = field(default_factory=dict)  # see core.shown
    offered: Mapping[Where, int] = field(default_factory=dict)  # the assignments; 0: nothing issued yet
    attempts: Mapping[str, Attempt] = field(default_factory=dict)  # by what `core.subjects` makes
    asked: Mapping[str, datetime] = field(default_factory=dict)  # `certfan renew`
    config_changed: Mapping[str, datetime] = field(default_factory=dict)  # by certificate: lifts back-off
    answered: Mapping[str, datetime] = field(
        default_factory=dict
    )  # by authority: it answers again, after it did not
    proofs: Mapping[Where, tuple[Proof, ...]] = field(default_factory=dict)  # the latest of each endpoint
    renewals: Mapping[str, RenewalInfo] = field(default_factory=dict)
    signing_requests: Mapping[str, SigningRequest] = field(default_factory=dict)  # by certificate
    lost_keys: Mapping[str, datetime] = field(
        default_factory=dict
    )  # of a certificate's newest: told by its holder
    revoked: frozenset[tuple[str, int]] = frozenset()
    revocations: Mapping[tuple[str, int], Revocation] = field(default_factory=dict)  # asked for, not done
    checks: Mapping[str, PathCheck] = field(default_factory=dict)  # by identifier
    self_check: bool = False  # whether nothing is ordered before our own check has passed
    ledgers: Mapping[str, Ledger] = field(default_factory=dict)  # by authority: what was spent there
    leftovers: tuple[Leftover, ...] = ()
    rollovers: frozenset[str] = frozenset()  # authorities whose account is to get a new key
    rolled_back: Mapping[str, int] = field(default_factory=dict)  # `certfan rollback`: to which generation
    forgotten: frozenset[str] = frozenset()  # `certfan forget`: certificates
    forgotten_consumers: frozenset[str] = frozenset()
    open_orders: Mapping[str, Issuance] = field(default_factory=dict)  # begun, neither finished nor given up
    # Read before everything else: a step that ends meanwhile still counts as in flight, so its effect is not
    # missed and the step not begun twice.
    moved: Mapping[str, datetime] = field(default_factory=dict)  # when an order under way last got further
    in_flight: frozenset[Key] = frozenset()
    share_up: bool = True
    share_seen: bool = True  # a look has shown what is on it
    clock_trusted: bool = True
    probe_interval: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps, most urgent first, at most one a key and none in flight; `wake_at` is when to plan again at the latest."""

    steps: tuple[Step, ...] = ()
    wake_at: datetime | None = None
