"""One message: what stands in it, as JSON for programs and as text for people. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from certfan.daemon.notifying.notices import Notice, Stage
from certfan.daemon.status.wire import as_json

MOST = 50  # changes that are told one by one
_STAGE = {
    Stage.PROBLEM: "problem",
    Stage.NEAR: "still a problem, near its deadline",
    Stage.RECOVERED: "recovered",
}


@dataclass(frozen=True, slots=True)
class Message:
    """What is told at once. Its `id` stays the same however often it is sent."""

    id: str
    subject: str
    text: str
    body: Mapping[str, Any]


def message(
    fleet: str, now: datetime, message_id: str, changes: tuple[Notice, ...], *, summary: str
) -> Message:
    """Write a message of some changes; without any it is a test."""
    title = f"certfan {fleet}: {_title(changes)}"
    lines = [f"{title}", f"{_clock(now)}; {summary}", ""]
    for one in changes[:MOST]:
        lines += [*_lines(one), ""]
    if len(changes) > MOST:
        lines += [f"and {len(changes) - MOST} more; run: certfan status", ""]
    if not changes:
        lines += ["This is a test: whoever reads it hears of problems.", ""]
    body = {
        "version": 1,
        "id": message_id,
        "fleet": fleet,
        "at": as_json(now),
        "summary": summary,
        "test": not changes,
        "changes": as_json(tuple(changes)),
    }
    return Message(message_id, title, "\n".join(lines), body)


def _title(changes: tuple[Notice, ...]) -> str:
    if not changes:
        return "test"
    first, more = changes[0], f" and {len(changes) - 1} more" if len(changes) > 1 else ""
    word = "near its deadline" if first.stage is Stage.NEAR else first.stage.value
    return _one_line(f"{word}: {first.subject}: {first.detail}", 120) + more


def _lines(one: Notice) -> list[str]:
    lines = [f"{_STAGE[one.stage]}: {_one_line(one.subject, 200)}: {_one_line(one.detail, 500)}"]
    times = [f"since {_clock(one.since)}"] if one.since else []
    times += [f"to be mended by {_clock(one.deadline)}"] if one.deadline else []
    lines += [f"  {', '.join(times)}"] if times else []
    lines += [f"  try: {_one_line(one.hint.removeprefix('run: '), 300)}"] if one.hint else []
    return lines


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _one_line(text: str, most: int) -> str:
    """What other machines said may hold anything; nothing of it begins a line or a header."""
    plain = re.sub(r"[^\S ]+|[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).strip()
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
