"""What can never work is tried rarely, for a month; what an authority wants renewed at once is, within its limits.

The real planner with the real patience, over an authority that is a few lines and a clock that is set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from certfan.core.attempts import UNREACHABLE, after_failure
from certfan.core.issuance import Issuance
from certfan.core.ledger import Ledger, Spend, SpendKind
from certfan.core.model import (
    NO_LIMITS,
    Attempt,
    Authority,
    Certificate,
    Desired,
    Generation,
    Limit,
    Limits,
    PathCheck,
    Problem,
    RenewalInfo,
)
from certfan.core.plan import CheckPath, Issue, Observed, Step, plan
from certfan.core.room import BEGUN
from certfan.core.standing import PATH, names_of
from certfan.core.subjects import subject_of
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW, make_certificate, make_generation

SECOND = timedelta(seconds=1)
LONG = timedelta(seconds=20)  # an order takes
FAILED, SILENT = Problem("challenge.failed", "404"), Problem(UNREACHABLE, "no answer")
OWN = Problem(PATH, "nothing listens")


@dataclass
class Yard:
    """A daemon whose orders end as `answer` says, None being a certificate; a look shows what `look` says."""

    certificates: dict[str, Certificate]
    answer: Callable[[Issue, datetime], Problem | None]
    look: Callable[[datetime], Problem | None] = lambda _now: None
    limits: Limits = NO_LIMITS
    cap: int = 8
    jitter: float = 0.0
    now: datetime = NOW
    generations: dict[str, tuple[Generation, ...]] = field(default_factory=dict)
    renewals: dict[str, RenewalInfo] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    checks: dict[str, PathCheck] = field(default_factory=dict)
    answered: dict[str, datetime] = field(default_factory=dict)
    spends: dict[str, list[Spend]] = field(default_factory=dict)
    flying: dict[str, tuple[datetime, Issue, Issuance]] = field(default_factory=dict)
    begun: list[tuple[datetime, Issue]] = field(default_factory=list)
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)  # what reached newOrder

    @property
    def desired(self) -> Desired:
        names = ("ca", "second")
        return Desired(
            {n: Authority(n, f"https://{n}", orders_at_once=self.cap, limits=self.limits) for n in names},
            self.certificates,
            {},
        )

    def observed(self) -> Observed:
        return Observed(
            generations=self.generations,
            renewals=self.renewals,
            attempts=self.attempts,
            checks=self.checks,
            answered=self.answered,
            self_check=True,
            ledgers={
                name: Ledger.of(self.limits, self.spends.get(name, ()), domains=lambda name: name)
                for name in self.desired.authorities
            },
            open_orders={name: begun for name, (_, _, begun) in self.flying.items()},
            in_flight=frozenset((name,) for name in self.flying),
        )

    def live(self, until: datetime) -> None:
        """Let time pass from wake to wake."""
        while self.now < until:
            for name, (at, step, _) in list(self.flying.items()):
                if at <= self.now:
                    self.end(name, step)
            planned = plan(self.desired, self.observed(), self.now)
            for step in planned.steps:
                self.begin(step)
            instants = [at for at, _, _ in self.flying.values()]
            instants += [planned.wake_at] if planned.wake_at else []
            looked = any(isinstance(step, CheckPath) for step in planned.steps)
            self.now = self.now + SECOND if looked else min(instants, default=until)

    def begin(self, step: Step) -> None:
        if isinstance(step, CheckPath):
            self.checks[step.identifier] = self.seen(self.checks.get(step.identifier))
        elif isinstance(step, Issue):
            certificate = self.certificates[step.certificate]
            begun = Issuance(
                certificate.name,
                99,
                step.authority,
                certificate.identifiers,
                self.now,
                "https://ca/1",
                exempt=step.exempt,
            )
            self.flying[step.certificate] = (self.now + LONG, step, begun)
            self.begun.append((self.now, step))

    def seen(self, before: PathCheck | None) -> PathCheck:
        problem = self.look(self.now)
        is_mended = before is not None and before.problem is not None and problem is None
        mended_at = self.now if is_mended else before.mended_at if before else None
        failures = (before.failures if before else 0) + 1 if problem else 0
        return PathCheck(at=self.now, problem=problem, failures=failures, mended_at=mended_at)

    def end(self, name: str, step: Issue) -> None:
        _, _, begun = self.flying.pop(name)
        problem, subject = self.answer(step, self.now), subject_of(step, self.desired)
        if problem is None or problem.code != UNREACHABLE:
            self.tried[name, step.authority] += 1
            self.spend(SpendKind.ORDER, begun)
        if problem is None:
            self.spend(SpendKind.CERTIFICATE, begun)
            number = len(self.generations.get(name, ())) + 1
            new = make_generation(number, name=name, names=(name,), issued_at=self.now)
            self.generations[name] = (*self.generations.get(name, ()), new)
            self.attempts.pop(subject, None)
            return
        if problem is FAILED:
            self.spend(SpendKind.FAILURE, begun)
        before = self.attempts.get(subject)
        self.attempts[subject] = after_failure(step, subject, problem, before, self.now, jitter=self.jitter)

    def spend(self, kind: SpendKind, begun: Issuance) -> None:
        names = names_of(self.certificates[begun.certificate])
        same_set = bool(self.generations.get(begun.certificate))
        rows = self.spends.setdefault(begun.authority, [])
        rows.append(Spend(kind, self.now, names, begun.exempt, same_set))


def one(**changes: object) -> dict[str, Certificate]:
    return {"a": replace(make_certificate("a", ("a",), ()), **changes)}  # type: ignore[arg-type]


def a_month(yard: Yard) -> dict[tuple[str, str], int]:
    yard.live(NOW + 30 * DAY)
    return dict(yard.tried)


MOST, FEWEST = 33, 28  # daily it is

LIMITED = Limits(
    orders=Limit(300, 3 * HOUR), certificates_per_set=Limit(5, 7 * DAY), failures_per_name=Limit(5, HOUR)
)


@pytest.mark.parametrize("jitter", [0.0, 0.999])
@pytest.mark.parametrize("limits", [NO_LIMITS, LIMITED])
def test_what_never_validates_is_tried_33_times_in_a_month(jitter: float, limits: Limits) -> None:
    """Then daily, as the authority asks for; its own limits are never what stops it."""
    tried = a_month(Yard(one(), lambda *_: FAILED, jitter=jitter, limits=limits))

    assert FEWEST <= tried["a", "ca"] <= MOST


def test_a_fallback_is_tried_as_rarely() -> None:
    """Each authority by itself; the fallback a day after the first one began to fail."""
    yard = Yard(one(fallback=("second",), fallback_after=DAY), lambda *_: FAILED)
    tried = a_month(yard)

    assert all(FEWEST <= count <= MOST for count in tried.values())
    assert {("a", "ca"), ("a", "second")} == tried.keys()
    first = next(at for at, step in yard.begun if step.authority == "second")
    assert NOW + DAY <= first <= NOW + DAY + HOUR


@pytest.mark.parametrize("after", [MINUTE, 3 * HOUR, 9 * DAY])
def test_an_authority_that_refuses_for_its_limits_is_asked_as_rarely(after: timedelta) -> None:
    """Its Retry-After only makes it rarer."""
    refused = Problem("authority.refused", "rateLimited")
    tried = a_month(Yard(one(), lambda _, now: replace(refused, not_before=now + after)))

    assert FEWEST <= tried["a", "ca"] <= MOST


def test_an_authority_that_cannot_be_reached_is_asked_often_and_counts_nothing() -> None:
    """Every five minutes, as nothing reaches it; what it refuses afterwards waits as if nothing had been."""
    yard = Yard(one(), lambda *_: SILENT)

    yard.live(NOW + 7 * DAY)
    assert {} == yard.tried
    assert len(yard.begun) > 7 * 24 * 10
    yard.answer = lambda *_: FAILED
    yard.live(NOW + 37 * DAY)
    assert FEWEST <= yard.tried["a", "ca"] <= MOST


def test_an_authority_that_comes_and_goes_is_asked_as_rarely() -> None:
    """What it refused while it was there is not forgotten while it is away, nor freed by its return."""
    yard = Yard(one(), lambda _, now: FAILED if (now - NOW) // HOUR % 2 else SILENT)
    for hours in range(30 * 24):
        yard.answered = {"ca": yard.now}
        yard.live(NOW + (hours + 1) * HOUR)

    assert yard.tried["a", "ca"] <= MOST


def test_a_path_that_comes_and_goes_does_not_wear_an_authority_out() -> None:
    """Our own check finds it mended again and again while the authority never does: a broken machine among several."""
    yard = Yard(one(), lambda *_: FAILED, lambda now: OWN if (now - NOW) // (7 * MINUTE) % 2 else None)

    assert FEWEST <= a_month(yard)["a", "ca"] <= MOST


def test_a_path_that_is_never_good_costs_no_order() -> None:
    """Our own check fails for a month: the authority hears nothing."""
    yard = Yard(one(), lambda *_: None, lambda _: OWN)

    assert {} == a_month(yard)
    assert [] == yard.begun
    assert 300 * SECOND <= (yard.now - NOW) / yard.checks["a"].failures + SECOND  # every five minutes


# All at once

MANY = [f"n{number:03}" for number in range(300)]


def revoked_en_masse(start: timedelta, end: timedelta, count: int = 300, **options: object) -> Yard:
    """Return certificates whose windows have just moved; the higher the number, the sooner it expires."""
    yard = Yard(
        {name: make_certificate(name, (name,), ()) for name in MANY[:count]},
        lambda *_: None,
        **options,  # type: ignore[arg-type]
    )
    for number, name in enumerate(MANY[:count]):
        issued_at = NOW - 5 * DAY - number * HOUR / 10
        yard.generations[name] = (make_generation(name=name, names=(name,), issued_at=issued_at),)
        yard.renewals[name] = RenewalInfo(
            name, 1, start=NOW + start, end=NOW + end, chosen=NOW + start, ask_again_at=NOW + DAY
        )
    return yard


def most_at_once(yard: Yard) -> int:
    return max(sum(begun <= at < begun + LONG for begun, _ in yard.begun) for at, _ in yard.begun)


def test_a_mass_revocation_is_ordered_most_urgent_first_whatever_the_limits() -> None:
    """Inside their windows all 300 are exempt: in the order in which they expire, as many at once as are begun, no break."""
    yard = revoked_en_masse(-DAY, DAY, limits=Limits(certificates_per_set=Limit(0, DAY)))
    yard.live(NOW + HOUR)

    assert MANY[::-1] == [step.certificate for _, step in yard.begun]
    assert all(step.exempt for _, step in yard.begun)
    assert BEGUN * 8 == most_at_once(yard)
    assert yard.begun[-1][0] - NOW < LONG * (300 / 8 + 2) + 300 * SECOND


def test_what_missed_its_window_is_ordered_within_the_limits() -> None:
    """Windows wholly in the past: due at once, exempt from nothing; who has used its set up waits for that."""
    limits = Limits(certificates_per_set=Limit(1, 7 * DAY))
    yard = revoked_en_masse(-3 * DAY, -DAY, 60, limits=limits)
    fresh = MANY[:10]
    for name in fresh:
        issued_at = yard.generations[name][0].issued_at
        spent = Spend(SpendKind.CERTIFICATE, issued_at, frozenset({name}), same_set=True)
        yard.spends.setdefault("ca", []).append(spent)
    yard.live(NOW + HOUR)

    assert MANY[59:9:-1] == [step.certificate for _, step in yard.begun]
    assert not any(step.exempt for _, step in yard.begun)
    assert most_at_once(yard) <= BEGUN * 8
    yard.live(NOW + 3 * DAY)
    late = {step.certificate: at for at, step in yard.begun[50:]}
    assert set(fresh) == late.keys()
    assert all(at >= yard.generations[name][0].issued_at + 7 * DAY for name, at in late.items())


def test_a_limit_of_the_account_parts_new_names_into_windows() -> None:
    """300 certificates that were never issued, 100 orders in three hours: a hundred now, then the next."""
    yard = revoked_en_masse(-DAY, DAY, limits=Limits(orders=Limit(100, 3 * HOUR)))
    yard.generations, yard.renewals = {}, {}
    yard.live(NOW + 9 * HOUR)
    begun = [at for at, _ in yard.begun]

    assert 300 == len(begun)
    assert all(late - early > 3 * HOUR - LONG for early, late in zip(begun, begun[100:], strict=False))
