"""Both planners in a small fake world: whatever fails, is cut off, late, repeated or lost, the promises hold.

Set CERTFAN_SWEEP=all for the long sweep.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certfan.core import deployment, issuance, renewal, room, standing, tries, upkeep
from certfan.core.agent_steps import Aftermath, Marks
from certfan.core.model import Identifier, Revocation, RevocationReason
from certfan.core.tries import Verdict
from tests.unit.world import World
from tests.unit.world_authority import Ca
from tests.unit.world_parts import ADVANCES, DAY, HOUR, JUMPS, Agent, Broken, Share

pytestmark = pytest.mark.long

Action: TypeAlias = tuple[str, int]

# What happens most is what a healthy world does; every fault has its turn.
WEIGHTS = {
    "bustle": 40,
    "look_daemon": 8,
    "look_agent": 8,
    "poll": 4,
    "run": 30,
    "ca": 6,
    "advance": 4,
    "wake": 4,
    "fail": 3,
    "crash": 2,
    "jump": 1,
    "report": 2,
    "deliver": 2,
    "ask": 1,
    "roll_back": 2,
    "rename": 1,
    "revoke": 2,
    "consumer": 3,
    "share": 1,
    "stale": 1,
    "ca_down": 2,
    "ca_refuses": 2,
    "ca_loses": 1,
    "ca_again": 1,
    "ca_answers": 2,
    "windows": 3,
    "revoke_all": 2,
    "block": 2,
    "roll_key": 1,
    "keep_key": 1,
    "confirm": 2,
    "set_right": 1,
    "poison": 3,
    "mute": 1,
    "foreign": 1,
    "deaf": 3,
    "config": 1,
    "refuse_pair": 1,
    "hook": 2,
}
ACTIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]


def act(world: World, action: Action) -> None:
    """Let one thing happen; `pick` chooses which of several."""
    name, pick = action
    HAPPENINGS[name](world, pick)
    world.check_orders()


CODES = ("share.unavailable", "authority.unreachable", "authority.refused", "challenge.failed")


def run_one(world: World, pick: int) -> None:
    if world.tasks:
        world.run(world.tasks[pick % len(world.tasks)])


def fail_one(world: World, pick: int) -> None:
    if world.tasks:
        world.fail(world.tasks[pick % len(world.tasks)], CODES[pick % len(CODES)])


def wake(world: World, _: int) -> None:
    ahead = [at for at in world.wakes.values() if at is not None and at > world.now]
    world.now = min(ahead, default=world.now)


def advance(world: World, pick: int) -> None:
    world.now += ADVANCES[pick % len(ADVANCES)]


def report(world: World, pick: int) -> None:
    agent = _agent(world, pick)
    world.reports.append((agent.name, dict(agent.proofs)))


def deliver(world: World, pick: int) -> None:
    """Let any report arrive: late, a second time, or never."""
    if world.reports:
        world.deliver(world.reports[pick % len(world.reports)])


def ask(world: World, pick: int) -> None:
    world.daemon.asked["ab"[pick % 2]] = world.now
    world.daemon.rolled_back.pop("ab"[pick % 2], None)


def roll_back(world: World, pick: int) -> None:
    """Ask for any older pair, usable or not: what is asked is checked again when it is done."""
    name = "ab"[pick % 2]
    if known := world.daemon.generations.get(name):
        world.daemon.rolled_back[name] = known[pick % len(known)].origin
        world.daemon.asked.pop(name, None)


def rename(world: World, pick: int) -> None:
    name = "ab"[pick % 2]
    world.names[name] = ("x.example",) if pick % 3 else (f"{name}.example",)
    world.daemon.changed[name] = world.now


def revoke(world: World, pick: int) -> None:
    """Wish that any generation is revoked: at once, or when all is proven."""
    name = "ab"[pick % 2]
    if known := world.daemon.generations.get(name):
        wish = Revocation(RevocationReason.SUPERSEDED, at_once=pick % 3 == 0, asked_at=world.now)
        chosen = known[pick % len(known)]
        if (name, chosen.number) not in world.daemon.revoked:
            world.daemon.revocations[name, chosen.number] = wish


def drop_consumer(world: World, _: int) -> None:
    world.wanted["a"] = ("web1",) if "mail1" in world.wanted["a"] else ("web1", "mail1")


def break_share(world: World, _: int) -> None:
    world.share.up = not world.share.up


def show_stale_share(world: World, _: int) -> None:
    world.stale = None if world.stale else Share(dict(world.share.folders), dict(world.share.live))


def _ca(world: World, pick: int) -> Ca:
    return world.cas["spare" if pick % 3 == 0 else "ca"]


def stop_ca(world: World, pick: int) -> None:
    ca = _ca(world, pick)
    ca.down = pick % 4 == 0


def refuse(world: World, pick: int) -> None:
    ca = _ca(world, pick)
    ca.refuses = pick % 4 == 0


def lose_orders(world: World, pick: int) -> None:
    ca = _ca(world, pick)
    ca.orders = dict(list(ca.orders.items())[: pick % 3])


def give_again(world: World, pick: int) -> None:
    ca = _ca(world, pick)
    ca.gives_again = not ca.gives_again


def hear_of_authorities(world: World, _: int) -> None:
    """Let those that answer be seen to, as the look-out does."""
    for name, ca in world.cas.items():
        if not ca.down:
            world.daemon.answered[name] = world.now


SHIFTS = ((-30, -20), (-1, 1), (-1, 1), (-1, 2), (5, 6), (2, -2), (200, 210))  # days


def move_windows(world: World, pick: int) -> None:
    """Move one window, or all at once: past, around now, later, upside down, beyond the end; or offer none."""
    for name, ca in world.cas.items():
        ca.retry_after = (None, timedelta(0), 3 * HOUR, 9 * DAY)[pick % 4]
        ca.offers_windows = pick % 16 != 1
        known = [g[-1].fingerprint for g in world.daemon.generations.values() if g[-1].authority == name]
        start, end = SHIFTS[pick % len(SHIFTS)]
        for fingerprint in known if pick % 5 == 0 else known[:1]:
            ca.windows[fingerprint] = (world.true + start * DAY, world.true + end * DAY)


def revoke_all(world: World, pick: int) -> None:
    """Want everything renewed at once, as an authority does that has to revoke; a day later all have heard of it."""
    for ca in world.cas.values():
        window = (world.true - 2 * DAY, world.true + (2 + pick % 3) * DAY)
        ca.windows = dict.fromkeys(ca.windows, window)
    world.now += DAY


def block(world: World, pick: int) -> None:
    name = {("a.example", "b.example", "x.example")[pick % 3]}
    world.blocked -= name
    if pick % 4 == 0:
        world.blocked |= name


def roll_key(world: World, pick: int) -> None:
    world.daemon.rollovers.add(_ca(world, pick).name)


def keep_key(world: World, pick: int) -> None:
    ca = _ca(world, pick)
    ca.keeps_key = ca.keeps_key or pick % 4 == 0


def set_clock_right(world: World, _: int) -> None:
    if world.skew:
        world.jump(-world.skew)


def poison(world: World, pick: int) -> None:
    world.poison.add(("ab"[pick % 2], pick % 4 + 1))


def mute(world: World, pick: int) -> None:
    _agent(world, pick).muted ^= {("mail", "a") if pick % 3 else ("web", "b")}


def put_foreign(world: World, pick: int) -> None:
    _agent(world, pick).foreign ^= {("mail", "a") if pick % 3 else ("web", "b")}


def deafen(world: World, pick: int) -> None:
    agent = _agent(world, pick)
    agent.deaf = not agent.deaf


def break_config(world: World, pick: int) -> None:
    agent = _agent(world, pick)
    agent.config_broken = not agent.config_broken


def refuse_pair(world: World, pick: int) -> None:
    _agent(world, pick).refused.add(("ab"[pick % 2], pick % 4 + 1))


def break_hook(world: World, pick: int) -> None:
    _agent(world, pick).bad_hooks ^= {"ab"[pick % 2]}


def _agent(world: World, pick: int) -> Agent:
    return list(world.agents.values())[pick % len(world.agents)]


HAPPENINGS: dict[str, Callable[[World, int], object]] = {
    "bustle": lambda world, _: bustle(world),
    "look_daemon": lambda world, _: world.look_daemon(),
    "look_agent": lambda world, pick: world.look_agent(_agent(world, pick)),
    "poll": lambda world, pick: world.poll(_agent(world, pick)),
    "run": run_one,
    "fail": fail_one,
    "ca": lambda world, _: tick(world),
    "ca_again": give_again,
    "ca_answers": hear_of_authorities,
    "windows": move_windows,
    "revoke_all": revoke_all,
    "block": block,
    "roll_key": roll_key,
    "keep_key": keep_key,
    "confirm": lambda world, _: world.confirm_clock(),
    "set_right": set_clock_right,
    "advance": advance,
    "wake": wake,
    "crash": lambda world, pick: world.crash(["daemon", *world.agents][pick % 3]),
    "jump": lambda world, pick: world.jump(JUMPS[pick % len(JUMPS)]),
    "report": report,
    "deliver": deliver,
    "ask": ask,
    "roll_back": roll_back,
    "rename": rename,
    "revoke": revoke,
    "consumer": drop_consumer,
    "share": break_share,
    "stale": show_stale_share,
    "ca_down": stop_ca,
    "ca_refuses": refuse,
    "ca_loses": lose_orders,
    "poison": poison,
    "mute": mute,
    "foreign": put_foreign,
    "deaf": deafen,
    "config": break_config,
    "refuse_pair": refuse_pair,
    "hook": break_hook,
}


def tick(world: World) -> None:
    for ca in world.cas.values():
        ca.tick()


def heal(world: World) -> None:
    """Let every fault stop, poisoned pairs apart. Nothing is repaired: that is the planners' work."""
    for ca in world.cas.values():
        ca.down = ca.refuses = False
        ca.retry_after = None
    world.blocked.clear()
    set_clock_right(world, 0)
    world.confirm_clock()
    world.share.up, world.stale = True, None
    for agent in world.agents.values():
        agent.muted.clear()
        agent.foreign.clear()
        agent.bad_hooks.clear()
        agent.deaf = agent.config_broken = False


