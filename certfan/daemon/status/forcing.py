"""How to hurry a certificate along: the one command, or why nothing can."""

from __future__ import annotations

from collections.abc import Sequence

from certfan.core.model import Certificate
from certfan.core.standing import LIMIT, PATH, Standing
from certfan.daemon.status.model import Row, Verdict
from certfan.daemon.status.things import StateOfThings


def to_force(
    certificate: Certificate, stands: Standing | None, rows: Sequence[Row], things: StateOfThings
) -> str:
    """Return what an admin can do to have a certificate ordered, or proven, sooner."""
    name = certificate.name
    if (name,) in things.observed.in_flight:
        return "nothing: it is being worked on now"
    if name in things.observed.rolled_back:
        return "nothing: it is rolled back at the next tick, or as soon as what failed is mended"
    if stands is not None:
        return _order(name, stands)
    return _deployment(name, rows)


def _order(name: str, stands: Standing) -> str:
    held = stands.holding
    if held is None:
        return "nothing: it is ordered as soon as an order before it ends"
    if held.code == PATH:
        return (
            f"mend what our own check found ({held.hint}); it looks again by itself"
            if held.hint
            else "nothing"
        )
    if held.code == LIMIT:
        return (
            f"no command can: the limit is that of {stands.authority}; another authority, or fewer names, can"
        )
    if held.code == "authority.account":
        return "nothing: the account gets its new key first"
    return f"run: certfan renew {name} (it lifts the wait once; {stands.authority} counts the try)"


def _deployment(name: str, rows: Sequence[Row]) -> str:
    lagging = [row for row in rows if row.verdict is not Verdict.PROVEN]
    for row in lagging:
        if row.problem is not None and row.problem.hint:
            return row.problem.hint
    if lagging:
        return f"run on {lagging[0].consumer}: systemctl restart certfan-agent"
    return f"run: certfan renew {name} (nothing waits; it orders a new generation now)"
