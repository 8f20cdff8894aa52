"""The agent's plan, one rule at a time."""

from dataclasses import replace
from datetime import timedelta

from certfan.core.agent_steps import (
    AgentFacts,
    Apply,
    Assignment,
    Conclude,
    Fetch,
    LayPlaceholders,
    Outcome,
    Probe,
    ServiceFacts,
    Staged,
    Step,
    TryState,
    Why,
)
from certfan.core.deployment import plan
from certfan.core.model import Attempt, Problem, Proof
from certfan.core.tries import aftermath, failed, marks, setback
from tests.unit.planner_parts import DAY, HOUR, HTTPS, MINUTE, NOW, PROBLEM, SMTP, WWW, make_proof

OTHER = "other.example.org"
TRYING, PROVEN, FAILED = (Outcome(state, NOW) for state in TryState)
APACHE = ServiceFacts(frozenset({WWW}), {WWW: (HTTPS,)})
POSTFIX = ServiceFacts(frozenset({WWW}), {WWW: (SMTP,)})


def staged(number: int, *, days: int = 90, certificate: str = WWW) -> Staged:
    return Staged(f"{certificate}@{number}", NOW + days * DAY, staged_at=NOW)


def proofs(*found: Proof) -> dict[tuple[str, object], Proof]:
    return {(WWW, proof.endpoint): proof for proof in found}


# Generation 1 is live and proven, 2 is assigned and here.
READY = AgentFacts(
    assignments={WWW: Assignment(WWW, 2)},
    staged={(WWW, 1): staged(1), (WWW, 2): staged(2)},
    live={WWW: 1},
    outcomes={(WWW, 1): PROVEN},
    applied=frozenset({(WWW, 1)}),
    services={"apache2": APACHE},
    proofs={(WWW, HTTPS): make_proof(HTTPS, f"{WWW}@1")},
)
# 2 was applied and looked at.
TRIED = replace(
    READY,
    live={WWW: 2},
    outcomes={(WWW, 1): PROVEN, (WWW, 2): TRYING},
    applied=frozenset({(WWW, 2)}),
    proofs={(WWW, HTTPS): make_proof(HTTPS, f"{WWW}@2")},
    worked_before=frozenset({(WWW, HTTPS)}),
)


def steps(facts: AgentFacts, after: timedelta = timedelta(0)) -> tuple[Step, ...]:
    """Return what is planned beside probes that are due."""
    return tuple(step for step in plan(facts, NOW + after).steps if not isinstance(step, Probe))


def seen(facts: AgentFacts, fingerprint: str) -> AgentFacts:
    return replace(facts, proofs={(WWW, HTTPS): make_proof(HTTPS, fingerprint)})


def test_a_placeholder_is_laid_as_soon_as_a_certificate_is_assigned() -> None:
    """Before anything is issued, and before anything is installed."""
    assigned = AgentFacts(assignments={WWW: Assignment(WWW, 0)})
    issued = replace(assigned, assignments={WWW: Assignment(WWW, 1)}, staged={(WWW, 1): staged(1)})

    assert (LayPlaceholders((WWW,)),) == steps(assigned)
    assert (LayPlaceholders((WWW,)),) == steps(issued)


def test_an_assigned_bundle_is_fetched_unless_something_newer_is_live() -> None:
    """And a failed fetch waits for its time."""
    missing = replace(READY, staged={(WWW, 1): staged(1)})
    attempt = Attempt(WWW, PROBLEM, 1, NOW, NOW + timedelta(seconds=5))

    assert (Fetch(WWW, 2),) == steps(missing)
    assert () == steps(replace(missing, fetch_attempts={WWW: attempt}))
    older = replace(TRIED, assignments={WWW: Assignment(WWW, 1)}, staged={(WWW, 2): staged(2)})
    assert () == steps(replace(older, outcomes={(WWW, 2): PROVEN}))


