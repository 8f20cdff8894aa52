"""What the store remembers, as the plan looks at it; the reconciler adds what was seen since the start."""

from __future__ import annotations

from certfan.core.plan import Observed
from certfan.daemon.store.facts import StoreFacts


def remembered(facts: StoreFacts) -> Observed:
    """Return as much of what the plan looks at as the store alone knows."""
    newest = {name: generations[-1].number for name, generations in facts.generations.items()}
    return Observed(
        generations=facts.generations,
        offered=facts.offered,
        attempts=facts.attempts,
        asked=facts.asked,
        config_changed=facts.config_changed,
        proofs=facts.proofs,
        renewals={
            name: info for (name, number), info in facts.renewal_infos.items() if newest.get(name) == number
        },
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
