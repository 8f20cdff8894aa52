"""Which generations a wish to revoke means, and why one cannot be revoked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from certfan.core.model import Generation, RevocationReason


def choose(
    generations: Sequence[Generation],
    number: int | None,
    reason: RevocationReason,
    *,
    revoked: Collection[tuple[str, int]],
    now: datetime,
) -> tuple[Generation, ...] | str:
    """Return what is to be revoked, the named generation (default: the newest) first, or why nothing is.

    A leaf is named by its newest number. Whoever has a compromised key has every leaf of it, so those that are live
    go too. `generations` ascend.
    """
    if not generations:
        return "nothing was issued yet"
    by_number = {g.number: g for g in generations}
    named = by_number.get(generations[-1].number if number is None else number)
    if named is None:
        return f"there is no generation {number} (there are {', '.join(map(str, by_number))})"
    if (named.certificate, named.number) in revoked:
        return f"{named} is revoked already"
    if named.not_after <= now:
        return f"{named} expired at {named.not_after:%Y-%m-%d %H:%M} UTC, so nobody takes it any more"
    leaves = {g.fingerprint: g for g in generations}
    found = [leaves[named.fingerprint]]
    if reason is RevocationReason.KEY_COMPROMISE and named.key:
        found += [
            g
            for g in leaves.values()
            if g.key == named.key
            and g.fingerprint != named.fingerprint
            and (g.certificate, g.number) not in revoked
            and now < g.not_after
        ]
    return tuple(found)
