"""What was spent of an authority's limits, and until when an order has to wait."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certfan.core.ledger import Budget, Held, Ledger, Spend, SpendKind, held
from certfan.core.model import NO_LIMITS, Limit, Limits
from certfan.core.policy import next_try
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW

ORDER, CERTIFICATE, FAILURE = SpendKind.ORDER, SpendKind.CERTIFICATE, SpendKind.FAILURE
LIMITS = Limits(
    orders=Limit(3, 3 * HOUR),
    certificates_per_domain=Limit(4, 7 * DAY),
    certificates_per_set=Limit(2, 7 * DAY),
    failures_per_name=Limit(2, HOUR),
)
A, B, OTHER = (frozenset({name}) for name in ("a.example.org", "b.example.org", "a.example.com"))


def domain(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def spends(kind: SpendKind, names: frozenset[str], *ages: timedelta, **flags: bool) -> list[Spend]:
    return [Spend(kind, NOW - age, names, **flags) for age in ages]


def ask(limits: Limits, spent: list[Spend], names: frozenset[str] = A, **flags: bool) -> Held | None:
    return held(limits, spent, names, NOW, domains=domain, **flags)


def test_an_order_waits_until_the_oldest_of_a_full_window_has_left_it() -> None:
    """Three orders in three hours: the next comes when the first of them is three hours old, and not for fewer."""
    spent = spends(ORDER, OTHER, HOUR, 4 * HOUR, 2 * HOUR, MINUTE)

    assert ask(LIMITS, spent) == Held(NOW + HOUR, "3 orders of the account in 3 hours are used up")
    assert ask(LIMITS, spent[:-1]) is None
    assert ask(NO_LIMITS, spent) is None


@pytest.mark.parametrize(
    ("spent", "why"),
    [
        (
            spends(CERTIFICATE, B, *[DAY] * 4),
            "4 certificates for example.org in 7 days are used up",
        ),
        (
            spends(CERTIFICATE, A, *[DAY] * 2),
            "2 certificates for exactly a.example.org in 7 days are used up",
        ),
        (spends(FAILURE, A, *[MINUTE] * 2), "2 failed authorizations of a.example.org in 1 hour are used up"),
    ],
)
def test_what_is_used_up_is_named(spent: list[Spend], why: str) -> None:
    """The number, whom it is counted for and the window say what to wait for; another domain need not wait."""
    found = ask(LIMITS, spent)

    assert found is not None
    assert found.why == why
    assert ask(LIMITS, spent, OTHER) is None


def test_the_limit_that_lasts_longest_is_told() -> None:
    """An order that two limits forbid waits for both."""
    spent = [*spends(FAILURE, A, MINUTE, MINUTE), *spends(CERTIFICATE, B, *[DAY] * 4)]

    assert ask(LIMITS, spent) == Held(NOW + 6 * DAY, "4 certificates for example.org in 7 days are used up")


def test_a_renewal_that_the_authority_suggested_counts_for_nothing_and_waits_for_nothing() -> None:
    """ARI renewals neither use a limit up nor are held by one."""
    exempt = [s for kind in SpendKind for s in spends(kind, A, *[MINUTE] * 9, exempt=True)]
    used_up = [s for kind in SpendKind for s in spends(kind, A, *[MINUTE] * 9)]

    assert ask(LIMITS, exempt) is None
    assert ask(LIMITS, used_up, exempt=True) is None


def test_the_same_names_again_wait_only_for_their_own_limits() -> None:
    """An order for a set that was issued before needs no order and no domain, but its set and its failures hold it."""
    busy = [*spends(ORDER, B, *[MINUTE] * 3), *spends(CERTIFICATE, B, *[DAY] * 4)]

    assert ask(LIMITS, busy) is not None
    assert ask(LIMITS, busy, same_set=True) is None
    assert ask(LIMITS, spends(CERTIFICATE, A, DAY, DAY), same_set=True) is not None
    assert ask(LIMITS, spends(FAILURE, A, MINUTE, MINUTE), same_set=True) is not None


def test_what_the_same_names_spent_leaves_the_account_and_the_domain_alone() -> None:
    """Renewals of known sets leave no less for new names."""
    again = [s for kind in (ORDER, CERTIFICATE) for s in spends(kind, B, *[MINUTE] * 9, same_set=True)]

    assert ask(LIMITS, again, A) is None
    assert ask(LIMITS, again, B) is not None


def test_spends_from_the_future_hold_no_order_for_long() -> None:
    """A clock that went back an hour forgets nothing; one that went back 90 days must not postpone orders by 97."""
    limits = Limits(failures_per_name=Limit(2, HOUR))
    near = Ledger.of(limits, spends(FAILURE, A, *[-30 * MINUTE] * 2), domains=domain)
    far = Ledger.of(limits, spends(FAILURE, A, *[-90 * DAY] * 2), domains=domain)

    assert near.held(A, NOW) == Held(
        NOW + HOUR, "2 failed authorizations of a.example.org in 1 hour are used up"
    )
    assert near.held(A, NOW + 89 * MINUTE) is not None
    assert near.held(A, NOW + 90 * MINUTE) is None
    assert far.held(A, NOW) is None
    assert [2, 0] == [sum(row.used for row in one.used(NOW)) for one in (near, far)]


def test_a_limit_of_none_at_all_holds_everything() -> None:
    """An authority that grants nothing is never asked; the instant is one to look again at."""
    assert ask(Limits(orders=Limit(0, HOUR)), []) == Held(
        NOW + HOUR, "0 orders of the account in 1 hour are used up"
    )


def test_a_long_set_is_told_by_its_first_name() -> None:
    """The reason stays one line for a certificate of 100 names."""
    names = frozenset(f"host{n:03}.example.org" for n in range(100))
    found = ask(LIMITS, spends(CERTIFICATE, names, DAY, DAY), names)

    assert found is not None
    assert found.why == ("2 certificates for exactly host000.example.org and 99 more in 7 days are used up")


@pytest.mark.parametrize("known", range(5))
def test_a_ledger_follows_what_is_spent(known: int) -> None:
    """The same as one of everything, whatever was known before, also where something has gone; itself if nothing came."""
    spent = [*spends(ORDER, A, HOUR, 4 * HOUR), *spends(CERTIFICATE, B, DAY), *spends(ORDER, B, 2 * HOUR)]
    whole, before = Ledger.of(LIMITS, spent, domains=domain), spent[:known]
    ledger = Ledger.of(LIMITS, before, domains=domain)

    assert whole == ledger.followed(before, spent)
    assert Ledger.of(LIMITS, spent[1:], domains=domain) == ledger.followed(before, spent[1:])
    assert ledger is ledger.followed(before, list(before))


def test_orders_of_one_plan_count_for_each_other() -> None:
    """What starts now, or is under way, will spend; the ledger it was taken from is not changed by that."""
    ledger = Ledger.of(LIMITS, spends(ORDER, OTHER, MINUTE), domains=domain)
    fuller = ledger.with_order(A).with_order(B)

    assert fuller.held(OTHER, NOW) is not None
    assert ledger.held(OTHER, NOW) is None
    assert ledger.with_order(A, exempt=True).with_order(B, exempt=True).held(OTHER, NOW) is None
    assert fuller.held(OTHER, NOW, same_set=True) is None


def test_an_open_order_will_be_a_certificate_but_is_no_second_order() -> None:
    """Its order is among the spends already; its certificate is not yet."""
    ledger = Ledger.of(LIMITS, spends(ORDER, A, MINUTE, MINUTE), domains=domain)
    open_ones = ledger.with_open_order(A).with_open_order(A)

    assert open_ones.held(B, NOW) is None
    assert open_ones.held(A, NOW) is not None
    assert ledger.with_open_order(A).with_open_order(A, exempt=True).held(A, NOW) is None


def test_the_status_hears_how_much_is_used_and_when_some_comes_back() -> None:
    """Each limit with its subject; what has left its window is not told any more."""
    spent = [*spends(ORDER, A, 4 * HOUR, 2 * HOUR, HOUR), *spends(CERTIFICATE, A, 8 * DAY, DAY)]
    rows = Ledger.of(LIMITS, spent, domains=domain).used(NOW)

    assert [(row.budget, row.subject, row.used, row.frees_at) for row in rows] == [
        (Budget.PER_DOMAIN, "example.org", 1, NOW + 6 * DAY),
        (Budget.PER_SET, "a.example.org", 1, NOW + 6 * DAY),
        (Budget.ORDERS, "", 2, NOW + HOUR),
    ]


def test_an_account_may_be_given_as_a_table() -> None:
    """A planner that has looked the domains up needs no function."""
    table = {"a.example.org": "example.org", "b.example.org": "example.org"}

    found = held(LIMITS, spends(CERTIFICATE, B, *[DAY] * 4), A, NOW, domains=table)

    assert found is not None


SETS = st.sets(
    st.sampled_from(["a.one.org", "b.one.org", "a.two.org", "b.two.org"]), min_size=1, max_size=3
).map(frozenset)
ASKS = st.lists(
    st.tuples(st.integers(0, 40), SETS, st.booleans(), st.sampled_from(["", "", "exempt", "fails"])),
    max_size=80,
)


def client(asks: list[tuple[int, frozenset[str], bool, str]]) -> list[Spend]:
    """Return what a client spends that orders as often as it may; each ask is that many minutes after the last."""
    spent: list[Spend] = []
    now = NOW
    for minutes, names, waits, fate in asks:
        now += minutes * MINUTE
        exempt = fate == "exempt"
        same_set = any(s.kind is CERTIFICATE and s.names == names for s in spent)
        found = held(SMALL, spent, names, now, domains=domain, exempt=exempt, same_set=same_set)
        if found is not None and waits:
            now = found.until
            found = held(SMALL, spent, names, now, domains=domain, exempt=exempt, same_set=same_set)
            assert found is None, "what was held is free at the instant that was told"
        if found is None:
            spent.append(Spend(ORDER, now, names, exempt, same_set))
            kind = FAILURE if fate == "fails" else CERTIFICATE
            spent.append(Spend(kind, now + MINUTE, names, exempt, same_set))
            now += MINUTE
    return spent


SMALL = Limits(
    orders=Limit(4, HOUR),
    certificates_per_domain=Limit(3, 5 * HOUR),
    certificates_per_set=Limit(2, 4 * HOUR),
    failures_per_name=Limit(2, HOUR),
)


def most_in_a_window(instants: list[datetime], window: timedelta) -> int:
    return max((sum(one <= at < one + window for at in instants) for one in instants), default=0)


@settings(deadline=None)
@given(ASKS)
def test_who_asks_first_never_spends_more_than_the_authority_grants(
    asks: list[tuple[int, frozenset[str], bool, str]],
) -> None:
    """Whatever is ordered when: no window of any limit holds more than its count, of what the authority counts."""
    spent = [s for s in client(asks) if not s.exempt]
    names = {name for s in spent for name in s.names}
    new = [s for s in spent if not s.same_set]
    subjects: list[tuple[Limit | None, list[datetime]]] = [
        (SMALL.orders, [s.at for s in new if s.kind is ORDER]),
        *(
            (SMALL.certificates_per_domain, [s.at for s in new if s.kind is CERTIFICATE and found(s, one)])
            for one in ("one.org", "two.org")
        ),
        *(
            (SMALL.certificates_per_set, [s.at for s in spent if s.kind is CERTIFICATE and s.names == one])
            for one in {s.names for s in spent}
        ),
        *(
            (SMALL.failures_per_name, [s.at for s in spent if s.kind is FAILURE and one in s.names])
            for one in names
        ),
    ]

    for limit, instants in subjects:
        assert limit is not None
        assert most_in_a_window(instants, limit.window) <= limit.count


def found(spend: Spend, registered: str) -> bool:
    return registered in map(domain, spend.names)


@given(st.lists(SETS, max_size=20), SETS)
def test_a_plan_never_starts_more_than_the_authority_grants(
    sets: list[frozenset[str]], last: frozenset[str]
) -> None:
    """Orders that start together are counted as one after the other would be."""
    ledger, spent = Ledger.of(SMALL, [], domains=domain), list[Spend]()
    for names in [*sets, last]:
        assert (ledger.held(names, NOW) is None) == (held(SMALL, spent, names, NOW, domains=domain) is None)
        if ledger.held(names, NOW) is None:
            ledger = ledger.with_order(names)
            spent += [Spend(ORDER, NOW, names), Spend(CERTIFICATE, NOW, names)]


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_thirty_days_of_failure_are_at_most_33_attempts(jitter: float) -> None:
    """1, 10, 100 minutes, then daily: what can never work is tried 33 times in a month and no more."""
    now, attempts = NOW, 0
    while now < NOW + 30 * DAY:
        attempts += 1
        now = next_try(attempts, now, jitter=jitter)

    assert attempts <= 33
    assert attempts >= 28  # but daily it is
