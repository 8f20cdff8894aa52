"""What consumers were offered and what they said: revisions, order of reports."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from certfan.core.model import Deployment, DeploymentState, Endpoint, Health, Problem, Proof
from certfan.daemon.store import Heard, PublishedFact, Store, deploying
from certfan.daemon.store.batches import MOST_BRIEF

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
WWW = "www.example.org"
HTTPS = Endpoint("apache2", "tls", "192.0.2.1", 443, WWW)
HTTPS6 = Endpoint("apache2", "tls", "2001:db8::1", 443, WWW)


def proof(endpoint: Endpoint = HTTPS, at: datetime = NOW) -> Proof:
    return Proof(
        endpoint, Health.SERVED, at, fingerprint="aa", not_after=NOW, not_before=NOW, detail="as it is"
    )


def deployed(generation: int, state: DeploymentState = DeploymentState.PROVEN) -> Deployment:
    problem = Problem("service.reload_failed", "no") if state is DeploymentState.FAILED else None
    return Deployment(WWW, "web1", generation, state, NOW, problem)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    yield opened
    await opened.close()


async def test_only_a_change_moves_the_revision(store: Store) -> None:
    """Each consumer's revision counts its own changes; the same offer again, or nothing to withdraw, is none."""
    changes = [
        ("web1", partial(store.offer, [(WWW, "web1", 0)], NOW)),
        ("web1", partial(store.offer, [(WWW, "web1", 1)], NOW)),
        ("web1", partial(store.offer, [(WWW, "web1", 1)], LATER)),
        ("mail1", partial(store.offer, [(WWW, "mail1", 1)], NOW)),
        ("web1", partial(store.withdraw, WWW, "web1", NOW)),
        ("web1", partial(store.withdraw, WWW, "web1", NOW)),
    ]
    revisions = []
    for consumer, change in changes:
        await change()
        revisions.append((await store.lists((consumer,))).revisions[consumer])

    assert [1, 2, 2, 1, 3, 3] == revisions
    assert {(WWW, "mail1"): 1} == await store.offered()
    lists = await store.lists(("web1", "mail1", "web2"))
    assert {"web1": 3, "mail1": 1, "web2": 0} == lists.revisions
    assert {"mail1": ((WWW, 1),)} == lists.offered


@pytest.mark.parametrize("count", [3, MOST_BRIEF + 1])
async def test_offers_that_are_written_together(store: Store, count: int) -> None:
    """Each is there, few or many, and a consumer's revision counts up once for all of its own that are new."""
    names = [f"{number}.example" for number in range(count)]
    await store.offer([(names[0], "web1", 1)], NOW)
    await store.facts()  # what follows is then not read, but told by what is written
    for number, revision in ((0, 2), (1, 3), (1, 3)):
        await store.offer([(name, "web1", number) for name in names], LATER)
        offers = {(name, "web1"): number for name in names}

        assert offers == (await store.facts()).offered == await store.offered()
        assert {"web1": revision, "web2": 0} == (await store.lists(("web1", "web2"))).revisions


@pytest.mark.parametrize("count", [7, deploying.NAMED + 1])
async def test_lists_of_few_and_of_many(store: Store, count: int) -> None:
    """Each has its own certificates, sorted, and nobody is left out, however the query is written."""
    names = [f"web{number}" for number in range(count)]
    for name in names:
        await store.offer([("b.example", name, 2)], NOW)
        await store.offer([("a.example", name, 1)], NOW)
    lists = await store.lists(names)

    assert dict.fromkeys(names, 2) == lists.revisions
    assert dict.fromkeys(names, (("a.example", 1), ("b.example", 2))) == lists.offered


async def test_the_first_publishing_is_the_one_remembered(store: Store) -> None:
    """Publishing again is no new event in the history."""
    await store.record_published(WWW, "web1", 1, NOW)
    await store.record_published(WWW, "web1", 1, LATER)

    assert (PublishedFact(WWW, "web1", 1, NOW),) == await store.published()


async def test_a_report_replaces_all_that_was_said_before(store: Store) -> None:
    """Endpoints and deployments that the newest report does not name are gone; another consumer's stay."""
    failed = deployed(2, DeploymentState.FAILED)
    await store.record_report(
        "web1", "b", 1, [deployed(1), failed], {WWW: [proof(), proof(HTTPS6)], "x": [proof()]}, NOW
    )
    await store.record_report("mail1", "b", 1, [deployed(1)], {WWW: [proof()]}, NOW)
    await store.record_report("web1", "b", 2, [failed], {WWW: [proof(HTTPS6)]}, LATER, "0.1.0")

    assert {
        (WWW, "web1"): (failed,),
        (WWW, "mail1"): (replace(deployed(1), consumer="mail1"),),
    } == await store.deployments()
    assert {
        (WWW, "web1"): (replace(proof(HTTPS6), heard_at=NOW, since=NOW),),
        (WWW, "mail1"): (replace(proof(), heard_at=NOW, since=NOW),),
    } == await store.proofs()
    assert Heard("web1", LATER, boot_id="b", sequence=2, version="0.1.0") == await store.heard("web1")


async def test_an_older_report_never_overwrites_a_newer_one(store: Store) -> None:
    """A lower or equal sequence of one boot, and anything of an earlier boot, is ignored whole."""
    said = [
        await store.record_report("web1", boot, sequence, [deployed(generation)], {}, NOW)
        for boot, sequence, generation in [
            ("first", 5, 1),
            ("first", 4, 9),
            ("first", 5, 9),
            ("second", 1, 2),
            ("first", 6, 9),
            ("second", 2, 3),
        ]
    ]

    assert [True, False, False, True, False, True] == said
    assert {(WWW, "web1"): (deployed(3),)} == await store.deployments()
    assert (3, 3) == (await store.highest_number(WWW), await store.reported_number(WWW))


async def test_repeating_an_old_look_keeps_it_old(store: Store) -> None:
    """An agent whose prober hangs goes on reporting; the daemon's stamp stays that of the first hearing."""
    await store.record_report("web1", "b", 1, [], {WWW: [proof(), proof(HTTPS6)]}, NOW)
    await store.record_report("web1", "b", 2, [], {WWW: [proof(), proof(HTTPS6, LATER)]}, LATER)

    heard = [(seen.endpoint, seen.heard_at) for seen in (await store.proofs())[WWW, "web1"]]
    assert [(HTTPS, NOW), (HTTPS6, LATER)] == heard


async def test_a_report_speaks_for_its_sender_only(store: Store) -> None:
    """Whatever consumer a value names, it is filed under the one whose identity sent it."""
    await store.record_report("evil", "b", 1, [deployed(7)], {}, NOW)

    assert [(WWW, "evil")] == list(await store.deployments())


async def test_since_is_when_an_endpoint_last_changed(store: Store) -> None:
    """Looking again and seeing the same keeps the instant; another health or leaf begins a new one."""
    looks = [
        proof(),
        replace(proof(), at=LATER),
        replace(proof(), at=LATER, health=Health.REFUSED, fingerprint=""),
    ]
    seen = []
    for sequence, (look, heard) in enumerate(zip(looks, (NOW, LATER, LATER), strict=True), start=1):
        await store.record_report("web1", "b", sequence, [], {WWW: [look]}, heard)
        seen.append((await store.proofs())[WWW, "web1"][0].since)

    assert [NOW, NOW, LATER] == seen
