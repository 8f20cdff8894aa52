"""The page: which verdict an endpoint gets, why, and by when it must agree."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest

from certfan.core import policy
from certfan.core.custody import SigningRequest
from certfan.core.model import (
    Attempt,
    Custody,
    DeploymentState,
    Health,
    Problem,
    Proof,
    Reason,
)
from certfan.core.plan import Publish
from certfan.core.subjects import rollover_subject
from certfan.daemon.notifying.notices import notices
from certfan.daemon.status.metrics import exposition
from certfan.daemon.status.model import Next, RemoteLog, Row, State, Verdict, as_json
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import view
from certfan.daemon.store.facts import Run
from tests.unit.status_parts import (
    DAY,
    DESIRED,
    HEARD,
    HTTPS,
    MINUTE,
    NOW,
    WHERE,
    deployment,
    generation,
    proof,
    things,
)


def only_row(of: StateOfThings) -> Row:
    (certificate,) = view(of).certificates
    (row,) = certificate.endpoints
    return row


def test_a_fresh_proof_of_the_wanted_leaf_is_proven() -> None:
    """The row says what was seen, when, and when it is looked at again."""
    row = only_row(things(proofs={WHERE: (proof(),)}, deployments={WHERE: (deployment(1),)}))

    assert row.verdict is Verdict.PROVEN
    assert row.reason is None
    assert row.heard_at == NOW - MINUTE
    assert row.next == Next("probe", NOW + 4 * MINUTE)
    assert row.deadline == policy.endpoint_deadline(proof(), NOW)
    assert row.problem is None


def test_killing_an_agent_turns_its_rows_from_proven_to_unheard() -> None:
    """Two probe intervals after the daemon last heard of it, a proof says nothing any more; the deadline runs on."""
    seen = {"proofs": {WHERE: (proof(heard_ago=10 * MINUTE),)}, "deployments": {WHERE: (deployment(1),)}}

    before, after = only_row(things(now=NOW - timedelta(seconds=1), **seen)), only_row(things(**seen))

    assert before.verdict is Verdict.PROVEN
    assert after.verdict is Verdict.UNHEARD
    assert after.since == NOW
    assert after.reason == "not_heard"
    assert after.deadline == before.deadline
    assert after.problem is not None
    assert after.problem.hint == "run on web1: systemctl status certfan-agent"


@pytest.mark.parametrize(
    ("seen", "state", "expected"),
    [
        (proof(1), None, Verdict.PENDING),
        (proof(1), DeploymentState.INSTALLED, Verdict.PENDING),
        (proof(1), DeploymentState.RELOADED, Verdict.OLD_LEAF),
        (proof(1), DeploymentState.FAILED, Verdict.OLD_LEAF),
        (proof(2), DeploymentState.RELOADED, Verdict.PROVEN),
        (proof(9, placeholder=True), None, Verdict.PLACEHOLDER),
        (proof(9), DeploymentState.RELOADED, Verdict.FOREIGN),
        (proof(health=Health.REFUSED), DeploymentState.PROVEN, Verdict.REFUSED),
        (proof(health=Health.UNREACHABLE), DeploymentState.PROVEN, Verdict.UNREACHABLE),
        (proof(2, heard_ago=11 * MINUTE), DeploymentState.PROVEN, Verdict.UNHEARD),
        (proof(2, heard_ago=-DAY), DeploymentState.PROVEN, Verdict.UNHEARD),
    ],
)
def test_what_is_seen_decides_the_verdict(
    seen: Proof, state: DeploymentState | None, expected: Verdict
) -> None:
    """Generation 2 is wanted; an old leaf is a fault only when the agent says that it is done."""
    deployments = {WHERE: (deployment(1), deployment(2, state))} if state else {}

    row = only_row(
        things(
            generations={"www.test": (generation(1), generation(2))},
            offered={WHERE: 2},
            proofs={WHERE: (seen,)},
            deployments=deployments,
        )
    )

    assert row.verdict is expected


def test_a_served_leaf_of_ours_names_its_generation() -> None:
    """During a rollout the row shows both numbers, and the deadline is that of the leaf which is served."""
    row = only_row(
        things(generations={"www.test": (generation(1), generation(2))}, proofs={WHERE: (proof(1),)})
    )

    assert row.wanted is not None
    assert row.served is not None
    assert (row.wanted.generation, row.served.generation) == (2, 1)
    assert row.deadline == policy.endpoint_deadline(proof(1), NOW)


def test_the_leaf_of_a_roll_back_is_proven_under_its_new_number() -> None:
    """Its older number has the same leaf, and is not what is wanted any more."""
    copy = dataclasses.replace(generation(3), fingerprint=generation(1).fingerprint, copy_of=1)
    facts = {"generations": {"www.test": (generation(1), generation(2), copy)}}
    certificate = view(things(proofs={WHERE: (proof(1),)}, **facts)).certificates[0]

    assert (3, 1) == (certificate.generation, certificate.copy_of)
    assert (Verdict.PROVEN, 3) == (
        certificate.endpoints[0].verdict,
        certificate.endpoints[0].served and certificate.endpoints[0].served.generation,
    )


def test_a_wanted_leaf_that_has_expired_is_not_proven_by_anybodys_words() -> None:
    """It is served, and every reader turns away: the model says so, and page, metrics and messages repeat it."""
    gone = generation(1, NOW - 91 * DAY)
    found = things(
        generations={"www.test": (gone,)},
        proofs={WHERE: (proof(not_before=gone.not_before, not_after=gone.not_after),)},
        deployments={WHERE: (deployment(1),)},
    )
    page, row = view(found), only_row(found)

    assert (Verdict.EXPIRED, "renewal_due", NOW - DAY) == (row.verdict, row.reason, row.since)
    assert (policy.Urgency.MISSED, Next("issue")) == (row.urgency, row.next)
    assert ("0 of 1 proven (1 expired)", State.PROBLEM) == (page.summary.text, page.summary.state)
    assert [("www.test/web1", "endpoint.expired", "run: certfan why www.test", NOW - DAY)] == [
        (one.subject, one.code, one.hint, one.since) for one in page.problems
    ]
    assert ("www.test/web1", "endpoint.expired") in notices(page)
    assert b'certfan_endpoints{verdict="expired"} 1.0' in exposition(page)
    assert b'certfan_certificate_ready_status{condition="True",name="www.test"} 0.0' in exposition(page)


def test_a_clock_in_doubt_calls_no_leaf_expired() -> None:
    """One that jumped ahead by a year would have every endpoint missed, and everybody woken."""
    gone = generation(1, NOW - 91 * DAY)
    row = only_row(
        things(generations={"www.test": (gone,)}, proofs={WHERE: (proof(),)}, seen={"clock_trusted": False})
    )

    assert row.verdict is Verdict.PROVEN


def test_a_revoked_leaf_must_be_gone_at_its_revocation() -> None:
    """A revocation pulls the deadline forward."""
    row = only_row(
        things(
            generations={"www.test": (generation(1), generation(2))},
            proofs={WHERE: (proof(1),)},
            revoked={("www.test", 1): NOW - MINUTE},
        )
    )

    assert row.deadline == NOW - MINUTE


@pytest.mark.parametrize("seen", [proof(9, placeholder=True), proof(9), proof(health=Health.REFUSED)])
def test_where_nothing_of_ours_is_served_an_hour_is_left(seen: Proof) -> None:
    """The hour counts from the moment at which the endpoint should have got it, not from each look."""
    row = only_row(things(proofs={WHERE: (seen,)}))

    assert row.deadline == generation(1).issued_at + timedelta(hours=1)


def test_a_consumer_that_reported_no_endpoint_has_one_row() -> None:
    """Assigned and not heard of yet is pending, with what to do about it if the consumer never reported."""
    row = only_row(things(heard={}))

    assert row.endpoint is None
    assert row.verdict is Verdict.PENDING
    assert row.problem is not None
    assert row.problem.code == "consumer.never_heard"
    assert "certfan consumer add web1" in row.problem.hint


def test_a_consumer_that_went_silent_before_it_reported_an_endpoint_is_unheard() -> None:
    """A dead agent shows also where it never proved anything."""
    row = only_row(things(heard={"web1": dataclasses.replace(HEARD, at=NOW - DAY)}))

    assert row.verdict is Verdict.UNHEARD
    assert row.heard_at == NOW - DAY


@pytest.mark.parametrize(
    ("facts", "live", "reason", "step"),
    [
        ({"generations": {}, "offered": {}}, {}, "missing", "issue"),
        ({"offered": {}}, {}, "not_published", "publish"),
        ({}, {WHERE: 1}, "not_deployed", "install"),
        ({"deployments": {WHERE: (deployment(1, DeploymentState.RELOADED),)}}, {}, "not_served", "probe"),
    ],
)
def test_the_reason_names_the_stage_and_the_next_step(
    facts: dict[str, Any], live: dict[tuple[str, str], int], reason: str, step: str
) -> None:
    """From nothing issued to nothing served."""
    row = only_row(dataclasses.replace(things(**facts), live=live))

    assert (row.reason, row.next.step) == (reason, step)


def test_a_step_under_way_is_the_next_one() -> None:
    """What the reconciler does right now is shown without an instant."""
    now = dataclasses.replace(
        things(offered={}),
        live={},
        in_flight={("www.test", "web1"): Publish("www.test", "web1", 1)},
    )

    assert only_row(now).next == Next("publish")


def test_a_failed_deployment_shows_the_agents_problem_and_its_next_try() -> None:
    """The cause at the consumer comes before its effect at the port."""
    problem = Problem(
        "service.config_test_failed", "apache2: syntax error", "run: apachectl -t", NOW + MINUTE
    )
    page = view(
        things(
            generations={"www.test": (generation(1), generation(2))},
            deployments={WHERE: (deployment(2, DeploymentState.FAILED, problem),)},
            proofs={WHERE: (proof(1),)},
        )
    )

    (row,) = page.certificates[0].endpoints
    assert row.problem == problem
    assert row.next == Next("install", NOW + MINUTE)
    assert page.certificates[0].state is State.PROBLEM
    assert [(n.subject, n.hint) for n in page.problems] == [("www.test/web1", "run: apachectl -t")]


def test_a_failed_hook_is_a_problem_of_an_endpoint_that_is_proven() -> None:
    """The leaf is served, and the deployment has failed all the same; its next try is shown."""
    problem = Problem("service.hook_failed", "hook of apache2 failed", not_before=NOW + MINUTE)
    page = view(
        things(
            deployments={WHERE: (deployment(1, DeploymentState.FAILED, problem),)},
            proofs={WHERE: (proof(1),)},
        )
    )

    (row,) = page.certificates[0].endpoints
    assert (row.verdict, row.problem) == (Verdict.PROVEN, problem)
    assert row.next == Next("install", NOW + MINUTE)
    assert page.certificates[0].state is State.PROBLEM


def test_a_failed_order_shows_what_the_authority_said_and_when_it_is_tried_again() -> None:
    """A certificate without a generation is a problem while its order is held back."""
    problem = Problem("authority.refused", "order for www.test is invalid", "run: certfan renew www.test")
    attempt = Attempt("www.test", problem, 2, NOW - MINUTE, NOW + 9 * MINUTE)

    (certificate,) = view(things(generations={}, offered={}, attempts={"www.test": attempt})).certificates

    assert certificate.state is State.PROBLEM
    assert certificate.problem == problem
    assert certificate.next == Next("issue", NOW + 9 * MINUTE)
    assert certificate.failures == 2


def test_a_healthy_certificate_says_when_it_is_renewed() -> None:
    """At two thirds of its lifetime, by the planner's own rule."""
    (certificate,) = view(
        things(proofs={WHERE: (proof(),)}, deployments={WHERE: (deployment(1),)})
    ).certificates

    assert certificate.state is State.OK
    assert certificate.next == Next("renew", policy.renewal_instant(generation(1), None))


