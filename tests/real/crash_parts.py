"""What a crash test sees and does from outside: durable facts by path and by read-only SQLite, kills by outer pid.

Nothing here needs the product's help: no hook, no status page, no log of ours decides when to kill.
"""

import contextlib
import os
import random
import re
import select
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from certfan import pki
from tests.lab import machine
from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.lab.vm import Vm

# What makes a change durable: the steps of a sweep. By io_submit the daemon has the kernel sync.
CALLS = "fsync,fdatasync,io_submit,rename,renameat,renameat2"
HELD = 3000  # microseconds before each of these calls: longer than it takes to kill after the one before
PATIENCE = 60.0  # seconds for an aimed moment to come
CONVERGED = 120.0  # seconds after a kill; a validation that met a dead daemon is tried again after one minute


def seed_of(default: int) -> int:
    """The seed of the kills' order and delays; CERTFAN_SEED overrides."""
    return int(os.environ.get("CERTFAN_SEED") or default)


def sweeps_all() -> bool:
    """Whether every point of every sweep is asked for."""
    return os.environ.get("CERTFAN_SWEEP") == "all"


def points_of(counted: int, seed: int) -> list[int]:
    """Return the durable steps to kill after: a seeded tenth of 1 to `counted`, or all of them."""
    every = list(range(1, counted + 1))
    return every if sweeps_all() else every[random.Random(seed).randrange(10) :: 10]


def tracing(writable: int) -> list[str]:
    """Return strace's words for telling durable calls to a pipe; what to trace follows."""
    words = ["strace", "-f", "-qq", "-o", f"/proc/self/fd/{writable}", "-e", f"trace={CALLS}"]
    return [*words, "-e", f"inject={CALLS}:delay_enter={HELD}"]


def kill_after(steps: int, pid: int, readable: int) -> int:
    """Read a trace to its end, SIGKILL a process after so many durable calls; return how many there were."""
    done = 0
    with open(readable) as trace:
        for line in trace:
            done += re.search(r"= \d+( \(DELAYED\))?$", line.rstrip()) is not None
            if done == steps:
                kill(pid)
    return done


def main_pid(vm: Vm, unit: str) -> int:
    """Return the outer number of a unit's main process, waiting for a restart to be over."""
    machine.wait_until(lambda: _main_pid(vm, unit), f"{unit} to run", 20)
    return _main_pid(vm, unit)


def _main_pid(vm: Vm, unit: str) -> int:
    inner = vm.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()
    for listing in _cgroups(vm, unit):
        for pid in listing.read_text().split():
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{pid}/status").read_text()
                if status.split("NSpid:")[1].splitlines()[0].split()[-1] == inner:
                    return int(pid)
    return 0


class Short:
    """A unit that starts when it is asked and whose process is wanted within a moment."""

    def __init__(self, vm: Vm, unit: str, *, beside: str) -> None:
        self._leader = vm.leader()
        # A unit that does not run has no folder; its neighbour shows where it will be.
        self._listing = _cgroups(vm, beside)[0].parents[1] / unit / "cgroup.procs"

    def pid(self) -> int:
        """Return the outer number of its main process; 0 while there is none."""
        with contextlib.suppress(OSError):
            for pid in self._listing.read_text().split():
                if f"\nPPid:\t{self._leader}\n" in Path(f"/proc/{pid}/status").read_text():
                    return int(pid)
        return 0


def _cgroups(vm: Vm, unit: str) -> list[Path]:
    top = (machine.cgroup2() or Path("/sys/fs/cgroup")) / vm.netns.rsplit("-", 1)[0] / vm.name
    return list(top.glob(f"**/{unit}/cgroup.procs"))


@contextlib.contextmanager
def first_in_line() -> Iterator[None]:
    """Let this thread run whenever it wants to: descheduled for a moment, it would miss a stage."""
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def spin(question: Callable[[], object], what: str, *, then: float = 0.0, patience: float = PATIENCE) -> None:
    """Ask without a pause until it is so, and `then` so many seconds longer: stages last less than a millisecond.

    Raises:
        NotInTime: it was not so in time.
    """
    deadline = time.perf_counter() + patience
    while not question():
        if time.perf_counter() > deadline:
            raise machine.NotInTime(f"not within {patience} s: {what}")
    until = time.perf_counter() + then
    while time.perf_counter() < until:
        pass


