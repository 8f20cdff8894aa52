"""Which private key a new generation gets: an earlier one again, as far as the config allows, or a new one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from certfan.core.model import Certificate, Generation


def spent_keys(generations: Sequence[Generation], ended: Collection[tuple[str, int]]) -> frozenset[str]:
    """Return the keys (by SPKI hash) that must never be used again: of what is revoked, or is to be."""
    return frozenset(g.key for g in generations if g.key and (g.certificate, g.number) in ended)


def unwanted(
    generations: Sequence[Generation], ended: Collection[tuple[str, int]]
) -> frozenset[tuple[str, int]]:
    """Return what must not be served for long: what is revoked or is to be, and whatever has its key or its leaf."""
    if not ended:
        return frozenset()
    keys = spent_keys(generations, ended)
    # What was issued by 0.1.0 tells no key.
    leaves = {g.fingerprint for g in generations if (g.certificate, g.number) in ended}
    return frozenset(
        (g.certificate, g.number) for g in generations if g.key in keys or g.fingerprint in leaves
    )


def key_to_reuse(
    certificate: Certificate, generations: Sequence[Generation], spent: Collection[str], now: datetime
) -> Generation | None:
    """Return the generation whose key the next one gets, or None for a new key. `generations` ascend.

    A key's age counts from the first generation that it was made for.
    """
    if certificate.reuse_key is None or not generations:
        return None
    newest = generations[-1]
    if not newest.key or newest.key in spent or newest.key_type != certificate.key_type:
        return None
    born = min(g.issued_at for g in generations if g.key == newest.key)
    return newest if now < born + certificate.reuse_key else None
