"""Which machines were reset, and whether together: then it was the host, or its power.

A machine is reset when it comes up again without having been shut down; whoever runs there tells. What must never come
in: a clock of a machine that tells, beside what `booted_at` makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

OURS = ""  # the daemon's own machine
# A host starts its machines one after the other, and each takes a while until it is up.
TOGETHER = timedelta(minutes=5)
LONGEST_UP = timedelta(days=3660)  # what is said beyond counts as that


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One boot of a machine by our clock; it was up at `heard_at`. `reset` None: nobody knows how the one before ended."""

    machine: str
    boot_id: str
    booted_at: datetime
    heard_at: datetime
    reset: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """What came up again within a few minutes without having been shut down; `at` is the first boot of them.

    `machines` is how many they are: a consumer on the daemon's own is none more. All together it was the host.
    """

    at: datetime
    daemon: bool  # this machine
    consumers: tuple[str, ...]
    machines: int
    all_together: bool


def booted_at(now: datetime, sent_at: datetime, said: datetime) -> datetime:
    """Return by our clock when a machine booted that said so by its own at `sent_at`."""
    return now - min(max(sent_at - said, timedelta(0)), LONGEST_UP)


def resets(boots: Iterable[Boot]) -> tuple[Reset, ...]:
    """Return what was reset, newest first."""
    told = _agreed(boots)
    groups: list[list[Boot]] = []
    for boot in sorted((one for one in told if one.reset), key=lambda one: one.booted_at):
        same = groups and boot.booted_at - groups[-1][0].booted_at <= TOGETHER
        # A machine that is reset twice within minutes was not reset together with itself.
        if same and boot.machine not in {one.machine for one in groups[-1]}:
            groups[-1].append(boot)
        else:
            groups.append([boot])
    return tuple(_reset(group, told) for group in reversed(groups))


def _agreed(boots: Iterable[Boot]) -> Sequence[Boot]:
    """Let what anyone on a machine knows of its boot count for all who tell of that."""
    told = list(boots)
    known = {one.boot_id for one in told if one.reset}
    return [replace(one, reset=True) if one.boot_id in known else one for one in told]


def _reset(group: Sequence[Boot], told: Iterable[Boot]) -> Reset:
    names, first, last = {one.machine for one in group}, group[0].booted_at, group[-1].booted_at
    machines = len({one.boot_id for one in group})
    # Who was up before and was heard of afterwards in the same boot has stayed up; who is off for long says nothing.
    stayed = any(one.booted_at < first and one.heard_at > last for one in told)
    return Reset(
        at=first,
        daemon=OURS in names,
        consumers=tuple(sorted(names - {OURS})),
        machines=machines,
        all_together=machines > 1 and not stayed,
    )
