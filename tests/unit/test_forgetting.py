"""Orphans: shown, kept until they expire, and removed at once when somebody says so, whatever is cut off."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from certfan.core.model import Attempt, Deployment, DeploymentState, Generation, Identifier, Problem, Reason
from certfan.core.plan import Clear, Forget, ForgetConsumer, Observed, Retire, Withdraw, plan
from certfan.daemon.lookout import Lookout
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.reconciler import Parts, Reconciler
from certfan.daemon.share.share import Share
from certfan.daemon.status.view import view
from certfan.daemon.store import IdentityFact
from certfan.daemon.timekeeper import Timekeeper
from certfan.errors import ActionRefused, ShareTampered, UnknownName
from certfan.loop import Loop
from certfan.share_worker import removal
from tests.unit.fleet_parts import Fleet, PowerCut, a_fleet
from tests.unit.planner_parts import (
    DAY,
    HTTPS,
    NOW,
    PLACE,
    WEB1,
    WWW,
    make_certificate,
    make_desired,
    make_generation,
    make_proof,
)
from tests.unit.share_parts import MAIL1, NAME, bundle, set_up_at
from tests.unit.share_parts import WEB1 as ON_WEB1
from tests.unit.status_parts import things

NOTHING = make_desired()
ORPHAN = Observed(generations={WWW: (make_generation(),)}, published={PLACE: frozenset({1})}, live={PLACE: 1})


def test_what_was_asked_for_goes_step_by_step() -> None:
    """First nobody is offered it, then it is off the share, then here and the facts."""
    asked = replace(ORPHAN, forgotten=frozenset({WWW}))
    offered = replace(asked, offered={PLACE: 1})
    gone = replace(asked, published={}, live={})

    assert (Withdraw(WWW, WEB1),) == plan(NOTHING, offered, NOW).steps
    assert (Clear(WWW, WEB1, reason=Reason.ASKED_FOR),) == plan(NOTHING, asked, NOW).steps
    assert (Forget(WWW, reason=Reason.ASKED_FOR),) == plan(NOTHING, gone, NOW).steps


@pytest.mark.parametrize("unseen", [{"share_up": False}, {"share_seen": False}])
def test_facts_outlive_a_share_that_was_not_seen(unseen: dict[str, bool]) -> None:
    """After a start, and while the share is away, nobody knows what still lies there."""
    asked = replace(ORPHAN, published={}, live={}, forgotten=frozenset({WWW}), **unseen)

    assert () == plan(NOTHING, asked, NOW).steps


def test_what_is_back_in_the_config_is_not_forgotten() -> None:
    """The config has the last word, even before the store has heard of it."""
    asked = replace(
        ORPHAN, offered={PLACE: 1}, forgotten=frozenset({WWW}), forgotten_consumers=frozenset({WEB1})
    )

    elsewhere = replace(asked, published={**asked.published, (WWW, "mail1"): frozenset({1})})

    assert () == plan(make_desired(make_certificate()), elsewhere, NOW).steps


def test_an_orphan_that_has_expired_goes_by_itself() -> None:
    """Not a second before, and not while the clock may be wrong."""
    old = replace(ORPHAN, generations={WWW: (make_generation(lifetime=DAY), make_generation(2))})
    both = replace(old, published={PLACE: frozenset({1, 2})}, live={PLACE: 2})
    gone = replace(both, published={}, live={})

    assert () == plan(NOTHING, both, NOW).steps
    assert (Retire(WWW, WEB1, 1),) == plan(NOTHING, both, NOW + DAY).steps
    assert () == plan(NOTHING, gone, NOW + 89 * DAY).steps
    assert NOW + 90 * DAY == plan(NOTHING, gone, NOW + 89 * DAY).wake_at
    assert (Clear(WWW, WEB1),) == plan(NOTHING, both, NOW + 90 * DAY).steps
    assert (Forget(WWW),) == plan(NOTHING, gone, NOW + 90 * DAY).steps
    assert () == plan(NOTHING, replace(both, clock_trusted=False), NOW + 90 * DAY).steps


def test_what_the_store_does_not_know_is_left_on_the_share() -> None:
    """A restored database must not cost yesterday's keys; who knows better says forget."""
    unknown = Observed(published={PLACE: frozenset({1})}, live={PLACE: 1})

    assert () == plan(NOTHING, unknown, NOW + 999 * DAY).steps
    assert (Clear(WWW, WEB1, reason=Reason.ASKED_FOR),) == plan(
        NOTHING, replace(unknown, forgotten=frozenset({WWW})), NOW
    ).steps


