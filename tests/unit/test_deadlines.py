"""Deadlines that near: how urgent, how loud, and told once."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from certfan.core.model import Health, Proof
from certfan.core.policy import Urgency, urgency
from certfan.daemon.deadlines import Deadlines
from certfan.daemon.status.model import Page, Verdict
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import view
from certfan.daemon.store import Store
from tests.unit.status_parts import DAY, HTTPS, MINUTE, NOW, WHERE, deployment, generation, proof, things

HOUR = 60 * MINUTE


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (0, Urgency.CALM),
        (29, Urgency.CALM),
        (30, Urgency.NEAR),
        (53, Urgency.NEAR),
        (54, Urgency.PRESSING),
        (59, Urgency.PRESSING),
        (60, Urgency.MISSED),
        (600, Urgency.MISSED),
    ],
)
def test_it_rises_at_half_in_the_last_tenth_and_past_it(minutes: int, expected: Urgency) -> None:
    """Of a window of an hour."""
    assert expected is urgency(NOW, NOW + HOUR, NOW + minutes * MINUTE)


def test_a_window_that_was_empty_from_the_start_is_pressing() -> None:
    """There was never any time to lose."""
    assert Urgency.PRESSING is urgency(NOW + HOUR, NOW, NOW - MINUTE)


def late(after: timedelta, **more: Any) -> StateOfThings:
    """A farm whose only endpoint has shown a placeholder for that long: an hour is what it may take."""
    shown = proof(9, placeholder=True, since=NOW, heard_at=NOW + after, **more)
    seen = things(
        proofs={WHERE: (shown,)}, deployments={WHERE: (dataclasses.replace(deployment(1), at=NOW),)}
    )
    return dataclasses.replace(seen, now=NOW + after)


def well(after: timedelta) -> StateOfThings:
    return dataclasses.replace(
        late(after),
        facts=dataclasses.replace(late(after).facts, proofs={WHERE: (proof(heard_at=NOW + after),)}),
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    yield opened
    await opened.close()


async def heard(store: Store, *seen: StateOfThings) -> tuple[list[tuple[str, str]], list[str]]:
    """Look at each, every time as a new process; return the log's lines and the events."""
    lines = []
    for one in seen:

        async def look(one: StateOfThings = one) -> Page:
            return view(one)

        with capture_logs() as logs:
            await Deadlines(store, look).look()
        lines += [(line["event"], line["log_level"]) for line in logs]
    return lines, [event.name for event in await store.events()]


async def test_each_stage_is_told_once_and_louder(store: Store) -> None:
    """However often it is looked at, and through restarts; the journal has one near and one missed."""
    minutes = (1, 20, 30, 31, 40, 54, 55, 60, 61, 600)
    lines, events = await heard(store, *(late(n * MINUTE) for n in minutes))

    assert [
        ("deadline.near", "warning"),
        ("deadline.pressing", "error"),
        ("deadline.missed", "error"),
    ] == lines
    assert ["deadline.near", "deadline.missed"] == events


async def test_an_event_names_who_lags_why_and_what_to_try(store: Store) -> None:
    """Enough to act on it without another look."""
    await heard(store, late(2 * HOUR))
    (event,) = await store.events()

    assert ("deadline.missed", "www.test", "web1", "placeholder") == (
        event.name,
        event.subject,
        event.fields["consumer"],
        event.fields["verdict"],
    )
    assert str(HTTPS) == event.fields["endpoint"]
    assert "systemctl restart apache2" in event.fields["hint"]


async def test_what_was_proven_starts_anew(store: Store) -> None:
    """The next time it lags is told again; what left the config leaves no mark."""
    _, events = await heard(store, late(2 * HOUR), well(2 * HOUR), late(2 * HOUR))
    empty = dataclasses.replace(
        late(2 * HOUR), desired=dataclasses.replace(late(HOUR).desired, certificates={})
    )
    await heard(store, empty)

    assert ["deadline.missed"] * 2 == events
    assert {} == await store.urgencies()


async def test_a_proof_that_ages_runs_into_its_deadline(store: Store) -> None:
    """An agent that fell silent is unheard, and its deadline is that of the leaf it last proved."""
    old = proof(heard_at=NOW, since=NOW - DAY)

    def at(day: float) -> StateOfThings:
        seen = things(proofs={WHERE: (old,)}, deployments={WHERE: (deployment(1),)})
        return dataclasses.replace(seen, now=NOW + day * DAY)

    (row,) = view(at(1)).certificates[0].endpoints
    _, events = await heard(store, at(0), at(1), at(60), at(82.5))

    assert (Verdict.UNHEARD, Urgency.CALM, NOW + 82 * DAY) == (row.verdict, row.urgency, row.deadline)
    assert ["deadline.near", "deadline.missed"] == events


def test_an_old_leaf_lags_only_since_there_is_a_newer_one() -> None:
    """That it was served for months is no reason for haste on the day after a renewal."""
    first, second = generation(1, NOW - 60 * DAY), generation(2, NOW - MINUTE)
    shown = proof(1, since=NOW - 60 * DAY, not_before=NOW - 60 * DAY, not_after=NOW + 30 * DAY)
    done = {WHERE: (deployment(2),)}
    seen = things(generations={"www.test": (first, second)}, proofs={WHERE: (shown,)}, deployments=done)
    (row,) = view(seen).certificates[0].endpoints

    assert (Verdict.OLD_LEAF, Urgency.CALM) == (row.verdict, row.urgency)


def test_the_summary_says_who_lags_and_why() -> None:
    """By consumer and verdict, the earliest deadline first."""
    shown: list[Proof] = [
        dataclasses.replace(proof(), endpoint=dataclasses.replace(HTTPS, server_name=f"{n}.test"))
        for n in range(7)
    ]
    shown += [
        dataclasses.replace(proof(health=Health.UNREACHABLE), endpoint=dataclasses.replace(HTTPS, port=port))
        for port in (8443, 9443)
    ]
    page = view(things(proofs={WHERE: tuple(shown)}, deployments={WHERE: (deployment(1),)}))

    assert page.summary.text == "7 of 9 proven (2 unreachable)"
    assert [("web1", Verdict.UNREACHABLE, 1), ("web1", Verdict.UNREACHABLE, 1)] == [
        (one.consumer, one.verdict, one.endpoints) for one in page.summary.lagging
    ]
    assert "does not answer" in page.summary.lagging[0].why
