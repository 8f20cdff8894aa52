"""Both planners in a small fake world: whatever fails, is cut off, late, repeated or lost, the promises hold.

Set CERTFAN_SWEEP=all for the long sweep.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certfan.core import deployment, issuance, tries
from certfan.core.agent_steps import Aftermath, Marks
from certfan.core.tries import Verdict
from tests.unit.world import World
from tests.unit.world_parts import ADVANCES, JUMPS, Agent, Broken, Share

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
    "revoke": 1,
    "consumer": 3,
    "share": 1,
    "stale": 1,
    "ca_down": 1,
    "ca_refuses": 1,
    "ca_loses": 1,
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


def run_one(world: World, pick: int) -> None:
    if world.tasks:
        world.run(world.tasks[pick % len(world.tasks)])


def fail_one(world: World, pick: int) -> None:
    if world.tasks:
        world.fail(world.tasks[pick % len(world.tasks)])


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
    world.daemon.revoked |= {("ab"[pick % 2], number) for number in range(1, pick % 3)}


def drop_consumer(world: World, _: int) -> None:
    world.wanted["a"] = ("web1",) if "mail1" in world.wanted["a"] else ("web1", "mail1")


def break_share(world: World, _: int) -> None:
    world.share.up = not world.share.up


def show_stale_share(world: World, _: int) -> None:
    world.stale = None if world.stale else Share(dict(world.share.folders), dict(world.share.live))


def stop_ca(world: World, _: int) -> None:
    world.ca.down = not world.ca.down


def refuse(world: World, _: int) -> None:
    world.ca.refuses = not world.ca.refuses


def lose_orders(world: World, pick: int) -> None:
    world.ca.orders = dict(list(world.ca.orders.items())[: pick % 3])


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
    "ca": lambda world, _: world.ca.tick(),
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


def heal(world: World) -> None:
    """Let every fault stop, poisoned pairs apart. Nothing is repaired: that is the planners' work."""
    world.ca.down = world.ca.refuses = False
    world.share.up, world.stale = True, None
    for agent in world.agents.values():
        agent.muted.clear()
        agent.foreign.clear()
        agent.bad_hooks.clear()
        agent.deaf = agent.config_broken = False


def bustle(world: World) -> bool:
    """Let everybody do a little; False when nobody had anything to do."""
    world.ca.tick()
    begun = world.look_daemon()
    for agent in world.agents.values():
        world.poll(agent)
        begun += world.look_agent(agent)
    moved = [world.run(task) for task in list(world.tasks)]
    world.check_orders()
    world.now += timedelta(milliseconds=10)
    return bool(begun) or any(moved)


def settle(world: World, rounds: int = 400) -> None:
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
        if bustle(world):
            continue
        if not world.tasks and world.is_settled():
            return
        world.now = _next_instant(world)
    raise Broken("the world did not converge")


def _next_instant(world: World) -> datetime:
    instants = [task.until for task in world.tasks if task.until]
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


def random_history(seed: int, length: int = 120) -> list[Action]:
    dice = random.Random(seed)
    return [(dice.choice(ACTIONS), dice.randrange(64)) for _ in range(length)]


def run_histories(count: int, first: int = 0) -> Counter[str]:
    """Live through `count` seeded histories; a Broken names its seed."""
    happened: Counter[str] = Counter()
    for seed in range(first, first + count):
        try:
            world = live_through(random_history(seed))
        except Broken as broken:
            raise Broken(f"seed {seed}: {broken}") from broken
        happened.update(world.done)
    return happened


def test_an_undisturbed_world_settles_with_one_order_each() -> None:
    """Without faults two certificates take two orders, and every endpoint is proven."""
    world = live_through([])

    assert {"a": 1, "b": 1} == dict(world.ca.made)
    assert {("a", "web1"): 1, ("a", "mail1"): 1, ("b", "web1"): 1} == world.daemon.offered


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 63)), min_size=20, max_size=100))
def test_every_history_ends_with_all_proven(actions: list[Action]) -> None:
    """Whatever happens, no promise is broken on the way, and once faults stop every endpoint is proven."""
    live_through(actions)


@pytest.mark.sweep
def test_seeded_histories_end_with_all_proven(capsys: pytest.CaptureFixture[str]) -> None:
    """Seeded histories reach every kind of step, and all of them settle."""
    sweep = os.environ.get("CERTFAN_SWEEP") == "all"
    count = 1000 if sweep else 120
    happened = run_histories(count)

    with capsys.disabled():
        print(f"\nworld: {count} histories, {happened.total()} steps: {dict(happened)}")
    assert set(STEPS) <= set(happened)


# What the histories must reach; a Retire takes three generations and comes in the long sweep only.
STEPS = (
    "Issue",
    "Publish",
    "Offer",
    "Withdraw",
    "RollBack",
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
    "an order does not wait for its time": ("certfan.core.orders.attempt_holds", lambda *_: False),
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
    "an offer does not wait for the share": ("certfan.core.plan._is_ready", lambda *_: True),
    "a back-off's end wakes nobody": ("certfan.core.orders.holding_instants", lambda *_: ()),
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
}
ORDER_MACHINE, JUDGE = issuance.next_move, tries.verdict
AFTERMATH, REPAIRS = deployment.aftermath, deployment._needs_repair


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world's checks notice each planted bug within a few histories."""
    target, wrong = PLANTED[bug]
    monkeypatch.setattr(target, wrong)

    with pytest.raises(Broken):
        run_histories(300)
