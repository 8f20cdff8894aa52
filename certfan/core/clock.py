"""Whether the wall clock can be believed. It is doubted for what it does, and believed again when an authority agrees.

While it is in doubt, nothing that is due only by the clock is begun. What must never come in: a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

FURTHEST_BACK = timedelta(hours=1)
FURTHEST_AHEAD = timedelta(days=1)
AGREEMENT = timedelta(hours=1)  # renewals are planned in days, a Date header is seconds old


@dataclass(frozen=True, slots=True)
class Reading:
    """Both clocks at one moment. `boot` is the time since boot, suspend included; it is steady, but starts anew."""

    wall: datetime
    boot: timedelta
    boot_id: str


def remembered(wall: datetime) -> Reading:
    """Return a reading of which only the wall clock is known; it is taken for one of another boot."""
    return Reading(wall, timedelta(0), "")


def judge(before: Reading | None, now: Reading, *, built_at: datetime) -> str | None:
    """Return why the wall clock is in doubt, or None.

    `before` is an earlier reading, or what is remembered of one. Without a boot in between, wall and boot time move
    alike; after one, the wall clock may be ahead by however long the machine was off, but never far behind.
    """
    if now.wall < built_at:
        return f"it shows {_at(now.wall)}, and this release was built on {built_at:%Y-%m-%d}"
    return None if before is None else _jump(before, now)


def _jump(before: Reading, now: Reading) -> str | None:
    if before.boot_id != now.boot_id:
        if now.wall < before.wall - FURTHEST_BACK:
            return f"it shows {_at(now.wall)}, and was at {_at(before.wall)} before the last start"
        return None
    should = before.wall + (now.boot - before.boot)
    if should - FURTHEST_BACK <= now.wall <= should + FURTHEST_AHEAD:
        return None
    way = "ahead" if now.wall > should else "back"
    return f"it jumped {way} from {_at(should)} to {_at(now.wall)}"


def _at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def agrees(wall: datetime, authority_date: datetime) -> bool:
    """Whether an authority's Date header confirms the wall clock."""
    return abs(wall - authority_date) <= AGREEMENT


@dataclass(frozen=True, slots=True)
class ClockState:
    """The last reading of this run, and why the wall clock is in doubt, `since` when by that clock."""

    reading: Reading
    doubt: str | None = None
    since: datetime | None = None


def first_reading(before: Reading | None, now: Reading, *, built_at: datetime) -> ClockState:
    """Return the state at the start of a run; `before` is what is remembered of the one before."""
    return _doubted(ClockState(now), judge(before, now, built_at=built_at))


def another_reading(state: ClockState, now: Reading) -> ClockState:
    """Return the state after one more look. A doubt stays, whatever the clock does; its reason is the latest.

    The build date was judged at the start: a clock that moves steadily cannot come before it later.
    """
    why, before = _jump(state.reading, now), state.reading
    if why is not None and state.since is not None:
        # It jumps along, so that it is as long ago as before: not in the future of a clock that was set back.
        state = replace(state, since=state.since + (now.wall - before.wall) - (now.boot - before.boot))
    return _doubted(replace(state, reading=now), why)


def authority_said(state: ClockState, date: datetime) -> ClockState:
    """Return the state after an authority's Date was seen at the last reading.

    One that agrees ends a doubt. One that disagrees begins none, since an authority may be wrong too.
    """
    return ClockState(state.reading) if agrees(state.reading.wall, date) else state


def _doubted(state: ClockState, why: str | None) -> ClockState:
    if why is None:
        return state
    since = state.reading.wall if state.since is None else state.since
    return replace(state, doubt=why, since=since)
