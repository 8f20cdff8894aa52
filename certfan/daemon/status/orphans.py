"""What left the config and is still here."""

from __future__ import annotations

from certfan.core.model import Problem
from certfan.core.subjects import consumer_subject
from certfan.daemon.status.authorities import revocations
from certfan.daemon.status.model import Orphan
from certfan.daemon.status.things import StateOfThings


def orphans(things: StateOfThings) -> tuple[Orphan, ...]:
    """Return orphaned certificates, then orphaned consumers, by name."""
    facts, desired = things.facts, things.desired
    pairs = {*things.live, *facts.offered}
    certificates = {*facts.generations, *facts.to_forget, *(where[0] for where in pairs)}
    consumers = {*facts.enrolled, *facts.consumers_to_forget, *(where[1] for where in pairs)}
    return (
        *(_certificate(name, things) for name in sorted(certificates - desired.certificates.keys())),
        *(_consumer(name, things) for name in sorted(consumers - desired.consumers.keys())),
    )


def _certificate(name: str, things: StateOfThings) -> Orphan:
    generations = things.facts.generations.get(name, ())
    return Orphan(
        kind="certificate",
        name=name,
        generation=generations[-1].number if generations else None,
        not_after=max((g.not_after for g in generations), default=None),
        revocations=revocations(name, things),
        on=tuple(sorted(consumer for certificate, consumer in things.live if certificate == name)),
        forgetting=name in things.facts.to_forget,
        problem=_problem(things, name, *(f"{name}/{where[1]}" for where in things.live if where[0] == name)),
        hint=f"run: certfan forget {name}",
    )


def _consumer(name: str, things: StateOfThings) -> Orphan:
    return Orphan(
        kind="consumer",
        name=name,
        generation=None,
        not_after=None,
        revocations=(),
        on=tuple(sorted(certificate for certificate, consumer in things.live if consumer == name)),
        forgetting=name in things.facts.consumers_to_forget,
        problem=_problem(things, consumer_subject(name)),
        hint=f"run: certfan forget --consumer {name}",
    )


def _problem(things: StateOfThings, *subjects: str) -> Problem | None:
    attempts = things.facts.attempts
    return next((attempts[subject].problem for subject in subjects if subject in attempts), None)
