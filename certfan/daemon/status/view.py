"""The page as a pure function of the state of things."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from certfan.core.model import Problem
from certfan.core.resets import OURS, Reset, resets
from certfan.core.subjects import rollover_subject
from certfan.daemon.status.authorities import authority_views
from certfan.daemon.status.certificates import certificate_view
from certfan.daemon.status.model import (
    AuthorityView,
    CertificateView,
    ConsumerView,
    Lagging,
    Needs,
    Orphan,
    Page,
    Row,
    RunView,
    State,
    Summary,
    Verdict,
)
from certfan.daemon.status.orphans import orphans
from certfan.daemon.status.rows import heard_lately
from certfan.daemon.status.things import StateOfThings

DAY = timedelta(days=1)


def view(things: StateOfThings) -> Page:
    """Return the whole page; the same things give the same page."""
    return page_of(things, tuple(certificate_views(things)))


def certificate_views(things: StateOfThings) -> Iterator[CertificateView]:
    """Yield every certificate of the page, which is most of the work."""
    for _, certificate in sorted(things.desired.certificates.items()):
        yield certificate_view(certificate, things)


def page_of(things: StateOfThings, certificates: tuple[CertificateView, ...]) -> Page:
    """Return the page of these things, with their certificates as `certificate_views` has them."""
    authorities, orphaned = authority_views(things), orphans(things)
    problems = tuple(_problems(things, certificates, authorities, orphaned))
    runs = run_views(things)
    return Page(
        now=things.now,
        fleet=things.fleet,
        summary=_summary(things, certificates, problems, runs),
        problems=problems,
        config=things.config,
        certificates=certificates,
        authorities=authorities,
        consumers=tuple(consumer_view(name, things) for name in sorted(things.desired.consumers)),
        orphans=orphaned,
        runs=runs,
        resets=_resets(things),
        remote_log=things.remote_log,
        internal_ca=things.internal_ca,
    )


def _problems(
    things: StateOfThings,
    certificates: tuple[CertificateView, ...],
    authorities: tuple[AuthorityView, ...],
    orphaned: tuple[Orphan, ...],
) -> Iterator[Needs]:
    """Yield what needs somebody: first what stops everything, last what stops one endpoint."""
    config_since = things.config.problems_at if things.config else None
    for problem in things.config_problems:
        yield _needs("config", problem, config_since)
    if things.clock_problem:
        yield _needs("clock", things.clock_problem, things.since.get("clock"))
    if things.remote_log and things.remote_log.problem:
        yield _needs("log", things.remote_log.problem, things.since.get("log"))
    if things.share_problem:
        yield _needs("share", things.share_problem, things.share_lost_at)
    if (ca := things.internal_ca) and (stuck := ca.why_stuck(things.now)):
        yield _needs("ca", stuck, ca.since)
    for consumer, problem in sorted(things.consumer_problems.items()):
        yield _needs(consumer, problem, things.since.get(consumer))
    for channel, problem in sorted(things.notify_problems.items()):
        subject = f"notify {channel}"
        yield _needs(subject, problem, things.since.get(subject))
    for one in authorities:
        if one.problem:
            failed = things.observed.attempts[rollover_subject(one.name)]
            yield _needs(one.name, one.problem, failed.since or failed.at)
    yield from (_needs(one.name, one.problem, one.problem_since) for one in certificates if one.problem)
    yield from _revocation_problems(certificates)
    yield from _revocation_problems(orphaned)
    yield from _merged(
        _needs(path.identifier, path.problem, path.since) for one in certificates for path in one.broken_paths
    )
    yield from _merged(
        _needs(_subject(row), row.problem, row.since, row.deadline)
        for one in certificates
        for row in one.endpoints
        if row.problem
    )


def _merged(those: Iterable[Needs]) -> Iterator[Needs]:
    """One dead agent is one problem, however many rows it has; so is one name in several certificates."""
    found: dict[tuple[str, str, str, str], Needs] = {}
    for one in those:
        known = found.setdefault((one.subject, one.code, one.detail, one.hint), one)
        if known is not one:
            found[one.subject, one.code, one.detail, one.hint] = dataclasses.replace(
                known,
                since=min(filter(None, (known.since, one.since)), default=None),
                deadline=min(filter(None, (known.deadline, one.deadline)), default=None),
            )
    yield from found.values()


def _revocation_problems(those: Sequence[CertificateView] | Sequence[Orphan]) -> Iterator[Needs]:
    for one in those:
        for revocation in one.revocations:
            if revocation.problem:
                yield _needs(f"{one.name}@{revocation.generation}", revocation.problem, revocation.asked_at)


def _subject(row: Row) -> str:
    assert row.problem is not None
    return row.consumer if row.problem.code.startswith("consumer.") else f"{row.certificate}/{row.consumer}"


def _needs(
    subject: str, problem: Problem, since: datetime | None = None, deadline: datetime | None = None
) -> Needs:
    return Needs(subject, problem.code, problem.detail, problem.hint, since=since, deadline=deadline)


def _summary(
    things: StateOfThings,
    certificates: tuple[CertificateView, ...],
    problems: tuple[Needs, ...],
    runs: tuple[RunView, ...],
) -> Summary:
    rows = [row for certificate in certificates for row in certificate.endpoints]
    verdicts = Counter(row.verdict for row in rows)
    states = {certificate.state for certificate in certificates}
    working = State.WORKING if State.WORKING in states else State.OK
    text = f"{verdicts[Verdict.PROVEN]} of {len(rows)} proven"
    others = ", ".join(f"{n} {v}" for v, n in sorted(verdicts.items()) if v is not Verdict.PROVEN)
    return Summary(
        state=State.PROBLEM if problems or State.PROBLEM in states else working,
        text=f"{text} ({others})" if others else text,
        proven=verdicts[Verdict.PROVEN],
        endpoints=len(rows),
        lagging=_lagging(rows),
        worst_deadline=min((r.deadline for r in rows if r.verdict is not Verdict.PROVEN), default=None),
        resets_today=sum(run.after_reset and run.began_at > things.now - DAY for run in runs),
    )


def _lagging(rows: Sequence[Row]) -> tuple[Lagging, ...]:
    groups: dict[tuple[str, Verdict, str], list[Row]] = {}
    for row in rows:
        if row.verdict is not Verdict.PROVEN:
            why = row.problem.detail if row.problem else f"{row.reason}, next: {row.next.step}"
            groups.setdefault((row.consumer, row.verdict, why), []).append(row)
    found = [
        Lagging(
            consumer=consumer,
            verdict=verdict,
            endpoints=len(late),
            deadline=min(row.deadline for row in late),
            urgency=max((row.urgency for row in late), key=lambda urgency: urgency.rank),
            why=why,
        )
        for (consumer, verdict, why), late in groups.items()
    ]
    return tuple(sorted(found, key=lambda one: (one.deadline, one.consumer)))


def consumer_view(name: str, things: StateOfThings) -> ConsumerView:
    """Return one consumer."""
    heard = things.facts.heard.get(name)
    return ConsumerView(
        name=name,
        heard=heard is not None and heard_lately(heard.at, things),
        heard_at=heard.at if heard else None,
        version=heard.version if heard else None,
        install=(heard.install or None) if heard else None,
        lacks_ca=things.internal_ca is not None and name in things.internal_ca.waits_for,
    )


def _resets(things: StateOfThings) -> tuple[Reset, ...]:
    """Return the resets of the last 24 hours, newest first, of machines that are still in the config."""
    known = {*things.desired.consumers, OURS}
    found = resets(boot for boot in things.boots if boot.machine in known)
    return tuple(one for one in found if one.at > things.now - DAY)


def run_views(things: StateOfThings) -> tuple[RunView, ...]:
    """Return the runs, newest first. Only the newest may still run; an older one without an end was cut off."""
    before = {
        later.number: earlier.ended_at is None and earlier.boot_id != later.boot_id
        for later, earlier in pairwise(things.runs)
    }
    return tuple(
        RunView(
            number=run.number,
            began_at=run.began_at,
            ended_at=run.ended_at,
            clean=None if index == 0 and run.ended_at is None else run.ended_at is not None,
            after_reset=before.get(run.number, False),
        )
        for index, run in enumerate(things.runs)
    )
