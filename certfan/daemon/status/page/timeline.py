"""When certificates are renewed and when they end, as positions on an axis of time. Pure.

Few certificates get a lane each, many are counted by day or week. Positions are per cent of the width, so that
the picture needs no scaling and its letters stay as large as the page's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from certfan.daemon.status.model import CertificateView, Page
from certfan.daemon.status.page.words import DAY, counted, relative

MOST_LANES = 16
NEXT = 20  # changes that the text beside the picture lists
LANE, AXIS = 30, 26  # px
BAR_ROOM = 56  # px on either side of the middle
_SHORTEST, _LONGEST = 14 * DAY, 400 * DAY
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across, with its date."""

    x: float
    text: str
    anchor: str
    near: bool  # to "now": on a narrow screen its date has no room


@dataclass(frozen=True, slots=True)
class Lane:
    """One certificate: from now to its renewal, and to its end. A position None lies outside."""

    certificate: CertificateView
    y: int
    renew: float | None
    end: float | None
    tone: str


@dataclass(frozen=True, slots=True)
class Bar:
    """What happens in one stretch of time: renewals stand up, ends hang down."""

    x: float
    width: float
    renewals: int
    ends: int
    up: float  # px
    down: float
    overdue: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the text beside the picture."""

    at: datetime
    certificate: str
    what: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The picture and what it says in words; `lanes` or `bars` is empty."""

    height: int
    now: float
    ticks: tuple[Tick, ...]
    lanes: tuple[Lane, ...]
    bars: tuple[Bar, ...]
    each: str  # how long a bar is
    most: int  # the highest bar
    text: str
    changes: tuple[Change, ...]
    more: int


def timeline(page: Page) -> Timeline | None:
    """Return the picture; None when nothing was issued yet."""
    issued = [one for one in page.certificates if one.not_after is not None]
    if not issued:
        return None
    issued.sort(key=lambda one: (one.renew_at or one.not_after, one.name))
    changes = sorted(_changes(issued), key=lambda one: (one.at, one.certificate))
    axis = _Axis(page.now, [one.at for one in changes])
    lanes: tuple[Lane, ...] = ()
    bars: tuple[Bar, ...] = ()
    if len(issued) <= MOST_LANES:
        lanes = tuple(_lane(one, index, axis, page.now) for index, one in enumerate(issued))
    else:
        bars = tuple(_bars(changes, axis, page.now))
    return Timeline(
        height=(len(lanes) * LANE if lanes else 2 * BAR_ROOM) + AXIS,
        now=axis.place(page.now),
        ticks=tuple(_ticks(axis, axis.place(page.now))),
        lanes=lanes,
        bars=bars,
        each="a day" if axis.each == DAY else counted(axis.each // DAY, "day"),
        most=max((max(bar.renewals, bar.ends) for bar in bars), default=0),
        text=_text(issued, page.now),
        changes=tuple(changes[:NEXT]),
        more=max(len(changes) - NEXT, 0),
    )


def _changes(issued: Sequence[CertificateView]) -> Iterator[Change]:
    for one in issued:
        if one.renew_at is not None:
            yield Change(one.renew_at, one.name, "renewal")
        assert one.not_after is not None
        yield Change(one.not_after, one.name, "expiry")


class _Axis:
    """From a little before now to the last change, in whole days."""

    def __init__(self, now: datetime, instants: Sequence[datetime]) -> None:
        last = min(max(*instants, now + _SHORTEST), now + _LONGEST)
        first = max(min(*instants, now), now - (last - now) / 8)
        self.start = _midnight(first)
        self.stop = _midnight(last) + 2 * DAY
        length = self.stop - self.start
        self.each = DAY if length <= 110 * DAY else _WEEK if length <= 300 * DAY else 2 * _WEEK

    def place(self, at: datetime) -> float:
        """Return the per cent of an instant, kept inside."""
        return round(min(max((at - self.start) / (self.stop - self.start), 0.0), 1.0) * 100, 3)

    def inside(self, at: datetime | None) -> float | None:
        return None if at is None or not self.start <= at <= self.stop else self.place(at)


def _midnight(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _ticks(axis: _Axis, now: float) -> Iterator[Tick]:
    """Yield round dates, about five to eight of them."""
    length = axis.stop - axis.start
    for number in range(length // DAY + 1):
        day = axis.start + number * DAY
        x = axis.place(day)
        if _is_round(day, length) and 2 < x < 98 and abs(x - now) > 4:
            anchor = "start" if x < 6 else "end" if x > 94 else "middle"
            yield Tick(x, f"{day.day} {day:%b}", anchor, abs(x - now) < 18)


def _is_round(day: datetime, length: timedelta) -> bool:
    if length <= 45 * DAY:
        return day.weekday() == 0
    if length <= 130 * DAY:
        return day.day in {1, 15}
    return day.day == 1 and (length < 260 * DAY or day.month % 2 == 1)


def _lane(certificate: CertificateView, index: int, axis: _Axis, now: datetime) -> Lane:
    end, renew = certificate.not_after, certificate.renew_at
    assert end is not None
    tone = "bad" if end <= now else "warn" if renew is not None and renew <= now else "work"
    return Lane(certificate, index * LANE, axis.inside(renew), axis.inside(end), tone)


def _bars(changes: Sequence[Change], axis: _Axis, now: datetime) -> Iterator[Bar]:
    counts: dict[int, list[int]] = {}
    for one in changes:
        if axis.start <= one.at <= axis.stop:
            counts.setdefault((one.at - axis.start) // axis.each, [0, 0])[one.what == "expiry"] += 1
    most = max((max(pair) for pair in counts.values()), default=1)
    scale, width = (BAR_ROOM - 16) / most, axis.each / (axis.stop - axis.start) * 100
    for place, (renewals, ends) in sorted(counts.items()):
        yield Bar(
            x=round(place * width, 3),
            width=round(width * 0.86, 3),
            renewals=renewals,
            ends=ends,
            up=round(max(renewals * scale, 2 if renewals else 0), 1),
            down=round(max(ends * scale, 2 if ends else 0), 1),
            overdue=axis.start + (place + 1) * axis.each <= now,
        )


def _text(issued: Sequence[CertificateView], now: datetime) -> str:
    """Return what the picture shows, in two sentences."""
    renewals = [one.renew_at for one in issued if one.renew_at is not None]
    ends = [one.not_after for one in issued if one.not_after is not None]
    due, gone = sum(at <= now for at in renewals), sum(at <= now for at in ends)
    week, month = (sum(now < at <= now + days * DAY for at in renewals) for days in (7, 30))
    coming = min((at for at in renewals if at > now), default=None)
    parts = [f"{due} due now"] if due else []
    parts += [f"{week} in the next 7 days", f"{month} in the next 30"]
    told = f"Renewals: {', '.join(parts)}"
    told += f"; the next {relative(coming, now)}." if coming else "."
    first = min((at for at in ends if at > now), default=None)
    over = f"{counted(gone, 'certificate')} expired. " if gone else ""
    return f"{told} {over}{f'The first expiry is {relative(first, now)}.' if first else ''}".strip()
