"""When an authority wants a generation renewed: one instant a window, drawn once, and the next question clamped."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfan.core.model import RenewalInfo
from certfan.core.policy import renewal_instant
from certfan.core.renewal import Window, renewal_info
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW, make_generation

GENERATION = make_generation()
LATER = NOW + 30 * DAY
WINDOW = Window(NOW + 58 * DAY, NOW + 60 * DAY, explanation_url="https://ca/why")
DICE = st.floats(0, 1, exclude_max=True)
SPANS = st.timedeltas(-100 * DAY, 100 * DAY)


def ask(
    window: Window | None, before: RenewalInfo | None = None, *, dice: float = 0.25, number: int = 1
) -> RenewalInfo:
    return renewal_info(make_generation(number), window, before, LATER, dice=dice)


def test_an_instant_is_drawn_evenly_in_the_window() -> None:
    """The dice decide between its start and its end; the explanation is kept."""
    assert WINDOW.start == ask(WINDOW, dice=0.0).chosen
    assert NOW + 58 * DAY + 12 * HOUR == ask(WINDOW).chosen
    assert "https://ca/why" == ask(WINDOW).explanation_url


def test_an_unchanged_window_keeps_its_instant() -> None:
    """However often the authority is asked; what it explains may change."""
    first = ask(WINDOW)
    again = ask(Window(WINDOW.start, WINDOW.end), first, dice=0.9)

    assert first.chosen == again.chosen
    assert "" == again.explanation_url


def test_a_window_that_moved_draws_again() -> None:
    """At either end; so does another generation's, though its window is the same."""
    first = ask(WINDOW)

    assert WINDOW.start - DAY == ask(Window(WINDOW.start - DAY, WINDOW.end), first, dice=0.0).chosen
    assert WINDOW.start == ask(Window(WINDOW.start, WINDOW.end + DAY), first, dice=0.0).chosen
    assert WINDOW.start == ask(WINDOW, first, dice=0.0, number=2).chosen
    assert 2 == ask(WINDOW, first, number=2).number


def test_a_window_in_the_past_is_due_now() -> None:
    """An authority that is about to revoke says so like this."""
    info = ask(Window(NOW, NOW + DAY))

    assert renewal_instant(GENERATION, info) <= LATER


@pytest.mark.parametrize(
    "window",
    [Window(NOW + DAY, NOW + DAY), Window(NOW + 2 * DAY, NOW + DAY), None],
    ids=["empty", "upside down", "none"],
)
def test_an_answer_that_is_none_leaves_the_fraction_in_force(window: Window | None) -> None:
    """RFC 9773 section 4.2: end at or before start is no answer; an authority without ARI gives none either."""
    info = ask(window)

    assert NOW + 60 * DAY == renewal_instant(GENERATION, info)


def test_an_authority_without_renewal_information_is_asked_again_a_day_later() -> None:
    """It may learn to."""
    assert LATER + DAY == ask(None).ask_again_at


@pytest.mark.parametrize(
    ("told", "waits"),
    [
        (None, 6 * HOUR),
        (timedelta(0), MINUTE),
        (-DAY, MINUTE),
        (3 * HOUR, 3 * HOUR),
        (DAY, DAY),
        (90 * DAY, DAY),
    ],
)
def test_retry_after_is_clamped(told: timedelta | None, waits: timedelta) -> None:
    """Between a minute and a day; six hours when nothing is said."""
    assert LATER + waits == ask(Window(WINDOW.start, WINDOW.end, retry_after=told)).ask_again_at


def test_a_window_after_the_end_leaves_the_fraction_in_force() -> None:
    """What is to be renewed only when it has expired is renewed in time, and not at once, which would never end."""
    info = ask(Window(NOW + 100 * DAY, NOW + 120 * DAY))

    assert NOW + 60 * DAY == renewal_instant(GENERATION, info)


@given(SPANS, SPANS, DICE, DICE)
def test_whatever_an_authority_says_no_leaf_is_kept_beyond_its_end(
    start: timedelta, end: timedelta, dice: float, later: float
) -> None:
    """The instant lies in the window, stays with it, and the renewal is due before the leaf expires."""
    window = Window(NOW + start, NOW + end)
    info = ask(window, dice=dice)

    assert info.chosen == ask(window, info, dice=later).chosen
    assert renewal_instant(GENERATION, info) <= GENERATION.not_after
    if start < end:
        assert window.start <= info.chosen <= window.end
