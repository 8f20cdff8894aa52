"""What is worth a message: the page's problems by stage, and what has changed since somebody was last told. Pure.

What must never come in: how a message looks (message.py), who gets it (notifier.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

from certfan.core import policy
from certfan.core.policy import Urgency
from certfan.daemon.status.model import CertificateView, Needs, Page, Verdict

LATE = "deadline.near"  # an endpoint that has no problem of its own, and little time


class Stage(StrEnum):
    """How a problem stands."""

    PROBLEM = "problem"
    NEAR = "near"  # still there, in the last tenth of the time or past it
    RECOVERED = "recovered"

    @property
    def rank(self) -> int:
        """So that a problem is told of again only when it has become worse."""
        return (Stage.RECOVERED, Stage.PROBLEM, Stage.NEAR).index(self)


Key: TypeAlias = tuple[str, str]  # subject and code: a text that changes is no new problem


@dataclass(frozen=True, slots=True)
class Notice:
    """One problem as it stands."""

    stage: Stage
    subject: str
    code: str
    detail: str
    hint: str
    since: datetime | None
    deadline: datetime | None

    @property
    def key(self) -> Key:
        """What it is remembered by."""
        return self.subject, self.code


@dataclass(frozen=True, slots=True)
class Told:
    """What somebody was last told of a problem that had not ended then."""

    stage: Stage
    detail: str
    since: datetime | None


def notices(page: Page) -> dict[Key, Notice]:
    """Return all that is wrong now; of what is wrong twice in one thing the worse."""
    certificates = {one.name: one for one in page.certificates}
    found: dict[Key, Notice] = {}
    for notice in (*(_problem(one, certificates, page.now) for one in page.problems), *_late(page)):
        known = found.get(notice.key)
        if known is None or notice.stage.rank > known.stage.rank:
            found[notice.key] = notice
    return found


def _problem(need: Needs, certificates: Mapping[str, CertificateView], now: datetime) -> Notice:
    deadline = need.deadline
    if (
        deadline is None
        and (leaf := certificates.get(need.subject)) is not None
        and leaf.not_after is not None
    ):
        deadline = policy.leafs_deadline(leaf.not_before, leaf.not_after)
    return Notice(
        _stage(need.since, deadline, now),
        need.subject,
        need.code,
        need.detail,
        need.hint,
        need.since,
        deadline,
    )


def _stage(since: datetime | None, deadline: datetime | None, now: datetime) -> Stage:
    if deadline is None:
        return Stage.PROBLEM
    urgency = policy.urgency(since or now, deadline, now)
    return Stage.NEAR if urgency.rank >= Urgency.PRESSING.rank else Stage.PROBLEM


def _late(page: Page) -> Iterator[Notice]:
    """Yield endpoints that only wait, but have waited until little time is left."""
    for certificate in page.certificates:
        for row in certificate.endpoints:
            if row.verdict is Verdict.PROVEN or row.problem or row.urgency.rank < Urgency.PRESSING.rank:
                continue
            subject = f"{row.certificate}/{row.consumer}"
            detail = f"{row.endpoint or row.consumer} is {row.verdict} ({row.reason}), next: {row.next.step}"
            hint = f"run: certfan why {row.certificate}"
            yield Notice(Stage.NEAR, subject, LATE, detail, hint, row.since, row.deadline)


def changes(told: Mapping[Key, Told], now: Mapping[Key, Notice]) -> tuple[Notice, ...]:
    """Return what is to be told: what came, what became worse, and what is over."""
    news = [one for key, one in now.items() if key not in told or one.stage.rank > told[key].stage.rank]
    over = (
        Notice(Stage.RECOVERED, subject, code, before.detail, "", before.since, None)
        for (subject, code), before in told.items()
        if (subject, code) not in now
    )
    return (*sorted(news, key=lambda one: -one.stage.rank), *over)
