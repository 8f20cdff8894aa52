"""The one loop of the daemon: observe, plan, start what is not yet under way, and look again when it ends.

Nobody passes work in: whoever knows something rings the bell. A step's failure becomes a fact; only an error
of this loop itself ends the process. What must never come in: a decision (core.plan) or an edge's detail.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, assert_never

from certfan import log
from certfan.core import policy
from certfan.core.model import Attempt, Authority, Desired, Problem
from certfan.core.plan import Issue, Key, Observed, Offer, Publish, Retire, Step, Where, Withdraw, plan
from certfan.daemon.accounts import Accounts
from certfan.daemon.bundles import Bundles
from certfan.daemon.issuer import Issuer
from certfan.daemon.journal import Journal
from certfan.daemon.share import Share
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store, StoreFacts
from certfan.errors import AuthorityUnreachable, CertfanError, InternalError, ShareError

LOOK_AT_SHARE: Key = ("share",)
AUTHORITY_DOWN_LOOK = timedelta(seconds=15)
SHARE_UP_LOOK = timedelta(seconds=30)
SHARE_DOWN_LOOK = timedelta(seconds=3)
LONGEST_NAP = timedelta(minutes=1)  # level, not edge: look again even when nobody rang


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the reconciler joins."""

    store: Store
    state: StateFolder
    share: Share
    issuer: Issuer
    accounts: Accounts
    journal: Journal
    bundles: Bundles
    desired: Callable[[], Desired]
    announce: Callable[[str], None]
    clock: Callable[[], datetime]
    probe_interval: Callable[[], timedelta]
    jitter: Callable[[], float] = field(default=random.random)


