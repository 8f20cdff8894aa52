"""What is remembered of a step that failed: how often in a row, since when, and when it may be tried again."""

from __future__ import annotations

from datetime import datetime

from certfan.core import policy
from certfan.core.model import Attempt, Problem
from certfan.core.steps import AskRenewal, Issue, Revoke, RollAccountKey, Step, TidyOrders

UNREACHABLE, UNANSWERED = "authority.unreachable", "authority.unanswered"
SOON_AGAIN = 2  # of newOrders in a row that may have been heard


def after_failure(
    step: Step, subject: str, problem: Problem, before: Attempt | None, now: datetime, *, jitter: float
) -> Attempt:
    """Return the fact that a step failed once more; `before` is what was known under its subject.

    An order that never reached the authority spent nothing there, so it is not counted: what fails after it is not
    tried more rarely for that. One that may have been heard is, but the first two are sent again soon: mostly a
    connection broke.
    """
    is_silence = isinstance(step, Issue) and problem.code == UNREACHABLE
    failures = (before.failures if before is not None else 0) + (not is_silence)
    # The clock may have been set back since it began.
    since = min(before.since or before.at, now) if before is not None else now
    if is_silence or (isinstance(step, Issue) and problem.code == UNANSWERED and failures <= SOON_AGAIN):
        not_before = _after_silence(problem, before, now, jitter)
    else:
        not_before = _next(step, failures, problem, now, jitter)
    return Attempt(subject, problem, failures, now, not_before, since)


def _after_silence(problem: Problem, before: Attempt | None, now: datetime, jitter: float) -> datetime:
    is_first = before is None or before.problem.code != problem.code
    waited = None if is_first or before is None else before.not_before - before.at
    return policy.next_unreachable_try(waited, now, jitter=jitter)


def _next(step: Step, failures: int, problem: Problem, now: datetime, jitter: float) -> datetime:
    match step:
        case AskRenewal():
            return policy.next_ask(failures, now, jitter=jitter, not_before=problem.not_before)
        case Issue() | Revoke() | TidyOrders() | RollAccountKey():
            return policy.next_try(failures, now, jitter=jitter, not_before=problem.not_before)
        case _:
            return policy.next_short_try(failures, now, jitter=jitter)