def test_the_summary_counts_and_names_the_worst_deadline() -> None:
    """The first line of the page is enough to go back to bed, or not."""
    smtp = dataclasses.replace(HTTPS, service="postfix", protocol="smtp", port=25)
    late = dataclasses.replace(proof(9, placeholder=True), endpoint=smtp)
    page = view(things(proofs={WHERE: (proof(), late)}, deployments={WHERE: (deployment(1),)}))

    assert page.summary.text == "1 of 2 proven (1 placeholder)"
    assert page.summary.worst_deadline == deployment(1).at + timedelta(hours=1)
    assert page.summary.state is State.PROBLEM


def test_problems_of_config_clock_and_share_come_first() -> None:
    """What stops everything stands above what stops one thing; a dead agent is one problem, not one a row."""
    smtp = dataclasses.replace(proof(heard_ago=DAY), endpoint=dataclasses.replace(HTTPS, port=25))
    page = view(
        dataclasses.replace(
            things(proofs={WHERE: (proof(heard_ago=DAY), smtp)}),
            config_problems=(
                Problem("config.invalid", "certfan.toml: flet: unknown key", "run: certfan check"),
            ),
            share_problem=Problem("share.unavailable", "/srv/le is not mounted", "run: mount /srv/le"),
            clock_problem=Problem("clock", "it jumped", "run: timedatectl status"),
        )
    )

    assert [n.subject for n in page.problems] == ["config", "clock", "share", "web1"]