def bustle(world: World) -> bool:
    """Let everybody do a little; False when nobody had anything to do."""
    tick(world)
    begun = world.look_daemon()
    for agent in world.agents.values():
        world.poll(agent)
        begun += world.look_agent(agent)
    moved = [world.run(task) for task in list(world.tasks)]
    world.check_orders()
    world.now += timedelta(milliseconds=10)
    return bool(begun) or any(moved)


def settle(world: World, rounds: int = 700) -> None:
    """Let time pass from wake to wake until every endpoint is proven; Broken when it does not come to that."""
    heal(world)
    for _ in range(100):
        if not bustle(world):
            break
    world.check_rolled_back()
    world.poison.clear()
    for agent in world.agents.values():
        agent.refused.clear()
    for _ in range(rounds):
        for agent in world.agents.values():
            world.deliver((agent.name, dict(agent.proofs)))
        if bustle(world):
            continue
        if not world.tasks and world.is_settled():
            return
        world.now = _next_instant(world)
    raise Broken("the world did not converge")


def _next_instant(world: World) -> datetime:
    instants = [task.until + world.skew for task in world.tasks if task.until]
    instants += [at for at in world.wakes.values() if at is not None and at > world.now]
    if not instants:
        raise Broken("nothing to do and nothing to wait for, but not all is proven")
    return max(world.now, min(instants))


