"""The composition root of the agent's unprivileged half: open, wire, run, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from certfan import __version__, files, log, systemd, tls
from certfan.agent import enrolment
from certfan.agent.config import AgentConfig, load
from certfan.agent.config_schema import Delivery, Install
from certfan.agent.identity import Trust, read_trust
from certfan.agent.installer import Installer
from certfan.agent.liaison import Liaison, Supply
from certfan.agent.link import Link
from certfan.agent.privileged import Privileged
from certfan.agent.prober import Prober
from certfan.agent.reconciler import Parts, Reconciler
from certfan.agent.record import Record
from certfan.agent.renewal import Renewal
from certfan.agent.rotation import Rotation
from certfan.agent.shelf import Shelf
from certfan.agent.staging import Staging
from certfan.agent.whereabouts import Whereabouts
from certfan.errors import ConfigInvalid
from certfan.loop import Loop
from certfan.protocol.identity import parse_line

HEARTBEAT = timedelta(seconds=30)  # a daemon that hears nothing for two probe intervals shows us as unheard
LOOK = timedelta(seconds=30)  # at pairs in place: a service that restarts meanwhile would find nothing
SHUTDOWN = timedelta(seconds=3)


def now() -> datetime:
    """Return the wall clock, aware UTC."""
    return datetime.now(UTC)


def run(path: Path) -> int:
    """Run the agent until SIGTERM or SIGINT; return the exit code.

    Raises:
        ConfigError, NotAuthenticated, StateError: it cannot start.
    """
    log.set_up()
    tls.shrink_buffers()
    config = load(path)
    read_trust(config.trust)  # one that is not enrolled is told before anything starts
    asyncio.run(serve(config))
    return 0


def enrol(path: Path, line: str) -> Trust:
    """Make this machine a consumer; as root, on behalf of the agent's user.

    Raises:
        ConfigError, ChannelError, StateError: see agent.enrolment.
    """
    parse_line(line)  # one that is none is refused before anything is made
    config = load(path)
    uid, gid = _own_state_folder(config)
    return asyncio.run(
        enrolment.enrol(line, config.state / "identity", config.trust, now(), uid=uid, gid=gid)
    )


def _own_state_folder(config: AgentConfig) -> tuple[int, int]:
    """Make the state folder the agent's own, also when root enrols; return whose files it must write, or -1."""
    if os.geteuid() != 0:
        files.private_folder(config.state)
        return -1, -1
    try:
        account = pwd.getpwnam(config.user)
    except KeyError:
        raise ConfigInvalid(
            (f"{config.path}: agent.user: there is no user {config.user} on this machine",),
            hint=f"run: useradd --system {config.user}",
        ) from None
    with contextlib.suppress(FileExistsError):
        config.state.mkdir(mode=0o700, parents=True)
    fd = os.open(config.state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, account.pw_uid, account.pw_gid)
    finally:
        os.close(fd)
    return account.pw_uid, account.pw_gid


async def serve(config: AgentConfig) -> None:
    """Run the agent; returns after a signal. When root has pinned another CA, every part is made anew with it."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while not stop.is_set():
        await _serve(config, read_trust(config.trust), stop)


async def _serve(config: AgentConfig, trust: Trust, stop: asyncio.Event) -> None:
    """Wire the parts and run them until told to stop, or to believe something else. Cancelled, every part has stopped."""
    over = asyncio.Event()
    async with _opened(config, trust) as (link, supply, whereabouts):
        record = Record(config.state)
        reset = record.begin_boot(systemd.boot_id())
        renewal = Renewal(link, config.state / "identity", trust, clock=now)
        privileged = Privileged(config.apply_socket)
        rotation = Rotation(
            link,
            trust,
            config.state,
            privileged=privileged,
            staging=lambda believed: Staging(config.bundles, believed, now),
            repinned=over.set,
            clock=now,
        )

        async def look_after_identity() -> None:
            await rotation.look()
            await renewal.look()

        liaison = Liaison(
            link,
            clock=now,
            heartbeat=min(HEARTBEAT, config.probe_interval / 2),
            sealing_key=trust.sealing_key,
            install=config.install,
            reset=reset,
            look_after_identity=look_after_identity,
        )
        loop, prober = Loop(now), Prober(now)
        parts = Parts(
            config=config,
            consumer=trust.consumer,
            record=record,
            staging=Staging(config.bundles, trust, now),
            source=supply,
            privileged=privileged,
            prober=prober,
            whereabouts=whereabouts,
            changed=liaison.changed,
            clock=now,
        )
        reconciler = Reconciler(parts, loop)
        log.get("agent").info(
            "agent.started", version=__version__, consumer=trust.consumer, fleet=trust.fleet
        )
        await _work(
            {
                "reconciler": reconciler.run(),
                "listen": liaison.listen(reconciler.assigned),
                "tell": liaison.tell(lambda: (reconciler.deployments, prober.shown)),
                "whereabouts": whereabouts.watch(loop.ring),
                "watchdog": _feed_watchdog(lambda: loop.silence),
            },
            trust,
            stop,
            over,
            record,
        )
    log.get("agent").info("agent.stopped")


async def _work(
    parts: Mapping[str, Coroutine[Any, Any, None]],
    trust: Trust,
    stop: asyncio.Event,
    over: asyncio.Event,
    record: Record,
) -> None:
    """Run every part, by its name, until told to stop or to begin anew; an error of one ends all."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part, name=name) for name, part in parts.items()]
        systemd.notify("READY=1", f"STATUS=consumer {trust.consumer} of fleet {trust.fleet}")
        await _either(stop, over)
        if stop.is_set():
            systemd.notify("STOPPING=1")
            record.end_boot()
        for task in tasks:
            task.cancel()


async def _either(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waits = [asyncio.create_task(event.wait(), name="wait") for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


@contextlib.asynccontextmanager
async def _opened(config: AgentConfig, trust: Trust) -> AsyncIterator[tuple[Link, Supply, Whereabouts]]:
    link = Link.of(trust, config.state / "identity")
    shelf = None
    if config.share is not None and config.delivery is not Delivery.CHANNEL:
        shelf = Shelf(config.share, trust.consumer, config.state / "share-worker.lock")
    try:
        yield link, Supply(config.delivery, shelf, link), _whereabouts(config, shelf)
    finally:
        async with asyncio.timeout(SHUTDOWN.total_seconds()):
            await link.close()
            if shelf is not None:
                await shelf.stop()


def _whereabouts(config: AgentConfig, shelf: Shelf | None) -> Whereabouts:
    wished = shelf if config.install is Install.IN_PLACE else None
    pointers = Installer(config.install_to).pointers
    return Whereabouts(wished, pointers, clock=now, interval=min(LOOK, config.probe_interval))


async def _feed_watchdog(silence: Callable[[], timedelta]) -> None:
    """Tell systemd that we live, as long as the reconciler ticks; without a watchdog there is nothing to do."""
    interval = systemd.watchdog_interval()
    while interval is not None:
        if silence() < timedelta(minutes=3):
            systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval.total_seconds())