def test_a_problem_says_since_when_and_by_when_it_must_end() -> None:
    """The rows of one dead agent are one problem, from when it went silent to the deadline that comes first."""
    older = dataclasses.replace(
        proof(heard_ago=DAY, not_after=NOW + 40 * DAY), endpoint=dataclasses.replace(HTTPS, port=993)
    )
    of = things(proofs={WHERE: (proof(heard_ago=DAY), older)})

    (problem,) = view(of).problems
    first, second = view(of).certificates[0].endpoints

    assert (problem.code, problem.since) == ("consumer.unheard", NOW - DAY + 10 * MINUTE)
    assert problem.deadline == second.deadline < first.deadline


def test_while_the_clock_is_in_doubt_nothing_is_shown_as_due() -> None:
    """What the plan will not begin is not announced either."""
    late = NOW + 70 * DAY
    reasons = [
        view(things(late, seen={"clock_trusted": trusted})).certificates[0].reason
        for trusted in (True, False)
    ]

    assert reasons == [Reason.RENEWAL_DUE, None]


def test_an_endpoint_that_fails_long_after_it_was_proven_has_an_hour_from_then_on() -> None:
    """Since when it fails, and so its deadline, is when it changed, not when the generation was deployed."""
    lost = dataclasses.replace(proof(health=Health.UNREACHABLE), since=NOW - MINUTE)
    page = view(things(proofs={WHERE: (lost,)}, deployments={WHERE: (deployment(1),)}))

    row = page.certificates[0].endpoints[0]

    assert (NOW - MINUTE, NOW - MINUTE + timedelta(hours=1)) == (row.since, row.deadline)


