"""One row of the page: what is wanted and served at an endpoint, why they differ, and by when they must agree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import assert_never

from certfan.core import policy
from certfan.core.model import Deployment, DeploymentState, Generation, Health, Problem, Proof, Reason
from certfan.core.plan import Step
from certfan.daemon.status.model import Next, Row, Served, Verdict, Wanted
from certfan.daemon.status.things import StateOfThings
from certfan.errors import HookFailed

_DONE = frozenset({DeploymentState.RELOADED, DeploymentState.PROVEN, DeploymentState.FAILED})
NOT_HEARD = "not_heard"


def rows_of(certificate: str, consumer: str, things: StateOfThings) -> tuple[Row, ...]:
    """Return a row for each endpoint that the consumer reported, or one without endpoint."""
    proofs = things.facts.proofs.get((certificate, consumer), ())
    place = _Place(certificate, consumer, things)
    return tuple(place.row(proof) for proof in sorted(proofs, key=_order)) or (place.row(None),)


def _order(proof: Proof) -> tuple[str, str, int]:
    return proof.endpoint.service, proof.endpoint.address, proof.endpoint.port


def newest(certificate: str, things: StateOfThings) -> Generation | None:
    """Return the generation that is wanted everywhere."""
    generations = things.facts.generations.get(certificate, ())
    return generations[-1] if generations else None


class _Place:
    """What all rows of one certificate at one consumer have in common."""

    def __init__(self, certificate: str, consumer: str, things: StateOfThings) -> None:
        self.certificate = certificate
        self.consumer = consumer
        self.pair = (certificate, consumer)
        self.things = things
        self.wanted = newest(certificate, things)
        self.deployment = self._deployment()
        heard = things.facts.heard.get(consumer)
        self.heard_at = heard.at if heard else None

    def _deployment(self) -> Deployment | None:
        number = self.wanted.number if self.wanted else 0
        for one in self.things.facts.deployments.get(self.pair, ()):
            if one.generation == number:
                return one
        return None

    def row(self, proof: Proof | None) -> Row:
        served = self._served(proof)
        verdict = self._verdict(proof, served)
        since = self._since(proof, verdict)
        deadline = self._deadline(proof, served, since)
        return Row(
            certificate=self.certificate,
            consumer=self.consumer,
            endpoint=proof.endpoint if proof else None,
            wanted=Wanted(self.wanted.number, self.wanted.fingerprint) if self.wanted else None,
            served=served,
            verdict=verdict,
            reason=self._reason(verdict),
            since=since,
            next=self._next(proof, verdict),
            deadline=deadline,
            urgency=self._urgency(verdict, since, deadline),
            heard_at=heard_at(proof) if proof else self.heard_at,
            problem=self._problem(proof, verdict),
        )

    def _served(self, proof: Proof | None) -> Served | None:
        if proof is None or proof.health is not Health.SERVED:
            return None
        if proof.placeholder:
            return Served(proof.fingerprint, "placeholder")
        # The newest first: a roll-back gives an older leaf a new number.
        for generation in reversed(self.things.facts.generations.get(self.certificate, ())):
            if generation.fingerprint == proof.fingerprint:
                return Served(proof.fingerprint, "ours", generation.number)
        return Served(proof.fingerprint, "foreign")

    def _verdict(self, proof: Proof | None, served: Served | None) -> Verdict:
        if proof is None:
            gone = self.heard_at is not None and not heard_lately(self.heard_at, self.things)
            return Verdict.UNHEARD if gone else Verdict.PENDING
        if not policy.proof_is_fresh(proof, self.things.now, self.things.probe_interval):
            return Verdict.UNHEARD
        if served is None:
            return Verdict.REFUSED if proof.health is Health.REFUSED else Verdict.UNREACHABLE
        if served.kind != "ours":
            return Verdict(served.kind)
        assert self.wanted is not None
        if served.generation == self.wanted.number:
            if self._revoked_at(served.generation):
                return Verdict.PENDING
            return Verdict.EXPIRED if self._is_expired(self.wanted) else Verdict.PROVEN
        done = self.deployment is not None and self.deployment.state in _DONE
        return Verdict.OLD_LEAF if done else Verdict.PENDING

    def _is_expired(self, generation: Generation) -> bool:
        """Whether its leaf has; a clock that may be ahead cannot say so."""
        return self.things.observed.clock_trusted and generation.not_after <= self.things.now

    def _revoked_at(self, number: int) -> datetime | None:
        return self.things.facts.revoked.get((self.certificate, number))

    def _last_heard(self, proof: Proof | None) -> datetime:
        at = heard_at(proof) if proof else self.heard_at
        assert at is not None
        return at

    def _reason(self, verdict: Verdict) -> str | None:
        if verdict is Verdict.PROVEN:
            return None
        if verdict is Verdict.UNHEARD:
            return NOT_HEARD
        if self.wanted is None:
            return Reason.MISSING
        number = self.wanted.number
        if self._revoked_at(number):
            return Reason.REVOKED
        if verdict is Verdict.EXPIRED:
            return Reason.RENEWAL_DUE
        if self.deployment is not None and self.deployment.state in _DONE:
            return Reason.NOT_SERVED
        offered = number in {self.things.live.get(self.pair), self.things.facts.offered.get(self.pair)}
        return Reason.NOT_DEPLOYED if offered or self.deployment else Reason.NOT_PUBLISHED

    def _since(self, proof: Proof | None, verdict: Verdict) -> datetime | None:
        if verdict is Verdict.UNHEARD:
            at = heard_at(proof) if proof else self.heard_at
            return at + 2 * self.things.probe_interval if at else None
        if verdict is Verdict.EXPIRED and self.wanted is not None:
            return self.wanted.not_after
        if proof is not None and proof.since is not None and verdict is not Verdict.PENDING:
            return proof.since
        if self.wanted is not None and (revoked_at := self._revoked_at(self.wanted.number)):
            return revoked_at
        if self.deployment is not None:
            return self.deployment.at
        if self.wanted is not None:
            return self.wanted.issued_at
        return self.things.facts.config_changed.get(self.certificate)

    def _deadline(self, proof: Proof | None, served: Served | None, since: datetime | None) -> datetime:
        ours = proof if served and served.generation is not None else None
        deadline = policy.endpoint_deadline(ours, self.things.now, missing_since=since)
        if served and served.generation is not None:
            revoked_at = self._revoked_at(served.generation)
            return min(deadline, revoked_at) if revoked_at else deadline
        return deadline

    def _urgency(self, verdict: Verdict, since: datetime | None, deadline: datetime) -> policy.Urgency:
        """What serves an old leaf for long lags only since there is a newer one."""
        if verdict is Verdict.PROVEN:
            return policy.Urgency.CALM
        begun = [since or self.things.now, *([self.wanted.issued_at] if self.wanted else [])]
        return policy.urgency(max(begun), deadline, self.things.now)

    def _next(self, proof: Proof | None, verdict: Verdict) -> Next:
        if verdict is Verdict.UNHEARD:
            return Next("report")
        if verdict is not Verdict.PROVEN and (step := self._daemons_step()):
            return step
        probe_at = heard_at(proof) + self.things.probe_interval if proof else None
        if verdict is Verdict.PROVEN and self._hooks_problem() is None:
            return Next("probe", probe_at)
        if self.deployment is None or self.deployment.state not in _DONE:
            return Next("install")
        if self.deployment.problem is not None:
            return Next("install", self.deployment.problem.not_before)
        return Next("probe", probe_at)

    def _daemons_step(self) -> Next | None:
        for key, step in self.things.in_flight.items():
            if key[:2] == self.pair:
                return Next(step_name(step))
        attempt = self.things.facts.attempts.get("/".join(self.pair))
        if attempt is not None and attempt.not_before > self.things.now:
            return Next("publish", attempt.not_before)
        if self.wanted is None or self._revoked_at(self.wanted.number) or self._is_expired(self.wanted):
            return Next("issue")
        return Next("publish") if self._reason(Verdict.PENDING) == Reason.NOT_PUBLISHED else None

    def _problem(self, proof: Proof | None, verdict: Verdict) -> Problem | None:
        if verdict is Verdict.PROVEN:
            return self._hooks_problem()
        return next(self._problems(proof, verdict), None)

    def _hooks_problem(self) -> Problem | None:
        """Return why a deployment failed that is served all the same: its hook."""
        failed = self.deployment is not None and self.deployment.state is DeploymentState.FAILED
        problem = self.deployment.problem if self.deployment is not None and failed else None
        return problem if problem is not None and problem.code == HookFailed.code else None

    def _problems(self, proof: Proof | None, verdict: Verdict) -> Iterator[Problem]:
        """Yield what stands in the way, the cause before its effects."""
        if self.heard_at is None and proof is None:
            yield Problem(
                "consumer.never_heard",
                f"{self.consumer} has never reported",
                f"run: certfan consumer add {self.consumer}, and on {self.consumer} what it prints",
            )
        if verdict is Verdict.UNHEARD:
            yield Problem(
                "consumer.unheard",
                f"{self.consumer} was last heard at {self._last_heard(proof):%Y-%m-%d %H:%M} UTC",
                f"run on {self.consumer}: systemctl status certfan-agent",
            )
        if verdict is Verdict.EXPIRED and self.wanted is not None:
            yield Problem(
                "endpoint.expired",
                f"{self.certificate}@{self.wanted.number} is served, and expired at {self.wanted.not_after:%Y-%m-%d %H:%M} UTC",
                f"run: certfan why {self.certificate}",
            )
        if self.deployment is not None and self.deployment.problem is not None:
            yield self.deployment.problem
        attempt = self.things.facts.attempts.get("/".join(self.pair))
        if attempt is not None:
            yield attempt.problem
        # Before the agent was done, what it is about to replace is no fault.
        done = self.deployment is not None and self.deployment.state in _DONE
        if proof is not None and (done or verdict not in {Verdict.FOREIGN, Verdict.PLACEHOLDER}):
            yield from _seen(proof, verdict)


def _seen(proof: Proof, verdict: Verdict) -> Iterator[Problem]:
    where = str(proof.endpoint)
    service = proof.endpoint.service
    detail = f": {proof.detail}" if proof.detail else ""
    match verdict:
        case Verdict.UNREACHABLE:
            yield Problem(
                "probe.unreachable",
                f"{where} does not answer{detail}",
                f"run there: systemctl status {service}",
            )
        case Verdict.REFUSED:
            yield Problem(
                "probe.refused",
                f"{where} shows no certificate{detail}",
                f"look at the TLS settings of {service}",
            )
        case Verdict.FOREIGN:
            hint = f"point {service} at live/ of certfan-agent, or drop the endpoint there"
            yield Problem("endpoint.foreign", f"{where} serves a certificate that certfan did not get", hint)
        case Verdict.OLD_LEAF:
            hint = f"run there: systemctl restart {service}"
            yield Problem("endpoint.old_leaf", f"{where} still serves an older generation", hint)
        case Verdict.PLACEHOLDER:
            hint = f"run there: systemctl restart {service}"
            yield Problem("endpoint.placeholder", f"{where} still serves the placeholder", hint)
        case Verdict.PROVEN | Verdict.PENDING | Verdict.UNHEARD | Verdict.EXPIRED:
            return
        case _:
            assert_never(verdict)


def heard_lately(at: datetime, things: StateOfThings) -> bool:
    """Whether two probe intervals have not gone by since."""
    return things.now < at + 2 * things.probe_interval


def heard_at(proof: Proof) -> datetime:
    """Return when the daemon heard of a proof."""
    return proof.heard_at or proof.at


def step_name(step: Step) -> str:
    """Return a step's verb: `roll_back` of RollBack."""
    return re.sub("(?<!^)(?=[A-Z])", "_", type(step).__name__).lower()
