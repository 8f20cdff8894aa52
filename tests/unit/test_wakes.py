"""A plan names the instant at which it changes by itself: whatever is known, nothing changes before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certfan.core.attempts import UNREACHABLE
from certfan.core.issuance import Issuance
from certfan.core.ledger import Ledger, Spend, SpendKind
from certfan.core.model import (
    Attempt,
    Authority,
    Consumer,
    Desired,
    Generation,
    Identifier,
    Leftover,
    Limit,
    Limits,
    PathCheck,
    Problem,
    Proof,
    RenewalInfo,
    Revocation,
    RevocationReason,
)
from certfan.core.orders import orders
from certfan.core.outlook import Outlooks
from certfan.core.plan import Observed, RollAccountKey
from certfan.core.standing import PATH
from certfan.core.subjects import (
    path_subject,
    renewal_subject,
    revocation_subject,
    rollover_subject,
    tidy_subject,
)
from certfan.core.upkeep import upkeep
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW, make_certificate, make_generation, make_proof

SPANS = [
    sign * span
    for sign in (1, -1)
    for span in (
        timedelta(0),
        timedelta(seconds=3),
        MINUTE,
        7 * MINUTE,
        HOUR,
        5 * HOUR,
        DAY,
        3 * DAY,
        20 * DAY,
        62 * DAY,
    )
]
INSTANTS = st.builds(
    lambda span, more: NOW + span + more, st.sampled_from(SPANS), st.timedeltas(timedelta(0), MINUTE)
)
NAMES = ("a", "b")
LIMITS = Limits(
    orders=Limit(2, 3 * HOUR), certificates_per_set=Limit(1, 2 * DAY), failures_per_name=Limit(2, HOUR)
)
PROBLEMS = st.sampled_from(
    [
        Problem("challenge.failed", "no"),
        Problem(UNREACHABLE, "no"),
        Problem("authority.refused", "no"),
    ]
)
OWN = Problem(PATH, "no")
SUBJECTS = (
    *(name for name in NAMES),
    *(f"{name} at second" for name in NAMES),
    *(make(name) for name in NAMES for make in (renewal_subject, path_subject)),
    *(revocation_subject(name, 1) for name in NAMES),
    *(make(name) for name in ("ca", "second") for make in (rollover_subject, tidy_subject)),
)
DESIRED = Desired(
    {name: Authority(name, f"https://{name}", orders_at_once=2, limits=LIMITS) for name in ("ca", "second")},
    {
        name: replace(make_certificate(name, (name,)), fallback=("second",), fallback_after=5 * HOUR)
        for name in NAMES
    },
    {"web1": Consumer("web1")},
)


def some(values: st.SearchStrategy, keys: tuple[str, ...] = NAMES) -> st.SearchStrategy:
    """Some of the keys, each with a value."""
    return st.dictionaries(st.sampled_from(keys), values, max_size=len(keys))


@st.composite
def attempts(draw: st.DrawFn) -> dict[str, Attempt]:
    found = {}
    for subject in draw(st.sets(st.sampled_from(SUBJECTS), max_size=5)):
        at = draw(INSTANTS)
        wait = draw(st.sampled_from([timedelta(seconds=1), MINUTE, HOUR, DAY, 9 * DAY]))
        since = at - draw(st.sampled_from([timedelta(0), 3 * HOUR, DAY]))
        problem, failures = draw(PROBLEMS), draw(st.integers(0, 5))
        found[subject] = Attempt(subject, problem, failures, at, at + wait, since)
    return found


@st.composite
def generations(draw: st.DrawFn) -> dict[str, tuple[Generation, ...]]:
    found = {}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        made = sorted(draw(st.lists(INSTANTS, min_size=1, max_size=2)))
        found[name] = tuple(
            replace(
                make_generation(number, name=name, names=(name,), issued_at=at),
                key=draw(st.sampled_from("kl")),
                authority=draw(st.sampled_from(["ca", "ca", "second"])),
                copy_of=draw(st.sampled_from([None, None, 1])) if number > 1 else None,
            )
            for number, at in enumerate(made, start=1)
        )
    return found


@st.composite
def renewals(draw: st.DrawFn) -> dict[str, RenewalInfo]:
    found = {}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        start, ask = draw(INSTANTS), draw(INSTANTS)
        end = start + draw(st.sampled_from([-DAY, HOUR, DAY]))
        chosen = start + (end - start) / 2
        number = draw(st.integers(1, 2))
        found[name] = RenewalInfo(name, number, start=start, end=end, chosen=chosen, ask_again_at=ask)
    return found


def issuance(name: str, authority: str, url: str | None, answered: bool, exempt: bool) -> Issuance:
    told = frozenset({"https://ca/1/http"}) if answered else frozenset()
    return Issuance(name, 9, authority, (Identifier(name),), NOW, url, told, exempt=exempt)


CHECKS = st.builds(
    lambda at, problem, failures, mended: PathCheck(
        at=at, problem=problem, failures=failures if problem else 0, mended_at=mended
    ),
    INSTANTS,
    st.sampled_from([None, OWN]),
    st.integers(1, 4),
    st.none() | INSTANTS,
)
SPENDS = st.builds(
    Spend,
    st.sampled_from(SpendKind),
    INSTANTS.filter(lambda at: at <= NOW),
    st.sampled_from(NAMES).map(lambda name: frozenset({name})),
    st.booleans(),
    st.booleans(),
)
ORDERS = st.sampled_from(NAMES).flatmap(
    lambda name: st.builds(
        issuance,
        st.just(name),
        st.sampled_from(["ca", "second"]),
        st.sampled_from([None, "https://ca/1"]),
        st.booleans(),
        st.booleans(),
    )
)
WISHES = st.builds(Revocation, st.just(RevocationReason.SUPERSEDED), st.booleans(), INSTANTS)


def proof(shown: str, at: datetime) -> Proof:
    return replace(make_proof(fingerprint=shown), heard_at=at)


FLYING = [*((name,) for name in NAMES), RollAccountKey("ca").key]
PROOFS = some(st.builds(proof, st.sampled_from(["a@1", "a@2", "b@2"]), INSTANTS))
FACTS = {
    "generations": generations(),
    "attempts": attempts(),
    "renewals": renewals(),
    "asked": some(INSTANTS),
    "config_changed": some(INSTANTS),
    "answered": some(INSTANTS, ("ca", "second")),
    "checks": some(CHECKS),
    "self_check": st.booleans(),
    "ledgers": some(
        st.lists(SPENDS, max_size=4).map(lambda s: Ledger.of(LIMITS, s, domains=lambda name: name)),
        ("ca", "second"),
    ),
    "open_orders": st.lists(ORDERS, max_size=2).map(lambda all_: {one.certificate: one for one in all_}),
    "in_flight": st.sets(st.sampled_from(FLYING), max_size=2).map(frozenset),
    "moved": some(INSTANTS),
    "revocations": some(WISHES).map(lambda wishes: {(name, 1): wish for name, wish in wishes.items()}),
    "proofs": PROOFS.map(lambda found: {(name, "web1"): (one,) for name, one in found.items()}),
    "rollovers": st.sets(st.sampled_from(["ca", "second"]), max_size=1).map(frozenset),
    "leftovers": st.just((Leftover("https://ca/7", "ca", NOW),)),
    "clock_trusted": st.booleans(),
}


@st.composite
def worlds(draw: st.DrawFn) -> Observed:
    """Few things at a time: each that has an instant hides the lack of a later one."""
    told = draw(st.sets(st.sampled_from(sorted(FACTS)), min_size=1, max_size=4))
    return Observed(**{name: draw(FACTS[name]) for name in sorted(told | {"generations"})})


Part: TypeAlias = Callable[[Desired, Observed, datetime], Iterable[object]]


def split(part: Part, observed: Observed, now: datetime) -> tuple[list[object], list[datetime]]:
    """Return what a part of the plan wishes for, and the instants that it names."""
    wishes = list(part(DESIRED, observed, now))
    instants = [wish for wish in wishes if isinstance(wish, datetime)]
    return [wish for wish in wishes if not isinstance(wish, datetime)], instants


def certificates(desired: Desired, observed: Observed, now: datetime) -> Iterator[object]:
    """Tell the outlook of each certificate, and the orders that follow from them."""
    outlooks = Outlooks()
    known = outlooks.of(desired, observed, now)
    yield from orders(known, outlooks.due, desired, observed, now)
    for outlook in known.values():
        yield replace(outlook, until=None)
        if outlook.until is not None:
            yield outlook.until


@pytest.mark.parametrize("part", [certificates, upkeep])
@settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck), derandomize=True)
@given(observed=worlds(), share=st.floats(0, 1, exclude_max=True))
def test_nothing_changes_before_the_plan_wakes(part: Part, observed: Observed, share: float) -> None:
    """Not at the last moment, and not at any other in between; without an instant, not within a year."""
    steps, instants = split(part, observed, NOW)
    last = min((at for at in instants if at > NOW), default=NOW + 365 * DAY) - timedelta(microseconds=1)

    assert steps == split(part, observed, last)[0]
    assert steps == split(part, observed, NOW + (last - NOW) * share)[0]
