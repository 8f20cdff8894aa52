"""How far orders and fan-outs have come, as lines. JSON in, lines out; no clock, no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from certfan.cli.lines.columns import Json, clean, instant, span, when_said

_BAR = 20  # characters


def progress_lines(certificates: Sequence[Json], now: datetime) -> list[str]:
    """Return a line for each order that is open, and for each certificate that is not yet served everywhere."""
    return [line for one in certificates for line in (*_order(one, now), *_fan_out(one))]


def _order(one: Json, now: datetime) -> Iterator[str]:
    order = one["order"]
    if order is None:
        return
    begun = instant(order["begun_at"])
    assert begun is not None
    steps = "not sent yet"
    if order["url"]:
        steps = f"{order['answered']} of {len(one['identifiers'])} challenges answered"
    waits = f", waits: {clean(one['held']['why'])}" if one["held"] else ""
    yield (
        f"{clean(one['name'])}@{order['generation']}: ordered at {clean(order['authority'])} for {span(now - begun)}, {steps}{waits}"
    )


def _fan_out(one: Json) -> Iterator[str]:
    rows = one["endpoints"]
    proven = sum(row["verdict"] == "proven" for row in rows)
    if one["generation"] is None or proven == len(rows):
        return
    lagging = sorted({row["consumer"] for row in rows if row["verdict"] != "proven"})
    others = f" and {len(lagging) - 3} more" if len(lagging) > 3 else ""
    yield (
        f"{clean(one['name'])}@{one['generation']}: {bar(proven, len(rows))} {proven} of {len(rows)} endpoints proven,"
        f" not yet on {clean(', '.join(lagging[:3]))}{others}"
    )


def bar(done: int, of: int) -> str:
    """Return `[#####.....]`."""
    full = done * _BAR // of if of else 0
    return f"[{'#' * full}{'.' * (_BAR - full)}]"


def stage(one: Json, before: int, now: datetime) -> str:
    """Return in one line how far a renewal has come that was asked for when `before` was the newest generation."""
    lines = progress_lines([one], now)
    if (one["generation"] or 0) > before:
        return lines[-1] if lines else f"{clean(one['name'])}@{one['generation']}: proven everywhere"
    if lines and one["order"]:
        return lines[0]
    if held := one["held"]:
        until = f", until {when_said(held['until'], now)}" if held["until"] else ""
        return f"{clean(one['name'])}: waits: {clean(held['why'])}{until}"
    return f"{clean(one['name'])}: about to be {'rolled back' if one['next']['step'] == 'roll_back' else 'ordered'}"


def is_served(one: Json, before: int) -> bool:
    """Whether a newer generation than `before` is there, and every endpoint proves it."""
    rows = one["endpoints"]
    return (one["generation"] or 0) > before and all(row["verdict"] == "proven" for row in rows)