class Reconciler:
    """Brings what is so to what is desired, one named task a key."""

    def __init__(self, parts: Parts) -> None:
        self._is = parts
        self._bell = asyncio.Event()
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._published: dict[Where, frozenset[int]] = {}
        self._live: dict[Where, int] = {}
        self._look_at_share = parts.clock()
        self._look_at_authority: dict[str, datetime] = {}  # those that do not answer, and when to look again
        self._answered: dict[str, datetime] = {}
        self._log = log.get("reconciler")
        self.ticked_at = parts.clock()
        self.in_flight_steps: dict[Key, Step] = {}

    @property
    def live(self) -> Mapping[Where, int]:
        """Where the share's pointers were last seen."""
        return dict(self._live)

    def share_moved(self) -> None:
        """Forget what the old share showed, and look at the new one at once."""
        self._published, self._live = {}, {}
        self._look_at_share = self._is.clock()
        self.ring()

    def ring(self) -> None:
        """Something may have changed: look soon."""
        self._bell.set()

    async def run(self) -> None:
        """Tick for ever. Cancelled, it cancels its steps and waits for their clean-up."""
        async with asyncio.TaskGroup() as group:
            while True:
                wake_at = await self.tick(group)
                nap = min(max(wake_at - self._is.clock(), timedelta(0)), LONGEST_NAP)
                try:
                    async with asyncio.timeout(nap.total_seconds()):
                        await self._bell.wait()
                except TimeoutError:
                    pass

    async def tick(self, group: asyncio.TaskGroup) -> datetime:
        """Observe, plan, start; return when to look again at the latest."""
        self._bell.clear()
        # Taken before the facts: a step that ends while they are read is started again next time, not twice.
        in_flight = frozenset(self._tasks)
        facts = await self._is.store.facts()
        now = self._is.clock()
        planned = plan(self._is.desired(), self._observed(facts, in_flight), now)
        for step in planned.steps:
            self.in_flight_steps[step.key] = step
            self._start(group, step.key, self._carry_out(step))
        if now >= self._look_at_share and LOOK_AT_SHARE not in in_flight:
            self._start(group, LOOK_AT_SHARE, self._see_share())
        self._look_at_silent(group, facts, now)
        self.ticked_at = now
        return min(filter(None, (planned.wake_at, self._next_look(now))))

    def _next_look(self, now: datetime) -> datetime:
        looks = (self._look_at_share, *self._look_at_authority.values())
        return min((at for at in looks if at > now), default=now + LONGEST_NAP)

    def _look_at_silent(self, group: asyncio.TaskGroup, facts: StoreFacts, now: datetime) -> None:
        """Ask authorities that did not answer for their directory, so that one request ends every order's wait."""
        desired = self._is.desired()
        silent = set()
        for name, attempt in facts.attempts.items():
            certificate = desired.certificates.get(name)
            if certificate is None or attempt.problem.code != AuthorityUnreachable.code:
                continue
            if attempt.at >= self._answered.get(certificate.authority, attempt.at):
                silent.add(certificate.authority)
        looks = {name: self._look_at_authority.get(name, now + AUTHORITY_DOWN_LOOK) for name in silent}
        self._look_at_authority = looks
        for name in silent:
            key = ("look", name, "authority")
            if looks[name] <= now and key not in self._tasks:
                self._start(group, key, self._see_authority(desired.authorities[name]))

    def _observed(self, facts: StoreFacts, in_flight: frozenset[Key]) -> Observed:
        newest = {name: generations[-1].number for name, generations in facts.generations.items()}
        return Observed(
            generations=facts.generations,
            published=dict(self._published),
            live=dict(self._live),
            offered=facts.offered,
            attempts=facts.attempts,
            asked=facts.asked,
            config_changed=facts.config_changed,
            answered=dict(self._answered),
            proofs=facts.proofs,
            renewals={
                name: info
                for (name, number), info in facts.renewal_infos.items()
                if newest.get(name) == number
            },
            revoked=frozenset(facts.revoked),
            open_orders={issuance.certificate: issuance for issuance in facts.issuances},
            in_flight=in_flight,
            share_up=self._is.share.problem is None,
            probe_interval=self._is.probe_interval(),
        )

    def _start(self, group: asyncio.TaskGroup, key: Key, work: Coroutine[Any, Any, None]) -> None:
        task = group.create_task(work, name="/".join(key))
        self._tasks[key] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.pop(key, None)
            self.in_flight_steps.pop(key, None)
            self.ring()

        task.add_done_callback(ended)

    async def _carry_out(self, step: Step) -> None:
        """The step boundary: the only place that turns any error into a fact."""
        try:
            await self._do(step)
        except CertfanError as error:
            await self._record_failure(step, error)
        except Exception as error:  # noqa: BLE001 - one certificate's bug must not stop the others
            self._log.exception("step.crashed", step="/".join(step.key))
            bug = InternalError(f"{type(error).__name__}: {error}", hint="run: journalctl -u certfan")
            await self._record_failure(step, bug)

    async def _do(self, step: Step) -> None:
        match step:
            case Issue():
                await self._is.issuer.issue(
                    self._is.desired(), step.certificate, floor=self._floor(step.certificate)
                )
            case Publish():
                await self._publish(step)
            case Offer():
                await self._is.store.offer(step.certificate, step.consumer, step.generation, self._is.clock())
                await self._told(step.consumer, "generation.offered", f"{step.certificate}@{step.generation}")
            case Withdraw():
                await self._is.store.withdraw(step.certificate, step.consumer, self._is.clock())
                await self._told(step.consumer, "certificate.withdrawn", step.certificate)
            case Retire():
                await self._is.share.retire(step.consumer, step.certificate, step.generation)
                where = (step.certificate, step.consumer)
                self._published[where] = self._published.get(where, frozenset()) - {step.generation}
                await self._is.journal.note(
                    "generation.retired", f"{step.certificate}@{step.generation}", consumer=step.consumer
                )
            case _:
                assert_never(step)

    def _floor(self, certificate: str) -> int:
        """Return the highest number that the share or a consumer has seen of a certificate."""
        shown = (
            number for where, all_ in self._published.items() if where[0] == certificate for number in all_
        )
        return max([0, *shown, *(n for where, n in self._live.items() if where[0] == certificate)])

    async def _publish(self, step: Publish) -> None:
        consumer = self._is.desired().consumers.get(step.consumer)
        if consumer is None:
            return  # left the config while the step waited for its turn
        bundle = self._is.bundles.pack(step.consumer, step.certificate, step.generation)
        await self._is.share.publish(consumer, step.certificate, step.generation, bundle)
        where = (step.certificate, step.consumer)
        self._published[where] = self._published.get(where, frozenset()) | {step.generation}
        self._live[where] = step.generation
        store, now = self._is.store, self._is.clock()
        await store.record_published(step.certificate, step.consumer, step.generation, now)
        await store.clear_attempt(f"{step.certificate}/{step.consumer}")
        await self._is.journal.note(
            "generation.published", f"{step.certificate}@{step.generation}", consumer=step.consumer
        )

    async def _told(self, consumer: str, event: str, subject: str) -> None:
        self._is.announce(consumer)
        await self._is.journal.note(event, subject, consumer=consumer)

    async def _see_share(self) -> None:
        was = self._is.share.problem
        try:
            seen = await self._is.share.look()
        except ShareError as error:
            self._look_at_share = self._is.clock() + SHARE_DOWN_LOOK
            if was is None:
                await self._is.journal.warn(
                    "share.lost", str(error.subject), code=error.code, detail=error.text, hint=error.hint
                )
            return
        self._published, self._live = dict(seen.published), dict(seen.live)
        self._look_at_share = self._is.clock() + SHARE_UP_LOOK
        if was is not None:
            await self._is.journal.note("share.found", "share")

    async def _see_authority(self, authority: Authority) -> None:
        try:
            await self._is.accounts.look(authority)
        except CertfanError as error:
            self._log.info("authority.silent", subject=authority.name, code=error.code, detail=error.text)
        else:
            self._answered[authority.name] = self._is.clock()
            await self._is.journal.note("authority.found", authority.name)
        self._look_at_authority[authority.name] = self._is.clock() + AUTHORITY_DOWN_LOOK

    async def _record_failure(self, step: Step, error: CertfanError) -> None:
        subject = step.certificate if isinstance(step, Issue) else f"{step.certificate}/{step.consumer}"
        now = self._is.clock()
        before = (await self._is.store.attempts()).get(subject)
        failures = before.failures + 1 if before else 1
        attempt = Attempt(
            subject, problem_of(error), failures, now, self._next_try(step, error, failures, now)
        )
        await self._is.store.record_attempt(attempt)
        await self._is.journal.warn(
            "step.failed",
            subject,
            step=type(step).__name__.lower(),
            code=error.code,
            detail=error.text,
            hint=error.hint,
            failures=failures,
            not_before=attempt.not_before.isoformat(),
        )

    def _next_try(self, step: Step, error: CertfanError, failures: int, now: datetime) -> datetime:
        jitter = self._is.jitter()
        if not isinstance(step, Issue):
            return policy.next_short_try(failures, now, jitter=jitter)
        if isinstance(error, AuthorityUnreachable):
            return policy.next_unreachable_try(failures, now, jitter=jitter)
        return policy.next_try(failures, now, jitter=jitter, not_before=error.not_before)


def problem_of(error: CertfanError) -> Problem:
    """Return an error as a fact."""
    return Problem(error.code, error.text, error.hint, error.not_before)
