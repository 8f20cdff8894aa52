"""The one loop of the daemon: observe, plan, start what is not yet under way, and look again when it ends.

Nobody passes work in: whoever knows something rings the bell. A step's failure becomes a fact; only an error
of this loop itself ends the process. What must never come in: a decision (core.plan) or an edge's detail.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import assert_never

from certfan import log
from certfan.core.attempts import after_failure
from certfan.core.ledger import Ledger, Spend
from certfan.core.model import NO_LIMITS, Desired, Problem
from certfan.core.plan import (
    AskCsr,
    AskRenewal,
    CheckPath,
    Clear,
    Forget,
    ForgetConsumer,
    GiveUpOrder,
    Issue,
    Key,
    Observed,
    Offer,
    Outlooks,
    Publish,
    Retire,
    Revoke,
    RollAccountKey,
    RollBack,
    Step,
    TidyOrders,
    Withdraw,
    plan,
)
from certfan.core.room import outdated
from certfan.core.shown import Showing
from certfan.core.subjects import subject_of
from certfan.daemon.issuing import signing
from certfan.daemon.issuing.domains import registered_domain
from certfan.daemon.issuing.issuer import Issuer
from certfan.daemon.issuing.known import Known
from certfan.daemon.issuing.upkeep import Upkeep
from certfan.daemon.journal import Journal
from certfan.daemon.lookout import Lookout
from certfan.daemon.observing import remembered
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.publishing.forgetting import Forgetting
from certfan.daemon.publishing.rollback import RollBacks
from certfan.daemon.share.share import Share
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store, StoreFacts
from certfan.daemon.timekeeper import Timekeeper
from certfan.errors import CertfanError, InternalError
from certfan.loop import Loop
from certfan.protocol import manifest
from certfan.share_worker.tree import Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the reconciler joins."""

    store: Store
    state: StateFolder
    share: Share
    issuer: Issuer
    upkeep: Upkeep
    journal: Journal
    bundles: Bundles
    desired: Callable[[], Desired]
    self_check: Callable[[], bool]
    timekeeper: Timekeeper
    announce: Callable[[str], None]
    clock: Callable[[], datetime]
    probe_interval: Callable[[], timedelta]
    jitter: Callable[[], float] = field(default=random.random)


