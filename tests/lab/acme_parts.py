"""What `make bench-acme` and `make bench-responder` stand on: one Pebble without sleeps, and the real daemon before it.

Every name is at 127.0.0.1, where one port plays port 80: the daemon's responder, a peer's own listener or its web
server has it. Pebble is watched: when nothing comes of anything for a while, the measurement is made again with a new one.
"""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.lab import machine
from tests.lab.pebble import LoopbackDns, Pebble, free_port

T = TypeVar("T")
TICKS = os.sysconf("SC_CLK_TCK")
TRIES = 4
# Elsewhere in real life, CA and DNS interrupt nobody on this machine: they get their time, but only when it is free or due.
INTERRUPTS_NOBODY = ("chrt", "--batch", "0")  # sched(7)
NO_SLEEP = {"PEBBLE_AUTHZREUSE": "0", "PEBBLE_VA_NOSLEEP": "1"}
_CONFIG = """\
fleet = "bench"
state = "{here}/state"
[share]
path = "{here}/share"
require_mount = false
[http01]
listen = ["127.0.0.1:{http}"]
self_check = "off"
[channel]
listen = ["127.0.0.1:{channel}"]
[status]
listen = ["127.0.0.1:{status}"]
[control]
socket = "{here}/control.sock"
group = "root"
[authority.pebble]
directory = "{directory}"
ca_file = "{ca_file}"
roots_file = "{roots_file}"
contact = ["mailto:hostmaster@example.test"]
profile = "default"
agree_to_terms = true
[consumer.web1]
group = "root"
"""


class Stuck(machine.NotInTime):
    """Nothing came of anything for a while: the CA's known deadlock, or a fault of a client."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What some certificates took a client; CPU is that of all its processes, the CA's and web servers' excluded."""

    count: int
    seconds: float
    cpu: float
    requests: int

    @property
    def per_second(self) -> float:
        """Certificates per second."""
        return self.count / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a certificate."""
        return self.cpu / self.count * 1000

    @property
    def requests_each(self) -> float:
        """Requests that the CA logged, nonces and look-ups of the directory included, a certificate."""
        return self.requests / self.count


class Ca:
    """One Pebble without sleeps, rejected nonces and reused authorizations, and its DNS."""

    def __init__(self, folder: Path) -> None:
        self.http = free_port()
        self._dns = LoopbackDns(folder, prefix_argv=INTERRUPTS_NOBODY)
        self.pebble = Pebble(
            folder, self._dns.server, http_port=self.http, prefix_argv=INTERRUPTS_NOBODY,
            nonce_reject=0, retry_after=0, env=NO_SLEEP,
        )  # fmt: skip

    def __enter__(self) -> "Ca":
        self._dns.start()
        self.pebble.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pebble.stop()
        self._dns.stop()

    def requests(self) -> int:
        """Return how many requests its log holds."""
        return len(re.findall(rb"-> calling handler\(\)", self.pebble.log_path.read_bytes()))


def anew_when_stuck(folder: Path, measure: Callable[[Ca, Path], T]) -> T:
    """Measure with a fresh CA, again with another one when it got stuck; says so.

    What it wrote stays, for whoever made `folder` to remove when all is measured: for minutes after many files were
    removed, an ext4 without a journal spends several times as long on each new one (`recently_deleted` in perf).
    """
    for attempt in range(1, TRIES + 1):
        here = folder / str(attempt)
        here.mkdir(parents=True)
        try:
            with Ca(here) as ca:
                return measure(ca, here)
        except Stuck as why:
            print(f"  {why}; again with a new CA ({attempt} of {TRIES})", flush=True)
    raise machine.NotInTime(f"stuck {TRIES} times")


def wait_while_it_grows(count: Callable[[], int], wanted: int, patience: float = 15) -> None:
    """Return when there are as many as wanted.

    Raises:
        Stuck: it was the same number for `patience` seconds.
    """
    seen, since = -1, time.monotonic()
    while (now := count()) < wanted:
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            raise Stuck(f"{now} of {wanted} for {patience:.0f} s")
        time.sleep(0.02)


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process, of the living ones below it, and of those that it has reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS + sum(cpu_of(int(child)) for child in children)


def status_mib(pid: int, field: str) -> float:
    """Return VmRSS, VmHWM or the like."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found, field
    return int(found[1]) / 1024


