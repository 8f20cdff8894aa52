"""kill -9 of the agent and of its privileged half between install and report, and a power cut of the consumer.

As in test_crash, the moment is chosen from outside, by what web1 has on its disk.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence, Set

import pytest

from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.real.agent_disk import Disk, Stage
from tests.real.crash_parts import (
    Books,
    Short,
    first_in_line,
    kill,
    main_pid,
    seed_of,
    spin,
    sweeps_all,
    wait_patiently,
    wait_proven,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

AIMED_AGAIN = 8  # at most, at stages that no kill has fallen into

# Where each half is killed, and up to how many seconds after the stage's begin.
AGENT: Sequence[tuple[Stage, float]] = (
    (Stage.STAGED, 0.0),
    (Stage.TRYING, 0.0),
    (Stage.LAID, 0.003),
    (Stage.OWED, 0.01),
    (Stage.INSTALLED, 0.05),
    (Stage.INSTALLED, 0.5),
    (Stage.RELOADED, 0.0),
    (Stage.RELOADED, 0.01),
    (Stage.RELOADED, 0.03),
    (Stage.CONCLUDED, 0.0),
)
APPLY: Sequence[tuple[Stage, float]] = (
    (Stage.LAID, 0.0),
    (Stage.OWED, 0.0),
    (Stage.INSTALLED, 0.02),
    (Stage.INSTALLED, 0.5),
)
# None of these may be missed; OWED lasts for two system calls.
OF_AGENT = frozenset({Stage.STAGED, Stage.TRYING, Stage.INSTALLED, Stage.RELOADED, Stage.CONCLUDED})
OF_APPLY = frozenset({Stage.LAID, Stage.INSTALLED})


class Breaker:
    """Has a renewal made, ends something on web1 meanwhile, and looks what became of it."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet, self._dice = fleet, random.Random(seed)
        self.books = Books(fleet)

    def run(self, aim: Stage, late: float, end: Callable[[], object]) -> tuple[Stage, int]:
        """End it at a stage or up to `late` seconds after; return the stage it was, and Apache's reloads."""
        number = self.books.newest() + 1
        main_pid(self._fleet.web1, "certfan-agent.service")  # not before the last restart is over
        web1 = self._fleet.web1.path
        disk = Disk(web1 / "var/lib/certfan-agent", web1 / "etc/certfan", self.books, number)
        reloads = self.reloads()
        asking = self._fleet.cert.popen(["certfan", "renew", NAME])
        then = self._dice.uniform(0, late)
        with first_in_line():
            spin(lambda: disk.stage() >= aim, f"{aim.name} of {NAME}@{number}", then=then)
            stage = disk.stage()  # before: the other half goes on when one is killed
            end()
        asking.wait(60)
        self.check(disk, number)
        return stage, self.reloads() - reloads

    def check(self, disk: Disk, number: int) -> None:
        """Wait for the proof; what web1 remembers, and what it runs, is as if nothing had been."""
        wait_proven(self._fleet, self.books, number)
        # The leaf may be served, and so proven, before web1 has done again what was cut off.
        wait_patiently(disk.is_settled, f"{NAME}@{number} to be concluded and reported by web1")
        disk.assert_settled_well()
        assert (
            "active"
            == self._fleet.web1.run(["systemctl", "is-active", "apache2"], check=False).stdout.strip()
        )

    def reloads(self) -> int:
        """Return how often Apache was ever reloaded."""
        return self._fleet.web1.journal("apache2.service").count("Reloaded apache2.service")


def _break(
    breaker: Breaker, moments: Sequence[tuple[Stage, float]], wanted: Set[Stage], end: Callable[[], object]
) -> tuple[Counter[Stage], int]:
    """End something at each moment, then at missed ones again; return how often at which stage, and reloads too many."""
    fell, more = Counter[Stage](), 0
    aims, again = [*moments], AIMED_AGAIN
    random.Random(seed_of(3)).shuffle(aims)
    while aims:
        stage, reloads = breaker.run(*aims.pop(), end)
        assert 1 <= reloads <= 2, stage
        fell[stage] += 1
        more += reloads - 1
        if not aims and again and (missed := sorted(wanted - set(fell))):
            aims, again = [(missed[0], 0.0)], again - 1
    return fell, more


def _tell(say: Callable[[str], None], what: str, fell: Counter[Stage], more: int) -> None:
    stages_hit = ", ".join(f"{stage.name.lower()} {fell[stage]}" for stage in Stage if fell[stage])
    say(f"{fell.total()} kills of {what}, seed {seed_of(3)}: {stages_hit}")
    say(f"reloads more than renewals: {more}, never two in one run")


def test_kill_9_of_the_agent_between_bundle_and_report(fleet: Fleet, say: Callable[[str], None]) -> None:
    """Killed anywhere, the agent goes on where it was: proven, reported, at most one reload more, Apache up."""
    agent = Short(fleet.web1, "certfan-agent.service", beside="certfan-agent.service")
    fell, more = _break(Breaker(fleet, seed_of(3)), AGENT, OF_AGENT, lambda: kill(agent.pid()))
    _tell(say, "the agent", fell, more)

    assert set(fell) >= OF_AGENT


def test_kill_9_of_the_privileged_half_between_its_steps(fleet: Fleet, say: Callable[[str], None]) -> None:
    """Killed between laying, noting, pointing and reloading, the next request completes it: Apache never ends down."""
    half = Short(fleet.web1, "certfan-apply.service", beside="certfan-agent.service")

    def end() -> None:
        spin(half.pid, "the privileged half")
        assert kill(half.pid())

    fell, more = _break(Breaker(fleet, seed_of(3)), APPLY, OF_APPLY, end)
    _tell(say, "the privileged half", fell, more)

    assert set(fell) >= OF_APPLY


@pytest.mark.sweep
@pytest.mark.parametrize(
    "aim",
    [Stage.INSTALLED, *([Stage.TRYING, Stage.RELOADED] if sweeps_all() else [])],
    ids=lambda aim: aim.name.lower(),
)
def test_a_power_cut_of_the_consumer_between_bundle_and_report(
    fleet: Fleet, aim: Stage, say: Callable[[str], None]
) -> None:
    """Cut off anywhere, web1 boots into an Apache that serves the last proven pair or the newer one."""
    breaker = Breaker(fleet, seed_of(3))
    former = fleet.certificate()["serial"]
    late = 0.3 if aim is Stage.INSTALLED else 0.0
    stage, _ = breaker.run(aim, late, lambda: _cut_and_boot(fleet, former, breaker.books))
    say(f"power cut of web1: {stage.name.lower()} when it was cut")

    assert [] == [unit for unit in fleet.web1.failed_units() if "certfan" in unit or "apache" in unit]


def _cut_and_boot(fleet: Fleet, former: str, books: Books) -> None:
    fleet.web1.power_cut()
    fleet.web1.boot()
    assert fleet.web1.listens(443)
    web1 = [endpoint for endpoint in ENDPOINTS if endpoint.label.startswith("web1")]
    newest = str(books.ask("SELECT serial FROM generations ORDER BY number DESC LIMIT 1")[0][0])
    assert {fleet.serial(endpoint) for endpoint in web1} <= {former, newest}
