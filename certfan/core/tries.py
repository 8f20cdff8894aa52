"""One try of a generation on a consumer: what is remembered before and after it, and what its proofs say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from certfan.core.agent_steps import (
    PLACEHOLDER,
    Aftermath,
    AgentFacts,
    Apply,
    Marks,
    Outcome,
    Pair,
    Setback,
    Staged,
    TryState,
    Why,
)
from certfan.core.model import Attempt, Endpoint, Health, Problem, Proof
from certfan.core.policy import next_apply, next_look, next_repair, next_short_try

# Not the pair's fault, and somebody is at it: tried again soon, however often it failed.
SOON_MENDED = frozenset({"service.config_test_failed"})
UNAVAILABLE = "service.apply_unavailable"


class Verdict(StrEnum):
    """What the proofs since the last reload say of a pair."""

    UNSEEN = "unseen"  # not every endpoint was looked at
    PROVEN = "proven"  # every endpoint serves it
    WORSE = "worse"  # an endpoint that worked does not any more
    UNCHANGED = "unchanged"  # an endpoint still serves another leaf of ours
    SILENT = "silent"  # an endpoint shows no leaf, as before the try
    FOREIGN = "foreign"  # an endpoint serves a leaf that is not ours
    NOWHERE = "nowhere"  # it has no endpoint


def marks(step: Apply, facts: AgentFacts, now: datetime) -> Marks:
    """Return what to make durable before `step` moves a pointer: what is tried, and what worked until now.

    What is proven stays proven, so that a boot in the middle still finds it.
    """
    outcomes = {
        pair: _marked(facts.outcomes.get(pair), len(step.pairs), now)
        for pair in step.pairs
        if pair[1] != PLACEHOLDER
    }
    begun = {pair[0] for pair in step.pairs if step.why is Why.INSTALL and not is_trying(facts, pair)}
    kept_ones = {one for one in facts.worked_before if one[0] not in begun}
    working = {
        one for one, proof in facts.proofs.items() if one[0] in begun and proof.health is Health.SERVED
    }
    return Marks(outcomes, frozenset(kept_ones | working))


def _marked(before: Outcome | None, group: int, now: datetime) -> Outcome:
    """Return a pair's outcome for the time of its Apply; `not_before` is when the next repair may follow."""
    if before is not None and before.state is not TryState.FAILED:
        repairs = before.repairs + 1
        return replace(before, repairs=repairs, group=group, not_before=next_repair(repairs, now))
    failures = before.failures if before is not None else 0
    return Outcome(
        TryState.TRYING, now, failures=failures, repairs=1, group=group, not_before=next_repair(1, now)
    )


def setback(
    step: Apply, facts: AgentFacts, problem: Problem, now: datetime, *, jitter: float = 0.0
) -> Setback:
    """Return what to record after `step` failed as a whole.

    A pair that was being installed has failed, unless the privileged half did not answer: then nothing was tried.
    """
    tried = step.why is Why.INSTALL and problem.code != UNAVAILABLE
    outcomes: dict[Pair, Outcome] = {}
    attempts: dict[str, Attempt] = {}
    for pair in step.pairs:
        outcome = facts.outcomes.get(pair)
        if tried and outcome is not None and outcome.state is TryState.TRYING:
            outcomes[pair] = failed(outcome, problem, now, jitter=jitter)
        else:
            attempts[pair[0]] = _next_attempt(
                facts.apply_attempts.get(pair[0]), pair[0], problem, now, jitter
            )
    return Setback(outcomes, attempts)


def aftermath(
    step: Apply,
    facts: AgentFacts,
    hooks: Mapping[str, Problem],
    now: datetime,
    *,
    jitter: float = 0.0,
) -> Aftermath:
    """Return what to record after `step` ended well; `hooks` are the hooks that failed, by certificate.

    A hook that failed takes nothing back: its pair is served and stays, is not proven before its hook has
    passed, and is loaded again for that with the back-off of a failed try. The config tests of the step's services
    have passed, so whatever waits for one of them need not wait any longer.
    """
    outcomes: dict[Pair, Outcome] = {}
    for pair in step.pairs:
        outcome = facts.outcomes.get(pair)
        if outcome is None or outcome.state is TryState.FAILED:
            continue
        if pair[0] in hooks:
            failures = outcome.failures + 1
            again = next_apply(failures, now, jitter=jitter)
            said = replace(hooks[pair[0]], not_before=again)
            outcomes[pair] = replace(outcome, problem=said, failures=failures, not_before=again)
        elif outcome.problem is not None:
            outcomes[pair] = replace(outcome, problem=None)
    return Aftermath(outcomes, dict.fromkeys(_waiting_for_a_test(step, facts), now))


def _waiting_for_a_test(step: Apply, facts: AgentFacts) -> frozenset[str]:
    """Return the certificates that a failing config test holds up, of services that take one of the step's."""
    applied = {certificate for certificate, _ in step.pairs}
    tested = [s.certificates for s in facts.services.values() if s.certificates & applied]
    held = {pair[0] for pair, outcome in facts.outcomes.items() if not is_to_blame(outcome.problem)}
    held |= {name for name, attempt in facts.apply_attempts.items() if not is_to_blame(attempt.problem)}
    return frozenset(held).intersection(frozenset().union(*tested)) - applied


