"""What `certfan import` says, as lines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from certfan.cli.lines.columns import clean

INSTALL_TO = "/etc/certfan"  # an agent's default

Json = dict[str, Any]

_SERVED = {"same": "this very leaf", "other": "another leaf", "nothing": "no leaf"}


def lines(told: Json) -> list[str]:
    """Return what was done, or what would be."""
    done = told["done"]
    return [
        *(
            f"authority {name}: {'added' if done else 'to be added'}, {clean(url)}"
            for name, url in told["authorities"].items()
        ),
        *(_account_line(row) for row in told["accounts"]),
        *(line for row in told["certificates"] for line in _certificate_lines(row)),
        *(line for one in told["left_out"] for line in _left_out_lines(one, told["kind"])),
        *(f"failed: {clean(text)}" for text in told["failed"]),
        *map(clean, told["servers"]),
        *_config_lines(told),
        *_last_lines(told),
    ]


def _account_line(row: Json) -> str:
    head = f"account at {row['authority']}: {clean(row['uri'] or 'known by its key')}"
    match row["do"]:
        case "adopted":
            return f"{head}: is ours"
        case "keep":
            return f"{head}: stays out, as certfan has {row['ours']} (else: --replace-account)"
        case _:
            before = f"; {row['ours']} is kept beside it" if row["ours"] else ""
            return f"{head}: to be adopted{before}"


def _certificate_lines(row: Json) -> Iterator[str]:
    until = datetime.fromisoformat(row["not_after"])
    does = "is" if row["do"] == "adopted" else "becomes"
    yield (
        f"{row['name']}@{row['generation']}: {does} serial {row['serial']} ({row['key_type']}, until {until:%Y-%m-%d})"
        f" for {', '.join(row['names'])}"
    )
    if not row["served"]:
        yield "  served now: nobody knows, its names have no address here (--at ADDRESS:PORT)"
    for seen in row["served"]:
        detail = f": {clean(seen['detail'])}" if seen["detail"] else ""
        yield f"  {seen['endpoint']} serves {_SERVED[seen['served']]}{detail}"
    yield f"  {clean(row['way'])}"
    for hook in row["hooks"]:
        yield f"  ran after a renewal: {clean(hook)}: a hook of a service in agent.toml does that now"


def _left_out_lines(one: Json, kind: str) -> Iterator[str]:
    yield f"left out: {clean(one['name'])}: {clean(one['why'])}"
    if one["stays"]:
        yield f"  {kind} has to go on renewing it; {clean(one['hint'])}"


def _config_lines(told: Json) -> Iterator[str]:
    text = told["config"]["text"]
    if not text:
        yield "the config asks for all of it already"
        return
    yield f"{'written' if told['done'] else 'to be written'}: {told['config']['file']}"
    yield from (clean(f"  {line}").rstrip() for line in text.splitlines())


def _last_lines(told: Json) -> Iterator[str]:
    left = [row for row in (*told["accounts"], *told["certificates"]) if row["do"] == "adopt"]
    if not (told["done"] or left or told["config"]["text"]):
        yield "nothing is left to do"
    elif not told["done"]:
        yield f"nothing was changed; to do it: certfan import {told['folder']} --yes"
    elif told["failed"]:
        yield f"not all of it was done; once that is mended, the same again: certfan import {told['folder']} --yes"
    else:
        staying = [clean(one["name"]) for one in told["left_out"] if one["stays"]]
        but = f", but not those of {', '.join(staying)}" if staying else ""
        yield f"now stop the renewals of {told['kind']}{but}: {told['stop']}"
        yield "then see that every vhost leads challenges here: certfan status"
