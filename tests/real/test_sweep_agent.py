"""Each half of web1's agent killed after every durable step of a renewal, without VMs.

As in test_sweep, strace numbers the steps and holds each back. One place serves all points: a point leaves it well,
one generation older, or fails.
"""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Self

import pytest

from tests.lab import machine
from tests.lab.fleet import CERTIFICATE, NAME
from tests.lab.loopback import Loopback
from tests.lab.loopback_layout import lacking
from tests.real.agent_disk import Disk
from tests.real.crash_parts import Ledger, kill_after, points_of, seed_of, sweeps_all, tracing

pytestmark = [
    pytest.mark.real,
    pytest.mark.sweep,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(lacking()), reason=f"not installed: {', '.join(lacking())}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="tracing needs root"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

NEVER = 10**6
SETTLED = 4  # generations until each renewal also retires an old one
PATIENCE = 60.0
RELOADED = "AH00493"  # Apache's own word for a graceful restart


class Half(StrEnum):
    """What can be killed, as Loopback calls it after the consumer."""

    AGENT = "agent"  # unprivileged, talks to the daemon
    APPLY = "apply"


class Kind(StrEnum):
    """What web1's agent has to do for a renewal."""

    COPY = "copy"
    IN_PLACE = "in-place"
    OWN_KEY = "own-key"  # custody = "consumer": it makes the key, and hands a CSR in


# Durable steps of a renewal; in place, root writes hardly more than its journal and a pointer.
LEAST = {(Kind.IN_PLACE, Half.APPLY): 5}


class Trace:
    """Numbers the durable calls of a running process and of what it runs; kills it after one of them."""

    def __init__(self, pid: int, steps: int) -> None:
        self._pid, self._steps, self._done = pid, steps, 0
        self._readable, writable = os.pipe()
        self._strace = subprocess.Popen(
            [*tracing(writable), "-p", str(pid)], pass_fds=[writable], stdin=subprocess.DEVNULL
        )
        os.close(writable)
        self._counting = threading.Thread(target=self._count, daemon=True)
        self._counting.start()

    def __enter__(self) -> Self:
        machine.wait_until(self._is_on, f"strace to hold {self._pid}")
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> int:
        """Let go of what still runs, and return how many calls there were; repeatable."""
        machine.end(self._strace)
        self._counting.join(PATIENCE)
        return self._done

    def _count(self) -> None:
        self._done = kill_after(self._steps, self._pid, self._readable)

    def _is_on(self) -> bool:
        tasks = [task.read_text() for task in Path(f"/proc/{self._pid}/task").glob("*/status")]
        return bool(tasks) and all("\nTracerPid:\t0\n" not in task for task in tasks)


class Renewals:
    """Renewals of one place, and what web1 looks like after each."""

    def __init__(self, place: Loopback) -> None:
        self._place = place
        self._ledger = Ledger(place.layout.config.parent / "state")
        self._web1 = [one for one in place.endpoints if one.label.startswith("web1")]
        self._number = place.wait_proven()
        for _ in range(SETTLED):
            self.undisturbed(Half.AGENT)

    def undisturbed(self, half: Half) -> int:
        """Renew; return how many durable calls a half of web1's agent made. Apache is reloaded once."""
        disk, before = self._next(), self._reloads()
        with Trace(self._process(half).pid, NEVER) as trace:
            self._place.renew()
            self._settle(disk)
            counted = trace.end()
        assert 1 == self._reloads() - before
        return counted

    def killed_after(self, half: Half, point: int) -> int:
        """Renew, kill a half after a durable call and start it again; check; return Apache's reloads."""
        former, disk, before = self._place.certificate()["serial"], self._next(), self._reloads()
        process = self._process(half)
        with Trace(process.pid, point):
            self._place.renew()
            assert -signal.SIGKILL == process.wait(PATIENCE), f"{half}: no call {point}"
        served = {self._place.serial(self._web1[0])}  # while that half is down
        self._start(half)
        served |= self._settle(disk)
        newest = self._place.certificate()["serial"]
        assert served <= {former, newest}, (half, point)
        assert {newest} == {self._place.serial(endpoint) for endpoint in self._web1}, (half, point)
        disk.assert_settled_well()
        return self._reloads() - before

    def _next(self) -> Disk:
        self._number += 1
        home = self._place.layout.home("web1")
        return Disk(home / "state", home / "installed", self._ledger, self._number)

    def _settle(self, disk: Disk) -> set[str]:
        """Wait until all is proven, concluded and reported; return the serials that Apache served meanwhile."""
        served = set()

        def settled() -> bool:
            served.add(self._place.serial(self._web1[0]))
            return disk.is_settled()

        machine.wait_until(settled, f"{NAME}@{self._number} to be reported by web1", PATIENCE)
        assert self._number == self._place.wait_proven(self._number)
        return served

    def _process(self, half: Half) -> subprocess.Popen[bytes]:
        return self._place.processes[f"web1-{half}"]

    def _start(self, half: Half) -> None:
        start = {Half.AGENT: self._place.start_unprivileged, Half.APPLY: self._place.start_privileged}
        start[half]("web1")

    def _reloads(self) -> int:
        return self._place.servers["apache2"].log.read_text(errors="replace").count(RELOADED)


@pytest.fixture(scope="module", params=Kind)
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


@pytest.fixture(scope="module")
def place(kind: Kind) -> Iterator[Loopback]:
    in_place = ["web1"] if kind is Kind.IN_PLACE else []
    with Loopback(probe_interval=5, nonce_reject=0, retry_after=0, in_place=in_place).up() as up:
        if kind is Kind.OWN_KEY:
            names = ", ".join(f'"{name}"' for name in up.layout.names if not name.startswith("mail."))
            text = CERTIFICATE.format(names=names, consumers='"web1"')
            up.write_config("own", f'{text}custody = "consumer"\n')
        else:
            up.add_certificate()
        yield up


@pytest.fixture(scope="module")
def renewals(place: Loopback) -> Renewals:
    return Renewals(place)


@pytest.mark.parametrize("half", Half)
def test_killed_after_any_durable_step_a_half_of_the_agent_converges(
    kind: Kind, renewals: Renewals, half: Half, say: Callable[[str], None]
) -> None:
    """Whatever it was killed after: proven and reported, at most one reload more, Apache never without an answer."""
    counted, seed = renewals.undisturbed(half), seed_of(5)
    points = points_of(counted, seed) or [counted // 2]
    more = []
    for point in points:
        took = renewals.killed_after(half, point)
        assert 1 <= took <= 2, point
        if took == 2:
            more.append(point)
    say(
        f"{kind}: {half} killed after {len(points)} of {counted} durable steps, seed {seed};"
        f" one reload more at {more or 'none'}"
    )

    assert len(points) >= (counted if sweeps_all() else counted // 10)
    assert counted >= LEAST.get((kind, half), 20)