def _next_attempt(
    before: Attempt | None, certificate: str, problem: Problem, now: datetime, jitter: float
) -> Attempt:
    failures = before.failures + 1 if before is not None else 1
    if problem.code == UNAVAILABLE:
        # It may have died with a pointer moved and a service down; the next request completes what was begun.
        not_before = next_short_try(failures, now, jitter=jitter)
    elif problem.code in SOON_MENDED:
        not_before = next_look(now, jitter=jitter)
    else:
        not_before = next_repair(failures, now, jitter=jitter)
    return Attempt(certificate, problem, failures, now, not_before)


def failed(outcome: Outcome, problem: Problem, now: datetime, *, jitter: float = 0.0) -> Outcome:
    """Return the outcome after a try failed: to be tried alone and at once after a group's, else with back-off.

    What is no pair's fault parts no group: it is tried again soon, as a whole.
    """
    blamed = is_to_blame(problem)
    if outcome.group > 1 and blamed:
        return replace(outcome, state=TryState.FAILED, at=now, not_before=None, problem=problem, repairs=0)
    failures = outcome.failures + 1
    not_before = next_apply(failures, now, jitter=jitter) if blamed else next_look(now, jitter=jitter)
    return Outcome(
        TryState.FAILED, now, failures=failures, group=outcome.group, not_before=not_before, problem=problem
    )


def is_to_blame(problem: Problem | None) -> bool:
    """Whether a pair may be why its try failed; one that may be is tried apart from the others."""
    return problem is None or problem.code not in SOON_MENDED


def owes_hook(outcome: Outcome | None) -> bool:
    """Whether a pair is loaded and its hook has failed since."""
    return outcome is not None and outcome.state is not TryState.FAILED and outcome.problem is not None


def endpoints_of(facts: AgentFacts, certificate: str) -> tuple[Endpoint, ...]:
    """Return where a certificate is to be seen, over all services that take it."""
    return tuple(
        endpoint
        for _, service in sorted(facts.services.items(), key=lambda item: item[0])
        if certificate in service.certificates
        for endpoint in service.endpoints.get(certificate, ())
    )


def is_trying(facts: AgentFacts, pair: Pair) -> bool:
    """Whether a pair's outcome is open."""
    outcome = facts.outcomes.get(pair)
    return outcome is not None and outcome.state is TryState.TRYING


def state_of(facts: AgentFacts, pair: Pair) -> TryState | None:
    """Return how far a pair has come here."""
    outcome = facts.outcomes.get(pair)
    return outcome.state if outcome is not None else None


def verdict(facts: AgentFacts, pair: Pair) -> Verdict:
    """Judge a live pair by the latest proofs of its endpoints."""
    certificate = pair[0]
    seen = {one: facts.proofs.get((certificate, one)) for one in endpoints_of(facts, certificate)}
    silent = {one for one, proof in seen.items() if proof is not None and proof.health is not Health.SERVED}
    if any((certificate, one) in facts.worked_before for one in silent):
        return Verdict.WORSE
    proofs = [proof for proof in seen.values() if proof is not None]
    if len(proofs) < len(seen):
        return Verdict.UNSEEN
    staged = facts.staged.get(pair)
    if proofs and staged is not None and all(_serves(proof, staged) for proof in proofs):
        return Verdict.PROVEN
    if any(_is_another_of_ours(facts, pair, proof) for proof in proofs):
        return Verdict.UNCHANGED
    if silent:
        return Verdict.SILENT
    return Verdict.FOREIGN if proofs else Verdict.NOWHERE


def _serves(proof: Proof, staged: Staged) -> bool:
    return proof.health is Health.SERVED and proof.fingerprint == staged.fingerprint


def _is_another_of_ours(facts: AgentFacts, pair: Pair, proof: Proof) -> bool:
    """Whether an endpoint serves a leaf of this certificate that we laid, but not the live one."""
    others = {s.fingerprint for p, s in facts.staged.items() if p[0] == pair[0] and p != pair}
    if (live := facts.staged.get(pair)) is not None:
        others -= {live.fingerprint}  # a roll-back lays an older leaf again under a new number
    return proof.health is Health.SERVED and (proof.placeholder or proof.fingerprint in others)


def what_became_worse(facts: AgentFacts, pair: Pair) -> Problem:
    """Return the problem of the first endpoint that worked before the try and does not any more."""
    for endpoint in endpoints_of(facts, pair[0]):
        proof = facts.proofs.get((pair[0], endpoint))
        worked = (pair[0], endpoint) in facts.worked_before
        if worked and proof is not None and proof.health is not Health.SERVED:
            text = f"{pair[0]}@{pair[1]}: {endpoint} worked before and is {proof.health} since"
            hint = f"look at the log of {endpoint.service}"
            return Problem("service.down", text, hint=hint, output=proof.detail)
    return Problem("service.down", f"{pair[0]}@{pair[1]}: an endpoint became worse")