def test_what_is_here_is_applied_once_its_endpoints_were_seen() -> None:
    """What did not work before cannot become worse, so one looks first."""
    assert (Apply(((WWW, 2),), Why.INSTALL),) == steps(READY)
    unseen = plan(replace(READY, proofs={}), NOW).steps
    assert (Probe(WWW, (HTTPS,)),) == unseen


def test_an_older_assignment_never_replaces_a_newer_live_pair() -> None:
    """A daemon restored from yesterday changes nothing here."""
    assert () == steps(replace(TRIED, assignments={WWW: Assignment(WWW, 1)}, outcomes={(WWW, 2): PROVEN}))


def test_an_expired_pair_is_not_installed() -> None:
    """It would only make things worse."""
    assert () == steps(replace(READY, staged={(WWW, 1): staged(1), (WWW, 2): staged(2, days=-1)}))


def test_pairs_that_arrive_together_share_one_apply() -> None:
    """While another is being fetched the first waits two seconds for it, counted from the newest."""
    both = replace(
        READY,
        assignments={WWW: Assignment(WWW, 2), OTHER: Assignment(OTHER, 1)},
        staged={**READY.staged, (OTHER, 1): staged(1, certificate=OTHER)},
        live={WWW: 1, OTHER: 0},
    )
    fetching = replace(both, staged=READY.staged)

    assert (Apply(((OTHER, 1), (WWW, 2)), Why.INSTALL),) == steps(both)
    assert (Fetch(OTHER, 1),) == steps(fetching)
    assert NOW + timedelta(seconds=2) == plan(fetching, NOW).wake_at
    assert Apply(((WWW, 2),), Why.INSTALL) in steps(fetching, timedelta(seconds=2))


def test_nothing_is_installed_while_another_try_is_undecided() -> None:
    """Otherwise nobody could say whose fault a broken service is."""
    undecided = replace(
        TRIED,
        assignments={WWW: Assignment(WWW, 2), OTHER: Assignment(OTHER, 1)},
        staged={**READY.staged, (OTHER, 1): staged(1, certificate=OTHER)},
        live={WWW: 2, OTHER: 0},
        proofs={},
    )

    assert () == steps(undecided)


def test_a_pair_served_everywhere_is_proven() -> None:
    """Not before every endpoint of every service was seen."""
    two = replace(TRIED, services={"apache2": APACHE, "postfix": POSTFIX})
    both = replace(two, proofs={**two.proofs, (WWW, SMTP): make_proof(SMTP, f"{WWW}@2")})

    assert (Conclude(WWW, 2, PROVEN),) == steps(TRIED)
    assert () == steps(two)
    assert (Conclude(WWW, 2, PROVEN),) == steps(both)


def test_an_endpoint_that_broke_fails_the_pair_and_brings_the_proven_one_back() -> None:
    """First the outcome is made durable, then the pointer goes back."""
    (concluded,) = steps(seen(TRIED, ""))

    assert isinstance(concluded, Conclude)
    assert TryState.FAILED is concluded.outcome.state
    assert NOW + MINUTE == concluded.outcome.not_before
    broken = replace(seen(TRIED, ""), outcomes={**TRIED.outcomes, (WWW, 2): concluded.outcome})
    assert (Apply(((WWW, 1),), Why.ROLL_BACK),) == steps(broken)


def test_an_endpoint_that_never_worked_is_no_reason_to_roll_back() -> None:
    """A reload is repeated with back-off instead."""
    silent = replace(seen(TRIED, ""), worked_before=frozenset())
    waiting = replace(silent, outcomes={(WWW, 2): replace(TRYING, not_before=NOW + MINUTE)})

    assert () == steps(waiting)
    assert NOW + MINUTE == plan(waiting, NOW).wake_at
    assert (Apply(((WWW, 2),), Why.REPAIR),) == steps(waiting, MINUTE)


