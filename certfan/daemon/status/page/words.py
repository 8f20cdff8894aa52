"""How instants, spans, verdicts and events are said; every colour comes with one of these words.

What must never come in: HTML (that is the templates'), a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from certfan.core.policy import Urgency
from certfan.daemon.status.model import Row, State, Verdict

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

# Tones are the classes of page.css: ok, work, warn, bad, quiet.
TONE_OF_STATE: Mapping[State, str] = {State.OK: "ok", State.WORKING: "work", State.PROBLEM: "bad"}
TONE_OF_VERDICT: Mapping[Verdict, str] = {
    Verdict.PROVEN: "ok",
    Verdict.PENDING: "work",
    Verdict.UNHEARD: "warn",
    Verdict.OLD_LEAF: "warn",
    Verdict.EXPIRED: "bad",
    Verdict.PLACEHOLDER: "bad",
    Verdict.FOREIGN: "bad",
    Verdict.UNREACHABLE: "bad",
    Verdict.REFUSED: "bad",
}
# The worst last; what is worth telling of many endpoints in one cell.
RANK: Mapping[Verdict, int] = {verdict: rank for rank, verdict in enumerate(TONE_OF_VERDICT)}
LATENESS: Mapping[Urgency, str] = {
    Urgency.CALM: "",
    Urgency.NEAR: "half of the time is gone",
    Urgency.PRESSING: "soon too late",
    Urgency.MISSED: "too late",
}


@dataclass(frozen=True, slots=True)
class Command:
    """A hint taken apart: what to do with it, and the command itself; a hint that is no command is `text`."""

    label: str
    command: str
    text: str


def command(hint: str) -> Command:
    """Take a hint apart: `run: certfan check`, `run on web1: systemctl status certfan-agent`, or free text."""
    label, colon, rest = hint.partition(": ")
    if colon and (label == "run" or label.startswith("run ")) and len(label) < 80:
        return Command(label, rest, "")
    return Command("next", "", hint)


def tone(row: Row) -> str:
    """Return the tone of an endpoint; one that is too late is bad whatever it shows."""
    if row.urgency is Urgency.MISSED:
        return "bad"
    return "warn" if row.verdict is Verdict.PROVEN and row.problem else TONE_OF_VERDICT[row.verdict]


def said(code: str) -> str:
    """Return a constant of ours as words: `old_leaf` is "old leaf", `run.unclean` is "run unclean"."""
    return code.replace("_", " ").replace(".", " ")


def absolute(at: datetime) -> str:
    """Return an instant as people read it, in UTC to the minute."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def iso(at: datetime) -> str:
    """Return an instant as <time datetime> wants it."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def span(of: timedelta) -> str:
    """Return how long, in the largest unit that says enough."""
    of = abs(of)
    if of < MINUTE:
        return f"{round(of.total_seconds())} s"
    if of < HOUR:
        return f"{of // MINUTE} min"
    if of < 2 * DAY:
        return f"{of // HOUR} h"
    return f"{of // DAY} days"


def relative(at: datetime, now: datetime) -> str:
    """Return how far away an instant is: "in 12 days", "3 h ago"."""
    if abs(at - now) < timedelta(seconds=1):
        return "now"
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def counted(number: int, noun: str) -> str:
    """Return "1 endpoint", "2 endpoints", "2 authorities"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def visible(text: str) -> str:
    """Return a text in which nothing can hide or turn the line around: control characters as their escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text
    )
