"""Certificates x consumers: which lines are shown, in which order, and what each cell says. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlencode

from certfan.daemon.status.model import CertificateView, Page, Row, State, Verdict
from certfan.daemon.status.page.words import RANK, TONE_OF_STATE, said, tone

LINES_A_PAGE = 100
MOST_COLUMNS = 24  # with more consumers than that a line names only those that are not proven
MOST_NAMED = 6
_LONGEST_FILTER = 100
_ORDER = {State.PROBLEM: 0, State.WORKING: 1, State.OK: 2}
_TONES = ("ok", "quiet", "work", "warn", "bad")


@dataclass(frozen=True, slots=True)
class Choice:
    """What the reader wants to see; it lives in the address, so it can be kept and sent."""

    text: str = ""
    show: State | None = None
    number: int = 1  # of the page of lines
    refresh: bool = True

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Choice:
        """Read an address; what it spells wrongly is as if it were not there."""
        number = query.get("page", "")
        show = query.get("show", "")
        return cls(
            query.get("q", "").strip()[:_LONGEST_FILTER],
            State(show) if show in set(State) else None,
            max(int(number), 1) if number.isascii() and number.isdecimal() and len(number) < 7 else 1,
            query.get("refresh") != "off",
        )

    def address(self, **changed: object) -> str:
        """Return the address of this choice with something changed."""
        other = replace(self, **changed)  # type: ignore[arg-type]
        said_so = {
            "q": other.text,
            "show": other.show or "",
            "page": str(other.number) if other.number > 1 else "",
            "refresh": "" if other.refresh else "off",
        }
        given = urlencode({key: value for key, value in said_so.items() if value})
        return f"?{given}" if given else "?"


@dataclass(frozen=True, slots=True)
class Cell:
    """One certificate on one consumer: the worst of its endpoints; `by` is the deadline of what is not proven."""

    consumer: str
    tone: str
    text: str
    count: str
    by: datetime | None


@dataclass(frozen=True, slots=True)
class Line:
    """One certificate. `cells` stand under the columns; with too many of those they are the ones to name."""

    certificate: CertificateView
    tone: str
    cells: tuple[Cell | None, ...]
    unnamed: int  # cells that are not proven either
    proven: int  # consumers
    consumers: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """The lines of one page. `columns` is empty when there are too many of them."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    found: int
    first: int  # number of the first line, from 1
    number: int  # of this page of lines
    pages: int
    counts: Mapping[State, int]  # of all certificates


def most_urgent_first(certificates: Sequence[CertificateView]) -> list[CertificateView]:
    """Return problems first, then what is late soonest, then by name."""
    return sorted(certificates, key=_urgency)


def matrix(page: Page, choice: Choice, ordered: Sequence[CertificateView]) -> Matrix:
    """Return what the choice shows of certificates in that order."""
    wanted = [one for one in ordered if _is_wanted(one, choice)]
    pages = max(-(-len(wanted) // LINES_A_PAGE), 1)
    number = min(choice.number, pages)
    start = (number - 1) * LINES_A_PAGE
    shown = wanted[start : start + LINES_A_PAGE]
    used = {row.consumer for one in shown for row in one.endpoints}
    columns = tuple(one.name for one in page.consumers if one.name in used)
    columns = columns if len(columns) <= MOST_COLUMNS else ()
    return Matrix(
        columns=columns,
        lines=tuple(_line(one, columns) for one in shown),
        found=len(wanted),
        first=start + 1,
        number=number,
        pages=pages,
        counts=Counter(one.state for one in page.certificates),
    )


def _is_wanted(certificate: CertificateView, choice: Choice) -> bool:
    if choice.show is not None and certificate.state is not choice.show:
        return False
    text = choice.text.lower()
    if not text:
        return True
    return (
        text in certificate.name
        or any(text in one for one in certificate.identifiers)
        or any(text == row.consumer for row in certificate.endpoints)
    )


def _urgency(certificate: CertificateView) -> tuple[int, float, str]:
    late: Iterable[datetime] = ()
    if certificate.state is not State.OK:
        late = (row.deadline for row in certificate.endpoints if row.verdict is not Verdict.PROVEN)
    first = min((at.timestamp() for at in late), default=float("inf"))
    return _ORDER[certificate.state], first, certificate.name


def _line(certificate: CertificateView, columns: Sequence[str]) -> Line:
    at: dict[str, list[Row]] = {}
    for row in certificate.endpoints:
        at.setdefault(row.consumer, []).append(row)
    cells = {consumer: cell(consumer, rows) for consumer, rows in at.items()}
    open_ones = [one for one in cells.values() if one.by is not None or one.tone != "ok"]
    if columns:
        placed, unnamed = tuple(cells.get(name) for name in columns), 0
    else:
        open_ones.sort(key=lambda one: (-_TONES.index(one.tone), one.consumer))
        placed, unnamed = tuple(open_ones[:MOST_NAMED]), max(len(open_ones) - MOST_NAMED, 0)
    return Line(
        certificate=certificate,
        tone=TONE_OF_STATE[certificate.state],
        cells=placed,
        unnamed=unnamed,
        proven=len(cells) - len(open_ones),
        consumers=len(cells),
    )


def cell(consumer: str, rows: Sequence[Row]) -> Cell:
    """Return what many endpoints are worth together: the worst verdict, and how many have it."""
    worst = rows[0]
    if len(rows) > 1:
        worst = max(rows, key=lambda row: (_TONES.index(tone(row)), RANK[row.verdict]))
    same = sum(row.verdict is worst.verdict for row in rows)
    open_ones = [row.deadline for row in rows if row.verdict is not Verdict.PROVEN]
    count = str(same) if same == len(rows) else f"{same} of {len(rows)}"
    count = count if worst.endpoint is not None else ""  # none was reported yet
    text = "hook failed" if worst.verdict is Verdict.PROVEN and worst.problem else said(worst.verdict)
    return Cell(consumer, tone(worst), text, count, min(open_ones, default=None))
