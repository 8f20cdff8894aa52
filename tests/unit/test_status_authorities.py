"""The page's authority side: what holds orders up, whom they go to, what is to be revoked, how each authority stands."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from certfan.core.issuance import Issuance
from certfan.core.ledger import Ledger, Spend, SpendKind
from certfan.core.model import (
    Attempt,
    Authority,
    Certificate,
    Consumer,
    Desired,
    Generation,
    Identifier,
    Limit,
    Limits,
    PathCheck,
    Problem,
    Reason,
    RenewalInfo,
    Revocation,
    RevocationReason,
)
from certfan.core.plan import Issue, plan
from certfan.core.standing import PATH
from certfan.daemon.status.model import CertificateView, Next, Page, State, Verdict
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import view
from certfan.daemon.store import AccountFact
from tests.unit.status_parts import DAY, MINUTE, NOW, WHERE, deployment, generation, proof, things

NAME = "www.test"
OLD = NOW - 80 * DAY  # a leaf that is due, and has two days until its deadline
HOUR = timedelta(hours=1)
LIMITS = Limits(
    orders=Limit(2, 3 * HOUR), certificates_per_set=Limit(2, 7 * DAY), failures_per_name=Limit(4, HOUR)
)
REFUSED = Problem(
    "authority.refused", "authority pebble refused new order: caa", "let the CAA records allow it"
)
BROKEN = Problem(PATH, "http://www.test/: answered 404", "look at the vhost")
DESIRED = Desired(
    {
        "pebble": Authority("pebble", "https://ca.int/dir", limits=LIMITS),
        "second": Authority("second", "https://2/dir"),
    },
    {
        NAME: Certificate(
            NAME,
            (Identifier(NAME),),
            consumers=("web1",),
            authority="pebble",
            fallback=("second",),
            fallback_after=12 * HOUR,
        )
    },
    {"web1": Consumer("web1")},
)


# Spent so long ago that it is free again in six hours: sooner than the fallback would be asked instead.
SPENT = NOW - 7 * DAY + 6 * HOUR


def used_up(certificates: int = 2, at: datetime = SPENT) -> dict[str, Ledger]:
    spends = [Spend(SpendKind.CERTIFICATE, at, frozenset({NAME}))] * certificates
    return {"pebble": Ledger.of(LIMITS, spends, domains=lambda name: name)}


def failed(
    subject: str = NAME, problem: Problem = REFUSED, since: datetime = NOW - MINUTE
) -> dict[str, Attempt]:
    return {subject: Attempt(subject, problem, 3, NOW - MINUTE, NOW + DAY, since)}


def due(**more: Any) -> StateOfThings:
    """www.test@1 is served everywhere and due for its renewal."""
    old = generation(1, OLD)
    seen = {"proofs": {WHERE: (proof(not_before=OLD, not_after=old.not_after),)}}
    usual = {"desired": DESIRED, "generations": {NAME: (old,)}, "deployments": {WHERE: (deployment(1),)}}
    return things(**(usual | seen | more))


def only(of: StateOfThings) -> CertificateView:
    (certificate,) = view(of).certificates
    return certificate


def subjects(page: Page) -> list[str]:
    return [one.subject for one in page.problems]


# Orders


def test_an_order_that_waits_for_a_limit_is_told_and_is_no_problem_while_there_is_time() -> None:
    """Until when, which limit, and what helps sooner."""
    page = view(due(seen={"ledgers": used_up()}))

    (certificate,) = page.certificates
    assert certificate.held is not None
    assert ("authority.limit", SPENT + 7 * DAY) == (certificate.held.code, certificate.held.until)
    assert "pebble: 2 certificates for exactly www.test in 7 days are used up" == certificate.held.why
    assert Next("issue", certificate.held.until) == certificate.next
    assert ([], None, State.WORKING) == (subjects(page), certificate.problem, certificate.state)


@pytest.mark.parametrize(
    ("facts", "since"),
    [
        ({"generations": {}, "config_changed": {NAME: NOW - DAY}}, NOW - DAY),
        ({"now": OLD + 84 * DAY}, OLD + 83 * DAY),
        ({"revoked": {(NAME, 1): NOW}}, NOW),
    ],
    ids=["never issued", "past its deadline", "revoked"],
)
def test_a_limit_is_a_problem_of_what_has_no_time_to_wait(facts: dict[str, Any], since: datetime) -> None:
    """Nothing that may be served any longer is left."""
    ledgers = used_up(at=facts.get("now", NOW) + (SPENT - NOW))

    certificate = only(due(seen={"ledgers": ledgers}, **facts))

    assert certificate.problem is not None
    assert ("authority.limit", State.PROBLEM) == (certificate.problem.code, certificate.state)
    assert since == certificate.problem_since


def test_a_fallback_is_named_with_the_reason() -> None:
    """The config's authority has failed for longer than was allowed; its problem goes on being one."""
    page = view(due(attempts=failed(since=NOW - 2 * DAY)))

    (certificate,) = page.certificates
    assert ("second", REFUSED, None) == (certificate.authority, certificate.instead_of, certificate.held)
    assert Next("issue") == certificate.next
    (told,) = page.problems
    assert NOW - 2 * DAY == told.since
    assert (NAME, f"{REFUSED.detail}; ordered at second meanwhile", REFUSED.hint) == (
        told.subject,
        told.detail,
        told.hint,
    )


