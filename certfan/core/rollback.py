"""Which older generation a roll-back goes to, and why one cannot be gone back to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

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
    return None


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
        usable = (g for g in earlier if why_not_back_to(certificate, g, revoked=revoked, now=now) is None)
        return next(usable, "no earlier generation is usable")
    by_number = {g.number: g for g in generations}
    found = by_number.get(by_number[to].origin) if to in by_number else None
    if found is None:
        known = ", ".join(str(g.number) for g in generations)
        return f"there is no generation {to} (there are {known})"
    if found.number == current:
        return f"the newest generation has the pair of {found} already"
    if why := why_not_back_to(certificate, found, revoked=revoked, now=now):
        return f"{found} cannot be gone back to: {why}"
    return found
