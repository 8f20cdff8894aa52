"""A power cut between any two steps of a swap, its roll-back and the boot after it; as a sweep over counted points."""

import os
import random
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from certfan.agent import boot, config, reloader
from certfan.agent.swap import Answer
from tests.unit.apply_parts import NOW, WWW, Machine, in_child, swap

pytestmark = pytest.mark.long

# How a service takes generation 2, and what its config test or reload does for that.
ENDINGS: dict[str, tuple[str, str]] = {
    "it goes well": ("test", ""),
    "the config test fails": ("test", "exit 1"),
    "the config test refuses the pair": ("test", "readlink ../etc/live/* | grep -q /1$ || exit 1"),
    "the service dies of its reload": ("reload", "readlink ../etc/live/* | grep -q /1$ || rm -f runs"),
}
# What the consumer is like: it copies, its services want forms of their own too, or it uses the share in place.
KINDS = ("copy", "forms", "in place")


class Knife:
    """Counts the changes of names on disk and the commands of a process, and kills it right before one of them."""

    def __init__(self, at: int = 0) -> None:
        self.points = 0
        self._at = at

    def hold(self) -> None:
        """Count from now on in this process, which should be a forked one."""
        for name in ("replace", "symlink", "unlink", "rename", "mkdir"):
            setattr(os, name, self._counted(getattr(os, name)))
        reloader.run = self._counted(reloader.run)

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.points += 1
            if self.points == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return counted


def count(work: Callable[[], object], tally: Path) -> int:
    """Return how many points an undisturbed run of `work` has."""

    def counting() -> None:
        knife = Knife()
        knife.hold()
        work()
        tally.write_text(str(knife.points))

    assert in_child(counting) == 0
    return int(tally.read_text())


def cut(work: Callable[[], object], at: int) -> None:
    """Run `work` in a process that is killed at a point."""

    def killed() -> None:
        Knife(at).hold()
        work()

    assert in_child(killed) == -signal.SIGKILL


def before_the_swap(root: Path, ending: str, kind: str = "copy") -> Machine:
    """A consumer on which generation 1 is proven and generation 2 is about to be tried."""
    root.mkdir()
    machine = Machine(root)
    machine.service("web")
    if kind == "forms":
        machine.keystore("web2")
        machine.service("web3", more='output = "pem"')
    if kind == "in place":
        machine.in_place()
    for number in (1, 2):
        machine.stage(WWW, number)
        if kind == "in place":
            machine.publish(WWW, number)
    swap(machine, WWW, 1)
    machine.does("web", *ENDINGS[ending])
    machine.outcomes(g1=("proven", 1), g2=("trying", 2))
    return machine


def power_up(machine: Machine, kind: str = "copy") -> None:
    """Boot: the boot unit, then whatever services find. Their processes are gone, and no share is mounted yet."""
    services = [log.with_name("runs") for log in machine.root.glob("*/log")]
    for runs in services:
        runs.unlink(missing_ok=True)
    if kind == "in place":
        machine.unmount()
    boots(machine)
    for runs in services:
        runs.touch()


def boots(machine: Machine) -> dict[str, int]:
    return boot.lay_all(config.load(machine.path), lambda: NOW, deadline=monotonic() + 10)


def is_in_order(machine: Machine, answer: Answer, ending: str) -> bool:
    """Whether the repeated request has ended as an undisturbed one does."""
    good = ending == "it goes well"
    return (
        answer.rolled_back is not good
        and machine.live() == machine.staged_fingerprint(WWW, 2 if good else 1)
        and (machine.root / "web" / "runs").exists()
    )


def is_owed(machine: Machine) -> bool:
    return (machine.root / "etc" / "generations" / ".owed.json").exists()