def test_before_its_time_no_fallback_is_shown() -> None:
    """The order waits at the config's authority, and says so."""
    certificate = only(due(attempts=failed()))

    assert ("pebble", None, REFUSED, 3) == (
        certificate.authority,
        certificate.instead_of,
        certificate.problem,
        certificate.failures,
    )
    assert Next("issue", NOW + DAY) == certificate.next


def test_the_failure_of_the_fallback_is_the_one_that_counts_there() -> None:
    """When all have failed, it is the next that may be asked."""
    elsewhere = Problem("authority.unreachable", "second does not answer")
    both = failed(since=NOW - 2 * DAY) | failed(f"{NAME} at second", elsewhere)
    sooner = replace(both[f"{NAME} at second"], not_before=NOW + MINUTE)

    certificate = only(due(attempts=both | {f"{NAME} at second": sooner}))

    assert ("second", elsewhere) == (certificate.authority, certificate.problem)
    assert Next("issue", NOW + MINUTE) == certificate.next


def test_the_page_says_what_the_plan_does() -> None:
    """Whatever is known: an order is planned exactly where the page holds none up, and at the authority it names."""
    checked = {NAME: PathCheck(at=NOW - MINUTE, problem=None)}
    info = RenewalInfo(NAME, 1, start=NOW - DAY, end=NOW + DAY, chosen=NOW + MINUTE, ask_again_at=NOW)
    revocation = Revocation(RevocationReason.SUPERSEDED, False, NOW)
    begun = Issuance(NAME, 2, "second", (Identifier(NAME),), NOW, "https://2/order/1")
    situations = [
        due(),
        due(generations={}),
        due(generations={NAME: (generation(1),)}),
        due(seen={"clock_trusted": False}),
        due(seen={"ledgers": used_up()}),
        due(seen={"ledgers": used_up(1)}),
        due(seen={"self_check": True}),
        due(seen={"self_check": True}, checks=checked),
        due(seen={"self_check": True}, checks={NAME: replace(checked[NAME], problem=BROKEN)}),
        due(attempts=failed()),
        due(attempts=failed(), asked={NAME: NOW}),
        due(attempts=failed(since=NOW - 2 * DAY)),
        due(rolled_back={NAME: 1}),
        due(rollovers=frozenset({"pebble"})),
        due(renewal_infos={(NAME, 1): info}),
        due(generations={NAME: (generation(1),)}, revocations={(NAME, 1): revocation}),
        due(generations={NAME: (generation(1),)}, issuances=(begun,)),
        due(seen={"in_flight": frozenset({(NAME,)})}),
    ]
    planned, shown = [], []
    for one in situations:
        steps = [step for step in plan(one.desired, one.observed, one.now).steps if isinstance(step, Issue)]
        planned.append([(step.reason, step.authority) for step in steps])
        certificate = only(one)
        is_free = certificate.next == Next("issue") and not one.observed.in_flight and not certificate.held
        shown.append([(certificate.reason, certificate.authority)] if is_free else [])

    assert planned == shown
    assert 8 == sum(map(bool, shown))


