"""What the daemon is killed in, told with the authority that lives in the tests' own process.

Each story says what store and authority know when it begins; what has to be so at its end is asked of the books of
both. The authority's memory is put back for every telling, so that all of them begin alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import Awaitable, Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives import hashes

from certfan import pki
from certfan.core.model import RenewalInfo, Revocation, RevocationReason
from certfan.daemon.store import Store
from tests.lab.faulty import FaultyAuthority, signing
from tests.lab.faulty.faults import Kind
from tests.lab.faulty.records import DAY, Issued, Records, Window, now
from tests.real.sweep_parts import AUTHORITY, NAME, Daemon, Place, shown

ABOUT_ORDERS = {Kind.AUTHORIZATION, Kind.CHALLENGE, Kind.ORDER, Kind.FINALIZE, Kind.CERTIFICATE}
HASTE = 9.0  # seconds that the proxy waits for a daemon; the authority's validator waits ten
PENDING = ("issuances WHERE closed_at IS NULL", "tokens", "leftovers", "rollovers", "revocations", "attempts")

# What the store of generation 1 is told before the daemon starts.


async def _nothing(_store: Store, _now: datetime) -> None: ...


async def _renew(store: Store, at: datetime) -> None:
    """It has said otherwise when it was last asked, and is due to be asked again."""
    far = at + 60 * DAY
    info = RenewalInfo(NAME, 1, start=far, end=far + DAY, chosen=far, ask_again_at=at - DAY)
    await store.put_renewal_info(info)


async def _roll_over(store: Store, at: datetime) -> None:
    await store.ask_rollover(AUTHORITY, at)
    await store.ask_renewal(NAME, at)  # orders go on afterwards


async def _revoke(store: Store, at: datetime) -> None:
    await store.ask_revocation(NAME, 1, Revocation(RevocationReason.KEY_COMPROMISE, True, at))


# What is so at the end of a story, besides what is so at the end of all.


def _is_over(_telling: Telling) -> bool:
    return True


def _is_renewed(telling: Telling) -> bool:
    """Either the order that led to it, or the one whose answer was lost, is said to replace generation 1."""
    first, second = telling.issued()
    (order,) = telling.lost_orders() or [second.order]
    return first.cert_id == telling.ca.records.orders[order].replaces


def _is_rolled_over(telling: Telling) -> bool:
    return telling.key_at_first != telling.account_key()


def _is_revoked(telling: Telling) -> bool:
    first, second = telling.issued()
    own = telling.daemon.ledger.ask("SELECT number FROM generations WHERE revoked_at IS NOT NULL")
    said = (first.revoked, second.revoked, own)
    return said == (RevocationReason.KEY_COMPROMISE.code, None, [(1,)]) and first.key_hash != second.key_hash


@dataclass(frozen=True, slots=True)
class Story:
    """What happens to a daemon until its newest generation is offered."""

    name: str
    generations: int = 2
    wish: Callable[[Store, datetime], Awaitable[None]] = field(default=_nothing, kw_only=True)
    is_over: Callable[[Telling], bool] = field(default=_is_over, kw_only=True)
    window: Window | None = field(default=None, kw_only=True)  # of generation 1
    processing: int = field(default=0, kw_only=True)  # how many looks at a finalized order say so

    def __str__(self) -> str:
        return self.name


_PAST = Window(now() - 2 * DAY, now() - DAY)
ISSUE = Story("issue", 1, processing=1)
RENEWAL = Story("renewal", wish=_renew, is_over=_is_renewed, window=_PAST, processing=1)
ROLLOVER = Story("rollover", wish=_roll_over, is_over=_is_rolled_over)
REVOCATION = Story("revocation", wish=_revoke, is_over=_is_revoked)


class Stage:
    """The authority, the place of its daemons, and how each story begins."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder, patience=HASTE)
        self.ca = FaultyAuthority(folder / "ca", http_at=("127.0.0.1", self.place.vhost.port))
        self._empty = _Memory(self.ca.records)
        self._first: tuple[Path, _Memory] | None = None
        self._beginnings: dict[Story, Path] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Serve until the block ends."""
        with self.place.opened(), self.ca.running():
            self.place.order_at(self.ca)
            yield self

    @contextlib.contextmanager
    def telling(self, story: Story) -> Iterator[Telling]:
        """Begin a story once more."""
        folder, memory = (None, self._empty) if story.generations == 1 else self._beginning(story)
        memory.put_back(self.ca.records)
        for issued in self.ca.records.certificates.values():
            issued.window = story.window
        self.ca.behaviour.processing = story.processing
        here = self.place.fresh(folder)
        yield Telling(self.ca, story, here)
        shutil.rmtree(here)

    def _beginning(self, story: Story) -> tuple[Path, _Memory]:
        if self._first is None:
            here = self.place.fresh()
            self._empty.put_back(self.ca.records)
            Daemon(here).run()
            self._first = here, _Memory(self.ca.records)
        folder, memory = self._first
        if story not in self._beginnings:
            self._beginnings[story] = self.place.fresh(folder)
            asyncio.run(_told(self._beginnings[story] / "state/certfan.db", story))
        return self._beginnings[story], memory


async def _told(database: Path, story: Story) -> None:
    store = await Store.open(database, now)
    try:
        await story.wish(store, now())
    finally:
        await store.close()


class _Memory:
    """What an authority knew at one moment."""

    def __init__(self, records: Records) -> None:
        self._kept = [_copied(known) for known in _all(records)]

    def put_back(self, records: Records) -> None:
        """Have it know that and nothing else."""
        for known, kept in zip(_all(records), self._kept, strict=True):
            known.clear()
            known.update(_copied(kept))


def _all(records: Records) -> tuple[dict[str, Any], ...]:
    return records.accounts, records.orders, records.authorizations, records.certificates


def _copied(known: dict[str, Any]) -> dict[str, Any]:
    return {url: copy(one) for url, one in known.items()}


class Telling:
    """One daemon in one story, and what the authority makes of it."""

    def __init__(self, ca: FaultyAuthority, story: Story, here: Path) -> None:
        self.ca = ca
        self.daemon = Daemon(here, story.generations)
        self.key_at_first = self.account_key()
        self._story, self._here = story, here
        self._orders = len(ca.records.orders)
        self._heard = len(ca.records.exchanges)

    def finish(self, where: str) -> bool:
        """Start the killed daemon again until all is done, and check; return whether it cost an order."""
        key = self.account_key()
        self.daemon.finish()
        self.check(where)
        assert key in {self.key_at_first, self.account_key()}, f"{where}: a new account key was changed again"
        return bool(self.lost_orders())

    def check(self, where: str = "not killed") -> None:
        """See that nothing is lost, that nothing is there twice, and that the story came to its end."""
        ledger, orders, lost = self.daemon.ledger, self.ca.records.orders, self.lost_orders()
        recorded = ledger.ask("SELECT fingerprint FROM generations ORDER BY number")
        issued = [(one.certificate.fingerprint(hashes.SHA256()).hex(),) for one in self.issued()]
        assert issued == recorded, where
        assert self._story.generations == len(recorded), where
        assert [] == ledger.lost_keys(), where
        assert shown(self._here) == recorded[-1][0], where
        assert len(lost) <= (self._orders_heard().count(Kind.NEW_ORDER) > 1), where
        assert self._orders + 1 + len(lost) == len(orders), where
        assert [] == [table for table in PENDING if ledger.ask(f"SELECT 1 FROM {table}")], where
        self._check_account(where)
        assert self._story.is_over(self), where

    def _check_account(self, where: str) -> None:
        folder = self._here / "state/accounts"
        key = pki.public_key_hash((folder / f"{AUTHORITY}.pem").read_bytes())
        assert [f"{AUTHORITY}.pem"] == [one.name for one in folder.iterdir()], where
        assert key == self.account_key(), where
        known = self.daemon.ledger.ask("SELECT uri, thumbprint FROM accounts")
        assert [(url, key) for url in self.ca.records.accounts] == known, where
        assert 1 == len(known), where

    def issued(self) -> list[Issued]:
        """Return what the authority has issued, oldest first."""
        return list(self.ca.records.certificates.values())

    def account_key(self) -> str | None:
        """Return the hash of the key that the authority has of the account; None while there is none."""
        jwks = [account.jwk for account in self.ca.records.accounts.values()]
        return hashlib.sha256(signing.spki(signing.public_key(jwks[0]))).hexdigest() if jwks else None

    def lost_orders(self) -> list[str]:
        """Return the orders that the authority has made and the daemon never heard of; nothing was done with them."""
        known = {str(url) for (url,) in self.daemon.ledger.ask("SELECT url FROM orders")}
        lost = [url for url in self.ca.records.orders if url not in known]
        heard = self._orders_heard()
        until_the_last = heard[: len(heard) - heard[::-1].index(Kind.NEW_ORDER)]
        assert not lost or {Kind.NEW_ORDER} == set(until_the_last), (
            "an order's URL was not written down first"
        )
        return lost

    def _orders_heard(self) -> list[str]:
        heard = [one.kind for one in self.ca.records.exchanges[self._heard :]]
        return [kind for kind in heard if kind in {Kind.NEW_ORDER, *ABOUT_ORDERS}]
