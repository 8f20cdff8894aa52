"""The agent's plan: what is assigned, staged, live and proven in; install, reload, prove, roll back out.

Roll back only what became worse: an old leaf still served is a reload that did nothing, a foreign one is not fought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TypeAlias

from certfan.core.agent_steps import (
    APPLY_KEY,
    PLACEHOLDER,
    Aftermath,
    AgentFacts,
    AgentPlan,
    Apply,
    Assignment,
    Conclude,
    Fetch,
    Key,
    LayPlaceholders,
    Marks,
    Outcome,
    Pair,
    Probe,
    SendCsr,
    ServiceFacts,
    Setback,
    Staged,
    Step,
    TryState,
    Why,
)
from certfan.core.model import Endpoint
from certfan.core.policy import (
    LONGEST_APPLY_WAIT,
    LONGEST_SHORT_WAIT,
    attempt_holds,
    holding_instants,
    holds,
    is_asked,
)
from certfan.core.tries import (
    Verdict,
    aftermath,
    endpoints_of,
    failed,
    is_to_blame,
    is_trying,
    marks,
    owes_hook,
    setback,
    state_of,
    verdict,
    what_became_worse,
)

__all__ = [
    "APPLY_KEY",
    "PLACEHOLDER",
    "Aftermath",
    "AgentFacts",
    "AgentPlan",
    "Apply",
    "Assignment",
    "Conclude",
    "Fetch",
    "Key",
    "LayPlaceholders",
    "Marks",
    "Outcome",
    "Pair",
    "Probe",
    "SendCsr",
    "ServiceFacts",
    "Setback",
    "Staged",
    "Step",
    "TryState",
    "Why",
    "aftermath",
    "failed",
    "marks",
    "plan",
    "setback",
]

Wish: TypeAlias = Step | datetime  # a rule's answer: a step, or an instant at which it may answer otherwise


def plan(facts: AgentFacts, now: datetime) -> AgentPlan:
    """Return what should happen next on this consumer, and the earliest instant at which that changes by itself."""
    wishes: list[Wish] = [
        *_placeholders(facts, now),
        *_conclusions(facts, now),
        *_applications(facts, now),
        *_fetches(facts, now),
        *_signatures(facts, now),
        *_probes(facts, now),
        *_instants(facts),
    ]
    steps: dict[Key, Step] = {}
    for step in wishes:
        if not isinstance(step, datetime) and step.key not in facts.in_flight:
            steps.setdefault(step.key, step)
    ahead = (instant for instant in wishes if isinstance(instant, datetime) and instant > now)
    return AgentPlan(tuple(steps.values()), min(ahead, default=None))


# Rules


def _placeholders(facts: AgentFacts, now: datetime) -> Iterator[Wish]:
    """Wish for a placeholder wherever a certificate is assigned and nothing was laid yet, with one reload for all."""
    bare = [name for name in sorted(facts.assignments) if name not in facts.live]
    due = [(name, PLACEHOLDER) for name in bare if not _apply_waits(facts, name, now)]
    if due:
        yield LayPlaceholders(tuple(name for name, _ in _together(facts, due)))


def _conclusions(facts: AgentFacts, now: datetime) -> Iterator[Conclude]:
    """Wish for what the proofs have decided to be made durable."""
    for pair in sorted(facts.live.items()):
        outcome = facts.outcomes.get(pair)
        if outcome is None or outcome.state is TryState.FAILED:
            continue
        if outcome.state is TryState.TRYING and not _is_loaded(facts, pair):
            continue  # cut off: applied again first
        said = verdict(facts, pair)
        if said is Verdict.PROVEN and (outcome.state is TryState.TRYING or outcome.repairs):
            if not owes_hook(outcome):
                yield Conclude(*pair, Outcome(TryState.PROVEN, now))
        elif said is Verdict.WORSE and outcome.state is TryState.TRYING:
            yield Conclude(*pair, failed(outcome, what_became_worse(facts, pair), now))


def _applications(facts: AgentFacts, now: datetime) -> Iterator[Wish]:
    """Wish for one Apply: what became worse first, then what is new, then what a reload left undone."""
    wants: dict[Why, list[Pair]] = {why: [] for why in Why}
    for certificate in sorted(facts.live):
        want = _want(facts, certificate, now)
        if want is not None and not _apply_waits(facts, certificate, now):
            wants[want[0]].append(want[1])
    if wants[Why.ROLL_BACK]:
        yield _coalesced(facts, wants[Why.ROLL_BACK], Why.ROLL_BACK)
        return
    if _is_undecided(facts, now):
        return
    ready = [pair for pair in wants[Why.INSTALL] if _was_seen(facts, pair[0])]
    window = _window_end(facts, ready, now)
    if window is not None:
        yield window
    elif ready:
        yield _coalesced(facts, ready, Why.INSTALL)
    if wants[Why.REPAIR]:
        yield _coalesced(facts, wants[Why.REPAIR], Why.REPAIR)


def _want(facts: AgentFacts, certificate: str, now: datetime) -> tuple[Why, Pair] | None:
    """Return what should be applied for a certificate that has something live, or None."""
    live = (certificate, facts.live[certificate])
    if state_of(facts, live) is TryState.FAILED:
        return Why.ROLL_BACK, (certificate, _fallback(facts, live, now))
    assignment = facts.assignments.get(certificate)
    assigned = (certificate, assignment.generation) if assignment is not None else live
    if assigned[1] > live[1] and _may_install(facts, assigned, now):
        return Why.INSTALL, assigned
    if (
        live[1] != PLACEHOLDER
        and state_of(facts, live) is not TryState.PROVEN
        and not _is_loaded(facts, live)
    ):
        # Cut off between `trying` and its end, or its outcome was lost: to apply again does no harm.
        return (Why.INSTALL, live) if live in facts.staged else None
    return (Why.REPAIR, live) if _needs_repair(facts, live, now) else None


def _may_install(facts: AgentFacts, pair: Pair, now: datetime) -> bool:
    """Whether an assigned pair is here, is not expired, and its last failure is long enough ago."""
    staged = facts.staged.get(pair)
    if staged is None or staged.not_after <= now:
        return False
    outcome = facts.outcomes.get(pair)
    if outcome is None or (outcome.state is not TryState.FAILED and pair not in facts.applied):
        return True
    lifted = outcome.state is TryState.FAILED and is_asked(facts.cleared_at.get(pair[0]), outcome.at, now)
    return lifted or not holds(outcome.not_before, now, LONGEST_APPLY_WAIT)


def _needs_repair(facts: AgentFacts, live: Pair, now: datetime) -> bool:
    """Whether the live pair is misplaced, owes its hook, or its endpoints show a reload that was lost or did nothing."""
    outcome = facts.outcomes.get(live)
    if live[1] == PLACEHOLDER:
        return False
    wanted = live[0] in facts.misplaced or owes_hook(outcome)
    if not wanted and verdict(facts, live) not in _healed_by_reload(facts, live):
        return False
    waits = outcome is not None and holds(outcome.not_before, now, LONGEST_APPLY_WAIT)
    return not (waits and _is_loaded(facts, live))


def _is_loaded(facts: AgentFacts, live: Pair) -> bool:
    """Whether a live pair's Apply is known to have ended well: in this process, or its hook has told."""
    return live in facts.applied or owes_hook(facts.outcomes.get(live))


