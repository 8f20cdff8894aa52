"""The page as a pure function of the state of things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import pairwise

from certfan.core import policy
from certfan.core.model import Certificate, Generation, Problem, Reason, RenewalInfo
from certfan.daemon.status.model import (
    CertificateView,
    ConsumerView,
    Lagging,
    Needs,
    Next,
    Page,
    Row,
    RunView,
    State,
    StateOfThings,
    Summary,
    Verdict,
)
from certfan.daemon.status.orphans import orphans
from certfan.daemon.status.rows import heard_lately, newest, rows_of

DAY = timedelta(days=1)


def view(things: StateOfThings) -> Page:
    """Return the whole page; the same things give the same page."""
    certificates = tuple(
        certificate_view(certificate, things)
        for _, certificate in sorted(things.desired.certificates.items())
    )
    problems = tuple(_problems(things, certificates))
    runs = _runs(things)
    return Page(
        now=things.now,
        fleet=things.fleet,
        summary=_summary(things, certificates, problems, runs),
        problems=problems,
        config=things.config,
        certificates=certificates,
        consumers=tuple(_consumer(name, things) for name in sorted(things.desired.consumers)),
        orphans=orphans(things),
        runs=runs,
    )


def certificate_view(certificate: Certificate, things: StateOfThings) -> CertificateView:
    """Return one certificate with its rows."""
    name = certificate.name
    generation = newest(name, things)
    renewal = _renewal(generation, things)
    reason = policy.why_issue(
        certificate,
        things.facts.generations.get(name, ()),
        things.now,
        asked_at=things.facts.asked.get(name),
        revoked=frozenset(things.facts.revoked),
        renewal=renewal,
        clock_trusted=things.clock_problem is None,
    )
    if name in things.facts.rolled_back:
        reason = Reason.ASKED_FOR
    renew_at = policy.renewal_instant(generation, renewal) if generation else None
    attempt = things.facts.attempts.get(name) if reason else None
    rows = tuple(row for consumer in certificate.consumers for row in rows_of(name, consumer, things))
    at_rest = Next("renew", renew_at)
    return CertificateView(
        name=name,
        identifiers=tuple(map(str, certificate.identifiers)),
        authority=certificate.authority,
        generation=generation.number if generation else None,
        copy_of=generation.copy_of if generation else None,
        fingerprint=generation.fingerprint if generation else None,
        serial=generation.serial if generation else None,
        not_after=generation.not_after if generation else None,
        renew_at=renew_at,
        state=_state(bool(reason), attempt.problem if attempt else None, rows),
        reason=reason,
        next=_next(name, things) if reason else at_rest,
        failures=attempt.failures if attempt else 0,
        problem=attempt.problem if attempt else None,
        endpoints=rows,
    )


def _renewal(generation: Generation | None, things: StateOfThings) -> RenewalInfo | None:
    if generation is None:
        return None
    return things.facts.renewal_infos.get((generation.certificate, generation.number))


def _state(wants_issue: bool, problem: Problem | None, rows: tuple[Row, ...]) -> State:
    if problem or any(row.problem for row in rows):
        return State.PROBLEM
    if wants_issue or any(row.verdict is not Verdict.PROVEN for row in rows):
        return State.WORKING
    return State.OK


def _next(name: str, things: StateOfThings) -> Next:
    attempt = things.facts.attempts.get(name)
    if name in things.facts.rolled_back:
        return Next("roll_back")
    if (name,) in things.in_flight or attempt is None or attempt.not_before <= things.now:
        return Next("issue")
    return Next("issue", attempt.not_before)


def _problems(things: StateOfThings, certificates: tuple[CertificateView, ...]) -> Iterator[Needs]:
    for problem in things.config_problems:
        yield _needs("config", problem)
    if things.clock_problem:
        yield _needs("clock", things.clock_problem)
    if things.share_problem:
        yield _needs("share", things.share_problem)
    for consumer, problem in sorted(things.consumer_problems.items()):
        yield _needs(consumer, problem)
    for certificate in certificates:
        if certificate.problem:
            yield _needs(certificate.name, certificate.problem)
    # One dead agent is one problem, however many rows it has.
    found = {
        _needs(_subject(row), row.problem): None
        for certificate in certificates
        for row in certificate.endpoints
        if row.problem
    }
    yield from found


def _subject(row: Row) -> str:
    assert row.problem is not None
    return row.consumer if row.problem.code.startswith("consumer.") else f"{row.certificate}/{row.consumer}"


def _needs(subject: str, problem: Problem) -> Needs:
    return Needs(subject, problem.code, problem.detail, problem.hint)


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


def _consumer(name: str, things: StateOfThings) -> ConsumerView:
    heard = things.facts.heard.get(name)
    return ConsumerView(
        name=name,
        heard=heard is not None and heard_lately(heard.at, things),
        heard_at=heard.at if heard else None,
        version=heard.version if heard else None,
    )


def _runs(things: StateOfThings) -> tuple[RunView, ...]:
    """Newest first. Only the newest may still run; an older one without an end was cut off."""
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
