"""Accounts on the real store and state folder: contacts, a new key through any crash, and accounts taken along."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from certfan import pki
from certfan.core.model import Authority
from certfan.daemon.authority import make_account_key
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store
from certfan.errors import ActionRefused, AuthorityUnreachable
from tests.unit.scripted_authority import Gate, ScriptedCa, refused

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
LAB = Authority("lab", "https://ca.example/dir", contact=("mailto:a@example.org",))
CONTACT = ("mailto:b@example.org",)


def clock() -> datetime:
    return NOW


@dataclass
class Place:
    """A daemon's disk, and as many lives of its accounts as a test wants."""

    store: Store
    state: StateFolder
    ca: ScriptedCa = field(default_factory=lambda: ScriptedCa(NOW))

    def life(self, gate: Gate | None = None) -> Accounts:
        """Start anew, with nothing but what is on disk."""
        gate = gate or Gate()

        def connected(*given: Any) -> Any:
            return gate.around(self.ca.connect(*given))

        return Accounts(
            store=gate.around(self.store),
            state=self.state,
            journal=Journal(self.store, clock),
            connect=connected,
            make_key=make_account_key,
            clock=clock,
        )

    async def events(self, name: str) -> list[dict[str, Any]]:
        return [dict(event.fields) for event in await self.store.events() if event.name == name]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async for one in _places(tmp_path / "state"):
        yield one


async def _places(folder: Path) -> AsyncIterator[Place]:
    folder.mkdir(mode=0o700)
    with StateFolder(folder) as state:
        store = await Store.open(state.database, clock)
        yield Place(store, state)
        await store.close()


async def test_changed_contacts_are_told_to_the_authority_once(place: Place) -> None:
    """A new process with the same contacts has nothing to say."""
    await place.life().client(LAB)
    for _ in range(2):
        await place.life().client(replace(LAB, contact=CONTACT))
    account = await place.store.account("lab", LAB.directory)

    assert [CONTACT] == list(place.ca.contacts.values())
    assert 1 == place.ca.calls["update_contacts"]
    assert account is not None
    assert CONTACT == account.contact


async def test_refused_contacts_hold_up_no_order(place: Place) -> None:
    """They are told of, and told to the authority again by the next process."""
    await place.life().client(LAB)
    place.ca.scripts["update_contacts"] = [refused("invalidContact")]
    await place.life().client(replace(LAB, contact=CONTACT))
    told = await place.events("account.contact_refused")
    await place.life().client(replace(LAB, contact=CONTACT))

    assert 1 == len(told)
    assert [CONTACT] == list(place.ca.contacts.values())


async def test_a_new_key_takes_the_place_of_the_old_one_everywhere(place: Place) -> None:
    """At the authority, on disk, in the store, and in what waits to be fetched; the wish is fulfilled."""
    accounts = place.life()
    client = await accounts.client(LAB)
    before = place.state.account_key("lab", make_account_key)
    await place.store.record_token("ours", client.key_authorization("ours"), "a", "a.example", NOW)
    await place.store.record_token("theirs", "theirs.other", "b", "b.example", NOW)
    await place.store.ask_rollover("lab", NOW)
    await accounts.roll_key(LAB)
    after = place.state.account_key("lab", make_account_key)
    account = await place.store.account("lab", LAB.directory)

    assert before != after
    assert [after] == list(place.ca.accounts)
    assert None is place.state.read_next_account_key("lab")
    assert account is not None
    assert pki.public_key_hash(after) == account.thumbprint
    assert {"ours": client.key_authorization("ours"), "theirs": "theirs.other"} == await place.store.tokens()
    assert frozenset() == (await place.store.facts()).rollovers


async def test_a_new_key_is_found_out_about_after_a_crash_anywhere(tmp_path: Path) -> None:
    """Killed after any effect: the next process signs with the key that the authority has, and there is one account."""
    rehearsal = Gate()
    async for place in _places(tmp_path / "whole"):
        await place.life().client(LAB)
        await place.life(rehearsal).roll_key(LAB)
    assert "change_key" in rehearsal.names
    for point, name in enumerate(rehearsal.names, 1):
        async for place in _places(tmp_path / str(point)):
            await place.life().client(LAB)
            await _cut(place, point)
            accounts = place.life()
            client = await accounts.client(LAB)
            await accounts.roll_key(LAB)
            (key,) = place.ca.accounts

            assert key == place.state.account_key("lab", make_account_key), name
            assert None is place.state.read_next_account_key("lab"), name
            assert await client.find_account() == place.ca.accounts[key], name


