"""What is remembered of a step that failed: how often in a row, since when, and when it may be tried again."""

from __future__ import annotations

from datetime import datetime

from certfan.core import policy
from certfan.core.model import Attempt, Problem
from certfan.core.steps import AskRenewal, Issue, Revoke, RollAccountKey, Step, TidyOrders

UNREACHABLE = "authority.unreachable"


def after_failure(
    step: Step, subject: str, problem: Problem, before: Attempt | None, now: datetime, *, jitter: float
) -> Attempt:
    """Return the fact that a step failed once more; `before` is what was known under its subject.

    An order that got no answer spent nothing at the authority, so it is not counted: what fails after it is not
    tried more rarely for that.
    """
    is_silence = isinstance(step, Issue) and problem.code == UNREACHABLE
    failures = (before.failures if before is not None else 0) + (not is_silence)
    # The clock may have been set back since it began.
    since = min(before.since or before.at, now) if before is not None else now
    not_before = (
        _after_silence(before, now, jitter) if is_silence else _next(step, failures, problem, now, jitter)
    )
    return Attempt(subject, problem, failures, now, not_before, since)


def _after_silence(before: Attempt | None, now: datetime, jitter: float) -> datetime:
    is_first = before is None or before.problem.code != UNREACHABLE
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