def test_a_failure_to_forget_waits_a_moment_only() -> None:
    """And the plan wakes for the next try."""
    failed = Attempt(WWW, Problem("internal", "no"), 1, NOW, NOW + timedelta(seconds=1))
    asked = Observed(forgotten=frozenset({WWW}), attempts={WWW: failed})

    assert ((), NOW + timedelta(seconds=1)) == (
        plan(NOTHING, asked, NOW).steps,
        plan(NOTHING, asked, NOW).wake_at,
    )
    assert 1 == len(plan(NOTHING, asked, NOW + timedelta(seconds=1)).steps)


def test_a_consumers_folder_goes_when_nothing_is_offered_to_it() -> None:
    """A whole folder is one step."""
    asked = Observed(forgotten_consumers=frozenset({WEB1}), offered={PLACE: 1})

    assert (Withdraw(WWW, WEB1),) == plan(NOTHING, asked, NOW).steps
    assert (ForgetConsumer(WEB1),) == plan(NOTHING, replace(asked, offered={}), NOW).steps


class Small:
    """A reconciler on a real store, state folder and share, that is run until nothing is left to do."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.root = folder / "share"
        self.root.mkdir()
        set_up_at(self.root)
        self.share = Share(self.root, folder / "share.lock", fleet.clock)
        self.cut_before: str | None = None
        self.announced: list[str] = []
        self.let_in: list[
            object
        ] = []  # each time that orders were let in to their authorities: by what config

    async def look(self) -> dict[tuple[str, str], frozenset[int]]:
        seen = (await self.share.look()).published
        return {where: frozenset(one.number for one in folders) for where, folders in seen.items()}

    async def run(self, until: str) -> None:
        """Reconcile, as a new process, until an event of that name is in the journal."""
        loop, timekeeper = Loop(self.fleet.clock), Timekeeper(wall=self.fleet.clock)
        lookout = Lookout(self.share, None, self.fleet.journal, self.fleet.clock, loop, timekeeper)  # type: ignore[arg-type]
        parts = Parts(
            store=self.fleet.store,
            state=self.fleet.state,
            share=self.share,
            issuer=SimpleNamespace(moved={}, let_in=self.let_in.append, issue=_in_vain),  # type: ignore[arg-type]
            upkeep=None,  # type: ignore[arg-type]
            self_check=lambda: False,
            timekeeper=timekeeper,
            journal=self.fleet.journal,
            bundles=Bundles(self.fleet.state, lambda: None, "home", lambda: self.fleet.desired),  # type: ignore[arg-type, return-value]
            desired=lambda: self.fleet.desired,
            announce=self.announced.append,
            clock=self.fleet.clock,
            probe_interval=lambda: timedelta(minutes=5),
        )
        reconciler = Reconciler(parts, loop, lookout)
        task = asyncio.create_task(reconciler.run())
        try:
            async with asyncio.timeout(10):
                while not await self.fleet.happened(until):
                    if task.done():
                        await task
                    await asyncio.sleep(0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _in_vain(*_: object, **__: object) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Small]:
    async with a_fleet(tmp_path) as fleet:
        found = Small(fleet, tmp_path)
        yield found
        await found.share.stop()


async def leave_the_config(small: Small) -> None:
    """Have a certificate with every kind of fact, on the share at two consumers, that is wanted no longer."""
    fleet = small.fleet
    for number in (1, 2):
        await fleet.issue(number, name=NAME)
        for consumer in (ON_WEB1, MAIL1):
            await small.share.publish(consumer, NAME, number, bundle(number))
            await fleet.store.record_published(NAME, consumer.name, number, NOW)
    fleet.desired = NOTHING
    store = fleet.store
    await store.begin_issuance(NAME, 3, "ca", (Identifier(NAME),), NOW)
    await store.record_order_url(NAME, 3, "https://ca/3", NOW)
    store.queue_answered(NAME, 3, "https://ca/3/http")
    await store.record_token("token", "answer", NAME, NAME, NOW)
    await store.record_attempt(Attempt(NAME, Problem("internal", "no"), 1, NOW, NOW))
    await store.record_attempt(Attempt(f"{NAME}/web1", Problem("internal", "no"), 1, NOW, NOW))
    await store.note_definitions({NAME: "digest"}, NOW)
    await store.offer([(NAME, "web1", 2)], NOW)
    said = Deployment(NAME, "web1", 5, DeploymentState.PROVEN, NOW)
    await store.record_report("web1", "boot", 1, [said], {NAME: [make_proof(HTTPS, "aa")]}, NOW)


def _is_about_name(key: Any) -> bool:
    return NAME in (key if isinstance(key, tuple) else (getattr(key, "certificate", key),))


async def test_every_tick_lets_orders_in_where_others_stand_still(small: Small) -> None:
    """Nobody else looks when no order comes or goes."""
    await leave_the_config(small)
    await small.fleet.actions.forget(NAME, uid=7)
    await small.run("certificate.forgotten")

    assert small.let_in
    assert all(one is small.fleet.desired for one in small.let_in)


async def test_forgetting_leaves_nothing_but_events_and_the_number(small: Small) -> None:
    """Share, local keys and facts are gone; another certificate's are not; numbers go on from where they were."""
    await leave_the_config(small)
    fleet = small.fleet
    await fleet.issue(1, name="other.test")
    await fleet.actions.forget(NAME, uid=7)
    await small.run("certificate.forgotten")

    facts = await fleet.store.facts()
    left = {f.name for f in dataclasses.fields(facts) if any(map(_is_about_name, getattr(facts, f.name)))}
    assert set() == left
    assert 5 == await fleet.store.forgotten_number(NAME) == await fleet.store.reported_number(NAME)
    assert (5, 1) == (await fleet.store.highest_number(NAME), await fleet.store.highest_number("other.test"))
    assert {} == await small.look()
    assert [] == [str(path) for path in small.root.rglob("*") if NAME in str(path)]
    assert {"other.test"} == {
        path.name.partition("@")[0] for path in (fleet.state.path / "generations").iterdir()
    }
    assert [{"uid": 7}] == [dict(e.fields) for e in await fleet.happened("forget.asked")]


