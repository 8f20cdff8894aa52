"""The first sentences of the page: how all is well, or how much is not. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from certfan.core.policy import Urgency
from certfan.daemon.status.model import Needs, Page, State, Verdict
from certfan.daemon.status.page.words import RANK, TONE_OF_VERDICT, counted, relative, said


@dataclass(frozen=True, slots=True)
class Need:
    """One cause and all that has it: the authority that is away, and each certificate that waits for it."""

    subjects: tuple[str, ...]
    code: str
    detail: str
    hint: str
    since: datetime | None
    deadline: datetime | None

    @property
    def key(self) -> str:
        """What it is called in the page, whatever comes and goes around it."""
        return sha256(f"{self.code} {self.subjects[0]} {self.detail}".encode()).hexdigest()[:12]


def together(problems: Sequence[Needs]) -> tuple[Need, ...]:
    """Return problems with the same cause as one, in the order of their first."""
    found: dict[tuple[str, str, str], list[Needs]] = {}
    for one in problems:
        found.setdefault((one.code, one.detail, one.hint), []).append(one)
    return tuple(
        Need(
            subjects=tuple(one.subject for one in same),
            code=code,
            detail=detail,
            hint=hint,
            since=min((one.since for one in same if one.since), default=None),
            deadline=min((one.deadline for one in same if one.deadline), default=None),
        )
        for (code, detail, hint), same in found.items()
    )


@dataclass(frozen=True, slots=True)
class Figure:
    """How many endpoints have a verdict."""

    tone: str
    text: str
    number: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What stands beside the first sentence; an instant that has passed is left to the problems."""

    verdicts: tuple[Figure, ...]  # the worst first, without what is proven
    next_renewal: datetime | None
    first_expiry: datetime | None


def figures(page: Page) -> Figures:
    """Return the figures of everything."""
    counts: Counter[tuple[Verdict, str]] = Counter()
    for lag in page.summary.lagging:
        late = lag.urgency is Urgency.MISSED
        counts[lag.verdict, "bad" if late else TONE_OF_VERDICT[lag.verdict]] += lag.endpoints
    worst = sorted(counts, key=lambda one: (-RANK[one[0]], one[1]))
    renewals = (one.renew_at for one in page.certificates if one.renew_at and one.renew_at > page.now)
    ends = (one.not_after for one in page.certificates if one.not_after and one.not_after > page.now)
    return Figures(
        verdicts=tuple(Figure(colour, said(verdict), counts[verdict, colour]) for verdict, colour in worst),
        next_renewal=min(renewals, default=None),
        first_expiry=min(ends, default=None),
    )


def calm(page: Page) -> str:
    """Return the sentence of a page without problems."""
    working = sum(one.state is State.WORKING for one in page.certificates)
    proven, endpoints = page.summary.proven, page.summary.endpoints
    if working:
        verb = "is" if working == 1 else "are"
        return f"{counted(working, 'certificate')} {verb} on the way; {proven} of {endpoints} endpoints are proven."
    if not endpoints:
        return "No certificate is for a consumer yet, so there is nothing to prove."
    renewal = figures(page).next_renewal
    told = "The one endpoint is proven" if endpoints == 1 else f"All {endpoints:,} endpoints are proven"
    return f"{told}; the next renewal is {relative(renewal, page.now)}." if renewal else f"{told}."


def resets(page: Page) -> str:
    """Return what the resets of the last 24 hours did; "nothing lost" only when nothing needs anybody."""
    times = page.summary.resets_today
    if not times:
        return "This machine was not reset in the last 24 hours."
    often = {1: "once", 2: "twice"}.get(times, f"{times} times")
    told = f"This machine was reset {often} in the last 24 hours"
    proven, endpoints = page.summary.proven, page.summary.endpoints
    if page.problems:
        return f"{told}; what is not well stands above, {proven} of {endpoints} endpoints are proven."
    return f"{told}, nothing lost: {proven} of {endpoints} endpoints are proven."
