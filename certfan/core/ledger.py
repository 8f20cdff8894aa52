"""What was spent of an authority's limits, and until when it is too early for another order.

Our windows slide where the authority refills a bucket little by little, so that whoever obeys them stays below it. The
account may be used elsewhere too: this is a lower bound of what was spent, and a refusal of the authority wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from certfan.core.model import Limit, Limits

Domains: TypeAlias = Callable[[str], str] | Mapping[str, str]  # the registered domain of a name


class SpendKind(StrEnum):
    """What the authority counts."""

    ORDER = "order"
    CERTIFICATE = "certificate"
    FAILURE = "failure"  # an authorization that became invalid


@dataclass(frozen=True, slots=True)
class Spend:
    """Something that the authority has counted; of a failure only the names that failed.

    A renewal that the authority itself suggested is `exempt` from everything. An order for exactly the names of an
    earlier certificate, and what it led to, is `same_set`: it counts neither as an order nor for a domain.
    """

    kind: SpendKind
    at: datetime
    names: frozenset[str]
    exempt: bool = False
    same_set: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Why no order for some names may be sent yet, and until when."""

    until: datetime
    why: str


class Budget(StrEnum):
    """One kind of limit, by its name in `Limits`."""

    ORDERS = "orders"
    PER_DOMAIN = "certificates_per_domain"
    PER_SET = "certificates_per_set"
    PER_NAME = "failures_per_name"


BUDGETS = {
    SpendKind.ORDER: frozenset({Budget.ORDERS}),
    SpendKind.CERTIFICATE: frozenset({Budget.PER_DOMAIN, Budget.PER_SET}),
    SpendKind.FAILURE: frozenset({Budget.PER_NAME}),
}
NOT_FOR_THE_SAME_SET = frozenset({Budget.ORDERS, Budget.PER_DOMAIN})
Account: TypeAlias = tuple[
    Budget, str
]  # a limit and whom it is counted for; "" is the ACME account as a whole