def test_an_old_leaf_still_served_is_a_reload_to_repeat() -> None:
    """Of a pair being tried and, as drift, of a proven one; a placeholder counts as old."""
    proven = replace(TRIED, outcomes={(WWW, 2): PROVEN})

    for facts in (TRIED, proven):
        for old in (f"{WWW}@1", "placeholder"):
            assert (Apply(((WWW, 2),), Why.REPAIR),) == steps(seen(facts, old))


def test_a_misplaced_pair_is_applied_again_though_it_is_served() -> None:
    """Its share went away, or came back: the same generation is asked for, and it is proven anew. Never a placeholder."""
    proven = replace(TRIED, outcomes={(WWW, 2): PROVEN}, misplaced=frozenset({WWW}))
    waiting = replace(proven, outcomes={(WWW, 2): replace(PROVEN, not_before=NOW + MINUTE)})
    marked = marks(Apply(((WWW, 2),), Why.REPAIR), proven, NOW).outcomes

    assert (Apply(((WWW, 2),), Why.REPAIR),) == steps(proven)
    assert () == steps(waiting)
    assert (Apply(((WWW, 2),), Why.REPAIR),) == steps(waiting, MINUTE)
    assert (Conclude(WWW, 2, PROVEN),) == steps(replace(proven, misplaced=frozenset(), outcomes=dict(marked)))
    bare = AgentFacts(assignments={WWW: Assignment(WWW, 0)}, live={WWW: 0}, misplaced=frozenset({WWW}))
    assert () == steps(bare)


def test_a_try_is_decided_before_a_misplaced_pair_is_moved() -> None:
    """Otherwise nobody could say whose fault a broken service is."""
    trying = replace(TRIED, misplaced=frozenset({WWW}), proofs={})

    assert () == steps(trying)


def test_a_foreign_leaf_is_not_fought() -> None:
    """Nothing is concluded and nothing applied; it is only looked at again."""
    planned = plan(seen(TRIED, "foreign"), NOW)

    assert () == planned.steps
    assert NOW + 5 * MINUTE == planned.wake_at


def test_a_try_that_was_cut_off_is_applied_again() -> None:
    """Before the pointer moved and after; also when its time has not come, as it did not fail."""
    cut = replace(TRIED, applied=frozenset())

    assert (Apply(((WWW, 2),), Why.INSTALL),) == steps(cut)
    assert (Apply(((WWW, 2),), Why.INSTALL),) == steps(
        replace(cut, live={WWW: 1}, outcomes={(WWW, 2): TRYING})
    )


def test_going_back_skips_what_failed_or_expired() -> None:
    """The last proven, else the newest that has not failed, else the placeholder."""
    bad = replace(
        READY,
        assignments={WWW: Assignment(WWW, 4)},
        staged={(WWW, number): staged(number) for number in (1, 2, 3, 4)},
        live={WWW: 4},
        outcomes={(WWW, 4): replace(FAILED, not_before=NOW + HOUR)},
    )

    def back_to(**outcomes: Outcome) -> int:
        told = {(WWW, int(name[1:])): outcome for name, outcome in outcomes.items()}
        (step,) = steps(replace(bad, outcomes={**bad.outcomes, **told}))
        assert isinstance(step, Apply)
        assert Why.ROLL_BACK is step.why
        return step.pairs[0][1]

    assert 1 == back_to(g1=PROVEN)
    assert 2 == back_to(g3=FAILED)
    assert 0 == back_to(g1=FAILED, g2=FAILED, g3=FAILED)
    expired = replace(bad, staged={**bad.staged, (WWW, 1): staged(1, days=-1)})
    told = {**bad.outcomes, (WWW, 1): PROVEN, (WWW, 2): FAILED, (WWW, 3): FAILED}
    assert (Apply(((WWW, 0),), Why.ROLL_BACK),) == steps(replace(expired, outcomes=told))


