"""Which generation belongs at each place of the share: at each consumer of a certificate."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeAlias

from certfan.core.model import Certificate, Desired, Generation
from certfan.core.steps import Observed, Where

NEVER = datetime.min.replace(tzinfo=UTC)
Targets: TypeAlias = Mapping[Where, Generation | None]  # what belongs at each place of a certificate


def wanted_at(desired: Desired, observed: Observed, now: datetime) -> dict[Where, int]:
    """Return the generation that belongs at each place, where there is one."""
    every = (targets(certificate, observed, now) for certificate in desired.certificates.values())
    found = (one for places in every for one in places.items())
    return {where: generation.number for where, generation in found if generation is not None}


def targets(certificate: Certificate, observed: Observed, now: datetime) -> Targets:
    """Return what belongs at each consumer of a certificate."""
    places = [(certificate.name, consumer) for consumer in sorted(certificate.consumers)]
    return {where: _target(certificate, where, observed, now) for where in places}


def _target(certificate: Certificate, where: Where, observed: Observed, now: datetime) -> Generation | None:
    """Return the generation that belongs at a consumer: the newest that is neither revoked nor expired.

    None also when something newer is there already: numbers only grow. A consumer that has none yet gets no
    name beyond those wanted. What another holder's key belongs to, or the daemon's own where a consumer is to have
    it alone, belongs nowhere.
    """
    generations = observed.generations.get(certificate.name)
    if not generations:
        return None
    has_one = max(observed.live.get(where, 0), observed.offered.get(where, 0))
    wanted = frozenset(certificate.identifiers)
    for newest in reversed(generations):
        if newest.holder != certificate.holder:
            continue
        is_revoked = (newest.certificate, newest.number) in observed.revoked
        if not is_revoked and now < newest.not_after and (has_one or newest.identifiers <= wanted):
            return newest if newest.number >= has_one else None
    return None


def is_published(generation: Generation, where: Where, observed: Observed) -> bool:
    """Whether the share shows a generation to a consumer: the folder complete, the pointer at it."""
    complete = generation.number in observed.published.get(where, frozenset())
    return complete and observed.live.get(where) == generation.number


def served_until(where: Where, observed: Observed) -> datetime:
    """Return when what a consumer was last offered expires."""
    offered = observed.offered.get(where, 0)
    generations = observed.generations.get(where[0], ())
    return next((g.not_after for g in generations if g.number == offered), NEVER)
