"""What the small fake world is made of: an authority, a store, a share, agents with their services."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from certfan.core import agent_steps as on_agent
from certfan.core.issuance import (
    AuthorizationSeen,
    AuthorizationStatus,
    ChallengeSeen,
    ChallengeStatus,
    Issuance,
    OrderSeen,
    OrderStatus,
)
from certfan.core.model import (
    Attempt,
    Endpoint,
    Generation,
    Problem,
    Proof,
    RenewalInfo,
)

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
PROBE_INTERVAL = timedelta(hours=1)
LIFETIME = timedelta(days=90)
CONSUMERS = {"web1": {"web": ("a", "b"), "mail": ("a",)}, "mail1": {"mail": ("a",)}}
ORDER_MODEL = (timedelta(minutes=1), timedelta(minutes=10), timedelta(minutes=100), timedelta(days=1))
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
    """A step failed in an expected way."""

    def __init__(self, code: str = "share.unavailable") -> None:
        super().__init__(code)
        self.problem = Problem(code, "made to fail")


def must(holds: bool, promise: str) -> None:
    if not holds:
        raise Broken(promise)


@dataclass
class Task:
    owner: str  # "daemon" or a consumer
    key: tuple[str, ...]
    work: Work
    on_failure: Callable[[Problem], None]
    until: datetime | None = None


@dataclass
class Ca:
    """A tiny authority: one authorization and challenge an order."""

    orders: dict[str, dict[str, object]] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    down: bool = False
    refuses: bool = False  # validation fails

    def new_order(self, wanted: Issuance) -> str:
        url = f"https://ca/{self.made.total()}"
        self.made[wanted.certificate] += 1
        self.orders[url] = {
            "status": OrderStatus.PENDING,
            "challenge": ChallengeStatus.PENDING,
            "issuance": wanted,
        }
        return url

    def seen(self, url: str) -> OrderSeen:
        order = self.orders.get(url)
        if order is None:
            raise Failure("authority.refused")
        status = order["status"]
        assert isinstance(status, OrderStatus)
        chain = url + "/cert" if status is OrderStatus.VALID else None
        return OrderSeen(url, status, (url + "/authz",), url + "/finalize", certificate=chain)

    def authorization(self, url: str) -> AuthorizationSeen:
        order = self.orders.get(url.removesuffix("/authz"))
        if order is None:
            raise Failure("authority.refused")
        status = order["challenge"]
        assert isinstance(status, ChallengeStatus)
        wanted = order["issuance"]
        assert isinstance(wanted, Issuance)
        problem = Problem("dns", "no") if status is ChallengeStatus.INVALID else None
        challenge = ChallengeSeen("http-01", url + "/http", status, "token", problem)
        final = status in (ChallengeStatus.VALID, ChallengeStatus.INVALID)
        shown = AuthorizationStatus(status.value) if final else AuthorizationStatus.PENDING
        return AuthorizationSeen(url, shown, wanted.identifiers[0], (challenge,))

    def answer(self, challenge_url: str) -> None:
        order = self.orders.get(challenge_url.removesuffix("/authz/http"))
        if order is None:
            raise Failure("authority.refused")
        must(order["challenge"] is ChallengeStatus.PENDING, "a challenge is answered once")
        order["challenge"] = ChallengeStatus.PROCESSING

    def tick(self) -> None:
        for order in self.orders.values():
            if order["challenge"] is ChallengeStatus.PROCESSING:
                order["challenge"] = ChallengeStatus.INVALID if self.refuses else ChallengeStatus.VALID
                order["status"] = OrderStatus.INVALID if self.refuses else OrderStatus.READY
            elif order["status"] is OrderStatus.PROCESSING:
                order["status"] = OrderStatus.VALID


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
