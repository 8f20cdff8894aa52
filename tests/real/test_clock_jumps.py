"""The whole daemon while its wall clock jumps, against a real CA: no order but what the right time asks for.

libfaketime moves the clock of the daemon alone; Pebble, a Go program, keeps the right time. What is planned after a
jump is seen by what needs no clock: a consumer that a certificate gets is offered it.
"""

import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import machine
from tests.lab.pebble import LoopbackDns, Pebble, free_port
from tests.real.crash_parts import Ledger

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        machine.pebble_program() is None or not LoopbackDns.available(), reason="pebble is not installed"
    ),
    pytest.mark.skipif(not FAKETIME.exists(), reason="faketime is not installed"),
]

NAMES: tuple[str, ...] = tuple(f"h{number}.example.test" for number in range(10))
SHORT = "short.example.test"  # due 9 seconds after it was issued: by it one sees that renewals go on
PATIENCE = 90.0
CONFIG = """\
fleet = "clock"
state = "{here}/state"
[share]
path = "{here}/share"
require_mount = false
[http01]
listen = ["127.0.0.1:{responder}"]
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
agree_to_terms = true
"""


class Place:
    """One Pebble that tells the time, and one daemon with a clock of its own."""

    def __init__(self, here: Path) -> None:
        self._here, self._names, self._consumers = here, NAMES, 1
        self._status, responder = free_port(), free_port()
        self.dns = LoopbackDns(here)
        self.pebble = Pebble(here, self.dns.server, http_port=responder, nonce_reject=0, retry_after=0)
        self._ledger = Ledger(here / "state")
        self._daemon: subprocess.Popen[bytes] | None = None
        self.dns.start()
        self.pebble.start()
        (here / "conf.d").mkdir()
        (here / "share").mkdir()
        self._write("certfan.toml", CONFIG.format(
            here=here, responder=responder, channel=free_port(), status=self._status,
            directory=self.pebble.directory_url, ca_file=self.pebble.ca_file, roots_file=self.pebble.roots_file,
        ))  # fmt: skip
        self._want()
        self.shift_clock("+0")
        argv = [sys.executable, "-m", "certfan", "share", "setup", "--user", "root"]
        machine.run([*argv, "--config", str(here / "certfan.toml")])

    def close(self) -> None:
        """End what was started."""
        self.stop()
        self.pebble.stop()
        self.dns.stop()

    def shift_clock(self, offset: str) -> None:
        """Let the daemon's wall clock be off by that much from now on."""
        self._write("clock", offset)

    def start(self) -> None:
        """Start the daemon."""
        self._daemon = machine.spawn(
            [sys.executable, "-m", "certfan", "daemon", "--config", str(self._here / "certfan.toml")],
            self._here / "log",
            env={
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self._here / "clock"),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            },
        )

    def stop(self) -> None:
        """Stop it; repeatable."""
        if self._daemon:
            machine.end(self._daemon)

    def orders(self) -> int:
        """Return how many orders the CA has taken."""
        return len(re.findall(r"orders in the db", self.pebble.log_path.read_text(errors="replace")))

    def issued(self, *names: str) -> int:
        """Return how many generations these certificates have together."""
        listed = ", ".join("?" * len(names))
        query = f"SELECT count(*) FROM generations WHERE certificate IN ({listed})"
        return int(str(self._ledger.ask(query, *names)[0][0]))

    def plan_once(self) -> None:
        """Return when the daemon has planned, and begun what it wished, after this moment."""
        self._consumers += 1
        self._want()
        offered, newest = "SELECT 1 FROM assignments WHERE consumer = ?", f"web{self._consumers}"
        self._wait(lambda: self._ledger.ask(offered, newest), f"{newest} to be offered something")

    def problems(self) -> dict[str, str]:
        """Return the code of each problem by its subject."""
        return {one["subject"]: one["code"] for one in self._get("/api/v1/status")["problems"]}

    def wait_trusted(self) -> None:
        """Return when the status does not name the clock any more."""
        self._wait(lambda: "clock" not in self.problems(), "the clock to be believed")

    def issue_all(self) -> None:
        """Return when all is issued, the short one last, so that it is due as late as can be."""
        self._wait(lambda: self.issued(*NAMES) == len(NAMES), "the first certificates")
        self._names = (*NAMES, SHORT)
        self._want()
        self._wait(lambda: self.issued(SHORT), SHORT)

    def wait_renewed(self) -> None:
        """Return when the short one was renewed, and no order is under way."""
        self._wait(lambda: self.issued(SHORT) > 1, f"{SHORT} to be renewed")
        self._wait(lambda: self.orders() == self.issued(SHORT, *NAMES), "every order to be a certificate")

    def events(self) -> list[str]:
        """Return the names of all that the journal tells of the clock, oldest first."""
        events = self._get("/api/v1/events?after=0&limit=1000")["events"]
        return [event["name"] for event in events if event["subject"] == "clock"]

    def _want(self) -> None:
        consumers = [f"web{number}" for number in range(1, self._consumers + 1)]
        text = "".join(f'[consumer.{one}]\ngroup = "root"\n' for one in consumers)
        for name in self._names:
            profile = "minute" if name == SHORT else "default"
            text += f'[[certificate]]\nnames = ["{name}"]\nprofile = "{profile}"\n'
            text += f"consumers = {json.dumps(consumers)}\n"
        self._write("conf.d/all.toml", text)

    def _write(self, name: str, text: str) -> None:
        fresh = self._here / "fresh"
        fresh.write_text(text)
        fresh.replace(self._here / name)

    def _get(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self._status}{path}"
        return json.loads(machine.run(["curl", "-sSf", "--max-time", "5", url]).stdout)

    def _wait(self, question: Any, what: str) -> None:
        def answered() -> object:
            assert self._daemon is not None
            assert self._daemon.poll() is None, f"the daemon ended; see {self._here}/log"
            try:
                return question()
            except (machine.CommandFailed, sqlite3.Error):  # it is just starting
                return False

        machine.wait_until(answered, f"{what}; see {self._here}/log", PATIENCE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A daemon that has issued everything under the right time."""
    place = Place(tmp_path)
    try:
        place.start()
        place.issue_all()
        yield place
    finally:
        place.close()


def assert_nothing_is_ordered(place: Place, before: int) -> None:
    """Two whole plans, and everything that the first one began, cost no order."""
    place.plan_once()
    assert "clock" in place.problems()
    place.plan_once()
    assert before == place.orders()


def assert_renewals_go_on(place: Place) -> None:
    """What is due by the right time is ordered, without anybody's help, and nothing else is."""
    place.shift_clock("+0")
    place.wait_trusted()
    place.wait_renewed()
    assert len(NAMES) == place.issued(*NAMES)


@pytest.mark.parametrize("jump", ["+90d", "-30d"])
def test_a_clock_that_jumps_under_the_daemon_starts_no_renewal(place: Place, jump: str) -> None:
    """All ten are due, or not valid yet, by a clock that jumped: nothing is ordered, whoever restarts it, until the CA's Date agrees."""
    before = place.orders()
    place.shift_clock(jump)

    assert_nothing_is_ordered(place, before)
    place.stop()  # what an admin tries first
    place.start()
    assert_nothing_is_ordered(place, before)
    assert_renewals_go_on(place)
    assert ["clock.doubted", "clock.confirmed"] == [*dict.fromkeys(place.events())]


def test_a_daemon_that_starts_in_1970_starts_no_renewal(place: Place) -> None:
    """A machine whose clock lost its battery is told of it, and goes on when the time is right."""
    place.stop()
    before = place.orders()
    place.shift_clock(f"-{int(time.time()) - 86400}")
    place.start()

    assert_nothing_is_ordered(place, before)
    assert_renewals_go_on(place)
    assert place.events()[0] == "clock.doubted"