class Daemon:
    """The real daemon with its consumer, its share a plain folder, and no certificate yet.

    Without a share it publishes nothing, which it would do again and again: all else is as ever.
    """

    def __init__(self, ca: Ca, here: Path, *, share: bool = True) -> None:
        self._here = here
        self._config = (
            here / "etc/certfan.toml"
        )  # alone in its folder, as in real life: each write there wakes the watch
        for name in ("etc", "share") if share else ("etc",):
            (here / name).mkdir()
        self._text = _CONFIG.format(
            here=here, http=ca.http, channel=free_port(), status=free_port(),
            directory=ca.pebble.directory_url, ca_file=ca.pebble.ca_file, roots_file=ca.pebble.roots_file,
        )  # fmt: skip
        self._config.write_text(self._text)
        if share:
            self._certfan("share", "setup", "--user", "root", "--config", str(self._config))

    @contextlib.contextmanager
    def running(self) -> Iterator["Daemon"]:
        """Run it until the end of the block."""
        argv = [sys.executable, "-m", "certfan", "daemon", "--config", str(self._config)]
        (self._here / "control.sock").unlink(
            missing_ok=True
        )  # opened last: its return says that all else stands
        self._process = machine.spawn(argv, self._here / "log", env={"PYTHONPATH": str(machine.PROJECT)})
        try:
            machine.wait_until(lambda: (self._here / "control.sock").exists(), "the daemon to start", 20)
            # Opened once: to open it at each look took as much as a tenth of what the daemon does beside it.
            with contextlib.closing(sqlite3.connect(self.database_path)) as self._database:
                yield self
        finally:
            machine.end(self._process, 20)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def want(self, names: Iterable[str]) -> None:
        """Let the config ask for a certificate of each name besides what it asks for already."""
        self._text += "".join(
            f'[[certificate]]\nnames = ["{name}"]\nconsumers = ["web1"]\n' for name in names
        )
        new = self._config.with_suffix(".new")
        new.write_text(self._text)
        new.replace(self._config)

    def issued(self) -> int:
        """Return how many generations are recorded."""
        return self._count("generations")

    def offered(self) -> int:
        """Return how many were published and offered to the consumer."""
        return self._count("assignments WHERE generation > 0")

    @property
    def database_path(self) -> Path:
        """Its store; write into it only while it does not run."""
        return next((self._here / "state").glob("*.db"))

    def _count(self, table: str) -> int:
        return int(self._database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def _certfan(self, *words: str) -> None:
        machine.run([sys.executable, "-m", "certfan", *words])


def run_all(argvs: Sequence[Sequence[str]], log: Path, *, at_once: int, env: Mapping[str, str]) -> float:
    """Run programs, some at once, and return their CPU seconds; each must succeed.

    Raises:
        Stuck: one took longer than two minutes.
    """
    before = os.times()
    waiting, running = list(reversed(argvs)), list[subprocess.Popen[bytes]]()
    since = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(machine.spawn(waiting.pop(), log, env=dict(env)))
            for process in [one for one in running if one.poll() is not None]:
                running.remove(process)
                since = time.monotonic()
                if process.returncode:
                    raise Stuck(f"{argvs[0][0]} failed: {log.read_text()[-600:]}")
            if time.monotonic() - since > 60:
                raise Stuck(f"{len(running)} of {argvs[0][0]} for 60 s")
            time.sleep(0.01)
    finally:
        for process in running:
            machine.end(process)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system
