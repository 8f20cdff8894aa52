"""The values of the status page: what it says, made from things.py. `as_json` is its wire form.

What must never come in: a decision (that is `view.py`), key material.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from certfan.core.ledger import Used
from certfan.core.model import Problem
from certfan.core.policy import Urgency
from certfan.core.resets import Reset
from certfan.core.rotation import InternalCa
from certfan.core.standing import Holding
from certfan.daemon.status.wire import Place, Span
from certfan.daemon.status.wire import as_json as as_json
from certfan.daemon.store.facts import ConfigFact


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteLog:
    """The receiver of our log lines: what keeps them, how many wait, how many found no room since the process began."""

    target: str
    problem: Problem | None
    waiting: int
    dropped: int


class Verdict(StrEnum):
    """What is to be thought of one endpoint."""

    PROVEN = "proven"  # a fresh handshake showed the wanted leaf
    PENDING = "pending"  # on its way, nothing has failed
    UNHEARD = "unheard"  # the last proof is too old to say anything
    EXPIRED = "expired"  # the wanted leaf is served, and nobody accepts it any more
    OLD_LEAF = "old_leaf"  # ours, but not the wanted one, after the agent was done with it
    PLACEHOLDER = "placeholder"
    FOREIGN = "foreign"  # a leaf that certfan did not get
    UNREACHABLE = "unreachable"
    REFUSED = "refused"  # something answered, no leaf


class State(StrEnum):
    """Of a certificate, and of everything."""

    OK = "ok"
    WORKING = "working"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Next:
    """What happens next; `at` None: now, or as soon as somebody else has done something."""

    step: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The newest generation."""

    generation: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Served:
    """The leaf last seen; `generation` only when it is one of ours."""

    fingerprint: str
    kind: str  # ours, placeholder, foreign
    generation: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One certificate at one endpoint of one consumer; `endpoint` None: none was reported yet."""

    certificate: str
    consumer: str
    endpoint: Place | None
    wanted: Wanted | None
    served: Served | None
    verdict: Verdict
    reason: str | None
    since: datetime | None
    next: Next
    deadline: datetime
    urgency: Urgency
    heard_at: datetime | None
    problem: Problem | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """When the authority wants the newest generation renewed (RFC 9773), and the instant chosen in that window."""

    start: datetime
    end: datetime
    chosen: datetime
    explanation_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenPath:
    """A name at which our own look did not find our answer."""

    identifier: str
    since: datetime | None
    looked_at: datetime
    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRevocation:
    """A wish to revoke; `waits_for` is "" while it is under way, `problem` why it could not be done."""

    generation: int
    reason: str
    at_once: bool
    asked_at: datetime
    waits_for: str
    problem: Problem | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderUnderWay:
    """An order that is open; `answered` is how many of its challenges the authority was told to try."""

    generation: int
    authority: str
    begun_at: datetime
    moved_at: datetime | None  # when it last got further
    url: str | None
    answered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateView:
    """One certificate and all of its rows."""

    name: str
    identifiers: tuple[str, ...]
    custody: str  # where its keys may exist
    authority: str  # whom the next order goes to
    instead_of: Problem | None  # why that is not the config's, but a fallback
    held: Holding | None  # what an order waits for
    order: OrderUnderWay | None
    to_force: str  # what hurries it along, or why nothing can
    renewal: Renewal | None
    broken_paths: tuple[BrokenPath, ...]
    revocations: tuple[PendingRevocation, ...]
    issued_by: str | None
    generation: int | None
    copy_of: int | None  # the older generation that was rolled back to
    fingerprint: str | None
    serial: str | None
    not_before: datetime | None
    not_after: datetime | None
    renew_at: datetime | None
    state: State
    reason: str | None
    next: Next
    failures: int
    failing_since: datetime | None  # the first failure of the row
    problem: Problem | None
    problem_since: datetime | None
    endpoints: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUsed:
    """How much of one of an authority's limits we have used; `subject` is what it is counted for, "" our account."""

    limit: str
    subject: str
    used: int
    count: int
    window: Span
    frees_at: datetime

    @classmethod
    def of(cls, used: Used) -> LimitUsed:
        """Turn the ledger's word into ours."""
        return cls(
            limit=used.budget.value,
            subject=used.subject,
            used=used.used,
            count=used.limit.count,
            window=used.limit.window,
            frees_at=used.frees_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountView:
    """Our account at an authority; `uri` None: there is none yet. `thumbprint` is the SHA-256 of its public key."""

    authority: str
    directory: str
    uri: str | None
    thumbprint: str | None
    contact: tuple[str, ...]
    since: datetime | None
    limits: tuple[LimitUsed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityView:
    """How we stand with one authority. Of each kind of limit it has what is most used, and what is half used up."""

    name: str
    directory: str
    account: str | None  # its URL
    silent: bool  # it has not answered since an order failed for that
    new_key: bool  # the account is to get one
    orders: int  # under way
    limits: tuple[LimitUsed, ...]
    problem: Problem | None  # of the account


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerView:
    """One consumer: was it heard lately, as which version, and what its services' pointers lead to.

    `install` is copy or in-place; what the share does not show with a key is a copy all the same.
    """

    name: str
    heard: bool
    heard_at: datetime | None
    version: str | None
    install: str | None
    lacks_ca: bool  # a rotation of the internal CA waits for it


@dataclass(frozen=True, slots=True)
class Needs:
    """A problem and the thing that has it; `subject` is what to name on the command line.

    `since` None: nobody wrote it down. `deadline` is the earliest of the endpoints that it keeps from agreeing.
    """

    subject: str
    code: str
    detail: str
    hint: str
    since: datetime | None = field(default=None, kw_only=True)
    deadline: datetime | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One life of the daemon. `clean` None: it still runs."""

    number: int
    began_at: datetime
    ended_at: datetime | None
    clean: bool | None
    after_reset: bool  # the machine went down without telling the run before


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagging:
    """Who lags, and why: endpoints of one consumer with one verdict; `deadline` is the earliest."""

    consumer: str
    verdict: Verdict
    endpoints: int
    deadline: datetime
    urgency: Urgency
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """What left the config and is still here; nothing of it goes before it expires, or `hint` is run."""

    kind: str  # certificate, consumer
    name: str
    generation: int | None
    not_after: datetime | None
    on: tuple[str, ...]  # where it still is: consumers of a certificate, certificates of a consumer
    revocations: tuple[PendingRevocation, ...]
    forgetting: bool  # it was asked for, and is under way
    problem: Problem | None  # what holds that up
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The first line of the page. `worst_deadline` is the earliest of what is not proven."""

    state: State
    text: str
    proven: int
    endpoints: int
    lagging: tuple[Lagging, ...]  # the most urgent first
    worst_deadline: datetime | None
    resets_today: int  # in the last 24 hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All of it."""

    now: datetime
    fleet: str
    summary: Summary
    problems: tuple[Needs, ...]
    config: ConfigFact | None
    certificates: tuple[CertificateView, ...]
    authorities: tuple[AuthorityView, ...]
    consumers: tuple[ConsumerView, ...]
    orphans: tuple[Orphan, ...]
    runs: tuple[RunView, ...]
    resets: tuple[Reset, ...]  # in the last 24 hours, newest first
    remote_log: RemoteLog | None = None
    internal_ca: InternalCa | None = None