class Reconciler:
    """Brings what is so to what is desired, one named task a key."""

    def __init__(self, parts: Parts, loop: Loop, lookout: Lookout) -> None:
        self._is = parts
        self._loop = loop
        self._out = lookout
        self._steps: dict[Key, Step] = {}
        self._outlooks = Outlooks()
        self._showing = Showing()
        self._back = RollBacks(store=parts.store, state=parts.state, journal=parts.journal, clock=parts.clock)
        self._forgetting = Forgetting(
            store=parts.store, state=parts.state, share=parts.share, lookout=lookout, journal=parts.journal
        )
        self._ledgers: tuple[Mapping[str, tuple[Spend, ...]], Desired | None, Mapping[str, Ledger]]
        self._ledgers = ({}, None, {})
        self._log = log.get("reconciler")

    @property
    def steps(self) -> Mapping[Key, Step]:
        """What is under way."""
        return {key: self._steps[key] for key in self._loop.in_flight if key in self._steps}

    async def run(self) -> None:
        """Reconcile for ever. Cancelled, it cancels its steps and waits for their clean-up."""
        await self._loop.run(self.tick)

    async def tick(self, group: asyncio.TaskGroup) -> datetime:
        """Observe, plan, start; return when to look again at the latest."""
        in_flight = self._loop.in_flight
        facts = await self._is.store.facts()
        desired, now = self._is.desired(), self._is.timekeeper.tick()
        # Nothing is awaited between the clock's judgement and the plan that acts on it.
        with self._loop.weighed():
            observed = self.observed(desired, facts, in_flight)
            planned = plan(desired, observed, now, self._outlooks)
        for name in outdated(desired, observed, now):
            self._loop.cancel((name,))
        self._steps = {key: step for key, step in self._steps.items() if key in in_flight}
        self._steps |= {step.key: step for step in planned.steps}
        if offers := [step for step in planned.steps if isinstance(step, Offer)]:
            self._loop.start(group, [step.key for step in offers], self._carry_out_offers(offers))
        for step in planned.steps:
            if not isinstance(step, Offer):
                known = Known.of(facts, step.certificate) if isinstance(step, Issue) else None
                self._loop.start(group, [step.key], self._carry_out(step, known))
        self._is.issuer.let_in(desired)
        await self._is.timekeeper.tell(self._is.journal)
        next_look = self._out.look_where_due(group, desired, facts.attempts, now)
        return min(planned.wake_at or next_look, next_look)

    def observed(self, desired: Desired, facts: StoreFacts, in_flight: frozenset[Key]) -> Observed:
        """Return what the plan looks at, besides what is desired."""
        asked = partial(self._is.bundles.asked, facts=facts)
        on_share = self._showing.of(desired, self._out.published, self._out.live, asked)
        return replace(
            remembered(facts),
            published=on_share.published,
            live=on_share.live,
            outdated=on_share.outdated,
            answered=self._out.answered,
            self_check=self._is.self_check(),
            ledgers=self._spent(desired, facts),
            clock_trusted=self._is.timekeeper.trusted,
            moved=self._is.issuer.moved,
            in_flight=in_flight,
            share_up=self._out.share_up,
            share_seen=self._out.share_seen,
            probe_interval=self._is.probe_interval(),
        )

    def _spent(self, desired: Desired, facts: StoreFacts) -> Mapping[str, Ledger]:
        """Return a ledger of every authority that says what it grants; the same one until something is spent there."""
        before, known_for, known = self._ledgers
        if before is not facts.spends or known_for is not desired:
            ledgers = {}
            for name, authority in desired.authorities.items():
                if authority.limits == NO_LIMITS:
                    continue
                spends = facts.spends.get(name, ())
                if known_for is desired:
                    ledgers[name] = known[name].followed(before.get(name, ()), spends)
                else:
                    ledgers[name] = Ledger.of(authority.limits, spends, domains=registered_domain)
            self._ledgers = (facts.spends, desired, ledgers)
        return self._ledgers[2]

    async def _carry_out(self, step: Step, known: Known | None) -> None:
        """The step boundary: the only place that turns any error into a fact."""
        try:
            await self._do(step, known)
        except CertfanError as error:
            await self._record_failure(step, error)
        except Exception as error:  # noqa: BLE001 - one certificate's bug must not stop the others
            self._log.exception("step.crashed", step="/".join(step.key))
            bug = InternalError(f"{type(error).__name__}: {error}", hint="run: journalctl -u certfan")
            await self._record_failure(step, bug)

    async def _carry_out_offers(self, offers: Sequence[Offer]) -> None:
        """Carry out all that were planned together at once: they are rows, and thousands may come of one generation."""
        try:
            await self._offer(offers)
        except Exception:  # noqa: BLE001 - one of them must not hold up the others: each tells for itself what it is
            for step in offers:
                await self._carry_out(step, None)

    async def _do(self, step: Step, known: Known | None) -> None:
        match step:
            case Issue():
                floor = await self._on_the_share(step.certificate)
                await self._is.issuer.issue(self._is.desired(), step, floor=floor, known=known)
            case AskCsr():
                await self._ask_csr(step)
            case CheckPath() | AskRenewal() | Revoke() | GiveUpOrder() | TidyOrders() | RollAccountKey():
                await self._is.upkeep.do(self._is.desired(), step)
            case Publish():
                await self._publish(step)
            case Offer():
                await self._offer([step])
            case Withdraw():
                await self._is.store.withdraw(step.certificate, step.consumer, self._is.clock())
                self._told(step.consumer, "certificate.withdrawn", step.certificate)
            case Retire():
                await self._retire(step)
            case RollBack():
                await self._roll_back(step)
            case Clear():
                await self._forgetting.clear(step.certificate, step.consumer)
            case Forget():
                highest = await self._floor(step.certificate)
                await self._forgetting.forget(step.certificate, highest=highest)
            case ForgetConsumer():
                await self._forgetting.forget_consumer(step.consumer)
            case _:
                assert_never(step)

    async def highest(self, certificate: str) -> int:
        """Return the highest number of a certificate that anyone has seen or any fact of ours names; 0 for none."""
        return max(await self._floor(certificate), await self._is.store.highest_number(certificate))

    async def _floor(self, certificate: str) -> int:
        """Return the highest number seen of a certificate by the share or a consumer, or before it was forgotten."""
        reported = await self._is.store.reported_number(certificate)
        return max(await self._on_the_share(certificate), reported)

    async def _on_the_share(self, certificate: str) -> int:
        if not self._out.shows(certificate):
            return 0
        return self._out.highest(certificate, known=await self._is.store.highest_number(certificate))

    async def _ask_csr(self, step: AskCsr) -> None:
        floor, now = await self._floor(step.certificate), self._is.clock()
        await signing.ask(step, self._is.desired(), self._is.store, self._is.state, floor=floor, now=now)
        self._told(step.consumer, "csr.asked", step.certificate)

    async def _roll_back(self, step: RollBack) -> None:
        name = step.certificate
        floor = await self.highest(name)
        await self._back.back_to(self._is.desired(), name, step.generation, floor=floor)
        await self._is.issuer.open()  # an order that was closed by it took its tokens along

    async def _publish(self, step: Publish) -> None:
        consumer = self._is.desired().consumers.get(step.consumer)
        if consumer is None:
            return  # left the config while the step waited for its turn
        sealing_key = (await self._is.store.facts()).sealing_keys.get(step.consumer)
        bundle = self._is.bundles.pack(
            step.consumer, step.certificate, step.generation, sealing_key=sealing_key
        )
        await self._is.share.publish(consumer, step.certificate, step.generation, bundle)
        folder = Folder(step.generation, manifest.bundle_of(bundle))
        self._out.put((step.certificate, step.consumer), folder)
        if folder.bundle:
            self._is.announce(step.consumer)  # its assignment names the bundle
        store, now = self._is.store, self._is.clock()
        await store.record_published(step.certificate, step.consumer, step.generation, now)
        await store.clear_attempt(f"{step.certificate}/{step.consumer}")
        self._is.journal.tell(
            "generation.published", f"{step.certificate}@{step.generation}", consumer=step.consumer
        )

    async def _retire(self, step: Retire) -> None:
        await self._is.share.retire(step.consumer, step.certificate, step.generation, step.bundle)
        self._out.taken((step.certificate, step.consumer), step.generation, step.bundle)
        subject = f"{step.certificate}@{step.generation}"
        await self._is.journal.note(
            "generation.retired", subject, consumer=step.consumer, bundle=step.bundle or ""
        )

    async def _offer(self, steps: Sequence[Offer]) -> None:
        offers = [(step.certificate, step.consumer, step.generation) for step in steps]
        await self._is.store.offer(offers, self._is.clock())
        for consumer in {step.consumer for step in steps}:
            self._is.announce(consumer)
        for step in steps:
            if step.generation:  # while nothing was issued, only its consumer has to know
                subject = f"{step.certificate}@{step.generation}"
                self._is.journal.tell("generation.offered", subject, consumer=step.consumer)

    def _told(self, consumer: str, event: str, subject: str) -> None:
        self._is.announce(consumer)
        self._is.journal.tell(event, subject, consumer=consumer)

    async def _record_failure(self, step: Step, error: CertfanError) -> None:
        subject = subject_of(step, self._is.desired())
        now = self._is.clock()
        before = (await self._is.store.attempts()).get(subject)
        attempt = after_failure(step, subject, problem_of(error), before, now, jitter=self._is.jitter())
        await self._is.store.record_attempt(attempt)
        await self._is.journal.warn(
            "step.failed",
            subject,
            step=type(step).__name__.lower(),
            code=error.code,
            detail=error.text,
            hint=error.hint,
            failures=attempt.failures,
            not_before=attempt.not_before.isoformat(),
        )


def problem_of(error: CertfanError) -> Problem:
    """Return an error as a fact."""
    return Problem(error.code, error.text, error.hint, error.not_before)
