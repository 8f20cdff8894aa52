"""What is kept of the tables from tick to tick is what they hold, and keeping it costs little."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection

from certfan.core.model import Attempt
from certfan.daemon.store import Event, Store, StoreFacts, issuing
from certfan.daemon.store.store import transaction
from tests.unit.planner_parts import DAY
from tests.unit.store_parts import NAMES, NOW, PROBLEM, WWW, every_generation, generation

answer = transaction(issuing.record_answered)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    yield opened
    await opened.close()


async def kept(store: Store) -> StoreFacts:
    """Return the facts as they are kept from tick to tick, once each query has said the same."""
    facts = await store.facts()
    assert await every_generation(store) == facts.generations
    assert await store.open_issuances() == facts.issuances
    assert await store.offered() == facts.offered
    assert await store.revoked() == facts.revoked
    assert await store.spends() == facts.spends
    assert (await store.asked(), await store.attempts()) == (facts.asked, facts.attempts)
    return facts


async def test_what_is_kept_follows_every_step_of_an_order(store: Store) -> None:
    """After each write, whatever was written before it, what is kept is the same as what each query says."""
    await kept(store)
    for number in (3, 1, 2):
        name = f"www{number}"
        for steps in (
            store.ask_renewal(name, NOW),
            store.record_attempt(Attempt(name, PROBLEM, 1, NOW, NOW)),
            store.begin_issuance(name, 1, "le", NAMES, NOW, replaces="of.before", exempt=True),
            store.record_order_url(name, 1, f"https://a/order/{name}", NOW),
            answer(store, name, 1, "https://a/chall/1"),
            answer(store, name, 1, "https://a/chall/1"),
            answer(store, name, 1, "https://a/chall/2"),
            store.drop_replaces(name, 1),
            store.abandon_issuance(name, 1, PROBLEM, NOW, failed=NAMES),
            store.begin_issuance(name, 1, "le", NAMES, NOW),
            store.record_order_url(name, 1, f"https://a/order/{name}/again", NOW),
            answer(store, name, 1, "https://a/chall/3"),
            store.record_order_url(name, 1, f"https://a/order/{name}/again", NOW),
            store.record_generation(replace(generation(1), certificate=name)),
            store.record_generation(replace(generation(1), certificate=name)),
            store.offer([(name, "web1", 1)], NOW),
            store.begin_issuance(name, 3, "le", NAMES, NOW),
        ):
            await steps
            await kept(store)
    facts = await kept(store)

    assert ["www3", "www1", "www2"] == [one.certificate for one in facts.issuances]
    assert 3 * 5 == len(facts.spends["le"])


async def test_many_writes_between_two_looks_are_followed_in_their_order(store: Store) -> None:
    """A try that ended and began again is open, a generation that came late stands at its place."""
    await kept(store)
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    await answer(store, WWW, 1, "https://a/chall/1")
    await store.abandon_issuance(WWW, 1, PROBLEM, NOW)
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    store.queue_answered(WWW, 1, "https://a/chall/2")
    await store.record_generation(generation(3, fingerprint="cc"))
    await store.record_generation(generation(2))
    await store.offer([(WWW, "web1", 2)], NOW)
    await store.offer([(WWW, "web1", 3)], NOW)
    facts = await kept(store)

    assert [(1, {"https://a/chall/2"})] == [(one.generation, one.answered) for one in facts.issuances]
    assert [2, 3] == [one.number for one in facts.generations[WWW]]
    assert {(WWW, "web1"): 3} == facts.offered
    assert 3 == await store.highest_number(WWW)


async def test_what_cannot_be_followed_is_read_anew(store: Store) -> None:
    """What was counted is dated anew when the clock was set back, or goes when it is old; what is forgotten is gone."""
    for number, at in enumerate((NOW, NOW - 60 * DAY, NOW), start=1):
        await store.begin_issuance(WWW, number, "le", NAMES, at)
        await store.record_order_url(WWW, number, f"https://a/order/{number}", at)
        facts = await kept(store)
        await store.record_generation(generation(number, fingerprint=f"{number}", issued_at=at))
        await store.begin_issuance("other", number, "le", NAMES, at)
        await kept(store)
        await store.forget("other", number)
        await kept(store)

        assert {at} == {spend.at for spend in facts.spends["le"]}
    await store.mark_revoked(WWW, 2, NOW)

    assert {(WWW, 2): NOW} == (await kept(store)).revoked


async def test_what_was_taken_back_is_not_kept(store: Store) -> None:
    """A call that fails in the transaction of others, and of a look at the facts, leaves nothing behind in them."""
    await kept(store)

    def half(db: Connection) -> None:
        issuing.begin_issuance(db, "other", 1, "le", NAMES, NOW)
        raise ValueError("no further")

    with pytest.raises(ValueError, match="no further"):
        await transaction(half)(store)
    assert () == (await kept(store)).issuances
    calls = (store.begin_issuance(WWW, 1, "le", NAMES, NOW), transaction(half)(store), store.facts())
    await asyncio.wait([asyncio.create_task(call) for call in calls])

    assert [WWW] == [one.certificate for one in (await kept(store)).issuances]


async def test_nobody_can_change_a_snapshot(store: Store) -> None:
    """Facts are shared from tick to tick, so they are read-only."""
    facts = await store.facts()

    with pytest.raises(TypeError):
        facts.asked["x"] = NOW  # type: ignore[index]


async def test_facts_that_are_known_cost_the_database_nothing(store: Store) -> None:
    """Nor do events wait for them: what an order has written is followed, and nobody else writes."""
    await store.facts()
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    seen: list[str] = []
    await transaction(_listen)(store, seen)
    seen.clear()
    store.queue_events([Event(NOW, "order.created", WWW)])
    facts = await store.facts()

    assert [] == seen
    assert [WWW] == [one.certificate for one in facts.issuances]


async def test_facts_hold_whatever_was_asked_before_them(store: Store) -> None:
    """Also what nobody has waited for, and what is being written while they are asked for."""
    await store.facts()
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    store.queue_answered(WWW, 1, "https://a/chall/1")
    answered = await store.facts()
    beginning = asyncio.create_task(store.begin_issuance("other", 1, "le", NAMES, NOW))
    await asyncio.sleep(0)  # it is asked
    begun = await store.facts()
    await beginning

    assert [{"https://a/chall/1"}] == [one.answered for one in answered.issuances]
    assert [WWW, "other"] == [one.certificate for one in begun.issuances]


async def test_a_certificate_takes_few_statements(tmp_path: Path) -> None:
    """From the config to the generation and back to the plan: each of them costs as much as all Python around it."""
    store = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    await store.facts()
    seen: list[str] = []
    await transaction(_listen)(store, seen)
    await store.note_definitions({WWW: "digest"}, NOW)
    await store.offer([(WWW, "web1", 0)], NOW)
    await store.facts()
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    await store.record_order_url(WWW, 1, "https://a/order/1", NOW)
    for name in NAMES:
        await store.record_token(f"t-{name}", "t.thumb", WWW, name.value, NOW)
        store.queue_answered(WWW, 1, f"https://a/chall/{name}")
    store.queue_events([Event(NOW, "order.ready", WWW), Event(NOW, "order.valid", WWW)])
    await store.record_generation(generation(1))
    await store.offer([(WWW, "web1", 1)], NOW)
    await store.facts()
    await store.close()

    statements = [one for one in seen if one.split()[0] not in {"BEGIN", "COMMIT", "PRAGMA"}]
    assert 16 <= len(statements) <= 26, statements


def _listen(db: Connection, seen: list[str]) -> None:
    driver = db.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.set_trace_callback(seen.append)
