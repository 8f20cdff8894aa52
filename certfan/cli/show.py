"""What a person sees: the page of the daemon as plain columns. JSON in, lines out; no clock, no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import click

Json = Mapping[str, Any]

_COLOURS = {
    "proven": "green",
    "ok": "green",
    "pending": "cyan",
    "working": "cyan",
    "unheard": "yellow",
    "old_leaf": "yellow",
    "placeholder": "red",
    "foreign": "red",
    "unreachable": "red",
    "refused": "red",
    "problem": "red",
}
_HEADS = (
    *("CERTIFICATE", "CONSUMER", "ENDPOINT", "WANTED", "SERVED", "VERDICT"),
    *("REASON", "SINCE", "NEXT", "DEADLINE", "PROOF"),
)
_VERDICT = _HEADS.index("VERDICT")


def page_lines(page: Json, *, colour: bool = False) -> list[str]:
    """Return the whole page: what needs you first, then certificates, then their endpoints."""
    now = _instant(page["now"])
    assert now is not None
    summary = page["summary"]
    lines = [f"{page['fleet']}: {_paint(summary['state'], colour)}, {summary['text']}"]
    if worst := _instant(summary["worst_deadline"]):
        lines[0] += f", worst deadline {when(worst, now)}"
    if resets := summary["resets_today"]:
        lines.append(f"this machine was reset {resets} {'time' if resets == 1 else 'times'} in the last 24 h")
    lines += [_lagging_line(one, now, colour) for one in summary["lagging"]]
    for problem in page["problems"]:
        lines += ["", f"{_paint('problem', colour)}: {clean(problem['subject'])}: {clean(problem['detail'])}"]
        lines += [f"  try: {clean(problem['hint']).removeprefix('run: ')}"] if problem["hint"] else []
    lines += ["", *_certificate_lines(page["certificates"], now, colour)]
    rows = [row for certificate in page["certificates"] for row in certificate["endpoints"]]
    lines += ["", *_table(_HEADS, [_row(row, now) for row in rows], _VERDICT, colour)]
    return [*lines, "", *_orphan_lines(page["orphans"], now)] if page["orphans"] else lines


def _lagging_line(one: Json, now: datetime, colour: bool) -> str:
    count = f"{one['endpoints']} {'endpoint' if one['endpoints'] == 1 else 'endpoints'}"
    late = {"pressing": ", soon too late", "missed": ", too late"}.get(one["urgency"], "")
    verdict = _paint(one["verdict"], colour)
    return f"  {clean(one['consumer'])}: {count} {verdict}, deadline {_when(one['deadline'], now)}{late}: {clean(one['why'])}"


def _orphan_lines(orphans: Sequence[Json], now: datetime) -> list[str]:
    """Return what left the config and is still here."""
    cells = [
        (
            one["kind"],
            clean(one["name"]),
            _or_dash(one["generation"]),
            _when(one["not_after"], now),
            clean(" ".join(one["on"])) or "-",
            _how_to_forget(one),
        )
        for one in orphans
    ]
    return _table(("ORPHANED", "NAME", "GENERATION", "EXPIRES", "STILL ON", "TO REMOVE IT"), cells, 0, False)


def _how_to_forget(one: Json) -> str:
    if one["forgetting"] and one["problem"]:
        return f"being forgotten, but {clean(one['problem']['detail'])}"
    return "being forgotten" if one["forgetting"] else clean(one["hint"]).removeprefix("run: ")


def _certificate_lines(certificates: Sequence[Json], now: datetime, colour: bool) -> list[str]:
    heads = ("CERTIFICATE", "STATE", "GENERATION", "REASON", "EXPIRES", "NEXT", "IDENTIFIERS")
    cells = [
        (
            clean(one["name"]),
            one["state"],
            _generation(one),
            _or_dash(one["reason"]),
            _when(one["not_after"], now),
            _next(one["next"], now),
            clean(" ".join(one["identifiers"])),
        )
        for one in certificates
    ]
    return _table(heads, cells, 1, colour) if cells else ["no certificate is configured"]


def _generation(one: Json) -> str:
    copy = f" (pair of {one['copy_of']})" if one["copy_of"] else ""
    return f"{_or_dash(one['generation'])}{copy}"


def _row(row: Json, now: datetime) -> tuple[str, ...]:
    wanted, served = row["wanted"], row["served"]
    age = row["proof_age"]
    return (
        clean(row["certificate"]),
        clean(row["consumer"]),
        clean(row["endpoint"]["url"]) if row["endpoint"] else "-",
        _leaf(wanted and wanted["generation"], wanted) if wanted else "-",
        _leaf(served["generation"] or served["kind"], served) if served else "-",
        row["verdict"],
        _or_dash(row["reason"]),
        _when(row["since"], now),
        _next(row["next"], now),
        _when(row["deadline"], now),
        f"{span(timedelta(seconds=age))} old" if age is not None else "-",
    )


def _leaf(what: Any, leaf: Json) -> str:
    name = f"@{what}" if isinstance(what, int) else str(what)
    return f"{name} {leaf['fingerprint'][:8]}"


def _next(step: Json, now: datetime) -> str:
    return f"{clean(step['step'])} {_when(step['at'], now)}" if step["at"] else clean(step["step"])


def event_line(event: Json) -> str:
    """Return one line of the journal."""
    fields = " ".join(f"{key}={value}" for key, value in event["fields"].items())
    at = event["at"].replace("T", " ").removesuffix("Z")
    return clean(f"{at}  {event['name']:<24}  {event['subject']}  {fields}").rstrip()


def consumer_lines(consumers: Sequence[Json], now: datetime, *, colour: bool = False) -> list[str]:
    """Return the consumers and when each was heard."""
    cells = [
        (
            clean(one["name"]),
            "heard" if one["heard"] else "unheard",
            _when(one["heard_at"], now) if one["heard_at"] else "never",
            _or_dash(one["version"]),
        )
        for one in consumers
    ]
    return _table(("CONSUMER", "STATE", "LAST HEARD", "VERSION"), cells, 1, colour)


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


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _when(text: str | None, now: datetime) -> str:
    at = _instant(text)
    return when(at, now) if at else "-"


def _or_dash(value: Any) -> str:
    return clean(str(value)) if value is not None else "-"


def _paint(word: str, colour: bool) -> str:
    return click.style(word, fg=_COLOURS.get(word)) if colour else word


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]], painted: int, colour: bool) -> list[str]:
    """Columns as wide as their widest cell; colour comes last, so that it takes no width."""
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = ["  ".join(h.ljust(w) for h, w in zip(heads, widths, strict=True)).rstrip()]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        space = padded[painted][len(row[painted]) :]
        padded[painted] = _paint(row[painted], colour) + space
        lines.append("  ".join(padded).rstrip())
    return lines