def _healed_by_reload(facts: AgentFacts, live: Pair) -> frozenset[Verdict]:
    """Return what a reload may heal. A proven pair's silent service is left to whoever stopped it."""
    return frozenset({Verdict.UNCHANGED, Verdict.SILENT} if is_trying(facts, live) else {Verdict.UNCHANGED})


def _fallback(facts: AgentFacts, bad: Pair, now: datetime) -> int:
    """Return the generation to go back to: the last proven, else the newest not failed, else the placeholder."""
    usable = [
        pair
        for pair, staged in facts.staged.items()
        if pair[0] == bad[0] and pair[1] < bad[1] and staged.not_after > now
    ]
    proven = [pair[1] for pair in usable if state_of(facts, pair) is TryState.PROVEN]
    standing = [pair[1] for pair in usable if state_of(facts, pair) is not TryState.FAILED]
    return max(proven or standing, default=PLACEHOLDER)


def _coalesced(facts: AgentFacts, pairs: Iterable[Pair], why: Why) -> Apply:
    """Return one Apply for all pairs that go together."""
    return Apply(_together(facts, pairs), why)


def _together(facts: AgentFacts, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Return the pairs that share a try; one that failed and may be to blame comes alone, after the others."""
    pairs = sorted(pairs)
    together = tuple(pair for pair in pairs if not _goes_alone(facts, pair))
    return together or (min(pairs, key=_least_failed(facts)),)


def _goes_alone(facts: AgentFacts, pair: Pair) -> bool:
    outcome, attempt = facts.outcomes.get(pair), facts.apply_attempts.get(pair[0])
    if attempt is not None and is_to_blame(attempt.problem):
        return True
    if outcome is None or outcome.state is TryState.PROVEN:
        return False
    if outcome.state is TryState.FAILED:
        return is_to_blame(outcome.problem)
    return outcome.group == 1 and outcome.failures > 0


def _least_failed(facts: AgentFacts) -> Callable[[Pair], tuple[int, Pair]]:
    def failures(pair: Pair) -> tuple[int, Pair]:
        outcome = facts.outcomes.get(pair)
        attempt = facts.apply_attempts.get(pair[0])
        return (outcome.failures if outcome else 0) + (attempt.failures if attempt else 0), pair

    return failures


def _is_undecided(facts: AgentFacts, now: datetime) -> bool:
    """Whether a try waits for its proofs or its conclusion: another one now would blur whose fault it is."""
    if any(True for _ in _conclusions(facts, now)) or any(key[0] == "conclude" for key in facts.in_flight):
        return True
    return any(
        is_trying(facts, pair) and pair in facts.applied and verdict(facts, pair) is Verdict.UNSEEN
        for pair in facts.live.items()
    )


def _was_seen(facts: AgentFacts, certificate: str) -> bool:
    """Whether every endpoint was looked at: what did not work before cannot become worse."""
    return all((certificate, endpoint) in facts.proofs for endpoint in endpoints_of(facts, certificate))


def _window_end(facts: AgentFacts, pairs: Iterable[Pair], now: datetime) -> datetime | None:
    """Return until when new pairs wait for others that are being fetched; None: go."""
    staged_at = [facts.staged[pair].staged_at for pair in pairs if pair not in facts.outcomes]
    is_fetching = any(key[0] == "fetch" for key in facts.in_flight)
    is_fetching = is_fetching or any(isinstance(wish, Fetch) for wish in _fetches(facts, now))
    if not staged_at or not is_fetching:
        return None
    end = min(max(staged_at) + facts.quiet, min(staged_at) + facts.longest_quiet)
    return end if max(staged_at) <= now < end else None


def _apply_waits(facts: AgentFacts, certificate: str, now: datetime) -> bool:
    return attempt_holds(
        facts.apply_attempts.get(certificate), now, LONGEST_APPLY_WAIT, (facts.cleared_at.get(certificate),)
    )


def _fetches(facts: AgentFacts, now: datetime) -> Iterator[Wish]:
    """Wish for every assigned bundle that is not here, or here sealed otherwise, unless what is live is newer."""
    for certificate, assignment in sorted(facts.assignments.items()):
        pair = (certificate, assignment.generation)
        is_wanted = assignment.generation != PLACEHOLDER and assignment.generation >= facts.live.get(
            certificate, 0
        )
        waits = attempt_holds(facts.fetch_attempts.get(certificate), now, LONGEST_SHORT_WAIT)
        if is_wanted and not waits and not _is_here(facts, assignment):
            yield Fetch(*pair, assignment.bundle)


def _signatures(facts: AgentFacts, now: datetime) -> Iterator[Wish]:
    """Wish for every CSR that is asked for under a number that is new here; of an older one the daemon will hear."""
    for certificate, assignment in sorted(facts.assignments.items()):
        asked = assignment.request
        if asked is None:
            continue
        known = [facts.live.get(certificate, 0), *(n for name, n in facts.staged if name == certificate)]
        not_before = facts.csr_not_before.get((certificate, asked.generation))
        yield from holding_instants(not_before, LONGEST_SHORT_WAIT)
        if asked.generation > max(known) and not holds(not_before, now, LONGEST_SHORT_WAIT):
            yield SendCsr(certificate, asked)


def _is_here(facts: AgentFacts, assignment: Assignment) -> bool:
    staged = facts.staged.get((assignment.certificate, assignment.generation))
    return staged is not None and assignment.bundle in {"", staged.bundle}


def _probes(facts: AgentFacts, now: datetime) -> Iterator[Wish]:
    """Wish for a look at every endpoint that was not seen for a probe interval or since its last reload."""
    for certificate in sorted({*facts.assignments, *facts.live}):
        due: list[Endpoint] = []
        for endpoint in endpoints_of(facts, certificate):
            proof = facts.proofs.get((certificate, endpoint))
            if proof is None or not proof.at <= now < proof.at + facts.probe_interval:
                due.append(endpoint)
            if proof is not None:
                yield from (proof.at, proof.at + facts.probe_interval)
        if due and APPLY_KEY not in facts.in_flight:
            yield Probe(certificate, tuple(due))


def _instants(facts: AgentFacts) -> Iterator[datetime]:
    """Return the instants at which a back-off or a pair runs out."""
    for outcome in facts.outcomes.values():
        yield from holding_instants(outcome.not_before, LONGEST_APPLY_WAIT)
    for attempt in facts.apply_attempts.values():
        yield from holding_instants(attempt.not_before, LONGEST_APPLY_WAIT)
    for attempt in facts.fetch_attempts.values():
        yield from holding_instants(attempt.not_before, LONGEST_SHORT_WAIT)
    for staged in facts.staged.values():
        yield from (staged.staged_at, staged.not_after)
    yield from facts.cleared_at.values()
