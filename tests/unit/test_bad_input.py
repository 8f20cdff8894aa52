"""Bad input, part by part: what tells of it, what lifts its wait. The same on the real parts is tests/real/test_bad_input.py."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certfan import toml
from certfan.agent.link import Link
from certfan.core import policy
from certfan.core.agent_steps import Apply, Outcome, TryState, Why
from certfan.core.model import Attempt, Deployment, DeploymentState, Problem
from certfan.core.plan import Issue, Observed, plan
from certfan.core.tries import failed, setback
from certfan.daemon.desk.board import Noticeboard
from certfan.daemon.journal import Journal
from certfan.daemon.store import Store
from certfan.errors import ConfigInvalid, EnrolmentRefused, NotAllowed, NotAuthenticated
from certfan.protocol.messages import Report
from tests.unit.channel_parts import FLEET, Yard, running_yard
from tests.unit.planner_parts import HOUR, MINUTE, NOW, WEB1, WWW, make_certificate, make_desired
from tests.unit.test_deployment import TRIED

TEST_FAILED = Problem(
    "service.config_test_failed", "config test of apache2 failed", "run: apache2ctl configtest"
)
SOON = timedelta(seconds=30)


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with running_yard(tmp_path / "daemon") as yard:
        yield yard


# Waits that end by themselves


@pytest.mark.parametrize(("code", "lifted"), [("authority.unreachable", True), ("authority.refused", False)])
def test_an_authority_that_answers_again_ends_the_wait_for_it(code: str, lifted: bool) -> None:
    """Only of orders that failed because it did not answer, and only once."""
    attempt = Attempt(WWW, Problem(code, "no"), 4, NOW, NOW + HOUR)
    observed = Observed(attempts={WWW: attempt}, answered={"ca": NOW + MINUTE})
    desired = make_desired(make_certificate())

    def orders(at: datetime, seen: Observed = observed) -> bool:
        return any(isinstance(step, Issue) for step in plan(desired, seen, at).steps)

    assert not orders(NOW + MINUTE / 2)
    assert orders(NOW + MINUTE) is lifted
    again = replace(attempt, at=NOW + 2 * MINUTE)
    assert not orders(NOW + 3 * MINUTE, replace(observed, attempts={WWW: again}))


@pytest.mark.parametrize("failures", [0, 1, 5, 50])
def test_a_failing_config_test_is_tried_again_soon_however_often_it_failed(failures: int) -> None:
    """Mending it is all it takes; another failure of the pair backs off as ever."""
    outcome = Outcome(TryState.TRYING, NOW, failures=failures)

    tested = failed(outcome, TEST_FAILED, NOW, jitter=0.99).not_before
    broke = failed(outcome, Problem("probe.refused", "no"), NOW).not_before

    assert tested is not None
    assert NOW < tested <= NOW + SOON
    assert policy.next_apply(failures + 1, NOW) == broke


@pytest.mark.parametrize("code", ["service.apply_unavailable", "service.config_test_failed"])
def test_a_repair_that_could_not_be_done_is_tried_again_soon(code: str) -> None:
    """Also after a day of it."""
    step = Apply(((WWW, 2),), Why.REPAIR)
    before = {WWW: Attempt(WWW, TEST_FAILED, 99, NOW, NOW)}

    after = setback(step, replace(TRIED, apply_attempts=before), Problem(code, "no"), NOW, jitter=0.99)

    assert NOW < after.apply_attempts[WWW].not_before <= NOW + SOON


# What is told


def test_a_half_written_file_is_told_with_line_and_column() -> None:
    """Also where the end of the file is what is wrong."""
    with pytest.raises(ConfigInvalid) as caught:
        toml.parse(b'[[certificate]]\nnames = ["a', where="bad.toml")

    assert caught.value.problems == (
        "bad.toml: unterminated string (at line 2, column 12, the end of the file)",
    )


async def test_a_consumer_that_asks_for_anothers_bundle_is_told_of(yard: Yard, tmp_path: Path) -> None:
    """The board hears who wanted what; of strangers it hears nothing."""
    yard.assign("mail1", "e.1", "b.example")
    async with yard.link(await yard.identify("web1", tmp_path / "web1")) as web1:
        with pytest.raises(NotAllowed):
            await web1.bundle("b.example", 1)
    async with yard.link(await yard.identify("web2", tmp_path / "web2", known=False)) as stranger:
        with pytest.raises(NotAuthenticated):
            await stranger.bundle("b.example", 1)

    assert [(error.subject, error.text) for error in yard.refusals] == [
        ("web1", "b.example@1 is not assigned to web1")
    ]
    assert yard.refusals[0].hint


async def test_an_identity_of_another_consumer_is_not_used(yard: Yard, tmp_path: Path) -> None:
    """web1's files on mail1's machine: nothing is sent, and the error names both and the remedy."""
    copied = await yard.identify("web1", tmp_path / "web1")
    ca_pem = yard.ca.ca.cert_pem
    async with Link(yard.address, copied, fleet=FLEET, ca_pem=ca_pem, consumer="mail1") as link:
        with pytest.raises(NotAuthenticated) as caught:
            await link.assignments()
    async with Link(yard.address, copied, fleet=FLEET, ca_pem=ca_pem, consumer="web1") as link:
        await link.assignments()

    assert (
        caught.value.text == f"{copied}/cert.pem is the identity of consumer web1, and this machine is mail1"
    )
    assert "certfan consumer add mail1" in caught.value.hint
    assert yard.reads == 1


async def test_an_identity_that_is_garbage_does_not_end_the_agent(yard: Yard, tmp_path: Path) -> None:
    """It is refused as what it is: no identity."""
    folder = await yard.identify("web1", tmp_path / "web1")
    (folder / "cert.pem").write_text("-----BEGIN")

    async with Link(yard.address, folder, fleet=FLEET, ca_pem=yard.ca.ca.cert_pem, consumer="web1") as link:
        with pytest.raises(NotAuthenticated, match="does not load"):
            await link.assignments()


async def test_a_deployment_that_fails_again_alike_is_told_once(tmp_path: Path) -> None:
    """Every 25 s the same failure, then success: one line for it and one for each state after it."""
    now = datetime.now(UTC)
    store = await Store.open(tmp_path / "certfan.db", lambda: now)
    await store.add_consumer(WEB1, now)
    await store.offer([(WWW, WEB1, 2)], now)
    journal = Journal(store, lambda: now)
    board = _board(store, journal, now)
    told = [Deployment(WWW, WEB1, 2, DeploymentState.FAILED, now + n * SOON, TEST_FAILED) for n in range(3)]
    done = [
        Deployment(WWW, WEB1, 2, state, now + 3 * SOON + timedelta(seconds=n))
        for n, state in enumerate(
            (DeploymentState.INSTALLED, DeploymentState.RELOADED, DeploymentState.PROVEN)
        )
    ]

    reports = [[one] for one in told] + [[told[-1], *done[: n + 1]] for n in range(3)]
    for number, deployments in enumerate(reports, 1):
        report = Report.of(deployments, (), boot_id="b", sequence=number, sent_at=now, version="1")
        await board.report(WEB1, report)

    events = await store.last_events(20)
    await store.close()
    names = [event.name for event in events]
    assert names == ["deployment.failed", "deployment.installed", "deployment.reloaded", "deployment.proven"]
    assert events[0].fields["hint"] == TEST_FAILED.hint


async def test_a_refusal_is_in_the_journal_with_code_and_remedy(tmp_path: Path) -> None:
    """So that `certfan events` shows it."""
    store = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    refused = EnrolmentRefused(
        "enrolment token of web1 is used", subject="web1", hint="run: certfan consumer add web1"
    )

    await _board(store, Journal(store, lambda: NOW), NOW).refused(refused)

    (event,) = await store.last_events(5)
    await store.close()
    assert (event.name, event.subject) == ("request.refused", "web1")
    assert dict(event.fields) == {"code": refused.code, "detail": refused.text, "hint": refused.hint}


def _board(store: Store, journal: Journal, now: datetime) -> Noticeboard:
    return Noticeboard(
        store=store,
        bundles=None,  # type: ignore[arg-type]
        enroller=None,  # type: ignore[arg-type]
        journal=journal,
        desired=lambda: make_desired(make_certificate()),
        ring=lambda: None,
        clock=lambda: now,
    )