def test_the_window_of_the_authority_is_shown_with_its_explanation() -> None:
    """And nothing when it said nothing."""
    info = RenewalInfo(
        NAME,
        1,
        start=NOW + DAY,
        end=NOW + 2 * DAY,
        chosen=NOW + DAY + MINUTE,
        ask_again_at=NOW,
        explanation_url="https://ca.int/why",
    )
    shown = only(due(generations={NAME: (generation(1),)}, renewal_infos={(NAME, 1): info}))
    silent = only(due(renewal_infos={(NAME, 1): replace(info, end=info.start)}))

    assert shown.renewal is not None
    assert (info.start, info.end, info.chosen, "https://ca.int/why") == (
        shown.renewal.start,
        shown.renewal.end,
        shown.renewal.chosen,
        shown.renewal.explanation_url,
    )
    assert (info.chosen, Next("renew", info.chosen)) == (shown.renew_at, shown.next)
    assert silent.renewal is None


# Paths


def test_a_broken_path_is_a_problem_weeks_before_the_renewal_and_once_for_its_name() -> None:
    """Two certificates have the name; nothing is ordered, and both have the problem."""
    first = DESIRED.certificates[NAME]
    second = replace(first, name="both", identifiers=(Identifier("good.test"), Identifier(NAME)))
    desired = replace(DESIRED, certificates={NAME: first, "both": second})
    check = PathCheck(at=NOW - MINUTE, problem=BROKEN, failures=4, since=NOW - DAY)
    generations = {
        NAME: (generation(1),),
        "both": (replace(generation(1), certificate="both", identifiers=frozenset(second.identifiers)),),
    }
    known = {"checks": {NAME: check}, "generations": generations, "desired": desired}

    page, off = view(due(seen={"self_check": True}, **known)), view(due(**known))

    assert [NAME] == [one.subject for one in page.problems if one.code == PATH]
    for certificate in page.certificates:
        (path,) = certificate.broken_paths
        assert (NAME, NOW - DAY, NOW - MINUTE, BROKEN) == (
            path.identifier,
            path.since,
            path.looked_at,
            path.problem,
        )
        assert (None, State.PROBLEM) == (certificate.reason, certificate.state)
    assert [()] * 2 == [one.broken_paths for one in off.certificates]


# Revocations

WISH = Revocation(RevocationReason.KEY_COMPROMISE, False, NOW - MINUTE)


@pytest.mark.parametrize(
    ("generations", "seen", "waits_for"),
    [
        ((generation(1),), (proof(1),), "a successor with another key"),
        ((generation(1), generation(2)), (proof(1),), "web1 to prove the successor"),
        ((generation(1), generation(2)), (proof(2, heard_ago=DAY),), "web1 to prove the successor"),
        ((generation(1), generation(2)), (), "web1 to prove the successor"),
        ((generation(1), generation(2)), (proof(2),), ""),
    ],
    ids=["not issued", "not served", "unheard", "no proof", "proven"],
)
def test_a_revocation_says_what_it_waits_for(
    generations: tuple[Generation, ...], seen: tuple[Any, ...], waits_for: str
) -> None:
    """For the successor first, then for who does not prove it; nothing then."""
    certificate = only(
        due(generations={NAME: generations}, proofs={WHERE: seen}, revocations={(NAME, 1): WISH})
    )

    (pending,) = certificate.revocations
    assert (1, "keyCompromise", False, NOW - MINUTE, waits_for, None) == (
        pending.generation,
        pending.reason,
        pending.at_once,
        pending.asked_at,
        pending.waits_for,
        pending.problem,
    )