def kill(pid: int) -> bool:
    """SIGKILL a process and return when it is gone; False when it was not there any more."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return bool(select.select([handle], [], [], 10)[0])
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def generation_of(pointer: Path) -> int:
    """Return the generation that a live pointer shows; 0 for a placeholder or nothing."""
    try:
        found = re.match(r"\d+", os.readlink(pointer).rsplit("/", 1)[1])
    except OSError:
        return 0
    return int(found[0]) if found else 0


class Ledger:
    """What a daemon has written down in its state folder, as anybody with the disk could read it."""

    def __init__(self, state: Path) -> None:
        self.state = state

    @contextlib.contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """Read the database beside the daemon; nothing is ever written."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.state}/certfan.db?mode=ro", uri=True, isolation_level=None)
        ) as db:
            yield db

    def ask(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Return the rows of one query."""
        with self.opened() as db:
            return db.execute(query, values).fetchall()

    def lost_keys(self) -> list[str]:
        """Return the recorded generations whose key is not in the state folder, or is another's."""
        rows = self.ask("SELECT certificate, number, fingerprint FROM generations")
        return [f"{name}@{number}" for name, number, leaf in rows if not self._holds(str(name), number, leaf)]

    def has_intent_without_order(self) -> bool:
        """Whether a try was begun and its order's URL is not known: newOrder's answer may have been lost."""
        try:
            return bool(self.ask("SELECT 1 FROM issuances WHERE closed_at IS NULL AND order_url IS NULL"))
        except sqlite3.Error:  # no table, no file yet
            return False

    def _holds(self, name: str, number: object, fingerprint: object) -> bool:
        key, chain = (
            self.state / f"generations/{name}@{number}.{kind}" for kind in ("privkey.pem", "fullchain.pem")
        )
        try:
            pair = pki.load_pair(key.read_bytes(), chain.read_bytes())
        except Exception:  # whatever is wrong with it: it is lost
            return False
        return pair.leaf.fingerprint == fingerprint


class Books(Ledger):
    """The ledger of the fleet's daemon, the CA's log, and what a brick holds."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet.cert.path / "var/lib/certfan")
        self.brick = fleet.farm.lab.rundir / "brick/cert/le"
        self.ca_log = fleet.farm.pebble.log_path

    def newest(self) -> int:
        """Return the number of the newest recorded generation."""
        return int(
            str(self.ask("SELECT max(number) FROM generations WHERE certificate = ?", NAME)[0][0] or 0)
        )

    def accounts(self) -> list[tuple[object, ...]]:
        """Return the accounts that the daemon knows."""
        return self.ask("SELECT authority, uri FROM accounts")

    def accounts_at_ca(self) -> int:
        """Return how many accounts the CA has made since it was started."""
        return self._ca_count("accounts in memory")

    def orders_at_ca(self) -> int:
        """Return how many orders the CA has made since it was started."""
        return self._ca_count("orders in the db")

    def orders(self) -> int:
        """Return how many orders the daemon knows."""
        return int(str(self.ask("SELECT count(*) FROM orders")[0][0]))

    def _ca_count(self, what: str) -> int:
        # The last word counts: Pebble keeps everything in memory, and one that was started again counts anew.
        said = re.findall(rf"There are now (\d+) {what}", self.ca_log.read_text(errors="replace"))
        return int(said[-1]) if said else 0


def wait_proven(fleet: Fleet, books: Books, generation: int) -> None:
    """Wait until the status says that every endpoint proves it; openssl must agree with it everywhere."""
    query = (
        "SELECT count(*) FROM generations g JOIN proofs p ON p.certificate = g.certificate"
        " WHERE g.certificate = ? AND g.number = ? AND p.fingerprint != g.fingerprint"
    )

    def looks_done() -> bool:
        if books.newest() < generation:
            return False
        # Asking the status costs two processes; the rows tell when it is worth it.
        return books.ask(query, NAME, generation) == [(0,)]

    wait_patiently(looks_done, f"{NAME}@{generation} proven everywhere")
    fleet.wait_proven(generation, timeout=CONVERGED)
    serial = fleet.certificate()["serial"]
    with ThreadPoolExecutor(len(ENDPOINTS)) as pool:
        assert dict.fromkeys(ENDPOINTS, serial) == dict(
            zip(ENDPOINTS, pool.map(fleet.serial, ENDPOINTS), strict=True)
        )


def wait_patiently(question: Callable[[], object], what: str) -> None:
    """Wait as long as a crash may cost, looking rarely: what is waited for needs this machine's two cores.

    Raises:
        NotInTime: it did not become so.
    """
    deadline = time.monotonic() + CONVERGED
    while not question():
        if time.monotonic() > deadline:
            raise machine.NotInTime(f"not within {CONVERGED} s: {what}")
        select.select([], [], [], 0.05)


def spread(dice: random.Random, aims: list[int], count: int) -> list[int]:
    """Return `count` aims in a random order, every aim as often as any other, give or take one."""
    chosen = [aim for _ in range(count // len(aims)) for aim in aims]
    chosen += dice.sample(aims, count - len(chosen))
    dice.shuffle(chosen)
    return chosen