def test_resets_of_the_machine_are_counted() -> None:
    """An unclean end with another boot after it was a reset; within one boot it was only the process."""
    runs = (
        Run(4, "boot-3", pid=9, epoch="d", remembered_until=NOW, began_at=NOW - MINUTE),
        Run(3, "boot-2", pid=9, epoch="c", remembered_until=NOW, began_at=NOW - 2 * MINUTE),
        Run(2, "boot-2", pid=8, epoch="b", remembered_until=NOW, began_at=NOW - 3 * MINUTE),
        Run(
            1, "boot-1", pid=7, epoch="a", remembered_until=NOW, began_at=NOW - DAY, ended_at=NOW - 4 * MINUTE
        ),
    )

    page = view(dataclasses.replace(things(), runs=runs))

    assert [(r.number, r.clean, r.after_reset) for r in page.runs] == [
        (4, None, True),
        (3, False, False),
        (2, False, False),
        (1, True, False),
    ]
    assert page.summary.resets_today == 1


def test_an_order_says_whose_csr_it_waits_for_and_why_that_takes_long() -> None:
    """Seconds are no problem; minutes are, and at once an agent that makes none, or a CSR that was refused."""
    certificate = dataclasses.replace(DESIRED.certificates["www.test"], custody=Custody.CONSUMER)
    desired = dataclasses.replace(DESIRED, certificates={"www.test": certificate})
    asked = SigningRequest(
        "www.test",
        "web1",
        generation=1,
        identifiers=frozenset(certificate.identifiers),
        key_type=certificate.key_type,
        asked_at=NOW - timedelta(seconds=5),
    )
    late = dataclasses.replace(asked, asked_at=NOW - 3 * MINUTE)
    refused = dataclasses.replace(asked, problem=Problem("x", "it has a weak key", "look there"))
    old = {"web1": dataclasses.replace(HEARD, install="")}

    def seen(one: SigningRequest, **facts: Any) -> tuple[str, str | None]:
        of = things(desired=desired, generations={}, offered={}, signing_requests={"www.test": one}, **facts)
        (found,) = view(of).certificates
        assert found.held is not None
        assert (one.asked_at if found.problem else None) == found.problem_since
        return found.held.why, found.problem.detail if found.problem else None

    waits = "waits for the CSR of web1"
    assert (waits, None) == seen(asked)
    assert (waits, waits) == seen(late)
    assert (waits, f"{waits}, whose agent is of a release that makes none (0.1.0)") == seen(asked, heard=old)
    assert "the CSR of web1 was refused: it has a weak key" == seen(refused)[1]