async def _cut(place: Place, point: int) -> None:
    gate = Gate(point)
    trying = asyncio.create_task(place.life(gate).roll_key(LAB))
    async with asyncio.timeout(10):
        await gate.reached.wait()
    trying.cancel()
    await asyncio.wait({trying})


async def test_a_lost_answer_to_a_new_key_is_found_out_about_by_the_same_process(place: Place) -> None:
    """The authority has the new key, we heard nothing: the next order is signed with what counts."""
    accounts = place.life()
    client = await accounts.client(LAB)
    fresh = place.state.next_account_key("lab", make_account_key)
    place.ca.accounts[fresh] = place.ca.accounts.pop(place.state.account_key("lab", make_account_key))
    place.ca.scripts["change_key"] = [AuthorityUnreachable("no answer")]
    with pytest.raises(AuthorityUnreachable):
        await accounts.roll_key(LAB)
    again = await accounts.client(LAB)

    assert client is not again
    assert fresh == place.state.account_key("lab", make_account_key)
    assert 1 == place.ca.calls["register"]


async def test_a_new_key_that_a_crash_left_undecided_is_decided_before_accounts_are_taken_along(
    place: Place,
) -> None:
    """The key that is exported opens the account, and it never takes the place of one that is adopted."""
    await place.life().client(LAB)
    before = place.state.account_key("lab", make_account_key)
    fresh = place.state.next_account_key("lab", make_account_key)
    place.ca.accounts[fresh] = place.ca.accounts.pop(before)
    exported = await place.life().export(LAB)
    later = place.state.next_account_key("lab", make_account_key)
    place.ca.accounts[later] = place.ca.accounts.pop(fresh)
    other = make_account_key()
    place.ca.accounts[other] = "https://ca.example/account/other"
    await place.life().adopt(LAB, other)
    await place.life().client(LAB)

    assert fresh == exported[1]
    assert other == place.state.account_key("lab", make_account_key)


async def test_an_adoption_that_is_cut_off_leaves_a_key_with_its_own_account(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once the key lies there, before its account is recorded: the next process finds that by the key."""
    await place.life().client(LAB)
    other, real = make_account_key(), place.state.replace_account_key
    place.ca.accounts[other] = "https://ca.example/account/other"

    def killed(*given: Any) -> None:
        real(*given)
        raise RuntimeError("killed")

    # A gate cannot stop a plain function.
    monkeypatch.setattr(place.state, "replace_account_key", killed)
    with pytest.raises(RuntimeError, match="killed"):
        await place.life().adopt(LAB, other)
    await place.life().client(LAB)
    account = await place.store.account("lab", LAB.directory)

    assert account is not None
    assert place.ca.accounts[other] == account.uri


async def test_an_account_is_taken_along_by_its_key(place: Place) -> None:
    """What export gives, adopt takes; the key that it replaces is kept, and nobody registers."""
    await place.life().client(LAB)
    uri, key = await place.life().export(LAB)
    other = replace(LAB, name="moved")
    mine = place.state.account_key("moved", make_account_key)
    adopted = await place.life().adopt(other, key)
    await place.life().client(other)
    kept = list((place.state.path / "accounts").glob("moved.before-*.pem"))

    assert uri == adopted
    assert key == place.state.account_key("moved", make_account_key)
    assert [mine] == [path.read_bytes() for path in kept]
    assert 1 == place.ca.calls["register"]


async def test_a_new_key_that_was_wished_for_is_not_that_of_an_adopted_account(place: Place) -> None:
    """The wish was about the account that was used before; the adopted one keeps the key that came with it."""
    await place.life().client(LAB)
    await place.store.ask_rollover("lab", NOW)
    other = make_account_key()
    place.ca.accounts[other] = "https://ca.example/account/other"
    await place.life().adopt(LAB, other)

    assert frozenset() == (await place.store.facts()).rollovers


async def test_a_key_without_an_account_is_not_adopted(place: Place) -> None:
    """The account in use stays; before there is one, there is nothing to export."""
    with pytest.raises(ActionRefused, match="no account at lab yet"):
        await place.life().export(LAB)
    await place.life().client(LAB)
    before = place.state.account_key("lab", make_account_key)
    with pytest.raises(ActionRefused, match="knows no account of that key"):
        await place.life().adopt(LAB, make_account_key())

    assert before == place.state.account_key("lab", make_account_key)
