"""One certificate of the page: how it stands with its order, by the plan's own answer, and its rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from certfan.core import policy
from certfan.core.looks import checked_identifiers
from certfan.core.model import Attempt, Certificate, Generation, Problem, Reason, RenewalInfo
from certfan.core.standing import CSR, LIMIT, PATH, Standing, standing
from certfan.core.subjects import order_subject
from certfan.daemon.status.authorities import revocations
from certfan.daemon.status.forcing import to_force
from certfan.daemon.status.model import (
    BrokenPath,
    CertificateView,
    Next,
    OrderUnderWay,
    PendingRevocation,
    Renewal,
    Row,
    State,
    Verdict,
)
from certfan.daemon.status.rows import newest, rows_of
from certfan.daemon.status.things import StateOfThings

_CSR_TAKES = timedelta(minutes=2)


def certificate_view(certificate: Certificate, things: StateOfThings) -> CertificateView:
    """Return one certificate with its rows."""
    name, observed = certificate.name, things.observed
    generation = newest(name, things)
    stands = standing(certificate, things.desired, observed, things.now)
    attempt = observed.attempts.get(order_subject(certificate, stands.authority)) if stands else None
    if name in observed.rolled_back:
        attempt = observed.attempts.get(name)
    problem = (
        attempt.problem
        if attempt
        else _problem(stands, generation, things) or _holders_problem(certificate, stands, things)
    )
    info = observed.renewals.get(name)
    renew_at = policy.renewal_instant(generation, info) if generation else None
    rows = tuple(row for consumer in certificate.consumers for row in rows_of(name, consumer, things))
    paths = tuple(_broken_paths(certificate, things))
    to_revoke = revocations(name, things)
    in_flight = (name,) in observed.in_flight
    return CertificateView(
        name=name,
        identifiers=tuple(map(str, certificate.identifiers)),
        custody=certificate.custody,
        authority=stands.authority if stands else certificate.authority,
        instead_of=stands.instead_of if stands else None,
        held=stands.holding if stands and not in_flight else None,
        order=_order(name, things),
        to_force=to_force(certificate, stands, rows, things),
        renewal=_renewal(info),
        broken_paths=paths,
        revocations=to_revoke,
        issued_by=generation.authority if generation else None,
        generation=generation.number if generation else None,
        copy_of=generation.copy_of if generation else None,
        fingerprint=generation.fingerprint if generation else None,
        serial=generation.serial if generation else None,
        not_before=generation.not_before if generation else None,
        not_after=generation.not_after if generation else None,
        renew_at=renew_at,
        state=_state(stands, problem, paths, to_revoke, rows),
        reason=_reason(name, stands, things),
        next=_next(name, stands, renew_at, things),
        failures=attempt.failures if attempt else 0,
        failing_since=_failing_since(attempt),
        problem=problem,
        problem_since=_since(certificate, stands, attempt, generation, things) if problem else None,
        endpoints=rows,
    )


def _order(name: str, things: StateOfThings) -> OrderUnderWay | None:
    begun = things.observed.open_orders.get(name)
    if begun is None:
        return None
    return OrderUnderWay(
        generation=begun.generation,
        authority=begun.authority,
        begun_at=begun.begun_at,
        moved_at=things.observed.moved.get(name),
        url=begun.order_url,
        answered=len(begun.answered),
    )


def _reason(name: str, stands: Standing | None, things: StateOfThings) -> Reason | None:
    if name in things.observed.rolled_back:
        return Reason.ASKED_FOR
    return stands.reason if stands else None


def _problem(stands: Standing | None, generation: Generation | None, things: StateOfThings) -> Problem | None:
    """Return what is wrong with an order that has not failed itself.

    A limit of the authority holds orders up in the normal course of things, until a certificate has no time for that.
    """
    if stands is None:
        return None
    if (first := stands.instead_of) is not None:
        told = f"{first.detail}; ordered at {stands.authority} meanwhile"
        return Problem(first.code, told, first.hint, first.not_before)
    held = stands.holding
    if held is not None and held.code == LIMIT and not _is_fresh(generation, things):
        return Problem(held.code, held.why, held.hint, held.until)
    return None


def _holders_problem(
    certificate: Certificate, stands: Standing | None, things: StateOfThings
) -> Problem | None:
    """Return why the consumer that is to make the key does not: a CSR takes seconds in the normal course of things."""
    held = stands.holding if stands is not None else None
    if held is None or held.code != CSR:
        return None
    asked, heard = (
        things.observed.signing_requests.get(certificate.name),
        things.facts.heard.get(certificate.holder),
    )
    if heard is not None and not heard.install:
        detail = f"{held.why}, whose agent is of a release that makes none ({heard.version})"
        return Problem(held.code, detail, f"bring certfan on {certificate.holder} to the daemon's release")
    if asked is None or (asked.problem is None and things.now < asked.asked_at + _CSR_TAKES):
        return None
    return Problem(held.code, held.why, held.hint)


def _is_fresh(generation: Generation | None, things: StateOfThings) -> bool:
    return generation is not None and things.now < _fresh_until(generation, things)


def _fresh_until(generation: Generation, things: StateOfThings) -> datetime:
    """Return its deadline, or when it was revoked."""
    deadline = policy.leafs_deadline(generation.not_before, generation.not_after)
    return min(deadline, things.facts.revoked.get((generation.certificate, generation.number), deadline))


def _failing_since(attempt: Attempt | None) -> datetime | None:
    return attempt.since or attempt.at if attempt else None


def _since(
    certificate: Certificate,
    stands: Standing | None,
    attempt: Attempt | None,
    generation: Generation | None,
    things: StateOfThings,
) -> datetime | None:
    """Return since when a certificate has its problem: failures, a wait for its CSR, or the end of its time for a limit."""
    name, held = certificate.name, stands.holding if stands is not None else None
    if attempt is None and stands is not None and stands.instead_of is not None:
        attempt = things.observed.attempts.get(name)
    if attempt is not None:
        return _failing_since(attempt)
    if held is not None and held.code == CSR:
        asked = things.observed.signing_requests.get(name)
        return asked.asked_at if asked is not None else None
    return _fresh_until(generation, things) if generation else things.facts.config_changed.get(name)


def _renewal(info: RenewalInfo | None) -> Renewal | None:
    """Return what the authority said; a window that ends before it starts says nothing."""
    if info is None or info.end <= info.start:
        return None
    return Renewal(start=info.start, end=info.end, chosen=info.chosen, explanation_url=info.explanation_url)


def _broken_paths(certificate: Certificate, things: StateOfThings) -> Iterator[BrokenPath]:
    if not things.observed.self_check:
        return
    for identifier in checked_identifiers(certificate):
        check = things.observed.checks.get(identifier)
        if check is not None and check.problem is not None:
            yield BrokenPath(
                identifier=identifier, since=check.since, looked_at=check.at, problem=check.problem
            )


def _state(
    stands: Standing | None,
    problem: Problem | None,
    paths: tuple[BrokenPath, ...],
    to_revoke: tuple[PendingRevocation, ...],
    rows: tuple[Row, ...],
) -> State:
    if problem or paths or any(one.problem for one in to_revoke) or any(row.problem for row in rows):
        return State.PROBLEM
    if stands or to_revoke or any(row.verdict is not Verdict.PROVEN for row in rows):
        return State.WORKING
    return State.OK


def _next(name: str, stands: Standing | None, renew_at: datetime | None, things: StateOfThings) -> Next:
    if name in things.observed.rolled_back:
        return Next("roll_back")
    if stands is None:
        return Next("renew", renew_at)
    if stands.holding is None or (name,) in things.observed.in_flight:
        return Next("issue")
    return Next("check_path" if stands.holding.code == PATH else "issue", stands.holding.until)