def test_the_page_is_json() -> None:
    """Every value of it has a wire form; instants are ISO 8601 in UTC with Z, spans whole seconds."""
    told = json.loads(json.dumps(as_json(view(things(proofs={WHERE: (proof(),)})))))

    row = told["certificates"][0]["endpoints"][0]
    assert row["endpoint"]["url"] == "tls://www.test@192.0.2.1:443"
    assert row["heard_at"] == "2026-11-22T11:59:00Z"
    assert row["wanted"] == {"generation": 1, "fingerprint": f"{1:064x}"}


def test_what_the_daemon_itself_has_and_what_a_consumer_has_is_told_since_when() -> None:
    """Of the three questions of an operator the second: for the clock, the log, the share, consumers, channels, accounts."""
    ill = Problem("x", "it is not well")
    failed = Attempt("rollover pebble", ill, 2, NOW - MINUTE, NOW + MINUTE, since=NOW - 5 * MINUTE)
    found = things(seen={"rollovers": {"pebble"}, "attempts": {rollover_subject("pebble"): failed}})
    subjects = ("clock", "log", "web1", "notify chat")
    page = view(
        dataclasses.replace(
            found,
            clock_problem=ill,
            remote_log=RemoteLog(target="tls://log.int:6514", problem=ill, waiting=0, dropped=0),
            share_problem=ill,
            share_lost_at=NOW - 6 * MINUTE,
            consumer_problems={"web1": ill},
            notify_problems={"chat": ill},
            since={subject: NOW - number * MINUTE for number, subject in enumerate(subjects)},
        )
    )

    since = {one.subject: one.since for one in page.problems if one.code == "x"}
    expected = {subject: NOW - number * MINUTE for number, subject in enumerate(subjects)}
    assert expected | {"share": NOW - 6 * MINUTE, "pebble": NOW - 5 * MINUTE} == since
