"""kill -9 of the agent and of its privileged half between install and report, and a power cut of the consumer.

As in test_crash, the moment is chosen from outside, by what web1 has on its disk.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence, Set
from enum import IntEnum
from typing import Any

import pytest

from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.real.crash_parts import (
    Books,
    Short,
    first_in_line,
    generation_of,
    kill,
    main_pid,
    seed_of,
    spin,
    wait_patiently,
    wait_proven,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

AIMED_AGAIN = 8  # at most, at stages that no kill has fallen into


class Stage(IntEnum):
    """The last thing on web1's disk before a kill."""

    ASSIGNED = 0  # or less
    STAGED = 1  # the bundle is verified
    TRYING = 2  # noted, nothing applied yet
    LAID = 3  # the folder is begun, no pointer moves
    OWED = 4  # what the pointer was is noted
    INSTALLED = 5  # the pointer has moved, the reload is due or under way
    RELOADED = 6  # and probed, as far as that had come
    CONCLUDED = 7  # proven on web1, the daemon has not heard it
    REPORTED = 8


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


class Disk:
    """What is on web1's disk about one generation."""

    def __init__(self, fleet: Fleet, books: Books, number: int) -> None:
        self._agent = fleet.web1.path / "var/lib/certfan-agent"
        self._installed = fleet.web1.path / "etc/certfan"
        self._books, self._number = books, number

    def outcomes(self) -> dict[str, Any]:
        """Return what the agent has noted of each generation."""
        return dict(json.loads((self._agent / "outcomes.json").read_bytes())[NAME])

    def live(self) -> int:
        """Return the generation that Apache's configuration leads to."""
        return generation_of(self._installed / "live" / NAME)

    def stage(self) -> Stage:
        """Return the last stage that is reached."""
        state = self._state()
        if state == "proven":
            return Stage.REPORTED if self._is_reported() else Stage.CONCLUDED
        owed = self._owed()
        if self.live() == self._number:
            return Stage.INSTALLED if owed else Stage.RELOADED
        if owed:
            return Stage.OWED
        if (self._installed / "generations" / NAME / str(self._number)).exists():
            return Stage.LAID
        if state == "trying":
            return Stage.TRYING
        staged = (self._agent / "bundles" / NAME / str(self._number)).exists()
        return Stage.STAGED if staged else Stage.ASSIGNED

    def is_settled(self) -> bool:
        """Whether nothing is left to do or to tell."""
        return self.stage() is Stage.REPORTED and not self._owed()

    def _owed(self) -> bool:
        return (self._installed / "generations/.owed.json").exists()

    def _state(self) -> str:
        return str(self.outcomes().get(str(self._number), {}).get("state", ""))

    def _is_reported(self) -> bool:
        query = "SELECT 1 FROM deployments WHERE consumer = 'web1' AND generation = ? AND state = 'proven'"
        return bool(self._books.ask(query, self._number))


class Breaker:
    """Has a renewal made, ends something on web1 meanwhile, and looks what became of it."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet, self._dice = fleet, random.Random(seed)
        self.books = Books(fleet)

    def run(self, aim: Stage, late: float, end: Callable[[], object]) -> tuple[Stage, int]:
        """End it at a stage or up to `late` seconds after; return the stage it was, and Apache's reloads."""
        number = self.books.newest() + 1
        main_pid(self._fleet.web1, "certfan-agent.service")  # not before the last restart is over
        disk, reloads = Disk(self._fleet, self.books, number), self.reloads()
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
        noted = disk.outcomes()
        assert number == disk.live()
        assert ("proven", 0) == (noted[str(number)]["state"], noted[str(number)]["failures"])
        assert {"proven"} == {one["state"] for one in noted.values()}
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


def _tell(capsys: pytest.CaptureFixture[str], what: str, fell: Counter[Stage], more: int) -> None:
    with capsys.disabled():
        print(f"\n{fell.total()} kills of {what}, seed {seed_of(3)}: ", end="")
        print(", ".join(f"{stage.name.lower()} {fell[stage]}" for stage in Stage if fell[stage]))
        print(f"reloads more than renewals: {more}, never two in one run")


def test_kill_9_of_the_agent_between_bundle_and_report(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed anywhere, the agent goes on where it was: proven, reported, at most one reload more, Apache up."""
    agent = Short(fleet.web1, "certfan-agent.service", beside="certfan-agent.service")
    fell, more = _break(Breaker(fleet, seed_of(3)), AGENT, OF_AGENT, lambda: kill(agent.pid()))
    _tell(capsys, "the agent", fell, more)

    assert set(fell) >= OF_AGENT


def test_kill_9_of_the_privileged_half_between_its_steps(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between laying, noting, pointing and reloading, the next request completes it: Apache never ends down."""
    half = Short(fleet.web1, "certfan-apply.service", beside="certfan-agent.service")

    def end() -> None:
        spin(half.pid, "the privileged half")
        assert kill(half.pid())

    fell, more = _break(Breaker(fleet, seed_of(3)), APPLY, OF_APPLY, end)
    _tell(capsys, "the privileged half", fell, more)

    assert set(fell) >= OF_APPLY


def test_a_power_cut_of_the_consumer_between_install_and_proof(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off with the pointer moved, web1 boots into an Apache that serves the last proven pair or the newer one."""
    breaker = Breaker(fleet, seed_of(3))
    former = fleet.certificate()["serial"]
    stage, _ = breaker.run(Stage.INSTALLED, 0.3, lambda: _cut_and_boot(fleet, former, breaker.books))
    with capsys.disabled():
        print(f"\npower cut of web1: {stage.name.lower()} when it was cut")

    assert [] == [unit for unit in fleet.web1.failed_units() if "certfan" in unit or "apache" in unit]


def _cut_and_boot(fleet: Fleet, former: str, books: Books) -> None:
    fleet.web1.power_cut()
    fleet.web1.boot()
    assert fleet.web1.listens(443)
    web1 = [endpoint for endpoint in ENDPOINTS if endpoint.label.startswith("web1")]
    newest = str(books.ask("SELECT serial FROM generations ORDER BY number DESC LIMIT 1")[0][0])
    assert {fleet.serial(endpoint) for endpoint in web1} <= {former, newest}
