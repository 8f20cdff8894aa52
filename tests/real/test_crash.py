"""kill -9 of the daemon at every stage of an order: every run ends with the same proof, and nothing is lost.

The moment is chosen from outside: a tight loop watches what the daemon has made durable (its database beside it, the
files of its state folder, the share's pointer on a brick) and kills as soon as the aimed stage is reached, or a random
while later. Where a kill really fell is read from the same facts afterwards.
"""

import random
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import pytest

from tests.lab.fleet import NAME, Fleet
from tests.real.crash_parts import (
    Books,
    first_in_line,
    generation_of,
    kill,
    main_pid,
    seed_of,
    spin,
    spread,
    wait_patiently,
    wait_proven,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

KILLS = 30
AIMED_AGAIN = 15  # at most, at stages that no kill has fallen into
NAMES = (NAME, f"www.{NAME}", f"v6.{NAME}", f"mail.{NAME}")


class Stage(IntEnum):
    """The last durable fact before a kill, in the order of an order (DESIGN.md section 4)."""

    NOTHING = 0
    SEEN = 1  # the config change, or the wish
    KEY = 2
    INTENT = 3
    ORDER = 4  # its URL
    TOKEN = 5  # recorded, the authority not yet told to try it
    ANSWERED = 6  # every token recorded so far
    FINALIZE = 7  # about to be sent, or seen by the authority
    CHAIN = 8  # saved beside its key
    GENERATION = 9
    PUBLISHED = 10
    OFFERED = 11
    INSTALLED = 12  # or reloaded, as told by a consumer
    PROVEN = 13  # by a consumer


# Seconds that a stage lasts, more or less: how long after its begin a kill may fall.
LASTS = {
    Stage.SEEN: 0.004,
    Stage.KEY: 0.0,
    Stage.INTENT: 0.004,
    Stage.ORDER: 0.004,
    Stage.TOKEN: 0.002,
    Stage.ANSWERED: 0.004,
    Stage.FINALIZE: 1.0,
    Stage.CHAIN: 0.0,
    Stage.GENERATION: 0.05,
    Stage.PUBLISHED: 0.004,
    Stage.OFFERED: 0.05,
    Stage.INSTALLED: 0.5,
    Stage.PROVEN: 1.0,
}
_FACTS = """
SELECT (SELECT count(*) FROM events WHERE id > :event AND name IN ('config.taken', 'renewal.asked')),
       (SELECT count(*) FROM issuances WHERE certificate = :name AND generation = :number),
       (SELECT count(*) FROM orders WHERE certificate = :name AND generation = :number),
       (SELECT count(*) FROM tokens WHERE certificate = :name),
       (SELECT count(*) FROM answered JOIN issuances ON issuances.id = answered.issuance
        WHERE certificate = :name AND generation = :number),
       (SELECT count(*) FROM events WHERE id > :event AND name = 'challenge.fetched' AND subject = :name),
       (SELECT count(*) FROM generations WHERE certificate = :name AND number = :number),
       (SELECT count(*) FROM assignments WHERE certificate = :name AND generation = :number),
       (SELECT count(*) FROM deployments WHERE certificate = :name AND generation = :number),
       (SELECT count(*) FROM deployments WHERE certificate = :name AND generation = :number AND state = 'proven')
"""


class Watch:
    """How far one generation has come, by what would survive a power cut."""

    def __init__(self, books: Books, db: sqlite3.Connection, number: int) -> None:
        self._db = db
        self._pair = f"{books.state}/generations/{NAME}@{number}"
        self._pointers = [books.brick / consumer / "live" / NAME for consumer in ("web1", "mail1")]
        self._number = number
        self._ca_log, self._told = books.ca_log, books.ca_log.stat().st_size
        self._finalized = False
        (last,) = db.execute("SELECT max(id) FROM events").fetchone()
        self._values = {"event": last or 0, "name": NAME, "number": number}

    def stage(self) -> Stage:
        """Return the last stage whose fact is there."""
        return max((stage for stage, fact in self._facts().items() if fact), default=Stage.NOTHING)

    def reached(self, aim: Stage) -> bool:
        """Whether the aimed stage is reached, or was passed; the file system answers quicker than the database."""
        match aim:
            case Stage.KEY:
                return Path(f"{self._pair}.privkey.pem").exists()
            case Stage.CHAIN:
                return Path(f"{self._pair}.fullchain.pem").exists()
            case Stage.PUBLISHED:
                return self._is_published()
            case _:
                return self.stage() >= aim

    def is_finalized(self) -> bool:
        """Whether the authority has begun to make the certificate."""
        if not self._finalized:
            with self._ca_log.open("rb") as log:
                log.seek(self._told)
                self._finalized = b"Processing finalization" in log.read()
        return self._finalized

    def _is_published(self) -> bool:
        return any(generation_of(pointer) == self._number for pointer in self._pointers)

    def _facts(self) -> dict[Stage, bool]:
        row = self._db.execute(_FACTS, self._values).fetchone()
        seen, tries, orders, tokens, answered, fetched, recorded, offered, deployed, proven = row
        return {
            Stage.SEEN: seen > 0,
            Stage.KEY: Path(f"{self._pair}.privkey.pem").exists(),
            Stage.INTENT: tries > 0,
            Stage.ORDER: orders > 0,
            Stage.TOKEN: tokens > answered,
            Stage.ANSWERED: 0 < tokens <= answered,
            Stage.FINALIZE: fetched > 0 or self.is_finalized(),
            Stage.CHAIN: Path(f"{self._pair}.fullchain.pem").exists(),
            Stage.GENERATION: recorded > 0,
            Stage.PUBLISHED: self._is_published(),
            Stage.OFFERED: offered > 0,
            Stage.INSTALLED: deployed > 0,
            Stage.PROVEN: proven > 0,
        }


@dataclass(frozen=True, slots=True)
class Run:
    """One kill: where it fell, and how many orders the CA saw for the one certificate."""

    stage: Stage
    orders: int
    has_csr: bool  # the authority, which then needs nobody to listen any more


class Killer:
    """Has a new generation made, kills the daemon meanwhile, and looks what became of it."""

    def __init__(self, fleet: Fleet, dice: random.Random) -> None:
        self._fleet, self._dice = fleet, dice
        self._books = Books(fleet)
        self._account = self._books.accounts()
        self._wider = False
        self._failures = 0

    def run(self, aim: Stage, *, by_config: bool = False, late: bool = True) -> Run:
        """Kill once at a stage, or up to `late` after its begin; return when the proof is the same everywhere."""
        books, number = self._books, self._books.newest() + 1
        orders, known = books.orders_at_ca(), books.orders()
        pid = main_pid(self._fleet.cert, "certfan.service")
        with books.opened() as db:
            watch = Watch(books, db, number)
            asking = self._begin(by_config)
            then = self._dice.uniform(0, LASTS[aim]) if late else 0.0
            with first_in_line():
                spin(lambda: watch.reached(aim), f"{aim.name} of {NAME}@{number}", then=then)
                assert kill(pid)
            stage, has_csr = watch.stage(), watch.is_finalized()
        if asking:
            asking.wait(60)  # cut off or not: what it asked for was recorded
        self._help_after_first_failure(number)
        wait_proven(self._fleet, books, number)
        run = Run(stage, books.orders_at_ca() - orders, has_csr)
        self._check(run, number, books.orders() - known)
        return run

    def narrow_again(self) -> None:
        """Take the additional name away, if it is in."""
        if self._wider:
            number = self._books.newest() + 1
            self._begin(True)
            wait_proven(self._fleet, self._books, number)

    def _help_after_first_failure(self, number: int) -> None:
        """Where the CA met a dead daemon, the next try waits a minute: the first time so do we, then we ask for it."""
        failed = "SELECT 1 FROM attempts WHERE subject = ?"
        wait_patiently(
            lambda: self._books.newest() >= number or self._books.ask(failed, NAME), "an order's end"
        )
        if self._books.newest() < number:
            self._failures += 1
            if self._failures > 1:
                self._fleet.renew()

    def _begin(self, by_config: bool) -> subprocess.Popen[str] | None:
        if not by_config:
            return self._fleet.cert.popen(["certfan", "renew", NAME])
        self._wider = not self._wider
        self._fleet.add_certificate((*NAMES, f"n00.{NAME}") if self._wider else NAMES)
        return None

    def _check(self, run: Run, number: int, known: int) -> None:
        books = self._books
        assert number == books.newest()
        assert [] == books.lost_keys()
        assert self._account == books.accounts()
        assert 1 == books.accounts_at_ca()
        # One more only where the answer to newOrder was lost, or where the CA validated while nobody listened.
        nobody_listened = run.stage in {Stage.TOKEN, Stage.ANSWERED, Stage.FINALIZE} and not run.has_csr
        may_cost_one = run.stage is Stage.INTENT or nobody_listened
        assert 1 <= known <= run.orders <= 1 + may_cost_one, run


@pytest.fixture
def killer(fleet: Fleet) -> Iterator[Killer]:
    """One seeded killer, its seed printed; the config is as before at the end."""
    killer = Killer(fleet, random.Random(seed_of(2)))
    yield killer
    killer.narrow_again()


def test_kill_9_of_the_daemon_at_every_stage_of_an_order_changes_nothing(
    killer: Killer, say: Callable[[str], None]
) -> None:
    """Killed anywhere between config and proof, it ends proven: one account, no key lost, at most one order more."""
    dice = random.Random(seed_of(2))
    stages = [stage for stage in Stage if stage]
    runs = [
        killer.run(Stage(aim), by_config=number % 4 == 3)
        for number, aim in enumerate(spread(dice, [int(stage) for stage in stages], KILLS))
    ]
    for _ in range(AIMED_AGAIN):
        if not (missed := sorted(set(stages) - {run.stage for run in runs})):
            break
        runs.append(killer.run(missed[0], late=False))
    fell = Counter(run.stage for run in runs)
    stages_hit = ", ".join(f"{stage.name.lower()} {fell[stage]}" for stage in Stage if stage or fell[stage])
    say(f"{len(runs)} kills of the daemon, seed {seed_of(2)}: {stages_hit}")
    say(f"orders more than certificates: {sum(run.orders - 1 for run in runs)}, never two in one run")

    assert [] == [stage.name for stage in stages if not fell[stage]]