def chosen(points: int) -> list[int]:
    """Return all points in the long sweep, else a seeded tenth of them, the ends included."""
    every = range(1, points + 1)
    if os.environ.get("CERTFAN_SWEEP") == "all":
        return list(every)
    return sorted({1, points, *random.Random(points).sample(every, -(-points // 10))})


def combinations() -> list[tuple[str, str]]:
    """Return every ending with every kind in the long sweep, else all for what copies and two for the others."""
    few = list(ENDINGS)[::3]
    long = os.environ.get("CERTFAN_SWEEP") == "all"
    return [(ending, kind) for kind in KINDS for ending in (ENDINGS if long or kind == "copy" else few)]


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloader, "SETTLE", timedelta(0))


@pytest.mark.sweep
@pytest.mark.parametrize(("ending", "kind"), combinations())
def test_after_a_power_cut_at_any_step_services_start_on_what_was_last_proven(
    tmp_path: Path, ending: str, kind: str, say: Callable[[str], None]
) -> None:
    """Whether the swap was on its way there or back; nothing is owed after it, and the repeated request ends right.

    In every form, and without the share where that was used in place.
    """
    undisturbed = before_the_swap(tmp_path / "undisturbed", ending, kind)
    points = count(lambda: swap(undisturbed, WWW, 2), tmp_path / "tally")
    tried = chosen(points)
    for at in tried:
        machine = before_the_swap(tmp_path / str(at), ending, kind)
        cut(lambda machine=machine: swap(machine, WWW, 2), at)  # type: ignore[misc]

        power_up(machine, kind)

        assert machine.live() == machine.staged_fingerprint(WWW, 1), at
        assert not is_owed(machine), at
        if kind == "in place":
            machine.mount_again()
        assert is_in_order(machine, swap(machine, WWW, 2), ending), at
    say(f"swap, {kind}, {ending}: {len(tried)} of {points} points cut")

    assert points >= {"copy": 15, "forms": 25, "in place": 9}[kind]
    assert len(tried) == points or os.environ.get("CERTFAN_SWEEP") != "all"


@pytest.mark.sweep
@pytest.mark.parametrize(
    "lost", [False, True], ids=["the proven pair is there", "only a placeholder is left"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_power_cut_of_the_boot_unit_the_next_boot_completes_it(
    tmp_path: Path, lost: bool, kind: str
) -> None:
    """At every step of it; also where it has to make a placeholder. What is live matches throughout.

    In place nothing was there before: what matches is the copy, once it is pointed at.
    """

    def cut_off(name: str) -> Machine:
        machine = before_the_swap(tmp_path / name, "it goes well", kind)
        machine.does("web", "reload", "kill -9 $PPID")  # the pointer has moved, the reload has not
        in_child(lambda: (swap(machine, WWW, 2), None)[1])
        if lost:
            machine.outcomes(g1=("failed", 1), g2=("failed", 2))
        if kind == "in place":
            machine.unmount()
        return machine

    undisturbed = cut_off("undisturbed")
    points = count(lambda: boots(undisturbed), tmp_path / "tally")
    for at in chosen(points):
        machine = cut_off(str(at))
        cut(lambda machine=machine: boots(machine), at)  # type: ignore[misc]
        assert kind == "in place" or machine.live() is not None, at

        assert boots(machine) == {WWW: 0 if lost else 1}, at
        assert machine.live() is not None, at
        assert not is_owed(machine), at

    assert points >= (10 if lost else 3)


def test_a_roll_back_of_the_agent_that_was_cut_off_boots_into_the_proven_pair(tmp_path: Path) -> None:
    """The agent asks for a roll back as for anything; what failed is noted before, so a boot in it goes back too."""
    machine = before_the_swap(tmp_path / "consumer", "it goes well")
    swap(machine, WWW, 2)
    machine.outcomes(g1=("proven", 1), g2=("failed", 2))
    points = count(lambda: swap(machine, WWW, 1), tmp_path / "tally")
    for at in chosen(points):
        swap(machine, WWW, 2)
        cut(lambda: swap(machine, WWW, 1), at)

        power_up(machine)

        assert machine.live() == machine.staged_fingerprint(WWW, 1), at
        assert not is_owed(machine), at
    assert points >= 8
