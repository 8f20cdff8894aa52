"""What one certificate and one consumer have to tell: their problems, their places, what happened. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from certfan.daemon.status.model import CertificateView, Needs, Page, Row, Verdict
from certfan.daemon.status.page.words import said
from certfan.daemon.store.facts import Event

MOST_FIELDS = 8
LONGEST_FIELD = 400


@dataclass(frozen=True, slots=True)
class Told:
    """One event: what happened, its details as pairs of words, and the events that it tells again, a line each."""

    id: int
    at: datetime
    what: str
    subject: str
    tone: str
    fields: tuple[tuple[str, str], ...]
    last: tuple[str, ...]


_BAD = frozenset(
    {"failed", "lost", "broken", "unclean", "problem", "missed", "refused", "doubted", "doubled"}
)
_GOOD = frozenset({"proven", "found", "mended", "published", "confirmed", "rebuilt", "passed", "enrolled"})


def told(event: Event) -> Told:
    """Return an event as it is shown."""
    verb = event.name.rpartition(".")[2]
    tone = "bad" if verb in _BAD else "ok" if verb in _GOOD else "quiet"
    last = event.fields.get("last")
    again = [one for one in last if isinstance(one, dict)] if isinstance(last, list) else []
    fields = {key: value for key, value in event.fields.items() if not (again and key == "last")}
    return Told(
        id=event.id,
        at=event.at,
        what=said(event.name),
        subject=event.subject,
        tone=tone,
        fields=tuple((said(key), _spelled(value)) for key, value in fields.items())[:MOST_FIELDS],
        last=tuple(" ".join(map(_spelled, one.values())) for one in reversed(again)),
    )


def _spelled(value: Any) -> str:
    """Return a field as text; what is none is spelled as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_FIELD else f"{text[:LONGEST_FIELD]}…"


def newest_first(events: Sequence[Event]) -> list[Told]:
    """Return ascending events as they are shown."""
    return [told(event) for event in reversed(events)]


def is_about_certificate(subject: str, certificate: CertificateView) -> bool:
    """Whether an event or a problem is this certificate's: NAME, NAME@7, NAME/CONSUMER or one of its names."""
    return (
        subject in certificate.identifiers or subject.partition("/")[0].partition("@")[0] == certificate.name
    )


def is_about_consumer(subject: str, name: str) -> bool:
    """Whether an event or a problem is this consumer's: NAME or CERTIFICATE/NAME."""
    return name in (subject, subject.partition("/")[2])


def rows_at(consumer: str, page: Page) -> list[Row]:
    """Return every row of one consumer, what is not well first, then by certificate."""
    return not_well_first(
        [row for one in page.certificates for row in one.endpoints if row.consumer == consumer]
    )


def not_well_first(rows: Sequence[Row]) -> list[Row]:
    """Return rows in their order, but what is proven and has no problem at the end."""
    return sorted(rows, key=lambda row: row.verdict is Verdict.PROVEN and row.problem is None)


def problems_of_certificate(certificate: CertificateView, problems: Sequence[Needs]) -> tuple[Needs, ...]:
    """Return what needs somebody before this certificate is well: its own problems, and those of its consumers."""
    consumers = {row.consumer for row in certificate.endpoints}
    return tuple(
        p for p in problems if p.subject in consumers or is_about_certificate(p.subject, certificate)
    )


def places(page: Page) -> Callable[[str, str], str]:
    """Return how to find the page of what a problem or an event names; "" when it has none."""
    certificates = {one.name for one in page.certificates}
    consumers = {one.name for one in page.consumers}
    by_identifier = {name: one.name for one in page.certificates for name in one.identifiers}

    def place(subject: str, code: str = "") -> str:
        first = subject.partition("/")[0].partition("@")[0]
        if subject in consumers and (subject not in certificates or code.startswith("consumer.")):
            return f"/consumers/{quote(subject, safe='')}"
        name = first if first in certificates else by_identifier.get(subject)
        return f"/certificates/{quote(name, safe='')}" if name else ""

    return place
