"""The store's promises: issuing, generations, wishes, the process itself."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from certfan.core.clock import Reading, remembered
from certfan.core.issuance import Issuance
from certfan.core.model import Attempt, Deployment, DeploymentState, RenewalInfo
from certfan.daemon.store import AccountFact, Event, Store
from tests.unit.planner_parts import DAY, HOUR
from tests.unit.store_parts import NAMES, NOW, PROBLEM, WWW, every_generation, generation


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    yield opened
    await opened.close()


async def test_a_clean_end_is_told_from_an_unclean_one(store: Store) -> None:
    """The next run hears of the one before only if nobody noted its end."""
    first = await store.begin_run("boot-a", 10, NOW)
    second = await store.begin_run("boot-b", 11, NOW)
    await store.end_run(NOW)
    third = await store.begin_run("boot-b", 12, NOW)

    assert first is None
    assert second is not None
    assert (10, "boot-a", None) == (second.pid, second.boot_id, second.ended_at)
    assert third is None
    assert [12, 11, 10] == [run.pid for run in await store.runs()]


async def test_of_the_clocks_the_first_run_of_this_boot_is_the_witness(store: Store) -> None:
    """A clock that jumped later is not believed after two restarts; of another boot only the last instant counts."""
    nothing = await store.past_clock("boot-a")
    await store.begin_run("boot-a", 10, NOW, booted_for=5 * HOUR)
    await store.begin_run("boot-a", 11, NOW + 90 * DAY, booted_for=6 * HOUR)
    await store.add_events([Event(NOW + DAY, "run.ended", "daemon", {})])

    assert nothing is None
    assert Reading(NOW, 5 * HOUR, "boot-a") == await store.past_clock("boot-a")
    assert remembered(NOW + DAY) == await store.past_clock("boot-b")


async def test_an_order_that_the_authority_gives_again_is_no_leftover(store: Store) -> None:
    """Its authorizations are needed once more; what another order left stays to be tidied."""
    for number, url in ((1, "https://a/1"), (2, "https://a/2"), (3, "https://a/1")):
        await store.begin_issuance(WWW, number, "le", NAMES, NOW)
        await store.record_order_url(WWW, number, url, NOW)
        if number < 3:
            await store.abandon_issuance(WWW, number, PROBLEM, NOW)

    assert ["https://a/2"] == [left.order_url for left in await store.leftovers()]


async def test_every_run_has_its_own_epoch(store: Store) -> None:
    """A database restored from yesterday cannot repeat a revision, as the next run draws a new epoch."""
    epochs = [await store.epoch()]
    for pid in range(3):
        await store.begin_run("boot", pid, NOW)
        epochs.append(await store.epoch())

    assert "" == epochs[0]
    assert 4 == len(set(epochs))


async def test_an_account_belongs_to_a_name_and_a_directory(store: Store) -> None:
    """The same authority under another directory has no account yet; a later word replaces an earlier one."""
    await store.record_account("le", "https://a/", "https://a/acct/1", "thumb", NOW)
    await store.record_account("le", "https://a/", "https://a/acct/2", "thumb", NOW)

    expected = AccountFact("le", "https://a/", uri="https://a/acct/2", thumbprint="thumb", recorded_at=NOW)
    assert expected == await store.account("le", "https://a/")
    assert await store.account("le", "https://b/") is None
    await store.forget_account("le", "https://a/")
    assert await store.account("le", "https://a/") is None


async def test_beginning_an_issuance_twice_is_one_try(store: Store) -> None:
    """The open try of a certificate is returned, with its order, whoever asks and with whatever number."""
    begun = await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    await store.record_order_url(WWW, 1, "https://a/order/1", NOW)
    store.queue_answered(WWW, 1, "https://a/chall/1")
    store.queue_answered(WWW, 1, "https://a/chall/1")
    again = await store.begin_issuance(WWW, 2, "other", (), NOW + timedelta(1))

    assert Issuance(WWW, 1, "le", NAMES, NOW) == begun
    expected = Issuance(WWW, 1, "le", NAMES, NOW, "https://a/order/1", frozenset({"https://a/chall/1"}))
    assert expected == again
    assert (expected,) == await store.open_issuances()


async def test_a_given_up_try_is_history(store: Store) -> None:
    """Giving up closes the try, keeps why, and drops its tokens; again is nothing new."""
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    await store.record_token("t", "t.thumb", WWW, "www.example.org", NOW)
    await store.abandon_issuance(WWW, 1, PROBLEM, NOW + timedelta(1))
    await store.abandon_issuance(WWW, 1, PROBLEM, NOW + timedelta(2))

    assert () == await store.open_issuances()
    assert [(1, NOW + timedelta(1), PROBLEM)] == [
        (closed.issuance.generation, closed.closed_at, closed.problem)
        for closed in await store.closed_issuances(WWW)
    ]
    assert {} == await store.tokens()
    assert 1 == await store.highest_number(WWW)


async def test_a_number_that_a_consumer_has_seen_is_not_begun(store: Store) -> None:
    """Nor any below it, also when the consumer is forgotten: numbers only grow."""
    said = Deployment(WWW, "web1", 3, DeploymentState.PROVEN, NOW)
    await store.record_report("web1", "b", 1, [said], {}, NOW)
    begun = [await store.begin_issuance(WWW, number, "le", NAMES, NOW) for number in (2, 3)]
    await store.keep_number("other", 2)
    begun.append(await store.begin_issuance("other", 2, "le", NAMES, NOW))

    assert [None, None, None] == begun
    assert () == await store.open_issuances()
    assert Issuance(WWW, 4, "le", NAMES, NOW) == await store.begin_issuance(WWW, 4, "le", NAMES, NOW)


async def test_a_number_may_be_tried_again_with_nothing_of_the_try_before(store: Store) -> None:
    """A key outlives the try that was given up; the order and the answered challenges of that try do not."""
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    await store.record_order_url(WWW, 1, "https://a/order/1", NOW)
    store.queue_answered(WWW, 1, "https://a/chall/1")
    await store.abandon_issuance(WWW, 1, PROBLEM, NOW)
    again = await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    open_ones = await store.open_issuances()
    await store.record_generation(generation(1))

    assert Issuance(WWW, 1, "le", NAMES, NOW) == again
    assert (again,) == open_ones
    assert [PROBLEM, None] == [closed.problem for closed in await store.closed_issuances(WWW)]
    with pytest.raises(ValueError, match="used up"):
        await store.begin_issuance(WWW, 1, "le", NAMES, NOW)


async def test_every_order_is_counted_once(store: Store) -> None:
    """A second order of one try is a row of its own, the same URL again is none; the newest URL counts."""
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    for url in ("https://a/order/1", "https://a/order/1", "https://a/order/2"):
        await store.record_order_url(WWW, 1, url, NOW)

    assert 2 == await store.orders_sent()
    assert ["https://a/order/2"] == [issuance.order_url for issuance in await store.open_issuances()]


async def test_an_order_needs_its_intent(store: Store) -> None:
    """No order URL is recorded for a try that was never begun or is closed."""
    with pytest.raises(ValueError, match="not being issued"):
        await store.record_order_url(WWW, 1, "https://a/order/1", NOW)

    assert 0 == await store.orders_sent()


async def test_a_token_that_two_certificates_wait_for_stays_live(store: Store) -> None:
    """An authority may show both orders the same authorization; the first to finish leaves its token."""
    await store.record_token("t", "t.thumb", WWW, "www.example.org", NOW)
    await store.record_token("t", "t.thumb", "other", "www.example.org", NOW)
    await store.drop_tokens(WWW)
    left = await store.tokens()
    await store.drop_tokens("other")

    assert {"t": "t.thumb"} == left
    assert {} == await store.tokens()


async def test_a_generation_ends_all_that_led_to_it(store: Store) -> None:
    """In one transaction its try is closed and its tokens, its failures and the wish for it are gone."""
    await store.begin_issuance(WWW, 1, "le", NAMES, NOW)
    await store.record_token("t", "t.thumb", WWW, "www.example.org", NOW)
    await store.record_attempt(Attempt(WWW, PROBLEM, 2, NOW, NOW))
    await store.ask_renewal(WWW, NOW)
    await store.record_generation(generation(1))
    await store.record_generation(generation(1))

    facts = await store.facts()
    assert {WWW: (generation(1),)} == facts.generations
    assert ((), {}, {}) == (facts.issuances, facts.attempts, facts.asked)
    assert {} == await store.tokens()
    assert [None] == [closed.problem for closed in await store.closed_issuances(WWW)]


async def test_a_wish_after_the_generation_stands(store: Store) -> None:
    """Asking for a renewal is fulfilled only by a generation issued since."""
    await store.ask_renewal(WWW, NOW + timedelta(seconds=1))
    await store.record_generation(generation(1))

    assert {WWW: NOW + timedelta(seconds=1)} == await store.asked()


async def test_a_number_is_one_leaf_for_ever(store: Store) -> None:
    """Another leaf under a known number is refused, and nothing of that call happens."""
    await store.record_generation(generation(1))
    await store.ask_renewal(WWW, NOW)
    with pytest.raises(ValueError, match="another leaf"):
        await store.record_generation(generation(1, fingerprint="bb"))

    assert {WWW: (generation(1),)} == await every_generation(store)
    assert {WWW: NOW} == await store.asked()


async def test_generations_come_back_ascending(store: Store) -> None:
    """Ten comes after nine, whatever the order of recording."""
    for number in (10, 2, 9):
        await store.record_generation(generation(number))

    assert [2, 9, 10] == [known.number for known in (await every_generation(store))[WWW]]


async def test_the_first_word_of_a_revocation_stays(store: Store) -> None:
    """Noticing a revocation twice does not move its instant."""
    await store.record_generation(generation(1))
    await store.mark_revoked(WWW, 1, NOW)
    await store.mark_revoked(WWW, 1, NOW + timedelta(1))

    assert {(WWW, 1): NOW} == await store.revoked()


async def test_the_newest_renewal_info_counts(store: Store) -> None:
    """One row a certificate, every field kept."""
    for number in (1, 2):
        info = RenewalInfo(
            WWW,
            number,
            start=NOW,
            end=NOW + timedelta(2),
            chosen=NOW + timedelta(1),
            ask_again_at=NOW + timedelta(hours=6),
            explanation_url="https://a/why",
        )
        await store.put_renewal_info(info)

    assert {(WWW, 2): info} == await store.renewal_infos()


async def test_an_attempt_is_kept_until_it_is_cleared(store: Store) -> None:
    """The last failure of a thing comes back as it went in, problem and all."""
    attempt = Attempt(f"{WWW}/web1", PROBLEM, 2, NOW, NOW + timedelta(minutes=10))
    await store.record_attempt(Attempt(f"{WWW}/web1", PROBLEM, 1, NOW, NOW))
    await store.record_attempt(attempt)
    kept = await store.attempts()
    await store.clear_attempt(attempt.subject)

    assert {attempt.subject: attempt} == kept
    assert {} == await store.attempts()


async def test_a_definition_keeps_its_instant_until_it_changes(store: Store) -> None:
    """Starting again with the same config does not lift a back-off; changing the definition does."""
    later = NOW + timedelta(hours=1)
    await store.note_definitions({"a": "1", "b": "1"}, NOW)
    second = await store.note_definitions({"a": "1", "b": "2"}, later)

    assert {"a": NOW, "b": later} == second
    assert second == (await store.facts()).config_changed


async def test_problems_do_not_change_the_config_in_force(store: Store) -> None:
    """A bad new file leaves number and digest alone; the next good one counts up and ends the problems."""
    first = await store.record_config("d1", (), NOW)
    bad = await store.record_config("d1", ("certfan.toml: x",), NOW + timedelta(1))
    good = await store.record_config("d2", (), NOW + timedelta(2))

    assert (1, ()) == (first.number, first.problems)
    assert (1, "d1", ("certfan.toml: x",)) == (bad.number, bad.digest, bad.problems)
    assert (2, "d2", ()) == (good.number, good.digest, good.problems)
    assert good == await store.config()


async def test_the_journal_only_grows_and_holds_no_key(store: Store) -> None:
    """Events come back in order with their ids, and key material in their fields is gone."""
    pem = "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----"
    await store.add_events([Event(NOW, "order.created", WWW, {"n": n, "output": pem}) for n in range(5)])

    assert [4, 5] == [event.id for event in await store.events(3)]
    assert [1, 2] == [event.id for event in await store.events(limit=2)]
    last = await store.last_events(2)
    assert [3, 4] == [event.fields["n"] for event in last]
    assert all("MIIabc" not in str(event.fields) for event in last)


async def test_the_journal_is_read_by_what_it_is_about(store: Store) -> None:
    """A certificate's generations and places are about it, and to a consumer belongs what happens there; no neighbour's."""
    subjects = (
        WWW,
        f"{WWW}@1",
        f"{WWW}/web1",
        f"x{WWW}",
        f"{WWW}.x",
        "web1",
        "mail/web1",
        "mail/web12",
        "100%",
    )
    await store.add_events([Event(NOW, "order.created", subject) for subject in subjects])
    await store.add_events([Event(NOW, "deadline.near", "mail", {"consumer": "web1"})])

    async def about(subject: str) -> list[str]:
        return [event.subject for event in await store.events(0, 100, subject)]

    assert [WWW, f"{WWW}@1", f"{WWW}/web1"] == await about(WWW)
    assert [f"{WWW}/web1", "web1", "mail/web1", "mail"] == await about("web1")
    assert ["100%"] == await about("100%")
    assert [] == await about("%")
    assert ["mail/web1", "mail"] == [event.subject for event in await store.last_events(2, "web1")]


async def test_an_event_that_nobody_waits_for_is_there_before_what_is_asked_next(store: Store) -> None:
    """Whoever reads the journal after a fact finds what was told of it; what cannot be kept fails no fact."""
    store.queue_events([Event(NOW, "order.created", WWW, {"n": 1})])
    store.queue_events([Event(NOW, "order.created", WWW, {"n": 2})])
    before = await store.events()
    store.queue_events([Event(NOW.replace(tzinfo=None), "order.created", WWW, {})])
    await store.ask_renewal(WWW, NOW)

    assert [1, 2] == [event.fields["n"] for event in before]
    assert (2, {WWW: NOW}) == (len(await store.events()), await store.asked())


async def test_instants_without_a_zone_are_refused(store: Store) -> None:
    """A naive instant means nothing; nothing is stored."""
    with pytest.raises(Exception, match="no time zone"):
        await store.ask_renewal(WWW, NOW.replace(tzinfo=None))

    assert {} == await store.asked()


async def test_the_story_of_a_certificate_is_its_own(store: Store) -> None:
    """Its generations, places, fallbacks, revocations and names; not those of a name that begins alike."""
    subjects = [
        WWW,
        f"{WWW}@1",
        f"{WWW}/web1",
        f"{WWW} at second",
        f"revocation of {WWW}@1",
        "192.0.2.7",
        "path of 192.0.2.7",
        f"{WWW}2",
        f"{WWW}.evil@1",
        "www_example_org@1",
        "192.0.2.70",
    ]
    await store.add_events([Event(NOW, "it.happened", subject) for subject in subjects])
    names = [str(name) for name in NAMES]

    assert subjects[:7] == [event.subject for event in await store.story(WWW, names, 100)]
    assert subjects[5:7] == [event.subject for event in await store.story(WWW, names, 2)]
