"""Which machines went down in the last 24 hours, together or alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

from certfan.daemon.status.model import Reset, StateOfThings

DAY = timedelta(days=1)
TOGETHER = timedelta(minutes=2)  # agents report every 30 s, so the last reports before a reset are that close


def resets(things: StateOfThings) -> tuple[Reset, ...]:
    """Return what went down, newest first.

    A machine is known to have gone down by the boot after it, so one that stays down is no reset but unheard.

    Known limit: of a consumer that was shut down on purpose nobody tells us so.
    """
    groups: list[list[tuple[datetime, str]]] = []
    for one in sorted(_ends(things)):
        if not groups or one[0] - groups[-1][-1][0] > TOGETHER:
            groups.append([])
        groups[-1].append(one)
    return tuple(_reset(group, things) for group in reversed(groups))


def _ends(things: StateOfThings) -> Iterator[tuple[datetime, str]]:
    """Yield when each machine was last known to be up; this one is ""."""
    since = things.now - DAY
    for later, earlier in pairwise(things.runs):
        if earlier.ended_at is None and earlier.boot_id != later.boot_id and later.began_at > since:
            yield max(later.remembered_until, earlier.began_at), ""
    for boot in things.ended_boots:
        if boot.consumer in things.desired.consumers and boot.heard_at > since:
            yield boot.heard_at, boot.consumer


def _reset(group: list[tuple[datetime, str]], things: StateOfThings) -> Reset:
    names = {name for _, name in group}
    consumers = tuple(sorted(names - {""}))
    heard = things.facts.heard.keys() & things.desired.consumers.keys()
    return Reset(
        at=group[-1][0],
        daemon="" in names,
        consumers=consumers,
        all_together="" in names and len(names) > 1 and heard <= names,
    )
