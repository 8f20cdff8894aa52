"""What is remembered of a step that failed: how often in a row, since when, and when it may be tried again."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from certfan.core.attempts import UNANSWERED, UNREACHABLE, after_failure
from certfan.core.model import Attempt, Problem, Reason
from certfan.core.steps import (
    AskRenewal,
    Issue,
    Publish,
    Revoke,
    RollAccountKey,
    RollBack,
    Step,
    TidyOrders,
)
from certfan.errors import AuthorityUnreachable, OrderUnanswered
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW, WEB1, WWW

SECOND = timedelta(seconds=1)
ISSUE = Issue(WWW, Reason.MISSING, "ca")
REFUSED, SILENT = Problem("authority.refused", "no"), Problem(UNREACHABLE, "no answer")


def waits(step: Step, *problems: Problem) -> list[float]:
    """Return the minutes that each of some failures in a row has to wait."""
    attempt: Attempt | None = None
    now, found = NOW, []
    for problem in problems:
        attempt = after_failure(step, WWW, problem, attempt, now, jitter=0.0)
        found.append((attempt.not_before - now) / MINUTE)
        now = attempt.not_before
    return found


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (ISSUE, [1, 10, 100, 1440, 1440]),
        (Revoke(WWW, 1), [1, 10, 100, 1440, 1440]),
        (TidyOrders("ca"), [1, 10, 100, 1440, 1440]),
        (RollAccountKey("ca"), [1, 10, 100, 1440, 1440]),
        (AskRenewal(WWW, 1), [1, 10, 100, 360, 360]),
        (Publish(WWW, WEB1, 1), [1 / 60, 2 / 60, 4 / 60, 8 / 60, 15 / 60]),
        (RollBack(WWW, 1), [1 / 60, 2 / 60, 4 / 60, 8 / 60, 15 / 60]),
    ],
)
def test_each_kind_of_step_has_its_own_patience(step: Step, expected: list[float]) -> None:
    """What spends something at an authority is tried rarely, what is ours alone soon."""
    assert expected == pytest.approx(waits(step, *[REFUSED] * 5))


def test_an_order_that_may_have_been_heard_is_a_try_like_any_other() -> None:
    """The first two are sent again soon, as mostly a connection broke; in the end it is sent no more often than daily."""
    lost = Problem(OrderUnanswered.code, "the answer broke off")

    assert OrderUnanswered.code == UNANSWERED
    assert [5 / 60, 15 / 60, 100, 1440, 1440] == pytest.approx(waits(ISSUE, *[lost] * 5))
    assert [1, 5 / 60] == pytest.approx(waits(ISSUE, REFUSED, lost))


def test_a_silent_authority_is_asked_soon_and_often() -> None:
    """5 s, 15 s, 1 min, then every 5 min: nothing was spent there. Only orders are that patient."""
    assert [5 / 60, 15 / 60, 1, 5, 5] == pytest.approx(waits(ISSUE, *[SILENT] * 5))
    assert [1, 10] == waits(AskRenewal(WWW, 1), SILENT, SILENT)


def test_a_silence_is_not_counted_against_the_order() -> None:
    """The first refusal after an outage waits a minute; and an outage between refusals forgives none of them."""
    after_outage = waits(ISSUE, *[SILENT] * 20, REFUSED, REFUSED)
    in_between = waits(ISSUE, REFUSED, SILENT, REFUSED, SILENT, SILENT, REFUSED)

    assert [1, 10] == after_outage[-2:]
    assert [1, 5 / 60, 10, 5 / 60, 15 / 60, 100] == pytest.approx(in_between)


def test_the_code_of_a_silence_is_that_of_its_error() -> None:
    """The planner knows no errors, so the word stands here twice."""
    assert AuthorityUnreachable.code == UNREACHABLE


def test_a_row_of_failures_keeps_its_beginning() -> None:
    """Whatever failed then; a beginning in the future, from before the clock was set back, becomes now."""
    first = after_failure(ISSUE, WWW, SILENT, None, NOW, jitter=0)
    then = after_failure(ISSUE, WWW, REFUSED, first, NOW + HOUR, jitter=0)

    def since(before: Attempt, now: datetime) -> datetime | None:
        return after_failure(ISSUE, WWW, REFUSED, before, now, jitter=0).since

    assert (NOW, NOW) == (first.since, then.since)
    assert NOW == since(then, NOW + DAY)
    assert NOW - DAY == since(then, NOW - DAY)
    told_by_0_1_0 = Attempt(WWW, REFUSED, 3, NOW, NOW)
    assert NOW == since(told_by_0_1_0, NOW + DAY)


def test_retry_after_is_obeyed_where_an_authority_said_it() -> None:
    """Up to a day."""
    later = Problem("authority.refused", "rateLimited", not_before=NOW + 3 * HOUR)

    assert [180.0] == waits(ISSUE, later)
    assert [180.0] == waits(AskRenewal(WWW, 1), later)
    assert [1440.0] == waits(ISSUE, Problem("authority.refused", "rateLimited", not_before=NOW + 9 * DAY))
