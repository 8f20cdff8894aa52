"""What the store remembers, as the plan looks at it; the reconciler adds what was seen since the start."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from certfan.core.model import DeploymentState
from certfan.core.plan import Observed
from certfan.daemon.store.facts import StoreFacts
from certfan.errors import KeyLost


def remembered(facts: StoreFacts) -> Observed:
    """Return as much of what the plan looks at as the store alone knows."""
    return Observed(
        generations=facts.generations,
        offered=facts.offered,
        attempts=facts.attempts,
        asked=facts.asked,
        config_changed=facts.config_changed,
        proofs=facts.proofs,
        renewals={
            name: info
            for (name, number), info in facts.renewal_infos.items()
            if (generations := facts.generations.get(name)) and generations[-1].number == number
        },
        signing_requests=facts.signing_requests,
        lost_keys=dict(_lost_keys(facts)),
        revoked=frozenset(facts.revoked),
        revocations=facts.revocations,
        checks=facts.checks,
        leftovers=facts.leftovers,
        rollovers=facts.rollovers,
        rolled_back=facts.rolled_back,
        forgotten=frozenset(facts.to_forget),
        forgotten_consumers=frozenset(facts.consumers_to_forget),
        open_orders={issuance.certificate: issuance for issuance in facts.issuances},
    )


def _lost_keys(facts: StoreFacts) -> Iterator[tuple[str, datetime]]:
    """Tell the certificates whose newest generation cannot be installed where its key was made: it is there no more."""
    for name, generations in facts.generations.items():
        newest = generations[-1]
        if not newest.holder:
            continue
        for one in facts.deployments.get((name, newest.holder), ()):
            is_newest = (one.generation, one.state) == (newest.number, DeploymentState.FAILED)
            if is_newest and one.problem is not None and one.problem.code == KeyLost.code:
                yield name, one.at