def test_a_revocation_that_cannot_be_done_is_a_problem_also_of_what_left_the_config() -> None:
    """By the generation's name."""
    cannot = Problem("control.refused", "its authority is not in the config", "put it back")
    attempts = failed(f"revocation of {NAME}@1", cannot) | failed("revocation of old.test@3", cannot)
    page = view(
        due(
            generations={
                NAME: (generation(1),),
                "old.test": (replace(generation(3), certificate="old.test"),),
            },
            revocations={(NAME, 1): WISH, ("old.test", 3): WISH},
            attempts=attempts,
        )
    )

    assert [f"{NAME}@1", "old.test@3"] == [s for s in subjects(page) if "@" in s]
    (orphan,) = page.orphans
    assert [cannot] == [one.problem for one in orphan.revocations]
    assert State.PROBLEM is page.certificates[0].state


def test_a_revoked_leaf_that_is_served_is_not_proven_whatever_is_wanted() -> None:
    """It must be gone since it was revoked: it lags, and the next step is another order."""
    page = view(due(generations={NAME: (generation(1),)}, revoked={(NAME, 1): NOW - MINUTE}))

    (row,) = page.certificates[0].endpoints
    assert (Verdict.PENDING, Reason.REVOKED, Next("issue")) == (row.verdict, row.reason, row.next)
    assert (NOW - MINUTE, NOW - MINUTE, "missed") == (row.since, row.deadline, row.urgency)
    assert 0 == page.summary.proven


# Authorities


def test_each_authority_shows_its_account_and_what_is_used_of_its_limits() -> None:
    """Of each kind what is most used, and what is half used up: a limit may count for thousands of names."""
    failures = {"a.test": 1, "b.test": 1, "c.test": 2, "d.test": 3}
    spends = [Spend(SpendKind.ORDER, NOW - MINUTE, frozenset({NAME}))]
    for name, count in failures.items():
        spends += [Spend(SpendKind.FAILURE, NOW - MINUTE, frozenset({name}))] * count
    account = AccountFact(
        "pebble", "https://ca.int/dir", uri="https://ca.int/account/1", thumbprint="", recorded_at=NOW
    )
    seen = {
        "ledgers": {"pebble": Ledger.of(LIMITS, spends, domains=lambda name: name)},
        "in_flight": frozenset({(NAME,)}),
    }

    pebble, second = view(replace(due(seen=seen), accounts={"pebble": account})).authorities

    assert ("pebble", "https://ca.int/account/1", 1, False) == (
        pebble.name,
        pebble.account,
        pebble.orders,
        pebble.silent,
    )
    assert [
        ("failures_per_name", "c.test", 2, 4),
        ("failures_per_name", "d.test", 3, 4),
        ("orders", "", 1, 2),
    ] == [(one.limit, one.subject, one.used, one.count) for one in pebble.limits]
    assert NOW - MINUTE + 3 * HOUR == pebble.limits[-1].frees_at
    assert (None, 0, ()) == (second.account, second.orders, second.limits)


def test_an_authority_that_does_not_answer_is_silent_until_it_does() -> None:
    """A fallback too."""
    gone = Problem("authority.unreachable", "no answer")
    attempts = failed(problem=gone) | failed(f"{NAME} at second", gone)

    silent = view(due(attempts=attempts)).authorities
    heard = view(due(attempts=attempts, seen={"answered": {"second": NOW}})).authorities

    assert [True, True] == [one.silent for one in silent]
    assert [True, False] == [one.silent for one in heard]


def test_a_new_account_key_that_is_refused_is_a_problem_of_the_authority() -> None:
    """While it is only asked for, it is none."""
    refused = Problem("authority.refused", "authority pebble refused a new key: malformed", "try again")
    asked = view(due(rollovers=frozenset({"pebble"})))
    failing = view(due(rollovers=frozenset({"pebble"}), attempts=failed("account at pebble", refused)))

    assert (True, []) == (asked.authorities[0].new_key, subjects(asked))
    assert ("pebble", refused.detail) == (failing.problems[0].subject, failing.problems[0].detail)


def test_a_paused_account_shows_the_whole_url_that_lets_it_go_on() -> None:
    """However long its token is."""
    url = f"https://ca.int/unpause?jwt={'x' * 1900}"
    paused = Problem("authority.refused", "authority pebble refused new order: rateLimited", f"open {url}")

    (told,) = view(due(attempts=failed(problem=paused))).problems

    assert f"open {url}" == told.hint
