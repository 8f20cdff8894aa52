"""One token makes one identity, whoever asks however often."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certfan.daemon.store import IdentityFact, Standing, Store
from certfan.errors import EnrolmentRefused, UnknownName

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EXPIRES = NOW + timedelta(minutes=15)


def identity(serial: str, spki: str, consumer: str = "web1") -> IdentityFact:
    return IdentityFact(
        serial,
        consumer,
        spki=spki,
        certificate_pem=f"certificate {serial}".encode(),
        not_before=NOW,
        not_after=NOW + timedelta(365),
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    await opened.add_consumer("web1", NOW)
    await opened.add_consumer("web1", NOW)
    await opened.open_enrolment("web1", "hash", EXPIRES, NOW)
    yield opened
    await opened.close()


async def test_one_token_makes_one_identity_among_200_keys(store: Store) -> None:
    """Of 200 keys that redeem one token at once exactly one wins, and only its identity exists."""

    async def redeem(n: int) -> bytes | None:
        try:
            return await store.redeem("hash", f"spki-{n}", NOW, identity(f"{n:x}", f"spki-{n}"))
        except EnrolmentRefused:
            return None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(redeem(n)) for n in range(200)]
    won = [task.result() for task in tasks if task.result() is not None]

    assert 1 == len(won)
    assert won == [known.certificate_pem for known in await store.identities("web1")]


async def test_the_same_key_may_ask_again(store: Store) -> None:
    """An answer that was lost is given again, the first certificate and no other, while the token lives."""
    first = await store.redeem("hash", "spki", NOW, identity("1", "spki"))
    again = await store.redeem("hash", "spki", NOW + timedelta(minutes=14), identity("2", "spki"))

    assert first == again == b"certificate 1"
    assert await store.identity("2") is None


@pytest.mark.parametrize(
    ("token_hash", "spki", "at", "reason"),
    [
        ("other", "spki", NOW, "unknown"),
        ("hash", "other", NOW, "is used"),
        ("hash", "spki", EXPIRES, "expired"),
    ],
)
async def test_any_other_asker_is_refused(
    store: Store, token_hash: str, spki: str, at: datetime, reason: str
) -> None:
    """A wrong token, a second key and a late one get nothing, and are told why."""
    await store.redeem("hash", "spki", NOW, identity("1", "spki"))
    with pytest.raises(EnrolmentRefused, match=reason):
        await store.redeem(token_hash, spki, at, identity("2", spki))

    assert await store.identity("2") is None


async def test_an_open_token_expires_too(store: Store) -> None:
    """At its last instant a token that nobody used is dead."""
    with pytest.raises(EnrolmentRefused, match="expired"):
        await store.redeem("hash", "spki", EXPIRES, identity("1", "spki"))

    assert () == await store.identities("web1")


async def test_a_token_makes_its_own_consumer_only(store: Store) -> None:
    """An identity for another consumer is not stored, and the token stays good."""
    await store.add_consumer("mail1", NOW)
    with pytest.raises(EnrolmentRefused, match="another consumer"):
        await store.redeem("hash", "spki", NOW, identity("1", "spki", "mail1"))

    assert b"certificate 2" == await store.redeem("hash", "spki", NOW, identity("2", "spki"))


async def test_a_new_identity_ends_the_earlier_ones(store: Store) -> None:
    """A consumer that enrols again leaves nothing behind that could speak for it."""
    await store.redeem("hash", "spki", NOW, identity("1", "spki"))
    await store.open_enrolment("web1", "hash-2", EXPIRES, NOW)
    later = NOW + timedelta(minutes=1)
    await store.redeem("hash-2", "spki-2", later, identity("2", "spki-2"))

    expected = (replace(identity("1", "spki"), ended_at=later), identity("2", "spki-2"))
    assert expected == await store.identities("web1")
    with pytest.raises(EnrolmentRefused, match="is used"):
        await store.redeem("hash", "spki", later, identity("3", "spki"))


async def test_revoking_ends_tokens_as_well(store: Store) -> None:
    """After the end of a consumer's identities no line pasted earlier makes a new one."""
    await store.redeem("hash", "spki", NOW, identity("1", "spki"))
    await store.open_enrolment("web1", "hash-2", EXPIRES, NOW)
    ended = await store.end_identities("web1", NOW)

    assert ("1",) == ended
    assert () == await store.end_identities("web1", NOW)
    for token_hash, spki in (("hash", "spki"), ("hash-2", "spki-2")):
        with pytest.raises(EnrolmentRefused):
            await store.redeem(token_hash, spki, NOW, identity("9", spki))


async def test_a_token_leads_to_its_consumer(store: Store) -> None:
    """The listener learns who is enrolling before it signs, and who already did."""
    known = await store.enrolment("hash")
    await store.redeem("hash", "spki", NOW, identity("1", "spki"))
    spent = await store.enrolment("hash")

    assert known is not None
    assert ("web1", EXPIRES, "") == (known.consumer, known.expires, known.spent_by)
    assert replace(known, spent_by="spki") == spent
    assert await store.enrolment("other") is None


async def test_only_added_consumers_enrol(store: Store) -> None:
    """No token is opened for a name that nobody added."""
    with pytest.raises(UnknownName):
        await store.open_enrolment("web2", "hash-2", EXPIRES, NOW)

    assert ["web1"] == list(await store.consumers())


async def test_what_stands_is_known_without_reading_until_it_changes(store: Store) -> None:
    """A first use, an end and a successor are seen by the very next question."""
    seen = [await store.standing("1")]
    await store.redeem("hash", "spki", NOW, identity("1", "spki"))
    seen.append(await store.standing("1"))
    await store.use_identity("1", NOW)
    seen.append(await store.standing("1"))
    await store.end_identities("web1", NOW)
    seen.append(await store.standing("1"))

    assert [None, Standing("1", "web1", None), Standing("1", "web1", NOW), None] == seen


# What private keys are sealed to


async def test_enrolment_says_what_keys_are_sealed_to_and_a_report_cannot_change_it(store: Store) -> None:
    """Root told it; what the unprivileged half says later counts only where nothing is known."""
    await store.add_consumer("web1", NOW)
    await store.open_enrolment("web1", "hash 1", EXPIRES, NOW)
    await store.redeem("hash 1", "spki", NOW, identity("1", "spki"), b"a" * 32)
    await store.tell_sealing_key("web1", b"b" * 32)

    assert {"web1": b"a" * 32} == dict((await store.facts()).sealing_keys)


async def test_a_consumer_that_is_enrolled_anew_has_a_new_sealing_key(store: Store) -> None:
    """Also when it tells none: nothing more is sealed to the old one."""
    told = []
    for number, key in enumerate((b"a" * 32, b"b" * 32, None)):
        await store.add_consumer("web1", NOW)
        await store.open_enrolment("web1", f"hash {number}", EXPIRES, NOW)
        await store.redeem(
            f"hash {number}", f"spki {number}", NOW, identity(f"{number}", f"spki {number}"), key
        )
        told.append(dict((await store.facts()).sealing_keys))
    await store.tell_sealing_key("web1", b"c" * 32)

    assert [{"web1": b"a" * 32}, {"web1": b"b" * 32}, {}] == told
    assert {"web1": b"c" * 32} == dict((await store.facts()).sealing_keys)
