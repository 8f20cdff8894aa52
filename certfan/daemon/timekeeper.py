"""Reads the clocks of this machine, and says whether the wall clock can be believed.

What must never come in: why it cannot (core.clock), and which authority is asked for its Date.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from certfan import BUILT_AT, systemd
from certfan.core import clock
from certfan.core.clock import Reading
from certfan.core.model import Problem
from certfan.daemon.journal import Journal

CODE, HINT = "clock", "run: timedatectl status"
ASK_EVERY = timedelta(seconds=15)  # as often as an authority that was silent


def wall_clock() -> datetime:
    """Return the wall clock, aware UTC."""
    return datetime.now(UTC)


class Timekeeper:
    """Holds what the clocks have done since the start. `before` is what the store remembers of the run before."""

    def __init__(
        self,
        before: Reading | None = None,
        *,
        wall: Callable[[], datetime] = wall_clock,
        boot: Callable[[], timedelta] = systemd.booted_for,
        boot_id: Callable[[], str] = systemd.boot_id,
        built_at: datetime = BUILT_AT,
    ) -> None:
        self._wall, self._boot, self._boot_id = wall, boot, boot_id()
        self._asked_at: timedelta | None = None  # by the boot clock: the other one is what is in doubt
        self._state = clock.first_reading(before, self._read(), built_at=built_at)
        self._said: datetime | None = None  # the Date of the last answer
        self._told: str | None = None  # the doubt that the journal knows of

    def tick(self) -> datetime:
        """Look at the clocks; return the wall clock as it was judged, so that nothing else is acted on."""
        self._state = clock.another_reading(self._state, self._read())
        return self._state.reading.wall

    def authority_said(self, date: datetime) -> None:
        """Take in the Date header of an authority's answer that has just arrived; aware UTC."""
        if self.trusted and date == self._said:
            return  # many answers a second say the same; the loop's own looks find a jump
        self._said = date
        self.tick()
        self._state = clock.authority_said(self._state, date)
        if self.trusted:
            self._asked_at = None

    async def tell(self, journal: Journal) -> None:
        """Write down a doubt that has begun, changed or ended since the last time. Cancelled, it is told again."""
        doubt, told = self._state.doubt, self._told
        if doubt == told:
            return
        if doubt is None:
            await journal.note("clock.confirmed", "clock", detail=told)
        else:
            await journal.warn("clock.doubted", "clock", code=CODE, detail=doubt, hint=HINT)
        self._told = doubt

    @property
    def trusted(self) -> bool:
        """Whether the wall clock can be believed, as of the last look."""
        return self._state.doubt is None

    @property
    def problem(self) -> Problem | None:
        """Why it cannot, as a fact."""
        if self._state.doubt is None:
            return None
        detail = (
            f"the clock is in doubt: {self._state.doubt}; no renewal starts until an authority's Date agrees"
        )
        return Problem(CODE, detail, HINT)

    @property
    def doubted_since(self) -> datetime | None:
        """Since when it cannot, by that very clock; a doubt that outlives a restart begins with the new run."""
        return self._state.since

    @property
    def reading(self) -> Reading:
        """Both clocks as of the last look."""
        return self._state.reading

    @property
    def ask_in(self) -> timedelta | None:
        """How long until an authority is to be asked for its Date; zero: now; None while nobody need be."""
        if self.trusted:
            return None
        if self._asked_at is None:
            return timedelta(0)
        return max(self._asked_at + ASK_EVERY - self._boot(), timedelta(0))

    @property
    def should_ask(self) -> bool:
        """Whether an authority should be asked for its Date now."""
        return self.ask_in == timedelta(0)

    def asked(self) -> None:
        """Take in that authorities are being asked now; the next time is 15 s later."""
        self._asked_at = self._boot()

    def _read(self) -> Reading:
        return Reading(self._wall(), self._boot(), self._boot_id)
