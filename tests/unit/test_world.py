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

from tests.unit.world import ADVANCES, JUMPS, Broken, Share, World

Action: TypeAlias = tuple[str, int]

# What happens most is what a healthy world does; every fault has its turn.
WEIGHTS = {
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
    "rename": 1,
    "revoke": 1,
    "consumer": 1,
    "share": 1,
    "stale": 1,
    "ca_down": 1,
    "ca_refuses": 1,
    "ca_loses": 1,
    "poison": 1,
    "mute": 1,
    "foreign": 1,
    "deaf": 1,
    "config": 1,
}
ACTIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]


def act(world: World, action: Action) -> None:
    """Let one thing happen; `pick` chooses which of several."""
    name, pick = action
    agents = list(world.agents.values())
    agent = agents[pick % len(agents)]
    certificate = "ab"[pick % 2]
    tasks = world.tasks
    match name:
        case "look_daemon":
            world.look_daemon()
        case "look_agent":
            world.look_agent(agent)
        case "poll":
            world.poll(agent)
        case "run" if tasks:
            world.run(tasks[pick % len(tasks)])
        case "fail" if tasks:
            world.fail(tasks[pick % len(tasks)])
        case "ca":
            world.ca.tick()
        case "advance":
            world.now += ADVANCES[pick % len(ADVANCES)]
        case "wake":
            ahead = [at for at in world.wakes.values() if at is not None and at > world.now]
            world.now = min(ahead, default=world.now)
        case "jump":
            world.jump(JUMPS[pick % len(JUMPS)])
        case "crash":
            world.crash(["daemon", *world.agents][pick % 3])
        case "report":
            world.reports.append((agent.name, dict(agent.proofs)))
        case "deliver" if world.reports:
            world.deliver(world.reports[pick % len(world.reports)])
        case _:
            act_by_fault(world, name, pick, certificate)
    world.check_orders()


def act_by_fault(world: World, name: str, pick: int, certificate: str) -> None:
    """Wish something else, or break something."""
    agent = list(world.agents.values())[pick % len(world.agents)]
    spot = ("mail", "a") if pick % 3 else ("web", "b")
    match name:
        case "ask":
            world.daemon.asked[certificate] = world.now
            world.earliest.pop(certificate, None)
        case "rename":
            world.names[certificate] = ("x.example",) if pick % 3 else (f"{certificate}.example",)
            world.daemon.changed[certificate] = world.now
            for subject in (certificate, f"{certificate}/web1", f"{certificate}/mail1"):
                world.earliest.pop(subject, None)
        case "revoke":
            world.daemon.revoked |= {(certificate, n) for n in range(1, pick % 3)}
        case "consumer":
            world.wanted["a"] = ("web1",) if "mail1" in world.wanted["a"] else ("web1", "mail1")
        case "share":
            world.share.up = not world.share.up
        case "stale":
            world.stale = None if world.stale else Share(dict(world.share.folders), dict(world.share.live))
        case "ca_down":
            world.ca.down = not world.ca.down
        case "ca_refuses":
            world.ca.refuses = not world.ca.refuses
        case "ca_loses":
            world.ca.orders = dict(list(world.ca.orders.items())[: pick % 3])
        case "poison":
            world.poison.add((certificate, pick % 4 + 1))
        case "mute":
            agent.muted ^= {spot}
        case "foreign":
            agent.foreign ^= {spot}
        case "deaf":
            agent.deaf = not agent.deaf
        case "config":
            agent.config_broken = not agent.config_broken
        case _:
            pass


def heal(world: World) -> None:
    """Let every fault stop. Nothing is repaired: that is the planners' work."""
    world.ca.down = world.ca.refuses = False
    world.share.up, world.stale = True, None
    world.poison.clear()
    for agent in world.agents.values():
        agent.muted.clear()
        agent.foreign.clear()
        agent.deaf = agent.config_broken = False


def settle(world: World, rounds: int = 400) -> None:
    """Let time pass from wake to wake until every endpoint is proven; Broken when it does not come to that."""
    heal(world)
    for _ in range(rounds):
        world.ca.tick()
        begun = world.look_daemon()
        for agent in world.agents.values():
            world.poll(agent)
            begun += world.look_agent(agent)
        for task in list(world.tasks):
            world.run(task)
        world.check_orders()
        world.now += timedelta(milliseconds=10)
        if not begun and not world.tasks and world.is_settled():
            return
        if not begun and all(task.until for task in world.tasks):
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
        happened["orders"] += sum(world.ca.made.values())
        happened["failed installs"] += sum(len(agent.failures) for agent in world.agents.values())
    return happened


def test_an_undisturbed_world_settles_with_one_order_each() -> None:
    """Without faults two certificates take two orders, and every endpoint is proven."""
    world = live_through([])

    assert {"a": 1, "b": 1} == dict(world.ca.made)
    assert {("a", "web1"): 1, ("a", "mail1"): 1, ("b", "web1"): 1} == world.daemon.offered