@dataclass(frozen=True, slots=True)
class Used:
    """How much of a limit is used; `frees_at` is when the next of it comes back."""

    budget: Budget
    subject: str
    used: int
    limit: Limit
    frees_at: datetime


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was spent at one authority. Build it with `of`; it is cheap to ask and to extend."""

    limits: Limits
    domains: Domains
    spent: Mapping[Account, Sequence[datetime]]  # ascending
    expected: Mapping[Account, int] = field(default_factory=dict)  # what orders under way will spend

    @classmethod
    def of(cls, limits: Limits, spends: Iterable[Spend], *, domains: Domains) -> Ledger:
        """Sort spends by what they count for."""
        return cls(limits, domains, {}).with_spent(spends)

    def followed(self, before: Sequence[Spend], spends: Sequence[Spend]) -> Ledger:
        """Return the ledger of these spends, when this is the one of those `before`: itself if they are the same."""
        if spends[: len(before)] != before:
            return Ledger.of(self.limits, spends, domains=self.domains)
        more = spends[len(before) :]
        return self.with_spent(more) if more else self

    def with_spent(self, spends: Iterable[Spend]) -> Ledger:
        """Return the ledger after more was spent, whenever that was."""
        more: dict[Account, list[datetime]] = {}
        for spend in spends:
            if not spend.exempt:
                for account in self._accounts(BUDGETS[spend.kind], spend.names, same_set=spend.same_set):
                    more.setdefault(account, []).append(spend.at)
        added = {account: sorted([*self.spent.get(account, ()), *at]) for account, at in more.items()}
        return replace(self, spent={**self.spent, **added})

    def held(
        self, names: frozenset[str], now: datetime, *, exempt: bool = False, same_set: bool = False
    ) -> Held | None:
        """Return the last instant until which a limit forbids an order for exactly these names, or None."""
        if exempt:
            return None
        accounts = self._accounts(frozenset(Budget), names, same_set=same_set)
        held = (Held(until, self._why(one)) for one in accounts if (until := self._free_at(one, now)) > now)
        return max(held, key=lambda one: one.until, default=None)

    def with_order(self, names: frozenset[str], *, exempt: bool = False, same_set: bool = False) -> Ledger:
        """Return the ledger as if an order for these names were sent now and led to a certificate."""
        if exempt:
            return self
        return self._expecting(frozenset({Budget.ORDERS}), names, same_set)._expecting(
            BUDGETS[SpendKind.CERTIFICATE], names, same_set
        )

    def with_open_order(
        self, names: frozenset[str], *, exempt: bool = False, same_set: bool = False
    ) -> Ledger:
        """Return the ledger as if an order that was sent, and is among the spends, led to a certificate now."""
        return self if exempt else self._expecting(BUDGETS[SpendKind.CERTIFICATE], names, same_set)

    def used(self, now: datetime) -> tuple[Used, ...]:
        """Return every limit of which something is used, by limit and subject."""
        rows = []
        for account in sorted({*self.spent, *self.expected}):
            limit = self._limit(account[0])
            since = now - limit.window
            instants = [min(at, now) for at in self._believed(account, now) if at > since]
            instants += [now] * self.expected.get(account, 0)
            if instants:
                rows.append(Used(*account, len(instants), limit, instants[0] + limit.window))
        return tuple(rows)

    def _expecting(self, budgets: frozenset[Budget], names: frozenset[str], same_set: bool) -> Ledger:
        expected = dict(self.expected)
        for account in self._accounts(budgets, names, same_set=same_set):
            expected[account] = expected.get(account, 0) + 1
        return Ledger(self.limits, self.domains, self.spent, expected)

    def _accounts(
        self, budgets: frozenset[Budget], names: frozenset[str], *, same_set: bool
    ) -> Iterator[Account]:
        """Return what these names count for, of the limits that the authority has."""
        for budget in sorted(budgets - NOT_FOR_THE_SAME_SET if same_set else budgets):
            if getattr(self.limits, budget) is None:
                continue
            match budget:
                case Budget.ORDERS:
                    yield budget, ""
                case Budget.PER_DOMAIN:
                    yield from ((budget, domain) for domain in sorted(set(map(self._domain, names))))
                case Budget.PER_SET:
                    yield budget, ", ".join(sorted(names))
                case Budget.PER_NAME:
                    yield from ((budget, name) for name in sorted(names))

    def _domain(self, name: str) -> str:
        return self.domains[name] if isinstance(self.domains, Mapping) else self.domains(name)

    def _limit(self, budget: Budget) -> Limit:
        limit: Limit = getattr(self.limits, budget)
        return limit

    def _free_at(self, account: Account, now: datetime) -> datetime:
        """Return when another one fits in."""
        limit = self._limit(account[0])
        room = limit.count - self.expected.get(account, 0)
        if room < 1:
            return now + limit.window
        instants = self._believed(account, now)
        return min(instants[-room], now) + limit.window if len(instants) >= room else now

    def _believed(self, account: Account, now: datetime) -> Sequence[datetime]:
        """Return when something was spent, as far as that may still count.

        What was recorded before the clock was set back counts as now, until the clock has come that far again; but
        what is a whole window ahead counts no more, or one hour of a wrong clock would hold orders for months.
        """
        instants, latest = self.spent.get(account, ()), now + self._limit(account[0]).window
        return instants if not instants or instants[-1] <= latest else [at for at in instants if at <= latest]

    def _why(self, account: Account) -> str:
        limit = self._limit(account[0])
        within = f"in {_length(limit.window)} are used up"
        match account:
            case Budget.ORDERS, _:
                return f"{limit.count} orders of the account {within}"
            case Budget.PER_DOMAIN, domain:
                return f"{limit.count} certificates for {domain} {within}"
            case Budget.PER_SET, names:
                return f"{limit.count} certificates for exactly {_short(names)} {within}"
            case _, name:
                return f"{limit.count} failed authorizations of {name} {within}"


def held(
    limits: Limits,
    spends: Sequence[Spend],
    names: frozenset[str],
    now: datetime,
    *,
    domains: Domains,
    exempt: bool = False,
    same_set: bool = False,
) -> Held | None:
    """Return `Ledger.held` of these spends, for who asks only once."""
    return Ledger.of(limits, spends, domains=domains).held(names, now, exempt=exempt, same_set=same_set)


def _length(window: timedelta) -> str:
    for seconds, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count, rest = divmod(window.total_seconds(), seconds)
        if count and not rest:
            return f"{count:.0f} {unit}{'s' if count > 1 else ''}"
    return f"{window.total_seconds():.0f} seconds"


def _short(names: str, most: int = 60) -> str:
    first, *others = names.split(", ")
    return names if len(names) <= most or not others else f"{first} and {len(others)} more"