def test_a_failed_pair_waits_for_its_time_or_for_its_cause_to_go() -> None:
    """A newer one does not wait for it."""
    held = replace(FAILED, failures=1, not_before=NOW + MINUTE)
    facts = replace(READY, outcomes={(WWW, 1): PROVEN, (WWW, 2): held})
    again = (Apply(((WWW, 2),), Why.INSTALL),)
    newer = replace(
        facts, assignments={WWW: Assignment(WWW, 3)}, staged={**READY.staged, (WWW, 3): staged(3)}
    )

    assert () == steps(facts)
    assert NOW + MINUTE == plan(facts, NOW).wake_at
    assert again == steps(facts, MINUTE)
    assert again == steps(replace(facts, cleared_at={WWW: NOW + timedelta(seconds=9)}), timedelta(seconds=9))
    assert (Apply(((WWW, 3),), Why.INSTALL),) == steps(newer)


def test_after_a_group_failed_its_pairs_are_tried_one_by_one_at_once() -> None:
    """So that one bad pair holds up only itself."""
    group = replace(TRYING, group=2)
    lost = failed(group, PROBLEM, NOW)
    both = replace(
        READY,
        assignments={WWW: Assignment(WWW, 2), OTHER: Assignment(OTHER, 1)},
        staged={**READY.staged, (OTHER, 1): staged(1, certificate=OTHER)},
        live={WWW: 1, OTHER: 0},
        outcomes={(WWW, 1): PROVEN, (WWW, 2): lost, (OTHER, 1): lost},
    )

    assert lost.not_before is None
    assert (Apply(((OTHER, 1),), Why.INSTALL),) == steps(both)


def test_failures_back_off_to_an_hour() -> None:
    """1 min, 10 min, then hourly."""
    outcome, waits = TRYING, []
    for _ in range(4):
        outcome = failed(outcome, PROBLEM, NOW)
        assert outcome.not_before is not None
        waits.append(outcome.not_before - NOW)

    assert [MINUTE, 10 * MINUTE, HOUR, HOUR] == waits


def test_marks_say_what_is_tried_and_what_worked_until_now() -> None:
    """A proven pair stays proven through its repair; a second mark does not forget what worked."""
    install = marks(Apply(((WWW, 2),), Why.INSTALL), READY, NOW)
    repair = marks(Apply(((WWW, 2),), Why.REPAIR), replace(TRIED, outcomes={(WWW, 2): PROVEN}), NOW)
    again = marks(Apply(((WWW, 2),), Why.INSTALL), replace(seen(TRIED, ""), applied=frozenset()), NOW)

    assert TryState.TRYING is install.outcomes[WWW, 2].state
    assert frozenset({(WWW, HTTPS)}) == install.worked_before
    assert TryState.PROVEN is repair.outcomes[WWW, 2].state
    assert 1 == repair.outcomes[WWW, 2].repairs
    assert frozenset({(WWW, HTTPS)}) == again.worked_before
    assert {} == marks(Apply(((WWW, 0),), Why.ROLL_BACK), TRIED, NOW).outcomes


def test_a_privileged_half_that_does_not_answer_fails_no_pair() -> None:
    """Only the next try waits, and a moment at first: it may have died with a service down."""
    step = Apply(((WWW, 2),), Why.INSTALL)
    away = setback(step, TRIED, Problem("service.apply_unavailable", "no answer"), NOW)
    refused = setback(step, TRIED, Problem("service.config_test_failed", "syntax"), NOW)

    assert {} == away.outcomes
    assert NOW < away.apply_attempts[WWW].not_before <= NOW + timedelta(seconds=1.1)
    assert TryState.FAILED is refused.outcomes[WWW, 2].state
    assert {} == refused.apply_attempts
    assert () == steps(replace(READY, apply_attempts=dict(away.apply_attempts)))


def test_endpoints_are_looked_at_on_a_timer_but_not_during_an_apply() -> None:
    """What a service shows in the middle of a reload says nothing."""
    later = NOW + 5 * MINUTE
    settled = replace(TRIED, outcomes={(WWW, 2): PROVEN})

    assert () == plan(settled, NOW).steps
    assert later == plan(settled, NOW).wake_at
    assert (Probe(WWW, (HTTPS,)),) == plan(settled, later).steps
    assert () == plan(replace(settled, in_flight=frozenset({("apply",)})), later).steps


