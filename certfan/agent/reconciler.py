"""The one loop of the agent: what is assigned, staged, live and proven in; steps started; look again.

What must never come in: a decision (core.deployment) or the way to the daemon (liaison).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Protocol, assert_never

from certfan import log
from certfan.agent.config import AgentConfig, endpoints_of
from certfan.agent.installer import Laid
from certfan.agent.privileged import Privileged
from certfan.agent.prober import Prober
from certfan.agent.record import Record
from certfan.agent.signing import Signing, Taker
from certfan.agent.staging import Staging
from certfan.agent.swap import Answer
from certfan.agent.whereabouts import Whereabouts
from certfan.core import policy
from certfan.core.agent_steps import (
    AgentFacts,
    Apply,
    Assignment,
    Conclude,
    Fetch,
    LayPlaceholders,
    Pair,
    Probe,
    SendCsr,
    ServiceFacts,
    Staged,
    Step,
    TryState,
)
from certfan.core.deployment import plan
from certfan.core.model import Attempt, Deployment, DeploymentState, Endpoint, Problem
from certfan.core.tries import aftermath, marks, owes_hook, setback
from certfan.errors import BundleInvalid, CertfanError, InternalError
from certfan.loop import Loop

KEPT = 3  # bundles of a certificate: to go back to


class Source(Taker, Protocol):
    """Where bundles come from, and CSRs go to."""

    async def fetch(
        self, certificate: str, generation: int, *, bundle: str, waited: timedelta
    ) -> dict[str, bytes]:
        """Return the files of a bundle that was assigned `waited` ago, unverified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the reconciler joins."""

    config: AgentConfig
    consumer: str
    record: Record
    staging: Staging
    source: Source
    privileged: Privileged
    prober: Prober
    whereabouts: Whereabouts  # with it, the local pointers
    changed: Callable[[], None]  # there is something new to report
    clock: Callable[[], datetime]
    jitter: Callable[[], float] = field(default=random.random)


class Reconciler:
    """Brings what is served to what is assigned, one named task a key."""

    def __init__(self, parts: Parts, loop: Loop) -> None:
        self._is = parts
        self._loop = loop
        self._staged: dict[Pair, Staged] = parts.staging.scan()
        self._applied: frozenset[Pair] = frozenset()
        self._deployed: dict[tuple[str, int, DeploymentState], Deployment] = {}
        self._fetch_attempts: dict[str, Attempt] = {}
        self._apply_attempts: dict[str, Attempt] = {}
        self._cleared_at: dict[str, datetime] = {}
        self._assigned_at: dict[Pair, datetime] = {}
        self._signing = Signing(parts.privileged, parts.source, parts.clock, parts.jitter)
        self._log = log.get("agent")
        self._recall()

    def assigned(self, assignments: Mapping[str, Assignment]) -> None:
        """Take the whole list from the daemon; durable on return."""
        self._is.record.remember_assignments(assignments)
        self._loop.ring()

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """What became of each generation here, one a state it went through."""
        return tuple(self._deployed.values())

    async def run(self) -> None:
        """Reconcile for ever. Cancelled, it cancels its steps and waits for their clean-up."""
        await self._loop.run(self.tick)

    async def tick(self, group: asyncio.TaskGroup) -> datetime | None:
        """Look, plan, start; return when to look again at the latest."""
        now = self._is.clock()
        facts = self.facts(now)
        planned = plan(facts, now)
        for step in planned.steps:
            self._loop.start(group, [step.key], self._carry_out(step, facts))
        return planned.wake_at

    def facts(self, now: datetime) -> AgentFacts:
        """Return everything that the plan looks at."""
        assignments = self._is.record.assignments
        for one in assignments.values():
            self._assigned_at.setdefault((one.certificate, one.generation), now)
        pointers = self._is.whereabouts.pointers()
        return AgentFacts(
            assignments=assignments,
            staged=dict(self._staged),
            live=_numbers(pointers),
            outcomes=self._is.record.outcomes,
            misplaced=self._is.whereabouts.misplaced(pointers),
            applied=self._applied,
            services=self._services(assignments),
            proofs=self._is.prober.proofs,
            worked_before=self._is.record.worked_before,
            fetch_attempts=dict(self._fetch_attempts),
            apply_attempts=dict(self._apply_attempts),
            cleared_at=dict(self._cleared_at),
            csr_not_before=self._signing.not_before,
            in_flight=self._loop.in_flight,
            probe_interval=self._is.config.probe_interval,
            quiet=self._is.config.quiet,
        )

    def _live(self) -> Mapping[str, int]:
        return _numbers(self._is.whereabouts.pointers())

    def _services(self, assignments: Mapping[str, Assignment]) -> dict[str, ServiceFacts]:
        found: dict[str, dict[str, tuple[Endpoint, ...]]] = {s.name: {} for s in self._is.config.services}
        for one in assignments.values():
            for service, endpoints in endpoints_of(self._is.config, one.certificate, one.identifiers).items():
                found[service][one.certificate] = endpoints
        return {name: ServiceFacts(frozenset(by), by) for name, by in found.items()}

    async def _carry_out(self, step: Step, facts: AgentFacts) -> None:
        """The step boundary: the only place that turns any error into a fact."""
        try:
            await self._do(step, facts)
        except CertfanError as error:
            self._failed(step, error)
        except Exception as error:  # noqa: BLE001 - one certificate's bug must not stop the others
            self._log.exception("step.crashed", step="/".join(step.key))
            hint = "run: journalctl -u certfan-agent"
            self._failed(step, InternalError(f"{type(error).__name__}: {error}", hint=hint))

    async def _do(self, step: Step, facts: AgentFacts) -> None:
        match step:
            case Fetch():
                await self._fetch(step)
            case SendCsr():
                await self._signing.send(step)
            case LayPlaceholders():
                await self._lay_placeholders(step)
            case Apply():
                await self._apply(step, facts)
            case Probe():
                await self._probe(step)
            case Conclude():
                self._conclude(step)
            case _:
                assert_never(step)

    async def _fetch(self, step: Fetch) -> None:
        pair = (step.certificate, step.generation)
        waited = self._is.clock() - self._assigned_at[pair]
        files = await self._is.source.fetch(*pair, bundle=step.bundle, waited=waited)
        staged = self._staged[pair] = self._is.staging.put(*pair, files)
        if step.bundle not in {"", staged.bundle}:
            # It was sealed anew meanwhile, and is good; the assignment that says so is on its way.
            raise BundleInvalid(f"{step.certificate}@{step.generation} is not the bundle that was assigned")
        self._fetch_attempts.pop(step.certificate, None)
        self._log.info("bundle.staged", bundle=f"{step.certificate}@{step.generation}")

    async def _lay_placeholders(self, step: LayPlaceholders) -> None:
        done = await self._is.privileged.apply([(certificate, 0) for certificate in step.certificates])
        if done.problem is not None:
            self._hold_placeholders(step, done.problem)
            return
        for certificate in step.certificates:
            self._apply_attempts.pop(certificate, None)
        self._log.info("placeholders.laid", certificates=list(step.certificates))

    def _hold_placeholders(self, step: LayPlaceholders, problem: Problem) -> None:
        for certificate in step.certificates:
            before = self._apply_attempts.get(certificate)
            self._apply_attempts[certificate] = self._again(before, certificate, problem)

    async def _apply(self, step: Apply, facts: AgentFacts) -> None:
        durable = marks(step, facts, self._is.clock())
        self._is.record.remember_worked(durable.worked_before)
        self._is.record.remember_outcomes(durable.outcomes)
        self._is.prober.reload_begins(certificate for certificate, _ in step.pairs)
        self._applied -= frozenset(step.pairs)
        try:
            done = await self._is.privileged.apply(step.pairs)
        finally:
            self._is.prober.reload_ended()
            self._is.whereabouts.tried(certificate for certificate, _ in step.pairs)
        self._take_in(step, done)

    def _take_in(self, step: Apply, done: Answer) -> None:
        if done.problem is not None:
            self._apply_failed(step, done.problem)
            return
        now = self._is.clock()
        after = aftermath(step, self.facts(now), done.hooks, now, jitter=self._is.jitter())
        self._is.record.remember_outcomes(after.outcomes)
        self._cleared_at |= after.cleared_at
        self._applied |= frozenset(step.pairs)
        for certificate, generation in step.pairs:
            self._apply_attempts.pop(certificate, None)
            if (failed := done.hooks.get(certificate)) is not None:
                self._hook_failed(certificate, generation, failed)
                continue
            for state, at in (
                (DeploymentState.INSTALLED, done.installed_at),
                (DeploymentState.RELOADED, done.reloaded_at),
            ):
                self._note(certificate, generation, state, at or self._is.clock())
        self._log.info("pairs.applied", pairs=[f"{c}@{g}" for c, g in step.pairs], why=step.why.value)

    def _hook_failed(self, certificate: str, generation: int, problem: Problem) -> None:
        """Report it; the pair is served and stays."""
        self._note(certificate, generation, DeploymentState.FAILED, self._is.clock(), problem)
        self._log.warning(
            "hook.failed",
            bundle=f"{certificate}@{generation}",
            detail=problem.detail,
            hint=problem.hint,
            output=problem.output,
        )

    def _apply_failed(self, step: Apply, problem: Problem) -> None:
        now = self._is.clock()
        after = setback(step, self.facts(now), problem, now, jitter=self._is.jitter())
        self._is.record.remember_outcomes(after.outcomes)
        self._apply_attempts |= after.apply_attempts
        for certificate, generation in after.outcomes:
            self._note(certificate, generation, DeploymentState.FAILED, now, problem)
        self._log.warning(
            "apply.failed",
            pairs=[f"{c}@{g}" for c, g in step.pairs],
            code=problem.code,
            detail=problem.detail,
            hint=problem.hint,
            output=problem.output,
        )

    async def _probe(self, step: Probe) -> None:
        wanted = self._staged.get((step.certificate, self._live().get(step.certificate, 0)))
        await self._is.prober.look(step, wanted.fingerprint if wanted else None)
        self._is.changed()

    def _conclude(self, step: Conclude) -> None:
        self._is.record.remember_outcomes({(step.certificate, step.generation): step.outcome})
        proven = step.outcome.state is TryState.PROVEN
        state = DeploymentState.PROVEN if proven else DeploymentState.FAILED
        self._note(step.certificate, step.generation, state, step.outcome.at, step.outcome.problem)
        if proven:
            self._retire(step.certificate)
        self._log.info(
            "deployment.concluded", bundle=f"{step.certificate}@{step.generation}", state=state.value
        )

    def _retire(self, certificate: str) -> None:
        """Keep the newest bundles only: what is proven, what came before it, and what is assigned."""
        assignment = self._is.record.assignments.get(certificate)
        numbers = sorted(number for name, number in self._staged if name == certificate)
        wanted = {*numbers[-KEPT:], self._live().get(certificate), assignment and assignment.generation}
        gone = frozenset((certificate, number) for number in numbers if number not in wanted)
        self._staged = {pair: staged for pair, staged in self._staged.items() if pair not in gone}
        self._applied -= gone
        self._is.record.forget_outcomes(gone)
        self._is.staging.remove(gone)

    def _recall(self) -> None:
        """Tell again how the newest generations ended: whoever concluded it may have died before the report."""
        for (certificate, generation), outcome in sorted(self._is.record.outcomes.items(), key=itemgetter(0)):
            if outcome.state is not TryState.TRYING or owes_hook(outcome):
                proven = outcome.state is TryState.PROVEN and not owes_hook(outcome)
                state = DeploymentState.PROVEN if proven else DeploymentState.FAILED
                self._note(certificate, generation, state, outcome.at, outcome.problem)

    def _note(
        self,
        certificate: str,
        generation: int,
        state: DeploymentState,
        at: datetime,
        problem: Problem | None = None,
    ) -> None:
        if generation == 0:
            return
        self._deployed = {
            key: d for key, d in self._deployed.items() if key[0] != certificate or key[1] >= generation
        }
        self._deployed[certificate, generation, state] = Deployment(
            certificate, self._is.consumer, generation, state, at, problem
        )
        self._is.changed()

    def _failed(self, step: Step, error: CertfanError) -> None:
        problem = Problem(error.code, error.text, error.hint, error.not_before, getattr(error, "output", ""))
        match step:
            case Fetch():
                before = self._fetch_attempts.get(step.certificate)
                self._fetch_attempts[step.certificate] = self._again(before, step.certificate, problem)
            case Apply():
                self._apply_failed(step, problem)
            case LayPlaceholders():
                self._hold_placeholders(step, problem)
            case SendCsr():
                self._signing.failed(step)
            case Probe() | Conclude():
                pass
            case _:
                assert_never(step)
        self._log.warning(
            "step.failed", step="/".join(step.key), code=error.code, detail=error.text, hint=error.hint
        )

    def _again(self, before: Attempt | None, certificate: str, problem: Problem) -> Attempt:
        now = self._is.clock()
        failures = before.failures + 1 if before else 1
        not_before = policy.next_short_try(failures, now, jitter=self._is.jitter())
        return Attempt(certificate, problem, failures, now, not_before)


def _numbers(pointers: Mapping[str, Laid]) -> dict[str, int]:
    return {certificate: laid.generation for certificate, laid in pointers.items()}
