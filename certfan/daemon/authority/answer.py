"""One HTTP answer as a value, shaped like what the acme library expects of `requests`, and its Retry-After."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from multidict import CIMultiDictProxy

LONGEST_WAIT = timedelta(days=7)  # the longest window that an authority counts in
_LINK = re.compile(r"""<([^<>"\s]+)>((?:\s*;\s*[^\s;,="]+(?:=(?:"[^"]*"|[^\s;,"]*))?)*)""")
_REL = re.compile(r"""(?i)\brel=(?:"([^"]*)"|([^\s;,"]+))""")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (case-insensitive) and the whole body."""

    status_code: int
    headers: CIMultiDictProxy[str]
    content: bytes
    url: str
    at: datetime  # our clock, when it came

    @property
    def ok(self) -> bool:
        """Whether it is no error."""
        return self.status_code < 400

    def json(self) -> Any:
        """Return the body as JSON; raises ValueError."""
        try:
            return json.loads(self.content)
        except RecursionError as error:
            raise ValueError("JSON is nested too deeply") from error

    @property
    def date(self) -> datetime | None:
        """The authority's clock, from the Date header."""
        return _http_date(self.headers.get("Date", ""))

    @property
    def retry_after(self) -> timedelta | None:
        """How long to wait (RFC 9110 section 10.2.3), clamped to 0 .. 7 days; None when it does not say.

        A date is measured against the answer's own Date, so that our clock does not matter.
        """
        text = self.headers.get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            return timedelta(seconds=min(int(text[:9]), LONGEST_WAIT.total_seconds()))
        until = _http_date(text)
        if until is None:
            return None
        return min(max(until - (self.date or self.at), timedelta(0)), LONGEST_WAIT)

    @property
    def not_before(self) -> datetime | None:
        """The instant, by our clock, that Retry-After means."""
        wait = self.retry_after
        return None if wait is None else self.at + wait

    def links(self, relation: str) -> tuple[str, ...]:
        """Every URL that the answer links to in this relation (RFC 8288)."""
        found = _LINK.findall(", ".join(self.headers.getall("Link", ())))
        return tuple(url for url, rest in found if relation in _relations(rest))


def _relations(parameters: str) -> list[str]:
    match = _REL.search(parameters)
    return (match[1] or match[2] or "").split() if match else []


@lru_cache(maxsize=16)  # all answers of a second say the same
def _http_date(text: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text)
        # HTTP dates are UTC (RFC 9110 section 5.6.7) even where the zone is missing or odd.
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
