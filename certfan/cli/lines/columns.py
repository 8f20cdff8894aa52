"""Words and columns of what a person sees: instants, spans, cells, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import click

Json = Mapping[str, Any]

COLOURS = {
    "proven": "green",
    "ok": "green",
    "pending": "cyan",
    "working": "cyan",
    "silent": "yellow",
    "unheard": "yellow",
    "old_leaf": "yellow",
    "expired": "red",
    "placeholder": "red",
    "foreign": "red",
    "unreachable": "red",
    "refused": "red",
    "problem": "red",
}


def when(at: datetime, now: datetime) -> str:
    """Return an instant as a person says it: `in 3 d 4 h`, `12 min ago`."""
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def span(length: timedelta) -> str:
    """Return a span in its two largest units."""
    seconds = max(round(length.total_seconds()), 0)
    parts: list[tuple[int, str]] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if parts or count:
            parts.append((count, unit))
        if len(parts) == 2:
            break
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def clean(text: str) -> str:
    """Return text without control characters: what a service printed must not move an admin's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


def instant(text: str | None) -> datetime | None:
    """Return an instant as JSON says it."""
    return datetime.fromisoformat(text) if text else None


def when_said(text: str | None, now: datetime) -> str:
    """Return `when` of an instant in JSON, a dash for none."""
    at = instant(text)
    return when(at, now) if at else "-"


def or_dash(value: Any) -> str:
    """Return a cell."""
    return clean(str(value)) if value is not None else "-"


def paint(word: str, colour: bool) -> str:
    """Return a word in its colour, if there is to be any."""
    return click.style(word, fg=COLOURS.get(word)) if colour else word


def table(heads: Sequence[str], cells: Sequence[Sequence[str]], painted: int, colour: bool) -> list[str]:
    """Columns as wide as their widest cell; colour comes last, so that it takes no width."""
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = ["  ".join(h.ljust(w) for h, w in zip(heads, widths, strict=True)).rstrip()]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        space = padded[painted][len(row[painted]) :]
        padded[painted] = paint(row[painted], colour) + space
        lines.append("  ".join(padded).rstrip())
    return lines