def live_through(actions: list[Action]) -> World:
    """Run a whole history, then let it settle."""
    world = World()
    for action in actions:
        act(world, action)
    settle(world)
    return world


def random_history(seed: int, length: int = 120, focus: Sequence[str] = ()) -> list[Action]:
    """Return what happens; `focus` happens far more often than it would."""
    dice = random.Random(seed)
    actions = [*ACTIONS, *focus * (len(ACTIONS) // 10)]
    return [(dice.choice(actions), dice.randrange(64)) for _ in range(length)]


def run_histories(count: int, first: int = 0, *, focus: Sequence[str] = ()) -> Counter[str]:
    """Live through `count` seeded histories; a Broken names its seed."""
    happened: Counter[str] = Counter()
    for seed in range(first, first + count):
        try:
            world = live_through(random_history(seed, focus=focus))
        except Broken as broken:
            raise Broken(f"seed {seed}: {broken}") from broken
        happened.update(world.done)
    return happened


def test_an_undisturbed_world_settles_with_one_order_each() -> None:
    """Without faults two certificates take two orders, and every endpoint is proven."""
    world = live_through([])

    made = world.cas["ca"].made
    assert (1, 1) == (made["a"], made["b"])
    assert not world.cas["spare"].made
    assert {("a", "web1"): 1, ("a", "mail1"): 1, ("b", "web1"): 1} == world.daemon.offered


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 63)), min_size=20, max_size=100))
def test_every_history_ends_with_all_proven(actions: list[Action]) -> None:
    """Whatever happens, no promise is broken on the way, and once faults stop every endpoint is proven."""
    live_through(actions)


@pytest.mark.sweep
@pytest.mark.timeout(900)
def test_seeded_histories_end_with_all_proven(say: Callable[[str], None]) -> None:
    """Seeded histories reach every kind of step, and all of them settle."""
    sweep = os.environ.get("CERTFAN_SWEEP") == "all"
    count = 1000 if sweep else 30
    happened = run_histories(count)

    say(f"world: {count} histories, {happened.total()} steps: {dict(happened)}")
    assert set(STEPS) <= set(+happened)