# Many at once

FIFTY = tuple(f"n{number:02}.example.org" for number in range(50))
CROWD = AgentFacts(
    assignments={name: Assignment(name, 1) for name in FIFTY},
    staged={(name, 1): staged(1, certificate=name) for name in FIFTY},
    live=dict.fromkeys(FIFTY, 0),
    services={"apache2": ServiceFacts(frozenset(FIFTY), {})},
)
NOTHING_YET = Assignment(FIFTY[3], 0)
EVERYTHING = Apply(tuple((name, 1) for name in FIFTY), Why.INSTALL)


def marked(facts: AgentFacts) -> AgentFacts:
    """Return the facts of the time in which everything is applied."""
    noted = marks(EVERYTHING, facts, NOW).outcomes
    return replace(facts, outcomes={**facts.outcomes, **noted})


def set_back(problem: Problem) -> AgentFacts:
    """Return the facts after everything was tried and failed."""
    told = setback(EVERYTHING, marked(CROWD), problem, NOW)
    return replace(CROWD, outcomes=dict(told.outcomes), apply_attempts=dict(told.apply_attempts))


def test_fifty_certificates_of_one_service_are_one_apply() -> None:
    """And their placeholders were one step before that."""
    assert (EVERYTHING,) == steps(CROWD)
    assert (LayPlaceholders(FIFTY),) == steps(replace(CROWD, live={}))


def test_a_placeholder_that_cannot_be_laid_holds_up_only_itself() -> None:
    """The others go together, it comes alone when its time has come; a failing config test parts nobody."""
    foreign = Attempt(FIFTY[3], Problem("service.install_failed", "not ours"), 1, NOW, NOW + MINUTE)
    tests = {name: Attempt(name, SYNTAX, 1, NOW, NOW) for name in FIFTY}
    bare = replace(CROWD, live={}, apply_attempts={FIFTY[3]: foreign})

    assert (LayPlaceholders((*FIFTY[:3], *FIFTY[4:])),) == steps(bare)
    laid = replace(bare, live={}, assignments={FIFTY[3]: NOTHING_YET})
    assert () == steps(laid)
    assert (LayPlaceholders((FIFTY[3],)),) == steps(laid, MINUTE)
    assert (LayPlaceholders(FIFTY),) == steps(replace(bare, apply_attempts=tests), MINUTE)


# A config test that fails, with or without the pair

SYNTAX = Problem("service.config_test_failed", "syntax")


def test_while_the_config_test_fails_the_same_request_is_repeated_as_a_whole() -> None:
    """Whoever mends it gets one reload within 30 s, not fifty: it was no pair's fault."""
    facts = set_back(SYNTAX)

    assert () == steps(facts)
    assert timedelta(0) < (plan(facts, NOW).wake_at or NOW) - NOW <= timedelta(seconds=30)
    assert (EVERYTHING,) == steps(facts, timedelta(seconds=30))


def test_a_pair_that_its_config_test_refuses_parts_the_group() -> None:
    """It passes without them, so one of them is to blame: each is tried alone."""
    facts = set_back(Problem("service.pair_refused", "weak key"))

    assert (Apply(((FIFTY[0], 1),), Why.INSTALL),) == steps(facts)


