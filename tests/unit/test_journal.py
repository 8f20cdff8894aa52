"""What happened is told to the log and to the store, in its order, with the instant at which it happened."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certfan import log
from certfan.daemon import journal
from certfan.daemon.journal import Journal
from certfan.daemon.store import Store

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
NOON = "2026-11-26T12:00:00.000000Z"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    yield opened
    await opened.close()


def lines(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    """The name, subject and instant of each line of the log that was written since."""
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [(one["event"], one["subject"], one["timestamp"]) for one in found]


async def test_what_nobody_waits_for_is_in_the_log_after_a_moment(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it at once, each with the instant at which it happened."""
    monkeypatch.setattr(journal, "TOLD_WITHIN", 0)
    log.set_up()
    telling = Journal(store, lambda: NOW)
    telling.tell("order.created", "a.test")
    telling.tell("challenge.fetched", "a.test", at=NOW - timedelta(seconds=1.5))
    before = lines(capsys)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [] == before
    early = "2026-11-26T11:59:58.500000Z"
    assert [("order.created", "a.test", NOON), ("challenge.fetched", "a.test", early)] == lines(capsys)
    assert [("order.created", NOW), ("challenge.fetched", NOW - timedelta(seconds=1.5))] == [
        (event.name, event.at) for event in await store.events()
    ]


@pytest.mark.parametrize("how", ["note", "note_many", "warn"])
async def test_what_was_told_before_is_in_the_log_before(
    store: Store, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Whichever way the next one goes."""
    log.set_up()
    telling = Journal(store, lambda: NOW)
    telling.tell("order.created", "a.test")
    if how == "note_many":
        await telling.note_many("order.lost", {"b.test": {}})
    else:
        await getattr(telling, how)("order.lost", "b.test")

    assert [("order.created", "a.test"), ("order.lost", "b.test")] == [line[:2] for line in lines(capsys)]
    assert ["order.created", "order.lost"] == [event.name for event in await store.events()]


async def test_nothing_is_left_unsaid_at_the_end(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is anything said twice."""
    log.set_up()
    telling = Journal(store, lambda: NOW)
    telling.tell("order.created", "a.test")
    for _ in range(2):
        telling.flush()

    assert [("order.created", "a.test", NOON)] == lines(capsys)
