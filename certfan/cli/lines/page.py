"""What a person sees: the page of the daemon as plain columns. JSON in, lines out; no clock, no terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from certfan.cli.lines.authorities import authority_lines, waiting_lines
from certfan.cli.lines.columns import Json, clean, instant, or_dash, paint, span, table, when, when_said
from certfan.cli.lines.progress import progress_lines

_HEADS = (
    *("CERTIFICATE", "CONSUMER", "ENDPOINT", "WANTED", "SERVED", "VERDICT"),
    *("REASON", "SINCE", "NEXT", "DEADLINE", "PROOF"),
)
_VERDICT = _HEADS.index("VERDICT")


def page_lines(page: Json, *, colour: bool = False, progress: bool = False) -> list[str]:
    """Return the whole page: what needs you first, what is under way, then certificates, then their endpoints."""
    now = instant(page["now"])
    assert now is not None
    summary = page["summary"]
    lines = [f"{page['fleet']}: {paint(summary['state'], colour)}, {summary['text']}"]
    if worst := instant(summary["worst_deadline"]):
        lines[0] += f", worst deadline {when(worst, now)}"
    lines += reset_lines(page, now)
    lines += _ca_lines(page["internal_ca"], now)
    lines += [_lagging_line(one, now, colour) for one in summary["lagging"]]
    for problem in page["problems"]:
        lines += ["", f"{paint('problem', colour)}: {clean(problem['subject'])}: {clean(problem['detail'])}"]
        lines += [f"  try: {clean(problem['hint']).removeprefix('run: ')}"] if problem["hint"] else []
    if progress and (moving := progress_lines(page["certificates"], now)):
        lines += ["", *moving]
    lines += ["", *_certificate_lines(page["certificates"], now, colour)]
    lines += waiting_lines(page, now)
    lines += ["", *authority_lines(page["authorities"], now, colour)]
    rows = [row for certificate in page["certificates"] for row in certificate["endpoints"]]
    lines += ["", *endpoint_lines(rows, now, colour)]
    return [*lines, "", *_orphan_lines(page["orphans"], now)] if page["orphans"] else lines


def reset_lines(page: Json, now: datetime) -> list[str]:
    """Return a line that says which machines were reset in the last 24 hours, together or alone."""
    found = page["resets"]
    if not found:
        ours = page["summary"]["resets_today"]
        return [f"this machine was reset {_times(ours)} in the last 24 h"] if ours else []
    counts = Counter(map(_who_was_reset, found))
    told = "; ".join(f"{who} {_times(count)}" for who, count in counts.items())
    return [f"reset in the last 24 h, last {when_said(found[0]['at'], now)}: {told}"]


def _ca_lines(ca: Json | None, now: datetime) -> list[str]:
    """Return a line for a rotation of the internal CA: since when, whom it waits for, how long at most."""
    if ca is None or ca["since"] is None:
        return []
    waits = ", ".join(map(clean, ca["waits_for"])) or "nobody any more"
    until = f"the old one ends {when_said(ca['old_until'], now)}"
    return [
        f"the internal CA is being replaced, begun {when_said(ca['since'], now)}: waits for {waits}; {until}"
    ]


def _who_was_reset(one: Json) -> str:
    if one["all_together"]:
        return "every machine together (the host)"
    names = [*(["this machine"] if one["daemon"] else []), *map(clean, one["consumers"])]
    return f"{', '.join(names)} {'together' if one['machines'] > 1 else 'alone'}"


def _times(count: int) -> str:
    return f"{count} {'time' if count == 1 else 'times'}"


def endpoint_lines(rows: Sequence[Json], now: datetime, colour: bool) -> list[str]:
    """Return a line for each endpoint: wanted, served, why they differ, by when they must agree."""
    return table(_HEADS, [_row(row, now) for row in rows], _VERDICT, colour)


def _lagging_line(one: Json, now: datetime, colour: bool) -> str:
    count = f"{one['endpoints']} {'endpoint' if one['endpoints'] == 1 else 'endpoints'}"
    late = {"pressing": ", soon too late", "missed": ", too late"}.get(one["urgency"], "")
    verdict = paint(one["verdict"], colour)
    return f"  {clean(one['consumer'])}: {count} {verdict}, deadline {when_said(one['deadline'], now)}{late}: {clean(one['why'])}"


def _orphan_lines(orphans: Sequence[Json], now: datetime) -> list[str]:
    """Return what left the config and is still here."""
    cells = [
        (
            one["kind"],
            clean(one["name"]),
            or_dash(one["generation"]),
            when_said(one["not_after"], now),
            clean(" ".join(one["on"])) or "-",
            _how_to_forget(one),
        )
        for one in orphans
    ]
    return table(("ORPHANED", "NAME", "GENERATION", "EXPIRES", "STILL ON", "TO REMOVE IT"), cells, 0, False)


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
            or_dash(one["reason"]),
            when_said(one["not_after"], now),
            _next(one["next"], now),
            clean(" ".join(one["identifiers"])),
        )
        for one in certificates
    ]
    return table(heads, cells, 1, colour) if cells else ["no certificate is configured"]


def _generation(one: Json) -> str:
    copy = f" (pair of {one['copy_of']})" if one["copy_of"] else ""
    return f"{or_dash(one['generation'])}{copy}"


def _row(row: Json, now: datetime) -> tuple[str, ...]:
    wanted, served = row["wanted"], row["served"]
    seen_at = instant(row["heard_at"]) if row["endpoint"] else None
    return (
        clean(row["certificate"]),
        clean(row["consumer"]),
        clean(row["endpoint"]["url"]) if row["endpoint"] else "-",
        _leaf(wanted and wanted["generation"], wanted) if wanted else "-",
        _leaf(served["generation"] or served["kind"], served) if served else "-",
        row["verdict"],
        or_dash(row["reason"]),
        when_said(row["since"], now),
        _next(row["next"], now),
        when_said(row["deadline"], now),
        f"{span(now - seen_at)} old" if seen_at else "-",
    )


def _leaf(what: Any, leaf: Json) -> str:
    name = f"@{what}" if isinstance(what, int) else str(what)
    return f"{name} {leaf['fingerprint'][:8]}"


def _next(step: Json, now: datetime) -> str:
    return f"{clean(step['step'])} {when_said(step['at'], now)}" if step["at"] else clean(step["step"])


def event_line(event: Json) -> str:
    """Return one line of the journal."""
    told = {
        key: value for key, value in event["fields"].items() if key != "last"
    }  # a run's last events, in JSON
    fields = " ".join(f"{key}={value}" for key, value in told.items())
    at = event["at"].replace("T", " ").removesuffix("Z")
    return clean(f"{at:<23.23}  {event['name']:<24}  {event['subject']}  {fields}").rstrip()


def consumer_lines(consumers: Sequence[Json], now: datetime, *, colour: bool = False) -> list[str]:
    """Return the consumers and when each was heard."""
    cells = [
        (
            clean(one["name"]),
            "heard" if one["heard"] else "unheard",
            when_said(one["heard_at"], now) if one["heard_at"] else "never",
            or_dash(one["version"]),
            or_dash(one["install"]),
        )
        for one in consumers
    ]
    return table(("CONSUMER", "STATE", "LAST HEARD", "VERSION", "INSTALLS"), cells, 1, colour)


def consumer_page(
    one: Json, rows: Sequence[Json], events: Sequence[Json], now: datetime, *, colour: bool = False
) -> list[str]:
    """Return one consumer: itself, its endpoints, what happened to it."""
    lines = [*consumer_lines([one], now, colour=colour), "", *endpoint_lines(rows, now, colour)]
    for problem in dict.fromkeys(
        (row["problem"]["detail"], row["problem"]["hint"]) for row in rows if row["problem"]
    ):
        lines += ["", f"{paint('problem', colour)}: {clean(problem[0])}"]
        lines += [f"  try: {clean(problem[1]).removeprefix('run: ')}"] if problem[1] else []
    return [*lines, "", *map(event_line, events)] if events else lines
