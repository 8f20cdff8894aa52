"""The authority side of `certfan status`: what waits and for what, and how each authority stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from certfan.cli.lines.columns import Json, clean, or_dash, table, when_said


def waiting_lines(page: Json, now: datetime) -> list[str]:
    """Return a line for each order that is held up or goes elsewhere, each window with a reason, each revocation."""
    lines: list[str] = []
    for one in page["certificates"]:
        lines += _order_lines(one, now)
    for one in (*page["certificates"], *page["orphans"]):
        lines += [_revocation_line(one["name"], wish) for wish in one["revocations"]]
    return ["", *lines] if lines else []


def _order_lines(one: Json, now: datetime) -> Iterator[str]:
    name = clean(one["name"])
    if one["instead_of"]:
        yield f"{name}: goes to {clean(one['authority'])} instead: {clean(one['instead_of']['detail'])}"
    if held := one["held"]:
        until = f", again {when_said(held['until'], now)}" if held["until"] else ""
        yield f"{name}: waits{until}: {clean(held['why'])}"
    if (renewal := one["renewal"]) and renewal["explanation_url"]:
        chosen = when_said(renewal["chosen"], now)
        yield f"{name}: {clean(one['issued_by'])} wants it renewed {chosen}; why: {clean(renewal['explanation_url'])}"
    for path in one["broken_paths"]:
        yield f"{name}: no answer at {clean(path['identifier'])} since {when_said(path['since'], now)}"


def _revocation_line(name: str, wish: Json) -> str:
    if wish["problem"]:
        state = f"cannot be done: {clean(wish['problem']['detail'])}"
    else:
        state = f"waits for {clean(wish['waits_for'])}" if wish["waits_for"] else "under way"
    return f"{clean(name)}@{wish['generation']}: to be revoked ({clean(wish['reason'])}), {state}"


def authority_lines(authorities: Sequence[Json], now: datetime, colour: bool) -> list[str]:
    """Return the authorities: do they answer, our account, what is most used of their limits."""
    cells = [
        (
            clean(one["name"]),
            "silent" if one["silent"] else "ok",
            str(one["orders"]),
            _limits(one["limits"], now),
            or_dash(one["account"]) + (" (gets a new key)" if one["new_key"] else ""),
        )
        for one in authorities
    ]
    heads = ("AUTHORITY", "STATE", "ORDERS", "MOST USED LIMIT", "ACCOUNT")
    return table(heads, cells, 1, colour) if cells else []


def _limits(limits: Sequence[Json], now: datetime) -> str:
    """Return the one that is nearest to its end, and when that will be less."""
    if not limits:
        return "-"
    most = max(limits, key=lambda one: one["used"] / one["count"])
    return f"{limit_text(most)}, less {when_said(most['frees_at'], now)}"


def limit_text(one: Json) -> str:
    """Return what is used of a limit: `3 of 50 certificates per domain example.org`."""
    subject = f" {clean(one['subject'])}" if one["subject"] else ""
    return f"{one['used']} of {one['count']} {one['limit'].replace('_', ' ')}{subject}"
