"""A farm with something of everything in it, for what asks every route of the status endpoint."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from certfan.core.ledger import Ledger, Spend, SpendKind
from certfan.core.model import Health, Limit, Limits, Problem
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.store.facts import Run
from tests.unit.status_parts import DESIRED, DOORS, HTTPS, NOW, WHERE, deployment, generation, proof, things

HOUR = timedelta(hours=1)


def populated() -> StateOfThings:
    """A farm with something of everything in it."""
    limits = Limits(failures_per_name=Limit(5, HOUR), orders=Limit(300, 3 * HOUR))
    spends = (
        Spend(SpendKind.FAILURE, NOW, frozenset({"www.test"})),
        Spend(SpendKind.ORDER, NOW, frozenset()),
    )
    ledger = Ledger.of(limits, spends, domains=lambda name: name)
    authority = replace(DESIRED.authorities["pebble"], limits=limits)
    mail = replace(HTTPS, service="postfix", protocol="smtp", port=25)
    of_mail = replace(proof(health=Health.UNREACHABLE, detail="connection refused"), endpoint=mail)
    found = things(
        desired=replace(DESIRED, authorities={"pebble": authority}),
        seen={"ledgers": {"pebble": ledger}},
        generations={
            "www.test": (generation(1), generation(2)),
            "gone.test": (replace(generation(1), certificate="gone.test"),),
        },
        deployments={
            WHERE: (deployment(1), deployment(2, problem=Problem("service.down", "apache2 is down")))
        },
        proofs={WHERE: (proof(1), of_mail)},
        revoked={("www.test", 1): NOW},
        spends={"pebble": spends},
    )
    runs = (
        Run(2, "b", pid=2, epoch="e", remembered_until=NOW, began_at=NOW),
        Run(1, "a", pid=1, epoch="d", remembered_until=NOW, began_at=NOW - HOUR),
    )
    return replace(
        found,
        runs=runs,
        share_problem=Problem("share.unavailable", "/srv/le is not mounted", "run: mount /srv/le"),
    )


async def _populated() -> StateOfThings:
    return populated()


POPULATED = replace(DOORS, things=_populated)
READY = replace(POPULATED, ready=lambda: {"http01": None, "share": None})
