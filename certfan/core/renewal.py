"""When the authority itself wants a generation renewed (ARI, RFC 9773), as values.

The instant in a window is drawn once and kept; the dice come in as a number in [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from certfan.core.model import Generation, RenewalInfo

SOONEST_ASK = timedelta(minutes=1)
LATEST_ASK = timedelta(days=1)
USUAL_ASK = timedelta(
    hours=6
)  # when the answer says nothing, and after lasting errors (RFC 9773 section 4.3.3)


@dataclass(frozen=True, slots=True)
class Window:
    """A suggested renewal window as the authority last answered; parsed, its order not yet judged."""

    start: datetime
    end: datetime
    explanation_url: str = field(default="", kw_only=True)
    retry_after: timedelta | None = field(default=None, kw_only=True)


def renewal_info(
    generation: Generation, window: Window | None, before: RenewalInfo | None, now: datetime, *, dice: float
) -> RenewalInfo:
    """Return what to remember of an answer about a generation.

    An unchanged window keeps the instant that was chosen in it; a window that moved gets a new one. `window` None
    means that the authority offers no renewal information; it is remembered as a window that says nothing.
    """
    if window is None:
        return _said_nothing(generation, now)
    wait = USUAL_ASK if window.retry_after is None else window.retry_after
    same = (
        before is not None
        and (before.certificate, before.number) == (generation.certificate, generation.number)
        and (before.start, before.end) == (window.start, window.end)
    )
    return RenewalInfo(
        generation.certificate,
        generation.number,
        start=window.start,
        end=window.end,
        chosen=before.chosen if same and before is not None else _drawn(window, dice),
        ask_again_at=now + min(max(wait, SOONEST_ASK), LATEST_ASK),
        explanation_url=window.explanation_url,
    )


def _said_nothing(generation: Generation, now: datetime) -> RenewalInfo:
    return RenewalInfo(
        generation.certificate,
        generation.number,
        start=generation.not_after,
        end=generation.not_after,
        chosen=generation.not_after,
        ask_again_at=now + LATEST_ASK,
    )


def _drawn(window: Window, dice: float) -> datetime:
    return window.start + max(window.end - window.start, timedelta(0)) * dice
