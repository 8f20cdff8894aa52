"""Which older generation a roll-back goes to, and why one cannot be gone back to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from certfan.core.custody import KEYS_KEPT
from certfan.core.model import Certificate, Generation


def why_not_back_to(
    certificate: Certificate, generation: Generation, *, revoked: Collection[tuple[str, int]], now: datetime
) -> str | None:
    """Return why a pair cannot be served again, or None. Whatever would be ordered anew at once is refused."""
    if (generation.certificate, generation.number) in revoked:
        return "it, or what has its key, is revoked or is to be"
    if generation.not_after <= now:
        return f"it expired at {generation.not_after:%Y-%m-%d %H:%M} UTC"
    if generation.identifiers != frozenset(certificate.identifiers):
        return "it is for other names than the config asks for"
    if generation.key_type != certificate.key_type:
        return f"its key is {generation.key_type}, the config asks for {certificate.key_type}"
    if generation.holder != certificate.holder:
        return f"its key is {_whose(generation.holder)}, and is to be {_whose(certificate.holder)}"
    return None


def _whose(holder: str) -> str:
    return f"that of {holder} alone" if holder else "the daemon's"


def _is_dropped(generation: Generation, generations: Sequence[Generation]) -> bool:
    """Whether the consumer that alone had the key may have removed it: it keeps the newest only."""
    newer = {g.key for g in generations if g.holder == generation.holder and g.origin > generation.number}
    return bool(generation.holder) and len(newer - {generation.key}) >= KEYS_KEPT


def choose(
    certificate: Certificate,
    generations: Sequence[Generation],
    to: int | None,
    *,
    revoked: Collection[tuple[str, int]],
    now: datetime,
) -> Generation | str:
    """Return the generation (never a copy) whose pair is to be served again, or why there is none.

    Without `to` it is the newest usable one issued before the newest's pair was, so that a second roll-back goes
    further back instead of forth. `generations` ascend.
    """
    if not generations:
        return "nothing was issued yet"
    current = generations[-1].origin
    if to is None:
        earlier = [g for g in reversed(generations) if g.copy_of is None and g.number < current]
        usable = (
            g
            for g in earlier
            if why_not_back_to(certificate, g, revoked=revoked, now=now) is None
            and not _is_dropped(g, generations)
        )
        return next(usable, "no earlier generation is usable")
    by_number = {g.number: g for g in generations}
    found = by_number.get(by_number[to].origin) if to in by_number else None
    if found is None:
        known = ", ".join(str(g.number) for g in generations)
        return f"there is no generation {to} (there are {known})"
    if found.number == current:
        return f"the newest generation has the pair of {found} already"
    if _is_dropped(found, generations):
        return f"{found} cannot be gone back to: {found.holder} keeps its newest {KEYS_KEPT} keys only"
    if why := why_not_back_to(certificate, found, revoked=revoked, now=now):
        return f"{found} cannot be gone back to: {why}"
    return found
