"""The composition root of the daemon: open, wire, run, stop. The only file that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from certfan import __version__, log, systemd, tls
from certfan.core.model import Authority
from certfan.daemon.authority import AcmeAuthority, make_account_key
from certfan.daemon.ca import open_ca
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.challenges.pathcheck import PathChecker
from certfan.daemon.channel import Channel
from certfan.daemon.config.loading import Config, load
from certfan.daemon.deadlines import Deadlines
from certfan.daemon.desk.actions import AdminActions
from certfan.daemon.desk.authority_actions import AuthorityActions
from certfan.daemon.desk.board import Noticeboard
from certfan.daemon.desk.configured import Configured
from certfan.daemon.desk.enroller import Enroller
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.issuing.issuer import Issuer
from certfan.daemon.issuing.upkeep import Upkeep
from certfan.daemon.journal import Journal
from certfan.daemon.listeners import Listener
from certfan.daemon.lookout import Lookout
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.publishing.share_audit import ShareAudit
from certfan.daemon.reconciler import Parts, Reconciler
from certfan.daemon.share.share import Share
from certfan.daemon.state import StateFolder
from certfan.daemon.status import app
from certfan.daemon.status.model import StateOfThings
from certfan.daemon.store import Event, Store
from certfan.daemon.timekeeper import Timekeeper
from certfan.loop import Loop

STALLED = timedelta(minutes=3)  # a reconciler that has not ticked for that long hangs
LAST_RUNS = 50
DAILY = timedelta(days=1)


def now() -> datetime:
    """Return the wall clock, aware UTC."""
    return datetime.now(UTC)


def run(path: Path) -> int:
    """Run the daemon until SIGTERM or SIGINT; return the exit code.

    Raises:
        ConfigError, StateError, OSError: it cannot start.
    """
    config = load(path)
    log.set_up(level=config.log_level)
    tls.shrink_buffers()
    asyncio.run(serve(config))
    return 0


async def serve(config: Config) -> None:
    """Open the state, wire the parts and run them; returns after a signal. Cancelled, every part has stopped."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with StateFolder(config.state) as state:
        store = await Store.open(state.database, now)
        try:
            boot_id = systemd.boot_id()
            timekeeper = Timekeeper(await store.past_clock(boot_id))
            began = timekeeper.reading
            unclean = await store.begin_run(boot_id, os.getpid(), began.wall, booted_for=began.boot)
            journal = Journal(store, now)
            if unclean is not None:
                await journal.warn(
                    "run.unclean", f"run {unclean.number}", began_at=unclean.began_at.isoformat()
                )
            await journal.note("run.began", "daemon", version=__version__, pid=os.getpid())
            parts = _Daemon(config, state, store, journal, timekeeper)
            async with parts.running() as daemon:
                calm_collector()
                systemd.notify("READY=1", f"STATUS=fleet {config.fleet}")
                await daemon.until(stop)
            await journal.note("run.ended", "daemon")
            await store.end_run(now())
        finally:
            await store.close()


