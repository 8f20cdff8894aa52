"""What the small fake world is made of: a store, a share, agents with their services. Authorities are beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from certfan.core import agent_steps as on_agent
from certfan.core.issuance import Issuance
from certfan.core.ledger import Spend
from certfan.core.model import (
    Attempt,
    Endpoint,
    Generation,
    Leftover,
    PathCheck,
    Problem,
    Proof,
    RenewalInfo,
    Revocation,
)
from certfan.core.plan import Step

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
START = datetime(2026, 11, 22, 12, tzinfo=UTC)
PROBE_INTERVAL = timedelta(hours=1)
LIFETIME = timedelta(days=90)
CONSUMERS = {"web1": {"web": ("a", "b"), "mail": ("a",)}, "mail1": {"mail": ("a",)}}
ORDER_MODEL = (timedelta(minutes=1), timedelta(minutes=10), timedelta(minutes=100), timedelta(days=1))
ASK_MODEL = (*ORDER_MODEL[:3], timedelta(hours=6))
SHORT_MODEL = (timedelta(seconds=1),)
SILENCE = timedelta(seconds=5)
APPLY_MODEL = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1))
# What only mending can help is tried again within 30 s.
SOON, SOON_MENDED = timedelta(seconds=25), ("service.config_test_failed", "service.apply_unavailable")
ADVANCES = tuple(
    timedelta(**kw)
    for kw in (
        {"seconds": 1},
        {"seconds": 12},
        {"minutes": 2},
        {"minutes": 20},
        {"hours": 3},
        {"days": 1},
        {"days": 8},
        {"days": 25},
    )
)
JUMPS = (
    timedelta(days=-2),
    timedelta(hours=-2),
    timedelta(seconds=-5),
    timedelta(hours=5),
    timedelta(days=3),
)

Work: TypeAlias = Generator[datetime | None, None, None]
Where: TypeAlias = tuple[str, str]


class Broken(AssertionError):
    """A promise was broken."""


class Failure(Exception):
    """A step failed in an expected way; an authority's refusal may say of which kind, and how long to wait."""

    def __init__(
        self, code: str = "share.unavailable", *, kind: str = "", wait: timedelta | None = None
    ) -> None:
        super().__init__(code)
        self.problem = Problem(code, "made to fail")
        self.kind, self.wait = kind, wait


def must(holds: bool, promise: str) -> None:
    if not holds:
        raise Broken(promise)


@dataclass
class Task:
    owner: str  # "daemon" or a consumer
    key: tuple[str, ...]
    work: Work
    on_failure: Callable[[Problem], None]
    step: Step | on_agent.Step
    until: datetime | None = None  # by the true time: a wait is a span


@dataclass
class Daemon:
    """What the daemon's store holds; all of it is durable."""

    generations: dict[str, tuple[Generation, ...]] = field(default_factory=dict)
    offered: dict[Where, int] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    open: dict[str, Issuance] = field(default_factory=dict)
    asked: dict[str, datetime] = field(default_factory=dict)
    rolled_back: dict[str, int] = field(default_factory=dict)
    renewals: dict[str, RenewalInfo] = field(default_factory=dict)
    changed: dict[str, datetime] = field(default_factory=dict)
    revoked: set[tuple[str, int]] = field(default_factory=set)
    revocations: dict[tuple[str, int], Revocation] = field(default_factory=dict)
    keys: dict[tuple[str, int], str] = field(default_factory=dict)  # also of what is only begun
    checks: dict[str, PathCheck] = field(default_factory=dict)
    spends: dict[str, list[Spend]] = field(default_factory=dict)
    leftovers: list[Leftover] = field(default_factory=list)
    rollovers: set[str] = field(default_factory=set)
    answered: dict[str, datetime] = field(default_factory=dict)
    proofs: dict[Where, tuple[Proof, ...]] = field(default_factory=dict)


@dataclass
class Share:
    folders: dict[Where, frozenset[int]] = field(default_factory=dict)
    live: dict[Where, int] = field(default_factory=dict)
    up: bool = True


@dataclass
class Service:
    """What a service has loaded; `alive` goes when a pair breaks it and comes back with a good reload."""

    name: str
    certificates: tuple[str, ...]
    loaded: dict[str, int] = field(default_factory=dict)
    alive: bool = True


@dataclass
class Agent:
    name: str
    services: dict[str, Service]
    # durable
    staged: dict[on_agent.Pair, on_agent.Staged] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)
    outcomes: dict[on_agent.Pair, on_agent.Outcome] = field(default_factory=dict)
    worked_before: frozenset[tuple[str, Endpoint]] = frozenset()
    hook_failed: set[on_agent.Pair] = field(default_factory=set)  # at its last run
    # memory
    assignments: dict[str, on_agent.Assignment] = field(default_factory=dict)
    applied: set[on_agent.Pair] = field(default_factory=set)
    proofs: dict[tuple[str, Endpoint], Proof] = field(default_factory=dict)
    fetch_attempts: dict[str, Attempt] = field(default_factory=dict)
    apply_attempts: dict[str, Attempt] = field(default_factory=dict)
    cleared_at: dict[str, datetime] = field(default_factory=dict)
    epoch: int = 0
    # faults
    muted: set[tuple[str, str]] = field(default_factory=set)
    foreign: set[tuple[str, str]] = field(default_factory=set)
    deaf: bool = False
    config_broken: bool = False
    refused: set[on_agent.Pair] = field(default_factory=set)  # the config test fails with them only
    bad_hooks: set[str] = field(default_factory=set)  # certificates
    # what really was seen since the last reload, and when a failed pair may come again at the earliest
    truth: dict[tuple[str, Endpoint], str] = field(default_factory=dict)
    earliest: dict[on_agent.Pair, datetime] = field(default_factory=dict)
    failures: Counter[on_agent.Pair] = field(default_factory=Counter)

    def endpoint(self, service: str, certificate: str) -> Endpoint:
        return Endpoint(service, "tls", "192.0.2.1", 443, certificate)

    def forget(self) -> None:
        self.assignments, self.applied, self.proofs = {}, set(), {}
        self.fetch_attempts, self.apply_attempts, self.cleared_at = {}, {}, {}
        self.epoch += 1
