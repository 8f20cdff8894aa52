"""What `certfan why` says of one certificate. JSON in, lines out; no clock, no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from certfan.cli.lines.columns import Json, clean, instant, paint, when_said
from certfan.cli.lines.page import endpoint_lines, event_line


def why_lines(one: Json, events: Sequence[Json], now: datetime, *, colour: bool = False) -> list[str]:
    """Return state and reason, what it waits for, the next step, how to force it, endpoints, then the timeline."""
    reason = f", {one['reason']}" if one["reason"] else ""
    lines = [f"{clean(one['name'])}: {paint(one['state'], colour)}{clean(reason)}"]
    lines += [f"  {key + ':':<13}{clean(value)}" for key, value in _facts(one, now)]
    lines += ["", *endpoint_lines(one["endpoints"], now, colour)]
    lines += ["", *map(event_line, events)] if events else ["", "nothing is in the journal of it"]
    return lines


def _facts(one: Json, now: datetime) -> Iterator[tuple[str, str]]:
    yield "identifiers", " ".join(one["identifiers"])
    yield "generation", _generation(one, now)
    yield from _order(one, now)
    if one["problem"]:
        row = f" ({one['failures']} times in a row)" if one["failures"] > 1 else ""
        yield "problem", f"{one['problem']['detail']}{row}"
        if one["problem"]["hint"]:
            yield "try", one["problem"]["hint"].removeprefix("run: ")
    for path in one["broken_paths"]:
        yield (
            "path",
            f"{path['identifier']}: {path['problem']['detail']}, since {at_said(path['since'], now)}",
        )
    for wish in one["revocations"]:
        state = wish["problem"]["detail"] if wish["problem"] else wish["waits_for"] or "under way"
        yield "revoking", f"@{wish['generation']} ({wish['reason']}): {state}"
    for row in one["endpoints"]:
        if row["problem"] and row["problem"] != one["problem"]:
            yield "problem", f"{row['consumer']}: {row['problem']['detail']}"
            if row["problem"]["hint"]:
                yield "try", row["problem"]["hint"].removeprefix("run: ")
    step = one["next"]
    yield "next", f"{step['step']} {at_said(step['at'], now) if step['at'] else 'now'}"
    if late := [row["deadline"] for row in one["endpoints"] if row["verdict"] != "proven"]:
        yield "deadline", at_said(min(late), now)
    yield "to force it", one["to_force"].removeprefix("run: ")


def _order(one: Json, now: datetime) -> Iterator[tuple[str, str]]:
    if held := one["held"]:
        until = f", until {at_said(held['until'], now)}" if held["until"] else ""
        yield "waits for", f"{held['why']}{until}"
    if order := one["order"]:
        moved = f", last moved {at_said(order['moved_at'], now)}" if order["moved_at"] else ""
        yield (
            "order",
            f"@{order['generation']} at {order['authority']}, begun {at_said(order['begun_at'], now)}{moved}",
        )
    if one["instead_of"]:
        yield "fallback", f"{one['authority']}, because {one['instead_of']['detail']}"


def _generation(one: Json, now: datetime) -> str:
    if one["generation"] is None:
        return "none yet"
    renew = f", to be renewed {at_said(one['renew_at'], now)}" if one["renew_at"] else ""
    return f"@{one['generation']} by {one['issued_by']}, expires {at_said(one['not_after'], now)}{renew}"


def at_said(text: str | None, now: datetime) -> str:
    """Return an instant both ways: `in 3 d 4 h (2026-11-25 16:00 UTC)`."""
    at = instant(text)
    return f"{when_said(text, now)} ({at:%Y-%m-%d %H:%M} UTC)" if at else "-"