@pytest.mark.parametrize("where", ["share.clear", "state.remove_generations", "store.forget", "journal.note"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_anywhere_is_completed_by_the_next_process(
    small: Small, monkeypatch: pytest.MonkeyPatch, where: str, after: bool
) -> None:
    """The wish outlives everything that it removes."""
    await leave_the_config(small)
    await small.fleet.actions.forget(NAME, uid=0)
    part, name = where.split(".")
    target: Any = small.share if part == "share" else getattr(small.fleet, part)
    real = getattr(target, name)

    def cut(*args: Any, **kwargs: Any) -> Any:
        async def then_cut() -> None:
            if after:
                await real(*args, **kwargs)
            raise PowerCut

        if name == "remove_generations":
            if after:
                real(*args)
            raise PowerCut
        return then_cut()

    with monkeypatch.context() as patch:
        patch.setattr(target, name, cut)
        with pytest.raises(BaseExceptionGroup):
            await small.run("certificate.forgotten")
    if (
        not await small.fleet.happened("certificate.forgotten")
        and (await small.fleet.store.facts()).to_forget
    ):
        await small.run("certificate.forgotten")

    assert {} == await small.look()
    assert {} == (await small.fleet.store.facts()).generations
    assert frozenset() == small.fleet.state.generation_numbers(NAME)


async def test_what_is_wanted_or_unknown_is_refused(small: Small) -> None:
    """In the config: remove it there first. Unknown: a guess among the orphans."""
    await leave_the_config(small)
    actions, fleet = small.fleet.actions, small.fleet
    with pytest.raises(UnknownName, match="did you mean"):
        await actions.forget("ww.example.org", uid=0)
    with pytest.raises(UnknownName):
        await actions.forget_consumer("web9", uid=0)
    fleet.desired = make_desired(make_certificate())
    with pytest.raises(ActionRefused, match="still in the config"):
        await actions.forget(WWW, uid=0)
    with pytest.raises(ActionRefused, match="still in the config"):
        await actions.forget_consumer(WEB1, uid=0)

    assert {} == (await fleet.store.facts()).to_forget


async def test_what_came_back_into_the_config_is_kept(small: Small) -> None:
    """The wish does not lie in wait for the next time that it leaves."""
    await leave_the_config(small)
    await small.fleet.actions.forget(NAME, uid=0)
    await small.fleet.store.ask_forget_consumer("web1", NOW)
    await small.fleet.store.keep_wanted([NAME], ["web1"])

    facts = await small.fleet.store.facts()
    assert ({}, {}) == (facts.to_forget, facts.consumers_to_forget)


async def enrolled(fleet: Fleet, consumer: str) -> None:
    await fleet.store.add_consumer(consumer, NOW)
    await fleet.store.open_enrolment(consumer, f"hash {consumer}", NOW + DAY, NOW)
    identity = IdentityFact(
        f"serial {consumer}",
        consumer,
        spki="aa",
        certificate_pem=b"",
        not_before=NOW,
        not_after=NOW + 365 * DAY,
    )
    await fleet.store.redeem(f"hash {consumer}", "aa", NOW, identity)


async def test_a_forgotten_consumer_has_neither_identity_nor_folder(small: Small) -> None:
    """Its identities end at once, share or no share; other consumers keep theirs."""
    await leave_the_config(small)
    fleet = small.fleet
    await enrolled(fleet, "web1")
    await enrolled(fleet, "mail1")
    await fleet.actions.forget_consumer("web1", uid=7)
    ended = [fact.ended_at for fact in await fleet.store.identities("web1")]
    await small.run("consumer.forgotten")

    facts = await fleet.store.facts()
    assert ([NOW], ["web1"]) == (ended, fleet.ended)
    assert {"mail1"} == facts.enrolled.keys()
    assert not (small.root / "web1").exists()
    assert {(NAME, "mail1"): frozenset({1, 2})} == await small.look()
    assert ({}, {}) == (facts.deployments, facts.consumers_to_forget)


async def test_what_expired_unasked_leaves_its_number_too(small: Small) -> None:
    """Also the number that only a consumer, or only the share, had seen."""
    await leave_the_config(small)
    await small.fleet.store.forget(NAME, 0)
    said_by_consumer = await small.fleet.store.forgotten_number(NAME)
    await small.fleet.store.keep_number(NAME, 9)
    await small.fleet.store.forget(NAME, 2)

    assert (5, 9) == (said_by_consumer, await small.fleet.store.forgotten_number(NAME))


async def test_clearing_and_forgetting_may_be_repeated(small: Small) -> None:
    """Nothing there is fine, and a folder with a stranger's file in it is not torn down."""
    for number in (1, 2):
        await small.share.publish(ON_WEB1, NAME, number, bundle(number))
    for _ in range(2):
        await small.share.clear("web1", NAME)
    emptied = sorted(path.name for path in (small.root / "web1").rglob("*"))
    (small.root / "web1" / "notes.txt").write_text("the admin's own")
    with pytest.raises(ShareTampered):
        await small.share.forget("web1")
    (small.root / "web1" / "notes.txt").unlink()
    gone = [await small.share.forget("web1") for _ in range(2)]

    assert ["certfan.share", "generations", "live"] == emptied
    assert [True, True] == gone
    assert ["certfan.share", "mail1"] == sorted(path.name for path in small.root.iterdir())


async def test_where_the_shares_root_is_roots_an_empty_folder_stays(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key is left in it, and the journal says what root may run. Tests run as root, so the refusal is made up."""
    await small.share.publish(ON_WEB1, NAME, 1, bundle(1))
    real = os.rmdir

    def rmdir(name: str, *, dir_fd: int) -> None:
        if name == "web1":
            raise PermissionError
        real(name, dir_fd=dir_fd)

    root = os.open(small.root, os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", rmdir)
        beats: list[None] = []
        gone = removal.forget(root, lambda: beats.append(None), "web1")
    os.close(root)

    assert not gone
    assert [None] == beats  # for each certificate: with a thousand it takes longer than silence may
    assert [] == list((small.root / "web1").iterdir())
    assert {} == await small.look()


def test_orphans_have_a_section_of_their_own() -> None:
    """What it is, until when it stays by itself, where it lies, and what removes it."""
    old = Generation(
        "old.test",
        3,
        fingerprint="aa",
        serial="1",
        identifiers=frozenset({Identifier("old.test")}),
        key_type=make_certificate().key_type,
        authority="pebble",
        not_before=NOW,
        not_after=NOW + DAY,
        issued_at=NOW,
    )
    seen = things(generations={"old.test": (old,)}, enrolled={"web1": NOW, "gone": NOW}, to_forget={})
    page = view(dataclasses.replace(seen, live={("old.test", "web1"): 3}))

    certificate, consumer = page.orphans
    assert ("old.test", 3, NOW + DAY, ("web1",)) == (
        certificate.name,
        certificate.generation,
        certificate.not_after,
        certificate.on,
    )
    assert ("run: certfan forget old.test", "run: certfan forget --consumer gone") == (
        certificate.hint,
        consumer.hint,
    )
