"""A small fake world that carries out the steps of both plans and checks every promise as it goes.

Each step is a generator; at each of its yields it can be stopped for a while, fail, or be cut off by a crash, which
loses what is in memory and keeps what is durable. Nothing here asks the planners what is right.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from certfan.core import agent_steps as on_agent
from certfan.core import deployment, plan, policy, rollback
from certfan.core.attempts import after_failure
from certfan.core.keys import unwanted
from certfan.core.ledger import Ledger, Spend
from certfan.core.model import (
    Attempt,
    Authority,
    Certificate,
    Consumer,
    Desired,
    Endpoint,
    Generation,
    Health,
    Identifier,
    Problem,
    Proof,
)
from certfan.core.subjects import subject_of
from tests.unit.world_authority import LIMITS, NEVER_PROVABLE, Ca
from tests.unit.world_orders import CAP, FALLBACK_AFTER, PATIENCE, REUSE, AtAuthorities
from tests.unit.world_parts import (
    APPLY_MODEL,
    CONSUMERS,
    DAY,
    HOUR,
    PROBE_INTERVAL,
    SILENCE,
    SOON,
    SOON_MENDED,
    START,
    Agent,
    Broken,
    Daemon,
    Failure,
    Service,
    Share,
    Task,
    Where,
    Work,
    must,
)


class World(AtAuthorities):
    """Everything there is, its faults, and the hands that carry steps out.

    Authorities keep the true time; the clock of everybody else may be set wrong, by `skew`.
    """

    def __init__(self) -> None:
        self.true, self.skew, self.trusted = START, timedelta(0), True
        self.blocked: set[str] = set()  # identifiers whose challenge nobody can fetch
        self.cas = {name: Ca(name, lambda: self.true, blocked=self.blocked) for name in ("ca", "spare")}
        self.daemon, self.share = Daemon(), Share()
        self.agents = {
            name: Agent(name, {s: Service(s, names) for s, names in services.items()})
            for name, services in CONSUMERS.items()
        }
        self.tasks: list[Task] = []
        self.names = {"a": ("a.example",), "b": ("b.example",), "t": (NEVER_PROVABLE,)}
        self.wanted = {"a": ("web1", "mail1"), "b": ("web1",), "t": ()}
        self.poison: set[on_agent.Pair] = set()
        self.stale: Share | None = None
        self.reports: list[tuple[str, dict[tuple[str, Endpoint], Proof]]] = []
        self.earliest: dict[str, datetime] = {}
        self.failures: Counter[str] = Counter()  # in a row, by subject
        self.wakes: dict[str, datetime | None] = {}
        self.looks = 0
        self.outlooks = plan.Outlooks()
        self._ledgers: dict[str, tuple[tuple[Spend, ...], Ledger]] = {}
        self.done: Counter[str] = Counter()  # what was begun, to see that the histories reach everything
        super().__init__()

    @property
    def now(self) -> datetime:
        """What the clocks of the daemon and of the agents show."""
        return self.true + self.skew

    @now.setter
    def now(self, shown: datetime) -> None:
        """Let time pass until they show that; what was to begin at once has begun by then."""
        if shown > self.now + timedelta(seconds=1):
            for task in [one for one in self.tasks if isinstance(one.step, plan.Issue)]:
                if inspect.getgeneratorstate(task.work) == inspect.GEN_CREATED:
                    self.run(task)
        self.true = shown - self.skew

    # What the planners see

    @property
    def desired(self) -> Desired:
        return Desired(
            {
                name: Authority(name, f"https://{name}", orders_at_once=CAP, limits=LIMITS)
                for name in self.cas
            },
            {
                name: Certificate(
                    name,
                    tuple(map(Identifier, self.names[name])),
                    consumers=self.wanted[name],
                    authority="ca",
                    fallback=("spare",) if name == "a" else (),
                    fallback_after=FALLBACK_AFTER,
                    reuse_key=REUSE if name == "a" else None,
                )
                for name in self.names
            },
            {name: Consumer(name) for name in self.agents},
        )

    def in_flight(self, owner: str) -> frozenset[tuple[str, ...]]:
        return frozenset(task.key for task in self.tasks if task.owner == owner)

    def observed(self) -> plan.Observed:
        share = self.stale or self.share
        daemon = self.daemon
        return plan.Observed(
            in_flight=self.in_flight("daemon"),
            generations=dict(daemon.generations),
            published=dict(share.folders) if self.share.up else {},
            live=dict(share.live) if self.share.up else {},
            offered=dict(daemon.offered),
            attempts=dict(daemon.attempts),
            asked=dict(daemon.asked),
            config_changed=dict(daemon.changed),
            proofs=dict(daemon.proofs),
            answered=dict(daemon.answered),
            revoked=frozenset(daemon.revoked),
            revocations=dict(daemon.revocations),
            checks=dict(daemon.checks),
            self_check=True,
            ledgers={name: self._ledger(name) for name in self.cas},
            leftovers=tuple(daemon.leftovers),
            rollovers=frozenset(daemon.rollovers),
            clock_trusted=self.trusted,
            moved={name: at for name, at in self.moved.items() if (name,) in self.in_flight("daemon")},
            rolled_back=dict(daemon.rolled_back),
            renewals=dict(daemon.renewals),
            open_orders=dict(daemon.open),
            share_up=self.share.up,
            probe_interval=PROBE_INTERVAL,
        )

    def _ledger(self, name: str) -> Ledger:
        """Return the same one until something is spent there: what is kept from plan to plan goes by that."""
        spends = tuple(self.daemon.spends.get(name, ()))
        if name not in self._ledgers or self._ledgers[name][0] != spends:
            self._ledgers[name] = spends, Ledger.of(LIMITS, spends, domains=lambda name: name)
        return self._ledgers[name][1]

    def facts(self, agent: Agent) -> on_agent.AgentFacts:
        return on_agent.AgentFacts(
            in_flight=self.in_flight(agent.name),
            assignments=dict(agent.assignments),
            staged=dict(agent.staged),
            live=dict(agent.live),
            outcomes=dict(agent.outcomes),
            applied=frozenset(agent.applied),
            services={
                s.name: on_agent.ServiceFacts(
                    frozenset(s.certificates), {c: (agent.endpoint(s.name, c),) for c in s.certificates}
                )
                for s in agent.services.values()
            },
            proofs=dict(agent.proofs),
            worked_before=agent.worked_before,
            fetch_attempts=dict(agent.fetch_attempts),
            apply_attempts=dict(agent.apply_attempts),
            cleared_at=dict(agent.cleared_at),
            probe_interval=PROBE_INTERVAL,
        )

    def _until(self, wake_at: datetime | None) -> datetime | None:
        """Return the last instant at which a plan must still be the same; now and then only, as it takes long."""
        self.looks += 1
        last = wake_at - timedelta(microseconds=1) if wake_at is not None else self.now + timedelta(days=999)
        return last if self.looks % 5 == 0 else None

    def look_daemon(self) -> int:
        observed = self.observed()
        decided = plan.plan(self.desired, observed, self.now, self.outlooks)
        must(
            decided == plan.plan(self.desired, observed, self.now),
            "what is kept from plan to plan changes none",
        )
        self.wakes["daemon"] = decided.wake_at
        if (later := self._until(decided.wake_at)) is not None:
            again = plan.plan(self.desired, self.observed(), later)
            must(
                again.steps == decided.steps, f"nothing changes before wake_at: {decided.steps} {again.steps}"
            )
        for step in decided.steps:
            self._start_daemon_step(step)
        return len(decided.steps)

    def look_agent(self, agent: Agent) -> int:
        decided = deployment.plan(self.facts(agent), self.now)
        self.wakes[agent.name] = decided.wake_at
        if (later := self._until(decided.wake_at)) is not None:
            again = [type(step) for step in deployment.plan(self.facts(agent), later).steps]
            must(
                again == [type(step) for step in decided.steps],
                "nothing changes before wake_at on a consumer",
            )
        for step in decided.steps:
            self._start_agent_step(agent, step)
        return len(decided.steps)

    # The daemon's hands

    def _start_daemon_step(self, step: plan.Step) -> None:
        must(step.key not in self.in_flight("daemon"), "a key in flight is not started again")
        self.done[type(step).__name__] += 1
        if (work := self.at_authority(step)) is None:
            work = self._elsewhere(step)
        self._check_time(step)
        self.tasks.append(Task("daemon", step.key, work, lambda p: self._failed(step, p), step))

    def _elsewhere(self, step: plan.Step) -> Work:
        match step:
            case plan.Publish(name, consumer, number):
                must(self._generation(name, number) is not None, "nothing is published before it is verified")
                must((name, number) not in self.daemon.revoked, "nothing that is revoked is published")
                return self._publish((name, consumer), number)
            case plan.Offer(name, consumer, number):
                self._check_offer((name, consumer), number)
                return self._offer((name, consumer), number)
            case plan.Withdraw(name, consumer):
                must(consumer not in self.wanted.get(name, ()), "only what is unwanted is withdrawn")
                return self._withdraw((name, consumer))
            case plan.Retire(name, consumer, number):
                self._check_retire((name, consumer), number)
                return self._retire((name, consumer), number)
            case plan.RollBack(name, number):
                must(name in self.daemon.rolled_back, "nothing is rolled back that nobody asked for")
                return self._roll_back(name, number)
            case plan.Clear(name, consumer):
                self._check_clear((name, consumer))
                return self._clear((name, consumer))
            case plan.Forget(name) | plan.ForgetConsumer(name):
                raise Broken(f"nothing that is wanted is forgotten: {name}")
        raise Broken(f"nothing in this world asks for it: {step}")

    def _check_time(self, step: plan.Step) -> None:
        subject = subject_of(step, self.desired)
        attempt = self.daemon.attempts.get(subject)
        if type(step) not in PATIENCE or attempt is None:
            return
        if not any(attempt.at < at <= self.now for at in self.lifts(step, attempt.problem.code)):
            must(self.now >= self.earliest.get(subject, self.now), f"never before its time: {subject}")

    def _failed(self, step: plan.Step, problem: Problem) -> None:
        if type(step) not in PATIENCE:
            return
        subject = subject_of(step, self.desired)
        before = self.daemon.attempts.get(subject)
        attempt = after_failure(step, subject, problem, before, self.now, jitter=0.5)
        self.daemon.attempts[subject] = attempt
        self.failing_since.setdefault(subject, self.now)
        if isinstance(step, plan.Issue) and problem.code == "authority.unreachable":
            self.earliest[subject] = self.now + SILENCE
            return
        self.failures[subject] += 1
        delays = PATIENCE[type(step)]
        wait = delays[min(self.failures[subject], len(delays)) - 1]
        told = min(problem.not_before, self.now + DAY) if problem.not_before is not None else self.now
        self.earliest[subject] = max(self.now + wait, told)

    def _roll_back(self, name: str, number: int) -> Work:
        yield None
        daemon = self.daemon
        old = self._generation(name, number)
        why = None
        if old is not None:
            wanted = self.desired.certificates[name]
            gone = unwanted(daemon.generations[name], daemon.revoked | daemon.revocations.keys())
            why = rollback.why_not_back_to(wanted, old, revoked=gone, now=self.now)
        if old is None or why is not None:
            daemon.rolled_back.pop(name, None)
            return
        must(not self.is_spent(old), "nothing that is or is to be revoked is gone back to")
        begun = daemon.open.get(name)
        if begun is not None:
            self.drop_order(name)
        floor = max(daemon.generations[name][-1].number, begun.generation if begun else 0)
        copy = replace(old, number=floor + 1, issued_at=self.now, copy_of=number)
        daemon.generations[name] = (*daemon.generations[name], copy)
        daemon.rolled_back.pop(name, None)
        daemon.asked.pop(name, None)
        daemon.keys[name, copy.number] = copy.key
        self.ask_from[name, copy.number] = self.now + 6 * HOUR
        self.succeeded(*self.order_subjects(name))

    def _generation(self, name: str, number: int) -> Generation | None:
        return next((g for g in self.daemon.generations.get(name, ()) if g.number == number), None)

    def _publish(self, where: Where, number: int) -> Work:
        if not self.share.up:
            raise Failure
        yield None
        self.share.folders[where] = self.share.folders.get(where, frozenset()) | {number}
        yield None
        must(self.share.live.get(where, 0) <= number, "the pointer never goes back")
        self.share.live[where] = number
        self.succeeded("/".join(where))

    def _check_offer(self, where: Where, number: int) -> None:
        if number == 0 or number in self.share.folders.get(where, frozenset()):
            return
        generation = self._generation(where[0], number)
        must(generation is not None, "nothing is offered before it is verified")
        must((where[0], number) not in self.daemon.revoked, "nothing that is revoked is offered anew")
        assert generation is not None
        failing = not self.share.up or "/".join(where) in self.daemon.attempts
        fresh = generation.issued_at <= self.now < generation.issued_at + timedelta(seconds=60)
        must(failing and not fresh, "nothing is offered before it is published, but when that fails for 60 s")

    def _offer(self, where: Where, number: int) -> Work:
        yield None
        must(number >= self.daemon.offered.get(where, 0), "no older generation is offered")
        self.daemon.offered[where] = number

    def _withdraw(self, where: Where) -> Work:
        yield None
        self.daemon.offered.pop(where, None)

    def _check_clear(self, where: Where) -> None:
        must(where[1] not in self.wanted[where[0]], "what is wanted stays on the share")
        known = {g.number: g.not_after for g in self.daemon.generations.get(where[0], ())}
        numbers = {*self.share.folders.get(where, ()), *([n] if (n := self.share.live.get(where)) else [])}
        must(
            self.stale is not None or all(known[n] <= self.now for n in numbers),
            "an orphan stays until it expires",
        )

    def _clear(self, where: Where) -> Work:
        if not self.share.up:
            raise Failure
        yield None
        self.share.live.pop(where, None)
        yield None
        self.share.folders.pop(where, None)

    def _check_retire(self, where: Where, number: int) -> None:
        if where[1] not in self.wanted[where[0]]:
            generation = self._generation(where[0], number)
            must(
                generation is not None and generation.not_after <= self.now,
                "an orphan stays until it expires",
            )
            return
        must(number not in sorted(self.share.folders[where])[-2:], "the newest two remain")
        must(number != self.share.live[where], "what the pointer shows remains")
        issued = {g.fingerprint: g.number for g in self.daemon.generations[where[0]]}
        must(
            all(issued[proof.fingerprint] > number for proof in self.daemon.proofs[where]),
            "nothing is retired before a newer one is proven everywhere",
        )

    def _retire(self, where: Where, number: int) -> Work:
        if not self.share.up:
            raise Failure
        yield None
        self.share.folders[where] -= {number}
        if self.share.live.get(where) == number:
            del self.share.live[where]

    # An agent's hands

    def _start_agent_step(self, agent: Agent, step: on_agent.Step) -> None:
        must(step.key not in self.in_flight(agent.name), "a key in flight is not started again")
        why = f".{step.why}" if isinstance(step, on_agent.Apply) else ""
        self.done[type(step).__name__ + why] += 1
        on_failure: Callable[[Problem], None] = lambda problem: None  # noqa: E731
        match step:
            case on_agent.Fetch(name, number):
                work = self._fetch(agent, name, number)
                on_failure = lambda problem: self._fetch_failed(agent, name, problem)  # noqa: E731
            case on_agent.LayPlaceholders(names):
                must(len(set(names)) == len(names) > 0, "placeholders are of somebody")
                work = self._lay(agent, names)
            case on_agent.Apply():
                self._check_apply(agent, step)
                work = self._apply(agent, step)
                unavailable = Problem("service.apply_unavailable", "no answer")
                on_failure = lambda problem: self._record_setback(agent, step, unavailable)  # noqa: E731
            case on_agent.Probe(name, endpoints):
                work = self._probe(agent, name, endpoints)
            case on_agent.Conclude():
                work = self._conclude(agent, step)
        self.tasks.append(Task(agent.name, step.key, work, on_failure, step))

    def _fetch(self, agent: Agent, name: str, number: int) -> Work:
        generation = self._generation(name, number)
        if generation is None:
            raise Failure("channel.not_allowed")
        yield None
        agent.staged[name, number] = on_agent.Staged(
            generation.fingerprint, generation.not_after, staged_at=self.now
        )
        agent.fetch_attempts.pop(name, None)

    def _fetch_failed(self, agent: Agent, name: str, problem: Problem) -> None:
        before = agent.fetch_attempts.get(name)
        failures = before.failures + 1 if before else 1
        until = policy.next_short_try(failures, self.now, jitter=0)
        agent.fetch_attempts[name] = Attempt(name, problem, failures, self.now, until)

    def _lay(self, agent: Agent, names: Iterable[str]) -> Work:
        yield None
        for name in names:
            if agent.live.setdefault(name, 0) == 0:
                for service in agent.services.values():
                    if name in service.certificates:
                        service.loaded.setdefault(name, 0)

    def _check_apply(self, agent: Agent, step: on_agent.Apply) -> None:
        must(bool(step.pairs), "an Apply has pairs")
        for name, number in step.pairs:
            must(number == 0 or (name, number) in agent.staged, "nothing is applied before it is staged")
            if step.why is on_agent.Why.INSTALL:
                must(number >= agent.live.get(name, 0), "never an older one over a newer one")
                must(
                    self.now >= agent.earliest.get((name, number), self.now),
                    f"no pair before its time: {agent.name} {name}@{number}",
                )
            if step.why is on_agent.Why.ROLL_BACK and number:
                must(agent.staged[name, number].not_after > self.now, "never back to an expired pair")

    def _apply(self, agent: Agent, step: on_agent.Apply) -> Work:
        durable = deployment.marks(step, self.facts(agent), self.now)
        agent.outcomes.update(durable.outcomes)
        agent.worked_before = durable.worked_before
        agent.applied -= set(step.pairs)
        self._forget_proofs(agent)
        yield None
        before = dict(agent.live)
        touched = {name for name, _ in step.pairs}
        try:
            yield from self._move(agent, step)
        except Failure as failure:
            agent.live.update({name: before[name] for name in touched})
            self._reload(agent, touched)
            self._record_setback(agent, step, failure.problem)
            return
        finally:
            self._forget_proofs(agent)
        self._run_hooks(agent, step)
        agent.applied |= set(step.pairs)
        for name in touched:
            agent.apply_attempts.pop(name, None)

    def _move(self, agent: Agent, step: on_agent.Apply) -> Work:
        for pair in step.pairs:
            name, number = pair
            outcome = agent.outcomes.get(pair)
            tried = outcome is not None and outcome.state is not on_agent.TryState.FAILED
            must(number == 0 or tried, "`trying` is durable before the pointer moves")
            agent.live[name] = number
            yield None
        if agent.config_broken:
            raise Failure("service.config_test_failed")
        if agent.refused & set(step.pairs):
            raise Failure("service.pair_refused")
        touched = {name for name, _ in step.pairs}
        self._reload(agent, touched)
        yield None

    def _run_hooks(self, agent: Agent, step: on_agent.Apply) -> None:
        bad = {name: Problem("service.hook_failed", "exit 1") for name, number in step.pairs if number}
        bad = {name: problem for name, problem in bad.items() if name in agent.bad_hooks}
        after = deployment.aftermath(step, self.facts(agent), bad, self.now)
        for pair, outcome in after.outcomes.items():
            must(outcome.state is not on_agent.TryState.FAILED, "a hook that fails takes nothing back")
            agent.outcomes[pair] = outcome
        agent.hook_failed -= set(step.pairs)
        agent.hook_failed |= {pair for pair in step.pairs if pair[0] in bad}
        self.done["Hook.failed"] += len(bad)
        agent.cleared_at |= after.cleared_at
        for name in after.cleared_at:
            waits = {p: o for p, o in agent.outcomes.items() if p[0] == name and o.problem is not None}
            must(
                name in agent.apply_attempts
                or any(o.problem.code in SOON_MENDED for o in waits.values() if o.problem),
                "a config test that passes frees only what waits for it",
            )
            for pair in waits:
                agent.earliest.pop(pair, None)

    def _reload(self, agent: Agent, touched: Iterable[str]) -> None:
        for service in agent.services.values():
            if not set(touched) & set(service.certificates) or (agent.deaf and service.alive):
                continue
            service.loaded = {name: agent.live[name] for name in service.certificates if name in agent.live}
            service.alive = not self.poison & set(service.loaded.items())

    def _forget_proofs(self, agent: Agent) -> None:
        agent.epoch += 1
        agent.proofs.clear()
        agent.truth.clear()

    def _record_setback(self, agent: Agent, step: on_agent.Apply, problem: Problem) -> None:
        told = deployment.setback(step, self.facts(agent), problem, self.now)
        agent.apply_attempts.update(told.apply_attempts)
        for pair, outcome in told.outcomes.items():
            self._record_outcome(agent, pair, outcome)

    def _record_outcome(self, agent: Agent, pair: on_agent.Pair, outcome: on_agent.Outcome) -> None:
        agent.outcomes[pair] = outcome
        soon = outcome.problem is not None and outcome.problem.code in SOON_MENDED
        if outcome.state is on_agent.TryState.FAILED and (outcome.group == 1 or soon):
            agent.failures[pair] += 1
            delay = APPLY_MODEL[min(agent.failures[pair], len(APPLY_MODEL)) - 1]
            if soon:
                delay = SOON
            if outcome.at <= self.now:  # else the clock was set back between decision and record
                agent.earliest[pair] = outcome.at + delay
        elif outcome.state is on_agent.TryState.PROVEN:
            agent.failures.pop(pair, None)

    def _leaf(self, name: str, number: int) -> str:
        """Return the fingerprint of what a generation serves; a roll-back's copy has that of the older one."""
        generation = self._generation(name, number)
        return generation.fingerprint if generation is not None else f"{name}@{number}"

    def handshake(self, agent: Agent, service: Service, name: str) -> tuple[Health, int | None]:
        """Return what a dial there meets: the generation served, None for a foreign leaf."""
        where = (service.name, name)
        if not service.alive or where in agent.muted or name not in service.loaded:
            return Health.REFUSED, None
        return Health.SERVED, None if where in agent.foreign else service.loaded[name]

    def _probe(self, agent: Agent, name: str, endpoints: tuple[Endpoint, ...]) -> Work:
        epoch, begun_at = agent.epoch, self.now
        yield None
        for endpoint in endpoints:
            health, number = self.handshake(agent, agent.services[endpoint.service], name)
            shown = "foreign" if number is None else self._leaf(name, number)
            fingerprint = shown if health is Health.SERVED else ""
            if agent.epoch == epoch:
                agent.truth[name, endpoint] = fingerprint
                agent.proofs[name, endpoint] = Proof(
                    endpoint, health, begun_at, fingerprint=fingerprint, placeholder=number == 0
                )

    def _conclude(self, agent: Agent, step: on_agent.Conclude) -> Work:
        """Judge the decision by what was so when it was made: an endpoint may heal before it is carried out."""
        pair = (step.certificate, step.generation)
        endpoints = [
            agent.endpoint(service.name, step.certificate)
            for service in agent.services.values()
            if step.certificate in service.certificates
        ]
        served = [agent.truth.get((step.certificate, endpoint)) for endpoint in endpoints]
        if step.outcome.state is on_agent.TryState.PROVEN:
            must(
                set(served) == {self._leaf(*pair)},
                "nothing is proven without its proof at every endpoint",
            )
            must(pair not in agent.hook_failed, "nothing is proven before its hook has passed")
        else:
            must("" in served, "nothing is rolled back that is no worse")
        return self._concluded(agent, step)

    def _concluded(self, agent: Agent, step: on_agent.Conclude) -> Work:
        yield None
        self.done[f"Conclude.{step.outcome.state}"] += 1
        self._record_outcome(agent, (step.certificate, step.generation), step.outcome)

    # What happens to them

    def run(self, task: Task) -> bool:
        """Carry a step out up to its next yield; False when it waits for an instant."""
        if task.until is not None and self.true < task.until:
            return False
        self._advance(task, lambda: next(task.work))
        return True

    def fail(self, task: Task, code: str = "share.unavailable") -> None:
        self._advance(task, lambda: task.work.throw(Failure(code)))

    def _advance(self, task: Task, go: Callable[[], datetime | None]) -> None:
        try:
            shown = go()
            task.until = shown - self.skew if shown is not None else None
        except StopIteration:
            self.tasks.remove(task)
        except Failure as failure:
            self.tasks.remove(task)
            until = self.now + failure.wait if failure.wait is not None else None
            task.on_failure(replace(failure.problem, not_before=until))

    def crash(self, owner: str) -> None:
        self.tasks = [task for task in self.tasks if task.owner != owner]
        if owner in self.agents:
            self.agents[owner].forget()

    def poll(self, agent: Agent) -> None:
        """Let an agent hear its assignments."""
        agent.assignments = {
            name: on_agent.Assignment(name, number)
            for (name, consumer), number in self.daemon.offered.items()
            if consumer == agent.name
        }

    def deliver(self, report: tuple[str, dict[tuple[str, Endpoint], Proof]]) -> None:
        consumer, proofs = report
        for name in {name for name, _ in proofs}:
            told = (replace(p, heard_at=self.now) for (of, _), p in proofs.items() if of == name)
            self.daemon.proofs[name, consumer] = tuple(told)

    def jump(self, by: timedelta) -> None:
        """Set the clock wrong, or right: from here on nobody can say any more whose time it is.

        More than an hour back or a day ahead, and it is in doubt.
        """
        self.skew += by
        self.trusted = self.trusted and -HOUR <= by <= DAY
        self.forget_time()
        for agent in self.agents.values():
            agent.earliest.clear()

    def check_orders(self) -> None:
        """No more orders than generations, those given up, those whose answer was lost and those still open."""
        made_anywhere = sum((ca.made for ca in self.cas.values()), Counter[str]())
        for name, made in made_anywhere.items():
            under_way = self.daemon.open.get(name)
            is_open = under_way is not None and under_way.order_url is not None
            allowed = (
                len(self.daemon.generations.get(name, ())) + self.given_up[name] + self.lost[name] + is_open
            )
            must(made <= allowed, f"never orders twice: {name} {made} > {allowed}")

    def confirm_clock(self) -> None:
        """Let an authority's Date be seen."""
        self.trusted = self.trusted or abs(self.skew) <= HOUR

    def check_rolled_back(self) -> None:
        """Nothing that worked before a try stays broken by it once nobody has anything to do."""
        for agent in self.agents.values():
            if self.in_flight(agent.name) or agent.apply_attempts:
                continue  # it is being done, or waits for its next try
            for service in agent.services.values():
                for name, number in service.loaded.items():
                    outcome = agent.outcomes.get((name, number))
                    trying = outcome is not None and outcome.state is on_agent.TryState.TRYING
                    worked = (name, agent.endpoint(service.name, name)) in agent.worked_before
                    must(service.alive or not (trying and worked), "what became worse is rolled back")

    def is_settled(self) -> bool:
        """Whether every endpoint serves, and is proven to serve, the right certificate."""
        daemon = self.daemon
        names = {name: {i.value for i in begun.identifiers} for name, begun in daemon.open.items()}
        if any(names[name] == set(self.names[name]) for name in names.keys() - {"t"}):
            return False
        refused = {name for name, ca in self.cas.items() if ca.keeps_key}
        if daemon.revocations or daemon.rollovers - refused or daemon.leftovers:
            return False
        return all(
            self._is_right(name, self.agents[consumer])
            for name in self.names
            for consumer in self.wanted[name]
        )

    def _is_right(self, name: str, agent: Agent) -> bool:
        newest = next(iter(self.daemon.generations.get(name, ())[-1:]), None)
        if newest is None or {i.value for i in newest.identifiers} != set(self.names[name]):
            return False
        pair = (name, newest.number)
        outcome = agent.outcomes.get(pair)
        served = [
            self.handshake(agent, s, name)[1] for s in agent.services.values() if name in s.certificates
        ]
        return (
            not self.is_spent(newest)
            and outcome is not None
            and outcome.state is on_agent.TryState.PROVEN
            and self.daemon.offered.get((name, agent.name)) == newest.number
            and {self._leaf(name, n) if n is not None else None for n in served} == {newest.fingerprint}
        )