# What the histories must reach; a Retire takes three generations and comes in the long sweep only.
STEPS = (
    "Issue",
    "Publish",
    "Offer",
    "Withdraw",
    "RollBack",
    "Issue.fallback",
    "Issue.exempt",
    "Issue.renewal_due",
    "Issue.revoked",
    "Issue.in_doubt",
    "NewOrder.rateLimited",
    "CheckPath.failed",
    "AskRenewal",
    "Revoke.at_once",
    "Revoke.proven",
    "TidyOrders",
    "RollAccountKey.done",
    "Fetch",
    "LayPlaceholders",
    "Apply.install",
    "Apply.repair",
    "Apply.roll_back",
    "Probe",
    "Conclude.proven",
    "Conclude.failed",
    "Hook.failed",
)

# Each bug, by the function it replaces, and the promise that it breaks first.
PLANTED: dict[str, tuple[str, Any]] = {
    "an order does not wait for its time": ("certfan.core.standing.attempt_holds", lambda *_: False),
    "a failed pair does not wait for its time": (
        "certfan.core.tries.next_apply",
        lambda failures, at, **_: at,
    ),
    "an order's url is forgotten": (
        "certfan.core.issuance.next_move",
        lambda begun, order, seen, now: (
            issuance.NewOrder() if order is None else ORDER_MACHINE(begun, order, seen, now)
        ),
    ),
    "a generation is renewed at once": (
        "certfan.core.policy.renewal_instant",
        lambda generation, _: generation.not_before,
    ),
    "a request is never done": ("certfan.core.policy.is_asked", lambda asked_at, *_: asked_at is not None),
    "the authority's cap is not kept": ("certfan.core.room.Room.has", lambda *_, **__: True),
    "an offer does not wait for the share": ("certfan.core.outlook._is_ready", lambda *_: True),
    "a back-off's end wakes nobody": ("certfan.core.outlook.holding_instants", lambda *_: ()),
    "an orphan is retired at once": ("certfan.core.retirement._is_expired", lambda *_: True),
    "a pointer moves before its mark": (
        "certfan.core.deployment.marks",
        lambda step, facts, now: Marks({}, facts.worked_before),
    ),
    "a foreign or old leaf counts as proof": (
        "certfan.core.deployment.verdict",
        lambda facts, pair: {Verdict.FOREIGN: Verdict.PROVEN, Verdict.UNCHANGED: Verdict.PROVEN}.get(
            said := JUDGE(facts, pair), said
        ),
    ),
    "a reload that did nothing is rolled back": (
        "certfan.core.deployment.verdict",
        lambda facts, pair: Verdict.WORSE if (said := JUDGE(facts, pair)) is Verdict.UNCHANGED else said,
    ),
    "a reload that did nothing is left so": ("certfan.core.deployment._needs_repair", lambda *_: False),
    "a hook that failed is forgotten": (
        "certfan.core.deployment.aftermath",
        lambda step, facts, hooks, now, **_: AFTERMATH(step, facts, {}, now),
    ),
    "a hook that failed is never run again": (
        "certfan.core.deployment._needs_repair",
        lambda facts, live, now: not tries.owes_hook(facts.outcomes.get(live)) and REPAIRS(facts, live, now),
    ),
    "a hook that failed rolls its pair back": (
        "certfan.core.deployment.aftermath",
        lambda step, facts, hooks, now, **_: Aftermath(
            {
                pair: tries.failed(facts.outcomes[pair], hooks[pair[0]], now)
                for pair in step.pairs
                if pair[0] in hooks
            },
            {},
        ),
    ),
    "what became worse is left so": (
        "certfan.core.deployment.verdict",
        lambda facts, pair: Verdict.SILENT if (said := JUDGE(facts, pair)) is Verdict.WORSE else said,
    ),
    "a limit does not hold": ("certfan.core.ledger.Ledger.held", lambda *_, **__: None),
    "orders under way are not counted": (
        "certfan.core.orders._with_others",
        lambda _desired, observed, _others: observed.ledgers.items(),
    ),
    "a limit's end wakes nobody": (
        "certfan.core.standing._held_by_ledger",
        lambda *args, **kw: replace(held, until=None) if (held := HELD_BY_LEDGER(*args, **kw)) else None,
    ),
    "every renewal counts as suggested": ("certfan.core.standing.is_suggested", lambda *_: True),
    "an instant is drawn anew at each answer": (
        "tests.unit.world_orders.renewal_info",
        lambda generation, window, _, now, *, dice: RENEWAL_INFO(generation, window, None, now, dice=dice),
    ),
    "an authority is asked all the time": (
        "certfan.core.outlook._ask_at",
        lambda newest, _: newest.issued_at,
    ),
    "a clock in doubt renews": (
        "certfan.core.standing.why_issue",
        lambda *args, **kw: WHY_ISSUE(*args, **{**kw, "clock_trusted": True}),
    ),
    "a fallback is asked at once": (
        "certfan.core.standing.fallback_instant",
        lambda _certificate, attempt, _: attempt.at,
    ),
    "an open order is left for the first authority": (
        "certfan.core.standing._authorities",
        lambda certificate, *_: [certificate.authority, *certificate.fallback],
    ),
    "two orders for the same names are under way": (
        "certfan.core.room.Room.has",
        lambda room, certificate, authority: HAS_ROOM(
            room, replace(certificate, identifiers=(Identifier(certificate.name),)), authority
        ),
    ),
    "what is in trouble takes every place": ("certfan.core.room.has_failed", lambda *_: False),
    "our own check is not waited for": ("certfan.core.standing._held_by_path", lambda *_: None),
    "our own check is good for ever": ("certfan.core.standing.is_fresh", lambda *_: True),
    "a failed check is not repeated": (
        "certfan.core.looks._look_again_after",
        lambda *_, **__: timedelta(days=999),
    ),
    "a look that could not be done is repeated without a pause": (
        "certfan.core.looks.attempt_holds",
        lambda *_: False,
    ),
    "what has a revoked key is kept": ("certfan.core.keys.spent_keys", lambda *_: frozenset()),
    "a revoked key is used again": (
        "tests.unit.world_orders.key_to_reuse",
        lambda _certificate, generations, *_: generations[-1] if generations else None,
    ),
    "a revocation does not wait for its successor": ("certfan.core.upkeep.is_succeeded", lambda *_: True),
    "a successor may have the same key": (
        "certfan.core.upkeep.is_succeeded",
        lambda name, number, desired, observed, now: IS_SUCCEEDED(
            name,
            number,
            desired,
            replace(
                observed,
                generations={name: tuple(replace(g, key="") for g in observed.generations[name])},
            ),
            now,
        ),
    ),
    "what is kept from plan to plan forgets that an order has begun": (
        "certfan.core.outlook._own_facts",
        lambda observed: (observed.generations,),
    ),
    "what is kept from plan to plan forgets that our own look grows old": (
        "certfan.core.outlook.fresh_instants",
        lambda *_: (),
    ),
    "an account key is changed under an order": ("certfan.core.upkeep.under_way", lambda *_: ()),
    "an order begins while the account key changes": ("certfan.core.standing.awaits_key", lambda *_: False),
    "a refused account key holds up every order": (
        "certfan.core.standing.awaits_key",
        lambda authority, observed, _: authority in observed.rollovers,
    ),
    "upkeep that failed is never done": ("certfan.core.upkeep.attempt_holds", lambda *_: True),
}
ORDER_MACHINE, JUDGE = issuance.next_move, tries.verdict
AFTERMATH, REPAIRS = deployment.aftermath, deployment._needs_repair
HAS_ROOM = room.Room.has
HELD_BY_LEDGER, WHY_ISSUE = standing._held_by_ledger, standing.why_issue
RENEWAL_INFO, IS_SUCCEEDED = renewal.renewal_info, upkeep.is_succeeded


# What has to happen often for a bug that random histories reach only now and then.
FOCUS = {
    "a reload that did nothing is left so": ("deaf", "bustle", "bustle"),
    "a hook that failed is never run again": ("hook", "bustle"),
    "a limit does not hold": ("rename", "ask"),
    "orders under way are not counted": ("rename", "ask", "crash"),
    "a limit's end wakes nobody": ("rename", "ask"),
    "every renewal counts as suggested": ("windows", "advance"),
    "two orders for the same names are under way": ("rename", "look_daemon"),
    "an instant is drawn anew at each answer": ("advance",),
    "a clock in doubt renews": ("jump", "advance"),
    "an open order is left for the first authority": ("ca_refuses", "advance"),
    "a refused account key holds up every order": ("keep_key", "roll_key"),
    "what has a revoked key is kept": ("revoke", "revoke", "ask", "bustle"),
    "a successor may have the same key": ("revoke", "bustle", "ask"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world's checks notice each planted bug within a few histories."""
    target, wrong = PLANTED[bug]
    monkeypatch.setattr(target, wrong)

    with pytest.raises(Broken):
        run_histories(300, focus=FOCUS.get(bug, ()))
