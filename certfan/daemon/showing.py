"""The state of things at one instant, gathered for status, deadlines and whoever else speaks of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from certfan.core.model import Problem
from certfan.core.plan import Observed
from certfan.core.rotation import InternalCa
from certfan.daemon.desk.board import Noticeboard
from certfan.daemon.desk.configured import Configured
from certfan.daemon.lookout import Lookout
from certfan.daemon.notifying.notifier import channel_subject
from certfan.daemon.reconciler import Reconciler, problem_of
from certfan.daemon.share.share import Share
from certfan.daemon.status.model import RemoteLog
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.store import Event, Store, StoreFacts
from certfan.daemon.timekeeper import Timekeeper
from certfan.log_sender import LogSender
from certfan.loop import Loop

BOOTS_KNOWN = timedelta(
    days=2
)  # for what was reset in the last one: what came before tells how far that went
LAST_RUNS = 50


class Showing:
    """Asks every part what it knows."""

    def __init__(
        self,
        *,
        store: Store,
        configured: Configured,
        reconciler: Reconciler,
        loop: Loop,
        share: Share,
        lookout: Lookout,
        board: Noticeboard,
        timekeeper: Timekeeper,
        sender: LogSender,
        notify_problems: Callable[[], Mapping[str, Problem]],
        notify_since: Callable[[], Mapping[str, datetime]],
        internal_ca: Callable[[], Awaitable[InternalCa]],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._configured = configured
        self._reconciler = reconciler
        self._loop = loop
        self._share = share
        self._lookout = lookout
        self._board = board
        self._timekeeper = timekeeper
        self._sender = sender
        self._notify_problems = notify_problems
        self._notify_since = notify_since
        self._internal_ca = internal_ca
        self._clock = clock

    async def things(self) -> StateOfThings:
        """Return everything that the page is made from."""
        facts, accounts = await self._store.facts(), await self._store.accounts()
        internal_ca = await self._internal_ca()
        config, desired = self._configured.config, self._configured.desired()
        places = {name: (name, one.directory) for name, one in desired.authorities.items()}
        observed, now = self.observed(facts), self._clock()
        return StateOfThings(
            now=now,
            fleet=config.fleet,
            desired=desired,
            facts=facts,
            observed=observed,
            accounts={name: accounts[place] for name, place in places.items() if place in accounts},
            probe_interval=config.probe_interval,
            config=await self._store.config(),
            config_problems=self._configured.problems,
            share_problem=self._share.problem,
            share_lost_at=self._lookout.share_lost_at,
            clock_problem=self._timekeeper.problem,
            remote_log=self._remote_log(),
            consumer_problems={**self._share.folder_problems, **self._board.doubles.problems},
            notify_problems=self._notify_problems(),
            internal_ca=internal_ca,
            live=observed.live,
            since=self._since(),
            in_flight=self._reconciler.steps,
            runs=tuple(await self._store.runs(LAST_RUNS)),
            boots=await self._store.boots(now - BOOTS_KNOWN, now),
        )

    def _since(self) -> Mapping[str, datetime]:
        ours = {"clock": self._timekeeper.doubted_since, "log": self._sender.lost_at}
        channels = {channel_subject(name): at for name, at in self._notify_since().items()}
        consumers = {**self._share.folders_since, **self._board.doubles.since}
        return {**channels, **consumers, **{name: at for name, at in ours.items() if at is not None}}

    def _remote_log(self) -> RemoteLog | None:
        sender = self._sender
        if sender.target is None:
            return None
        problem = problem_of(sender.problem) if sender.problem else None
        return RemoteLog(
            target=str(sender.target), problem=problem, waiting=sender.waiting, dropped=sender.dropped
        )

    def observed(self, facts: StoreFacts) -> Observed:
        """Return what the plan would now be made from."""
        return self._reconciler.observed(self._configured.desired(), facts, self._loop.in_flight)

    async def events(self, after: int, limit: int, subject: str = "") -> tuple[Event, ...]:
        """Return the journal from number `after` on, ascending; with `after` negative its end; of a subject or all."""
        if after < 0:
            return tuple(await self._store.last_events(limit, subject))
        return tuple(await self._store.events(after, limit, subject))