class _Daemon:
    """Every part, wired."""

    def __init__(
        self,
        config: Config,
        state: StateFolder,
        store: Store,
        journal: Journal,
        timekeeper: Timekeeper,
    ) -> None:
        self._config = config
        self._store = store
        self._journal = journal
        self._state = state
        self._loop = Loop(now)
        self._timekeeper = timekeeper
        self._inherited = [sock for name, sock in systemd.handed_over_sockets() if name == "http01"]
        self._ca = open_ca(state.ca, config.fleet, now())
        self.configured = Configured(
            config, store=store, journal=journal, take_over=self._take_over, ring=self._loop.ring, clock=now
        )
        bundles = Bundles(state, lambda: self._ca, config.fleet, self.configured.desired)
        enroller = Enroller(self._ca.ca, store, clock=now, address=config.channel_address)
        self._accounts = Accounts(
            store=store,
            state=state,
            journal=journal,
            connect=self._connect,
            make_key=make_account_key,
            clock=now,
        )
        self._issuer = Issuer(store=store, state=state, journal=journal, accounts=self._accounts, clock=now)
        probes: dict[str, str] = {}
        self._path_checker = PathChecker(probes, own=_own(config, self._inherited))
        self._upkeep = Upkeep(
            store=store,
            state=state,
            journal=journal,
            accounts=self._accounts,
            tokens=self._issuer.tokens,
            check=self._path_checker.check,
            clock=now,
        )
        self._share = Share(
            config.share.path,
            state.share_lock,
            now,
            share_id=config.share.id,
            require_mount=config.share.require_mount,
        )
        self._board = Noticeboard(
            store=store,
            bundles=bundles,
            enroller=enroller,
            journal=journal,
            desired=self.configured.desired,
            ring=self._loop.ring,
            clock=now,
        )
        self._channel = Channel(self._ca, self._board, listeners=config.channel)
        tokens = self._issuer.tokens
        self._responder = Responder(tokens.key_authorization, tokens.fetched, probes=probes)
        self._lookout = Lookout(self._share, self._accounts, journal, now, self._loop, self._timekeeper)
        self.reconciler = self._make_reconciler(state, bundles)
        self._share_audit = ShareAudit(
            store=store,
            state=state,
            share=self._share,
            bundles=bundles,
            journal=journal,
            ca_pem=lambda: self._ca.ca.cert_pem,
            fleet=config.fleet,
            desired=self.configured.desired,
            observed=lambda facts: self.reconciler.observed(
                self.configured.desired(), facts, self._loop.in_flight
            ),
            look_again=self._lookout.share_moved,
            clock=now,
        )
        self._deadlines = Deadlines(store, self._things)
        self._actions = self._make_actions(enroller)
        self._authority_actions = AuthorityActions(
            store=store,
            journal=journal,
            accounts=self._accounts,
            issuer=self._issuer,
            desired=self.configured.desired,
            check=self._path_checker.check,
            self_check=lambda: self.configured.config.self_check,
            ring=self._loop.ring,
            clock=now,
        )

    def _connect(self, spec: Authority, account_key_pem: bytes, account_uri: str | None) -> AcmeAuthority:
        return AcmeAuthority(
            spec,
            account_key_pem=account_key_pem,
            account_uri=account_uri,
            clock=now,
            dated=self._timekeeper.authority_said,
        )

    def _make_reconciler(self, state: StateFolder, bundles: Bundles) -> Reconciler:
        parts = Parts(
            store=self._store,
            state=state,
            share=self._share,
            issuer=self._issuer,
            upkeep=self._upkeep,
            journal=self._journal,
            bundles=bundles,
            desired=self.configured.desired,
            self_check=lambda: self.configured.config.self_check,
            timekeeper=self._timekeeper,
            announce=self._channel.announce,
            clock=now,
            probe_interval=lambda: self.configured.config.probe_interval,
        )
        return Reconciler(parts, self._loop, self._lookout)

    def _make_actions(self, enroller: Enroller) -> AdminActions:
        return AdminActions(
            store=self._store,
            journal=self._journal,
            enroller=enroller,
            desired=self.configured.desired,
            on_the_share=lambda: {**self._lookout.published, **self._lookout.live},
            end_sessions=self._channel.end_sessions,
            read_config=self.configured.read_now,
            ring=self._loop.ring,
            clock=now,
        )

    async def _take_over(self, before: Config, after: Config) -> None:
        """Put in force what is more than a value; listeners, fleet and state folder wait for a restart."""
        if after.log_level != before.log_level:
            log.set_up(level=after.log_level)
        if after.share != before.share:
            share = after.share
            await self._share.move(share.path, share_id=share.id, require_mount=share.require_mount)
            self._lookout.share_moved()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[_Daemon]:
        """Start everything that listens, the responder first: challenges never wait for anything."""
        async with contextlib.AsyncExitStack() as stack:
            await self._issuer.open()
            stack.push_async_callback(self._accounts.close)
            await self._responder.start(self._config.http01, sockets=self._inherited)
            stack.push_async_callback(self._responder.stop)
            await self.configured.open()
            stack.push_async_callback(self._share.stop)
            await self._channel.start()
            stack.push_async_callback(self._channel.stop)
            doors = app.Doors(things=self._things, events=self._events, alive=self._alive, ready=self._ready)
            status = await app.start(app.make_app(doors), self._config.status)
            stack.push_async_callback(status.cleanup)
            closed = app.make_app(doors, self._actions, self._authority_actions, self._share_audit)
            control = await app.start(closed, (self._config.control,))
            stack.push_async_callback(control.cleanup)
            yield self

    async def until(self, stop: asyncio.Event) -> None:
        """Reconcile until told to stop; an error of the loop itself ends the process."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.reconciler.run(), name="reconciler"),
                group.create_task(self.configured.run(), name="config"),
                group.create_task(self._channel.failed(), name="channel"),
                group.create_task(self._deadlines.run(), name="deadlines"),
                group.create_task(self._lookout.keep_watch(self.configured.desired), name="share"),
                group.create_task(self._renew_ca(), name="internal CA"),
                group.create_task(self._feed_watchdog(), name="watchdog"),
            ]
            await stop.wait()
            systemd.notify("STOPPING=1")
            for task in tasks:
                task.cancel()

    async def _things(self) -> StateOfThings:
        facts, accounts = await self._store.facts(), await self._store.accounts()
        desired = self.configured.desired()
        places = {name: (name, one.directory) for name, one in desired.authorities.items()}
        observed = self.reconciler.observed(desired, facts, self._loop.in_flight)
        return StateOfThings(
            now=now(),
            fleet=self._config.fleet,
            desired=desired,
            facts=facts,
            observed=observed,
            accounts={name: accounts[place] for name, place in places.items() if place in accounts},
            probe_interval=self.configured.config.probe_interval,
            config=await self._store.config(),
            config_problems=self.configured.problems,
            share_problem=self._share.problem,
            clock_problem=self._timekeeper.problem,
            consumer_problems={**self._share.folder_problems, **self._board.doubles.problems},
            live=observed.live,
            in_flight=self.reconciler.steps,
            runs=tuple(await self._store.runs(LAST_RUNS)),
        )

    async def _events(self, after: int, limit: int) -> tuple[Event, ...]:
        if after < 0:
            return tuple(await self._store.last_events(limit))
        return tuple(await self._store.events(after, limit))

    def _alive(self) -> Mapping[str, str | None]:
        silence = self._loop.silence
        return {"reconciler": f"has not ticked for {silence}" if silence > STALLED else None}

    def _ready(self) -> Mapping[str, str | None]:
        problem = self._share.problem
        return {
            **self._alive(),
            "share": f"{problem.detail}; {problem.hint}" if problem else None,
            "http01": None if self._responder.addresses else "does not listen",
        }

    async def _renew_ca(self) -> None:
        """Issue the channel's and the signer's certificates again at half-life, without a restart."""
        while True:
            await asyncio.sleep(DAILY.total_seconds())
            self._ca = open_ca(self._state.ca, self._config.fleet, now())
            self._channel.renew(self._ca)

    async def _feed_watchdog(self) -> None:
        """Tell systemd that we live, as long as the reconciler ticks and the store answers."""
        interval = systemd.watchdog_interval()
        while interval is not None:
            await self._store.epoch()
            if not any(self._alive().values()):
                systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval.total_seconds())


def _own(config: Config, inherited: Sequence[socket.socket]) -> list[Listener]:
    """Return every address that is our own, so that no redirect of a foreign vhost leads our check there."""
    internet = [sock for sock in inherited if sock.family in {socket.AF_INET, socket.AF_INET6}]
    given = [Listener(*sock.getsockname()[:2]) for sock in internet]
    return [*config.http01, *config.channel, *config.status, config.control, *given]


def calm_collector() -> None:
    """Let the garbage collector pass over thousands of connections less often; to be called when all is loaded.

    Measured with 5,000 agents that wait: its passes were 165 us of the 340 that an announcement to one cost, now 30.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