def test_a_config_test_that_passes_frees_what_waits_for_it() -> None:
    """At once, on every certificate of that service; what failed of itself waits on."""
    refused = Outcome(TryState.FAILED, NOW, failures=1, not_before=NOW + HOUR, problem=PROBLEM)
    facts = set_back(SYNTAX)
    facts = replace(facts, outcomes={**facts.outcomes, (FIFTY[7], 1): refused})
    later = NOW + timedelta(seconds=1)
    passed = Apply(((FIFTY[0], 1),), Why.REPAIR)
    elsewhere = replace(facts, services={"apache2": ServiceFacts(frozenset(FIFTY[:1]), {})})

    freed = aftermath(passed, facts, {}, later).cleared_at

    assert dict.fromkeys((*FIFTY[1:7], *FIFTY[8:]), later) == freed
    assert {} == aftermath(passed, elsewhere, {}, later).cleared_at
    (again,) = steps(replace(facts, cleared_at=freed), timedelta(seconds=1))
    assert Apply(tuple((name, 1) for name in (*FIFTY[1:7], *FIFTY[8:])), Why.INSTALL) == again


# Hooks

HOOK = Problem("service.hook_failed", "exit code 1", output="no space left")


def hooked(facts: AgentFacts, **problems: Problem) -> AgentFacts:
    """Return the facts after the live pair was applied and its hook failed, or passed without `hook`."""
    step = Apply(((WWW, facts.live[WWW]),), Why.INSTALL)
    bad = {WWW: problems["hook"]} if problems else {}
    told = aftermath(step, facts, bad, NOW).outcomes
    return replace(facts, outcomes={**facts.outcomes, **told})


def test_a_pair_whose_hook_fails_stays_and_is_not_proven() -> None:
    """It serves well, so nothing is rolled back; after a minute its hook is due, with test and reload."""
    facts = hooked(TRIED, hook=HOOK)

    assert ("no space left", 1) == (facts.outcomes[WWW, 2].problem.output, facts.outcomes[WWW, 2].failures)  # type: ignore[union-attr]
    assert () == steps(facts)
    assert NOW + MINUTE == plan(facts, NOW).wake_at
    assert (Apply(((WWW, 2),), Why.REPAIR),) == steps(facts, MINUTE)


def test_a_hook_that_passes_at_last_lets_its_pair_be_proven() -> None:
    """Nothing of its failures remains."""
    facts = hooked(hooked(TRIED, hook=HOOK))

    assert (Conclude(WWW, 2, PROVEN),) == steps(facts)


def test_a_hook_that_keeps_failing_backs_off_to_an_hour_also_across_a_restart() -> None:
    """What it waits for is durable; a restarted agent does not begin anew."""
    facts, waits = TRIED, []
    for _ in range(4):
        facts = hooked(facts, hook=HOOK)
        waits.append((facts.outcomes[WWW, 2].not_before or NOW) - NOW)
    restarted = replace(facts, applied=frozenset())

    assert [MINUTE, 10 * MINUTE, HOUR, HOUR] == waits
    assert () == steps(restarted)
    assert (Apply(((WWW, 2),), Why.REPAIR),) == steps(restarted, HOUR)


def test_a_failing_hook_hides_no_endpoint_that_broke_and_holds_up_no_newer_pair() -> None:
    """What became worse is rolled back all the same, and the next generation does not wait."""
    facts = hooked(TRIED, hook=HOOK)
    newer = replace(
        facts, assignments={WWW: Assignment(WWW, 3)}, staged={**READY.staged, (WWW, 3): staged(3)}
    )

    (concluded,) = steps(seen(facts, ""))
    assert isinstance(concluded, Conclude)
    assert TryState.FAILED is concluded.outcome.state
    assert (Apply(((WWW, 3),), Why.INSTALL),) == steps(newer)


def test_hooks_that_fail_in_one_group_are_due_in_one_group() -> None:
    """Two of fifty cost one reload more, not two."""
    bad = dict.fromkeys(FIFTY[:2], HOOK)
    loaded = replace(marked(CROWD), live=dict.fromkeys(FIFTY, 1), applied=frozenset(EVERYTHING.pairs))
    told = aftermath(EVERYTHING, loaded, bad, NOW).outcomes
    facts = replace(loaded, outcomes={**loaded.outcomes, **told})

    assert set(told) == {(name, 1) for name in FIFTY[:2]}
    assert (Apply(EVERYTHING.pairs[:2], Why.REPAIR),) == steps(facts, MINUTE)
