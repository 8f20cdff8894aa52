"""Every part of the daemon, made when first asked for; what a part needs stands where it is made.

With main.py the only file that knows every part. What must never come in: a decision, an await of its own.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import BinaryIO

from certfan import log, systemd
from certfan.core.findings import FileSeen
from certfan.core.model import Authority
from certfan.daemon.authority import AcmeAuthority, make_account_key
from certfan.daemon.backup import archived
from certfan.daemon.ca import CaFolder, open_ca
from certfan.daemon.challenges.caa import CaaFinder
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.challenges.pathcheck import PathChecker
from certfan.daemon.channel import Channel
from certfan.daemon.config.loading import Config
from certfan.daemon.deadlines import Deadlines
from certfan.daemon.desk.actions import AdminActions
from certfan.daemon.desk.adoptions import Adoptions
from certfan.daemon.desk.authority_actions import AuthorityActions
from certfan.daemon.desk.board import Noticeboard
from certfan.daemon.desk.configured import Configured
from certfan.daemon.desk.doctor import Doctor
from certfan.daemon.desk.enroller import Enroller
from certfan.daemon.disk import Disk
from certfan.daemon.health import Health
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.issuing.issuer import Issuer
from certfan.daemon.issuing.upkeep import Upkeep
from certfan.daemon.journal import Journal
from certfan.daemon.listeners import Listener
from certfan.daemon.lookout import Lookout
from certfan.daemon.notifying.notifier import Notifier
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.publishing.share_audit import ShareAudit
from certfan.daemon.reconciler import Parts, Reconciler
from certfan.daemon.rotation import Rotation
from certfan.daemon.share.share import Share
from certfan.daemon.showing import Showing
from certfan.daemon.state import StateFolder
from certfan.daemon.status.access import StatusTls
from certfan.daemon.status.pages import Pages
from certfan.daemon.store import Store
from certfan.daemon.timekeeper import Timekeeper
from certfan.log_sender import LogSender
from certfan.loop import Loop


def now() -> datetime:
    """Return the wall clock, aware UTC."""
    return datetime.now(UTC)


@dataclass(kw_only=True)
class Wiring:
    """The parts; what must be open before they are made comes in. Nothing listens or runs for being made."""

    config: Config  # the one that we started with
    state: StateFolder
    store: Store
    journal: Journal
    timekeeper: Timekeeper
    sender: LogSender

    def __post_init__(self) -> None:
        self.ca: CaFolder = open_ca(self.state.ca, self.config.fleet, now())

    @cached_property
    def loop(self) -> Loop:
        """The bell and the tasks."""
        return Loop(now)

    @cached_property
    def configured(self) -> Configured:
        """The config in force."""
        return Configured(
            self.config,
            store=self.store,
            journal=self.journal,
            take_over=self._take_over,
            ring=self.loop.ring,
            clock=now,
        )

    async def _take_over(self, before: Config, after: Config) -> None:
        """Put in force what is more than a value; listeners, fleet and state folder wait for a restart."""
        if after.log_level != before.log_level:
            log.set_up(level=after.log_level, remote=self.sender.take)
        if after.log_remote != before.log_remote:
            self.sender.aim(after.log_remote)
        if after.share != before.share:
            share = after.share
            await self.share.move(share.path, share_id=share.id, require_mount=share.require_mount)
            self.lookout.share_moved()

    # Authorities and their challenges.

    @cached_property
    def accounts(self) -> Accounts:
        """Our accounts at authorities."""
        return Accounts(
            store=self.store,
            state=self.state,
            journal=self.journal,
            connect=self._connect,
            make_key=make_account_key,
            clock=now,
        )

    def _connect(self, spec: Authority, account_key_pem: bytes, account_uri: str | None) -> AcmeAuthority:
        return AcmeAuthority(
            spec,
            account_key_pem=account_key_pem,
            account_uri=account_uri,
            clock=now,
            dated=self.timekeeper.authority_said,
        )

    @cached_property
    def disk(self) -> Disk:
        """What syncs the files of orders."""
        return Disk()

    @cached_property
    def issuer(self) -> Issuer:
        """Whoever carries orders."""
        return Issuer(
            store=self.store,
            state=self.state,
            journal=self.journal,
            accounts=self.accounts,
            disk=self.disk,
            clock=now,
        )

    @cached_property
    def upkeep(self) -> Upkeep:
        """Whoever asks authorities what is not an order."""
        return Upkeep(
            store=self.store,
            state=self.state,
            journal=self.journal,
            accounts=self.accounts,
            tokens=self.issuer.tokens,
            check=self.path_checker.check,
            clock=now,
        )

    @cached_property
    def inherited(self) -> list[socket.socket]:
        """Sockets for challenges that systemd opened for us."""
        return [sock for name, sock in systemd.handed_over_sockets() if name == "http01"]

    @cached_property
    def _probes(self) -> dict[str, str]:
        """What our own look at a challenge's way asks for, and what the responder answers."""
        return {}

    @cached_property
    def responder(self) -> Responder:
        """Whoever answers challenges."""
        tokens = self.issuer.tokens
        return Responder(tokens.key_authorization, tokens.fetched, probes=self._probes)

    @cached_property
    def path_checker(self) -> PathChecker:
        """Whoever looks at a challenge's way; a redirect to an address of our own is followed by nobody."""
        internet = [sock for sock in self.inherited if sock.family in {socket.AF_INET, socket.AF_INET6}]
        given = [Listener(*sock.getsockname()[:2]) for sock in internet]
        config = self.config
        own = [*config.http01, *config.channel, *config.status, config.control, *given]
        return PathChecker(self._probes, own=own)

    # The share and the agents.

    @cached_property
    def share(self) -> Share:
        """The edge to the share."""
        share = self.config.share
        return Share(
            share.path, self.state.share_lock, now, share_id=share.id, require_mount=share.require_mount
        )

    @cached_property
    def bundles(self) -> Bundles:
        """Whoever packs what a consumer gets."""
        return Bundles(self.state, lambda: self.ca, self.config.fleet, self.configured.desired)

    @cached_property
    def enroller(self) -> Enroller:
        """Whoever makes agents known."""
        enroller = Enroller(self.ca.ca, self.store, clock=now, address=self.config.channel_address)
        enroller.take_over(self.ca.ca, self.ca.issuer)
        return enroller

    @cached_property
    def board(self) -> Noticeboard:
        """What stands behind the channel's routes."""
        return Noticeboard(
            store=self.store,
            bundles=self.bundles,
            enroller=self.enroller,
            journal=self.journal,
            desired=self.configured.desired,
            ring=self.loop.ring,
            clock=now,
        )

    @cached_property
    def channel(self) -> Channel:
        """Where agents call."""
        return Channel(self.ca, self.board, listeners=self.config.channel)

    def renew_ca(self) -> None:
        """Issue the channel's and the signer's certificates again when half of their life is gone."""
        self.ca = open_ca(self.state.ca, self.config.fleet, now())
        self.channel.renew(self.ca)

    @cached_property
    def rotation(self) -> Rotation:
        """Whoever has the internal CA followed by another one."""
        return Rotation(
            folder=self.state.ca,
            ca=lambda: self.ca,
            take_over=self._take_over_ca,
            store=self.store,
            journal=self.journal,
            pinned=lambda: self.channel.pinned,
            sign_share_anew=lambda: self.share_audit.sign_anew(),
            clock=now,
        )

    async def _take_over_ca(self) -> None:
        """Have every part use what the CA's folder holds now."""
        self.ca = open_ca(self.state.ca, self.config.fleet, now())
        self.enroller.take_over(self.ca.ca, self.ca.issuer)
        await self.channel.believe(self.ca)

    # The loop.

    @cached_property
    def lookout(self) -> Lookout:
        """What was last seen outside."""
        return Lookout(self.share, self.accounts, self.journal, now, self.loop, self.timekeeper)

    @cached_property
    def reconciler(self) -> Reconciler:
        """Whoever brings what is so to what is desired."""
        parts = Parts(
            store=self.store,
            state=self.state,
            share=self.share,
            issuer=self.issuer,
            upkeep=self.upkeep,
            journal=self.journal,
            bundles=self.bundles,
            desired=self.configured.desired,
            self_check=lambda: self.configured.config.self_check,
            timekeeper=self.timekeeper,
            announce=self.channel.announce,
            clock=now,
            probe_interval=lambda: self.configured.config.probe_interval,
        )
        return Reconciler(parts, self.loop, self.lookout)

    # What is shown, told, and asked for.

    @cached_property
    def health(self) -> Health:
        """Whether we live and are ready."""
        return Health(loop=self.loop, store=self.store, share=self.share, responder=self.responder)

    @cached_property
    def showing(self) -> Showing:
        """The state of things, for whoever shows it."""
        return Showing(
            store=self.store,
            configured=self.configured,
            reconciler=self.reconciler,
            loop=self.loop,
            share=self.share,
            lookout=self.lookout,
            board=self.board,
            timekeeper=self.timekeeper,
            sender=self.sender,
            notify_problems=lambda: self.notifier.problems,
            notify_since=lambda: self.notifier.since,
            internal_ca=lambda: self.rotation.view(),
            clock=now,
        )

    @cached_property
    def pages(self) -> Pages:
        """The pages that are shown and told of."""
        return Pages(self.showing.things)

    @cached_property
    def notifier(self) -> Notifier:
        """Whoever tells people of problems."""
        return Notifier(
            store=self.store,
            journal=self.journal,
            page=self.pages.page,
            config=lambda: self.configured.config.notify,
            clock=now,
        )

    @cached_property
    def status_tls(self) -> StatusTls:
        """What the status shows beyond this machine."""
        return StatusTls(self.config.status_tls, or_token=bool(self.config.status_tokens))

    @cached_property
    def deadlines(self) -> Deadlines:
        """Whoever tells of endpoints that are late."""
        return Deadlines(self.store, self.pages.page)

    @cached_property
    def actions(self) -> AdminActions:
        """What an admin can ask for."""
        return AdminActions(
            store=self.store,
            journal=self.journal,
            enroller=self.enroller,
            desired=self.configured.desired,
            on_the_share=lambda: {**self.lookout.published, **self.lookout.live},
            end_sessions=self.channel.end_sessions,
            read_config=self.configured.read_now,
            ring=self.loop.ring,
            clock=now,
        )

    @cached_property
    def authority_actions(self) -> AuthorityActions:
        """What an admin can ask of the authority side."""
        return AuthorityActions(
            store=self.store,
            journal=self.journal,
            accounts=self.accounts,
            issuer=self.issuer,
            desired=self.configured.desired,
            check=self.path_checker.check,
            self_check=lambda: self.configured.config.self_check,
            ring=self.loop.ring,
            clock=now,
        )

    @cached_property
    def adoptions(self) -> Adoptions:
        """Whoever takes pairs over."""
        return Adoptions(
            store=self.store,
            state=self.state,
            journal=self.journal,
            desired=self.configured.desired,
            highest=self.reconciler.highest,
            in_flight=lambda: self.loop.in_flight,
            reread_tokens=self.issuer.open,
            ring=self.loop.ring,
            clock=now,
        )

    @cached_property
    def share_audit(self) -> ShareAudit:
        """Whoever holds the share against what should lie there."""
        return ShareAudit(
            store=self.store,
            state=self.state,
            share=self.share,
            bundles=self.bundles,
            journal=self.journal,
            ca_pem=lambda: self.ca.anchors,
            fleet=self.config.fleet,
            desired=self.configured.desired,
            observed=self.showing.observed,
            look_again=self.lookout.share_moved,
            clock=now,
        )

    @cached_property
    def doctor(self) -> Doctor:
        """Whoever looks at everything."""
        return Doctor(
            things=self.showing.things,
            look=self.accounts.look,
            check=self.path_checker.check,
            self_check=lambda: self.configured.config.self_check,
            find_caa=CaaFinder().find,
            files=lambda: [
                FileSeen(str(path), stat.S_IMODE(seen.st_mode), seen.st_uid)
                for path, seen in self.state.files()
            ],
            uid=os.geteuid(),
        )

    def archived(self) -> AbstractContextManager[tuple[BinaryIO, int]]:
        """Return the making of a backup."""
        return archived(self.state.path, self.config.fleet, now())
