"""The store: one database, its log synced beside the loop, and the table of contents of what can be asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError, IntegrityError, ProgrammingError

from certfan import log
from certfan.daemon.disk import Disk
from certfan.daemon.store import (
    boots,
    checking,
    deploying,
    engine,
    enrolling,
    forgetting,
    issued,
    issuing,
    lagging,
    process,
    signing,
    spending,
    telling,
    wishes,
)
from certfan.daemon.store.batches import MOST_BRIEF, Batches
from certfan.daemon.store.facts import Event, Lists, Standing, StoreFacts
from certfan.daemon.store.snapshot import Snapshot
from certfan.errors import StoreFailed

_log = log.get("store")
P = ParamSpec("P")
T = TypeVar("T")


def transaction(
    query: Callable[Concatenate[Connection, P], T], *, brief: bool = False
) -> Callable[Concatenate[Store, P], Coroutine[Any, Any, T]]:
    """Make a method of the store of a query: whole or not at all, in a transaction with what waits beside it.

    A `brief` one touches a few rows by their keys, and is done on the loop; any other in a thread.
    """

    async def ask(self: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._outcome(self._batches.do(lambda db: query(db, *args, **kwargs), brief=brief))

    return update_wrapper(ask, query)


brief = partial(transaction, brief=True)


class Store:
    """Facts, durable when a call returns: one connection, for the loop and one thread in turns, each call whole or not at all.

    A call that is cancelled has happened whole or not at all. Calls happen in the order in which they were made.

    Raises (every call):
        StoreFailed: the database cannot be read or written; nothing of the call has happened. Or its log could not be
            made durable; then every later call raises it too, and what is so is known when it is opened again.
    """

    def __init__(self, thread: ThreadPoolExecutor, db: Connection, path: Path) -> None:
        self._thread = thread
        self._db = db
        self._path = path
        self._snapshot = Snapshot(db)
        self._disk = Disk()
        self._batches = Batches(thread, db, self._snapshot.forget, self._disk, _say_it_is_lost)

    @classmethod
    async def open(cls, path: str | Path, clock: Callable[[], datetime]) -> Store:
        """Open the database, made 0600 if it is new, and bring its schema up to date.

        A database that is not empty is copied to `NAME.before-REVISION.TIME` beside it before that.

        Raises:
            SchemaTooNew: a newer release has written it; it is not touched.
            StoreFailed: it is no database, or cannot be read.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        try:
            loop = asyncio.get_running_loop()
            db = await loop.run_in_executor(thread, _open, Path(path), clock)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(thread, db, Path(path))

    async def close(self) -> None:
        """Finish what was asked and close the database; repeatable."""
        await self._batches.finish()
        if not self._db.closed:
            await asyncio.get_running_loop().run_in_executor(self._thread, engine.shut, self._db)
        self._thread.shutdown(wait=False)
        self._disk.close()

    async def _outcome(self, asked: Awaitable[T]) -> T:
        try:
            return await asked
        except (IntegrityError, ProgrammingError):
            raise  # ours: a bug, no failure of the database
        except (DatabaseError, OSError) as error:
            raise _failed(self._path, error) from error

    async def facts(self) -> StoreFacts:
        """Return all that the reconciler reads at a tick, as one transaction sees it; mostly without a hop."""
        # Events are no part of it: they may wait.
        if self._batches.rests:
            known = self._snapshot.read_on()
        else:
            known = await brief(lambda _: self._snapshot.read_on())(self)
        return known or await transaction(self._snapshot.read)(self)

    async def standing(self, serial: str) -> Standing | None:
        """Return the identity with that serial unless it has ended; without a hop while no identity was written."""
        known = self._snapshot.known("standing")
        if known is None:
            known = await transaction(self._snapshot.part)(self, "standing")
        found: Standing | None = known.get(serial)
        return found

    async def lists(self, consumers: Collection[str]) -> Lists:
        """Return the lists of many consumers, in one hop and one transaction."""
        return await transaction(self._lists)(self, consumers)

    def _lists(self, db: Connection, consumers: Collection[str]) -> Lists:
        part = self._snapshot.part
        return Lists(part(db, "epoch"), *deploying.lists(db, consumers), part(db, "generations"))

    async def add_events(self, events: Sequence[Event]) -> None:
        """Append to the journal, in order, together with what else waits for that. Key material in fields is replaced."""
        await self._outcome(self._batches.join(process.add_events, events))

    def queue_events(self, events: Sequence[Event]) -> None:
        """Append to the journal as `add_events`, without waiting: durable before whatever is asked after it."""
        self._batches.join_along(process.add_events, events)

    def queue_answered(self, certificate: str, generation: int, challenge_url: str) -> None:
        """Note that a challenge was answered, without waiting: durable before whatever is asked after it."""
        self._batches.do_along(
            partial(
                issuing.record_answered,
                certificate=certificate,
                generation=generation,
                challenge_url=challenge_url,
            )
        )

    async def offer(self, offers: Collection[tuple[str, str, int]], now: datetime) -> None:
        """Offer many generations, (certificate, consumer, generation), at once; all of it or nothing."""
        how = brief if len(offers) <= MOST_BRIEF else transaction
        await how(deploying.offer)(self, offers, now)

    begin_run = transaction(process.begin_run)
    end_run = transaction(process.end_run)
    past_clock = transaction(process.past_clock)
    runs = transaction(process.runs)
    epoch = transaction(process.epoch)
    account = transaction(process.account)
    accounts = transaction(process.accounts)
    record_account = transaction(process.record_account)
    forget_account = transaction(process.forget_account)
    record_contact = transaction(process.record_contact)
    change_account_key = transaction(process.change_account_key)
    record_config = transaction(process.record_config)
    config = transaction(process.config)
    note_definitions = transaction(process.note_definitions)
    events = transaction(process.events)
    last_events = transaction(process.last_events)
    story = transaction(process.story)

    begin_issuance = brief(issuing.begin_issuance)
    record_order_url = brief(issuing.record_order_url)
    drop_replaces = brief(issuing.drop_replaces)
    abandon_issuance = brief(issuing.abandon_issuance)
    open_issuances = transaction(issuing.open_issuances)
    closed_issuances = transaction(issuing.closed_issuances)
    orders_sent = transaction(issuing.orders_sent)
    record_token = brief(issuing.record_token)
    tokens = transaction(issuing.tokens)
    drop_tokens = brief(issuing.drop_tokens)

    record_generation = brief(issued.record_generation)
    record_copy = transaction(issued.record_copy)
    record_adopted = transaction(issued.record_adopted)
    highest_number = transaction(issued.highest_number)
    reported_number = transaction(issued.reported_number)
    ask_revocation = transaction(issued.ask_revocation)
    revocations = transaction(issued.revocations)
    mark_revoked = transaction(issued.mark_revoked)
    revoked = transaction(issued.revoked)
    put_renewal_info = transaction(issued.put_renewal_info)
    renewal_infos = transaction(issued.renewal_infos)

    ask_csr = transaction(signing.ask_csr)
    record_csr = brief(signing.record_csr)
    refuse_csr = transaction(signing.refuse_csr)
    drop_csr = brief(signing.drop_csr)

    spends = transaction(spending.spends)
    leftovers = transaction(spending.leftovers)
    drop_leftover = transaction(spending.drop_leftover)
    ask_rollover = transaction(spending.ask_rollover)
    drop_rollover = transaction(spending.drop_rollover)
    record_check = transaction(checking.record_check)
    checks = transaction(checking.checks)
    keep_checks = transaction(checking.keep_checks)

    record_attempt = brief(wishes.record_attempt)
    clear_attempt = brief(wishes.clear_attempt)
    attempts = transaction(wishes.attempts)
    ask_renewal = transaction(wishes.ask_renewal)
    asked = transaction(wishes.asked)
    ask_rollback = transaction(wishes.ask_rollback)
    drop_rollback = transaction(wishes.drop_rollback)

    ask_forget = transaction(forgetting.ask_forget)
    ask_forget_consumer = transaction(forgetting.ask_forget_consumer)
    keep_wanted = transaction(forgetting.keep_wanted)
    forget = transaction(forgetting.forget)
    keep_number = transaction(forgetting.keep_number)
    forgotten_number = transaction(forgetting.forgotten_number)
    forget_consumer = transaction(forgetting.forget_consumer)

    add_consumer = transaction(enrolling.add_consumer)
    consumers = transaction(enrolling.consumers)
    open_enrolment = transaction(enrolling.open_enrolment)
    enrolment = transaction(enrolling.enrolment)
    redeem = transaction(enrolling.redeem)
    tell_sealing_key = transaction(enrolling.tell_sealing_key)
    identity = transaction(enrolling.identity)
    identities = transaction(enrolling.identities)
    renew_identity = transaction(enrolling.renew_identity)
    use_identity = transaction(enrolling.use_identity)
    adopt_identity = transaction(enrolling.adopt_identity)
    end_identities = transaction(enrolling.end_identities)

    withdraw = brief(deploying.withdraw)
    offered = transaction(deploying.offered)
    record_published = brief(deploying.record_published)
    published = transaction(deploying.published)
    record_report = transaction(deploying.record_report)
    deployments = transaction(deploying.deployments)
    proofs = transaction(deploying.proofs)
    heard = transaction(deploying.heard)
    note_boot = transaction(boots.note_boot)
    boots = transaction(boots.boots)
    told = transaction(telling.told)
    outbox = transaction(telling.outbox)
    post = transaction(telling.post)
    sent = transaction(telling.sent)
    not_sent = transaction(telling.not_sent)
    keep_channels = transaction(telling.keep_channels)

    urgencies = transaction(lagging.urgencies)
    record_urgencies = transaction(lagging.record_urgencies)


def _open(path: Path, clock: Callable[[], datetime]) -> Connection:
    try:
        return engine.open_database(path, clock)
    except DatabaseError as error:
        raise _failed(path, error) from error


def _say_it_is_lost(error: BaseException) -> None:
    _log.error("record.lost", problem=str(error))


def _failed(path: Path, error: DatabaseError | OSError) -> StoreFailed:
    cause = error.orig if isinstance(error, DatabaseError) else error
    return StoreFailed(
        f"database {path} cannot be used: {cause}", subject=str(path), hint=f"run: df {path.parent}"
    )
