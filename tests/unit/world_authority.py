"""The authorities of the small fake world: validation, limits, renewal windows, revocation. They keep the true time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from certfan.core.issuance import (
    AuthorizationSeen,
    AuthorizationStatus,
    ChallengeSeen,
    ChallengeStatus,
    Issuance,
    OrderSeen,
    OrderStatus,
)
from certfan.core.ledger import SpendKind
from certfan.core.model import Generation, Identifier, Limit, Limits, Problem
from certfan.core.renewal import Window
from tests.unit.world_parts import DAY, HOUR, Failure, must

Span: TypeAlias = tuple[datetime, datetime]
Names: TypeAlias = frozenset[Identifier]

LIMITS = Limits(
    orders=Limit(3, 3 * HOUR), certificates_per_set=Limit(3, 12 * HOUR), failures_per_name=Limit(3, HOUR)
)
ORDER, CERTIFICATE, FAILURE = SpendKind.ORDER, SpendKind.CERTIFICATE, SpendKind.FAILURE
NEVER_PROVABLE = "t.example"


@dataclass(frozen=True)
class Spent:
    """What counts: an order, a certificate of these very names, a failure of any of them."""

    kind: SpendKind
    at: datetime
    names: Names
    same_set: bool


def until_free(spent: Iterable[Spent], names: Names, now: datetime, *, same_set: bool) -> datetime | None:
    """Return until when a limit forbids an order for these names, if one does."""
    rows = list(spent)
    counted = [
        (LIMITS.certificates_per_set, [s.at for s in rows if s.kind is CERTIFICATE and s.names == names]),
        (LIMITS.failures_per_name, [s.at for s in rows if s.kind is FAILURE and s.names & names]),
    ]
    if not same_set:
        counted.append((LIMITS.orders, [s.at for s in rows if s.kind is ORDER and not s.same_set]))
    found = []
    for limit, instants in counted:
        assert limit is not None
        recent = sorted(at for at in instants if at > now - limit.window)
        if len(recent) >= limit.count:
            found.append(recent[-limit.count] + limit.window)
    return max(found, default=None)


def most_in_a_window(instants: Collection[datetime], limit: Limit) -> int:
    return max((sum(one <= at < one + limit.window for at in instants) for one in instants), default=0)


@dataclass
class CaOrder:
    """One authorization and challenge, however many names."""

    issuance: Issuance
    exempt: bool
    same_set: bool
    status: OrderStatus = OrderStatus.PENDING
    challenge: ChallengeStatus = ChallengeStatus.PENDING
    deactivated: bool = False
    given_again: bool = False
    key: str = ""  # that it was finalized with


@dataclass
class Ca:
    """A tiny authority. What it counts is its own affair: it refuses, with a Retry-After, what is beyond its limits."""

    name: str
    clock: Callable[[], datetime]
    orders: dict[str, CaOrder] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)  # by certificate
    spent: list[Spent] = field(default_factory=list)
    issued: set[Names] = field(default_factory=set)
    recorded: set[str] = field(default_factory=set)  # the orders that the daemon has written down
    windows: dict[str, Span] = field(default_factory=dict)  # by fingerprint
    replaced: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    # faults
    down: bool = False
    refuses: bool = False  # validation fails
    gives_again: bool = False  # newOrder answers with a pending order that it has
    keeps_key: bool = False  # refuses keyChange, for ever
    offers_windows: bool = True
    retry_after: timedelta | None = None
    blocked: set[str] = field(default_factory=set)  # names whose challenge cannot be fetched

    def must_answer(self) -> None:
        if self.down:
            raise Failure("authority.unreachable")

    def new_order(self, wanted: Issuance) -> str:
        names = frozenset(wanted.identifiers)
        if self.gives_again:
            for url, order in self.orders.items():
                is_open = order.status is OrderStatus.PENDING and not order.deactivated
                if is_open and frozenset(order.issuance.identifiers) == names:
                    order.given_again = True
                    return url
        if wanted.replaces in self.replaced:
            raise Failure("authority.refused", kind="alreadyReplaced")
        exempt, same_set = self._is_suggested(wanted.replaces), names in self.issued
        until = until_free(self.spent, names, self.clock(), same_set=same_set)
        if until is not None and not exempt:
            raise Failure("authority.refused", kind="rateLimited", wait=until - self.clock())
        url = f"https://{self.name}/{self.made.total()}"
        self.made[wanted.certificate] += 1
        self.orders[url] = CaOrder(wanted, exempt, same_set)
        self._count(ORDER, self.orders[url])
        return url

    def _count(self, kind: SpendKind, order: CaOrder) -> None:
        if not order.exempt:
            names = frozenset(order.issuance.identifiers)
            self.spent.append(Spent(kind, self.clock(), names, order.same_set))

    def _is_suggested(self, fingerprint: str | None) -> bool:
        start, end = self.windows.get(fingerprint or "", (self.clock(), self.clock()))
        return start <= self.clock() < end

    def order(self, url: str) -> CaOrder:
        if url not in self.orders:
            raise Failure("authority.refused", kind="gone")
        return self.orders[url]

    def seen(self, url: str) -> OrderSeen:
        status = self.order(url).status
        chain = url + "/cert" if status is OrderStatus.VALID else None
        return OrderSeen(url, status, (url + "/authz",), url + "/finalize", certificate=chain)

    def authorization(self, url: str) -> AuthorizationSeen:
        order = self.order(url.removesuffix("/authz"))
        problem = Problem("dns", "no") if order.challenge is ChallengeStatus.INVALID else None
        challenge = ChallengeSeen("http-01", url + "/http", order.challenge, "token", problem)
        final = order.challenge in (ChallengeStatus.VALID, ChallengeStatus.INVALID)
        shown = AuthorizationStatus(order.challenge.value) if final else AuthorizationStatus.PENDING
        if order.deactivated:
            shown = AuthorizationStatus.DEACTIVATED
        return AuthorizationSeen(url, shown, order.issuance.identifiers[0], (challenge,))

    def answer(self, challenge_url: str) -> None:
        order = self.order(challenge_url.removesuffix("/authz/http"))
        is_first = order.challenge is ChallengeStatus.PENDING
        must(is_first or order.given_again, "a challenge is answered once")
        if is_first:
            order.challenge = ChallengeStatus.PROCESSING

    def finalize(self, url: str, key: str) -> None:
        order = self.order(url)
        must(order.status is OrderStatus.READY or order.given_again, "only what is ready is finalized")
        if order.status is not OrderStatus.READY:
            raise Failure("authority.refused", kind="orderNotReady")
        order.status, order.key = OrderStatus.PROCESSING, key

    def deactivate(self, url: str) -> None:
        order = self.orders.get(url)
        if order is not None and order.challenge is ChallengeStatus.PENDING:
            order.deactivated = True

    def issue(self, generation: Generation, order: CaOrder) -> None:
        """Take note of a leaf that was fetched: its window, and what it replaces."""
        self.windows[generation.fingerprint] = (
            generation.not_before + 58 * DAY,
            generation.not_before + 60 * DAY,
        )
        if order.issuance.replaces is not None:
            self.replaced.add(order.issuance.replaces)

    def window(self, fingerprint: str) -> Window | None:
        if not self.offers_windows or fingerprint not in self.windows:
            return None
        return Window(*self.windows[fingerprint], retry_after=self.retry_after)

    def tick(self) -> None:
        for order in self.orders.values():
            names = frozenset(order.issuance.identifiers)
            if order.challenge is ChallengeStatus.PROCESSING:
                values = {i.value for i in names}
                fails = self.refuses or NEVER_PROVABLE in values or bool(values & self.blocked)
                order.challenge = ChallengeStatus.INVALID if fails else ChallengeStatus.VALID
                order.status = OrderStatus.INVALID if fails else OrderStatus.READY
                if fails:
                    self._count(FAILURE, order)
            elif order.status is OrderStatus.PROCESSING:
                order.status = OrderStatus.VALID
                self.issued.add(names)
                self._count(CERTIFICATE, order)
