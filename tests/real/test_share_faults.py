"""Every fault of a share on a real GlusterFS volume, under a booted systemd, with a real authority.

Each is felt by a plain program too, and neither felt nor named before it begins: else the test would prove nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator

import pytest

from tests.lab import machine
from tests.lab.fleet import NAME, Fleet
from tests.real.share_faults import (
    FAULTS,
    PYTHON,
    SHARE,
    Fault,
    felt,
    gluster,
    issued_here,
    pointer,
    renew_client,
    settled,
    signal_bricks,
    told,
    watching,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

NAMED, HEALED, LAG = 5.0, 30.0, 0.1  # seconds


@pytest.fixture(scope="module")
def shared(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with its share's id in the config, and a volume whose frozen bricks are waited for."""
    share_id = json.loads(fleet.cert.run(["cat", f"{SHARE}/certfan.share"]).stdout)["share"]
    config = "/etc/certfan/certfan.toml"
    before = fleet.cert.run(["cat", config]).stdout
    fleet.cert.run(
        ["tee", config], input=before.replace('path = "/srv/le"', f'path = "/srv/le"\nid = "{share_id}"')
    )
    gluster(fleet, "volume", "set", "le", "network.ping-timeout", "20")
    yield fleet
    fleet.cert.run(["tee", config], input=before)
    gluster(fleet, "volume", "set", "le", "network.ping-timeout", "10")
    fleet.wait_proven(timeout=90)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_of_the_share_is_named_outlived_and_healed(shared: Fleet, fault: Fault) -> None:
    """Named within 5 s, challenges answered and issuance done meanwhile, healed within 30 s, nothing lost."""
    before = settled(shared)
    assert felt(shared.cert) == ""
    assert not told(shared, fault.said)
    took = {}
    with contextlib.ExitStack() as watched:
        if not fault.restarts:
            watch = watched.enter_context(watching(shared))
        fault.begin(shared)
        began = time.monotonic()
        try:
            machine.wait_until(lambda: told(shared, fault.said), f"{fault.name} named", 10)
            took["named"] = time.monotonic() - began
            if fault.restarts:
                watch = watched.enter_context(watching(shared))
            feeling = felt(shared.cert)
            shared.renew()
            machine.wait_until(lambda: issued_here(shared, before + 1), "issued into local state", 20)
            published = pointer(shared)
            below = shared.cert.run(["ls", "-A", SHARE]).stdout if fault.bare else ""
        finally:
            fault.end(shared)
        ended = time.monotonic()
        machine.wait_until(lambda: settled(shared) == before + 1, f"{fault.name} healed", HEALED)
        took["healed"] = time.monotonic() - ended
    print(f"\n{fault.name}: {took}, worst lag {watch.worst * 1000:.0f} ms of {watch.asked}")

    assert took["named"] < NAMED
    assert re.search(fault.felt, feeling)
    assert below == ""
    assert published in {before, 0}
    assert watch.asked > 50
    assert watch.worst < LAG
    assert shared.cert.run(["certfan", "share", "verify"], check=False).stdout.endswith("as it should be\n")


OUTAGE = r"""
import json, socket, subprocess, sys, time
def answers():
    try:
        with socket.create_connection(("10.62.0.10", 8055), 1) as line:
            line.settimeout(1)
            line.sendall(b"GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: x\r\n\r\n")
            return line.recv(99).startswith(b"HTTP/1.1 404")
    except OSError:
        return False
began = time.monotonic()
doing = subprocess.Popen(sys.argv[1:])
refused = 0.0
while time.monotonic() - began < refused + 1.5 or doing.poll() is None:
    if not answers():
        refused = time.monotonic() - began
pid = subprocess.run(["systemctl", "show", "-P", "MainPID", "certfan"], capture_output=True, text=True).stdout.strip()
waited = int(open(f"/proc/{pid}/schedstat").read().split()[1]) / 1e9
print(json.dumps([refused, waited]))
"""


def _outage(fleet: Fleet, *argv: str) -> float:
    """Do something to the daemon; return after how many seconds it last did not answer.

    What the new process waited for a core, beside all else that runs here, is not counted.
    """
    refused, waited = json.loads(fleet.cert.run([PYTHON, "-c", OUTAGE, *argv]).stdout)
    return float(refused - waited)


def test_a_daemon_with_a_frozen_share_is_back_within_two_seconds(shared: Fleet) -> None:
    """`systemctl restart` and kill -9, while its worker hangs in the kernel, where no signal reaches it."""
    settled(shared)
    frozen = next(fault for fault in FAULTS if fault.felt == "hung")
    frozen.begin(shared)
    try:
        machine.wait_until(lambda: told(shared, frozen.said), "the hang named", 10)
        worker = _worker(shared)
        took = {
            "restart": _outage(shared, "systemctl", "restart", "certfan"),
            "kill": _outage(shared, "systemctl", "kill", "--signal=KILL", "certfan"),
        }
        state = shared.cert.run(["ps", "-o", "state=", "-p", worker], check=False).stdout.strip()
        machine.wait_until(lambda: told(shared, f"process {worker}"), "the older worker named", 10)
    finally:
        frozen.end(shared)
    ended = time.monotonic()
    settled(shared)
    print(f"\nback after {took}, healed after {time.monotonic() - ended:.1f} s")

    assert state == "D"
    assert 0 < took["restart"] < 2
    assert 0 < took["kill"] < 2
    assert time.monotonic() - ended < HEALED


def _worker(fleet: Fleet) -> str:
    return fleet.cert.run(["cat", "/var/lib/certfan/share-worker.lock"]).stdout.strip()


def test_a_consumer_that_fills_its_folder_stops_nobody_else(shared: Fleet) -> None:
    """Root on web1 remounts its folder for writing and fills it: mail1 gets its keys, and the status names the quota."""
    before = settled(shared)
    fill = "mount -o remount,rw /srv/le && dd if=/dev/zero of=/srv/le/fill bs=64k count=160 conv=fsync"
    for words in (["enable"], ["limit-usage", "/web1", "4MB"], ["soft-timeout", "0"], ["hard-timeout", "0"]):
        gluster(shared, "volume", "quota", "le", *words)
    try:
        # Whether this very write is refused is a race with the volume's accounting; the daemon's next one is.
        shared.web1.run(["sh", "-c", fill], check=False)
        shared.renew()
        machine.wait_until(lambda: pointer(shared, "mail1") == before + 1, "mail1's keys", 20)
        machine.wait_until(
            lambda: told(shared, rf"^{NAME}/web1 share\.full: .*quota.* -- .*gluster volume quota"),
            "the quota named",
            NAMED,
        )
        left = pointer(shared, "web1")
        gluster(shared, "volume", "quota", "le", "limit-usage", "/web1", "1GB")
        machine.wait_until(lambda: pointer(shared, "web1") == before + 1, "web1's keys", HEALED)
    finally:
        shared.web1.run(["sh", "-c", "rm -f /srv/le/fill; mount -o remount,ro /srv/le"])
        gluster(shared, "volume", "quota", "le", "disable")
        # A client may hang for good when the volume changes below it: the next test gets a fresh one.
        renew_client(shared)

    assert left == before


@pytest.mark.sweep
@pytest.mark.timeout(300)
def test_one_frozen_brick_costs_the_daemon_nothing_but_patience(shared: Fleet) -> None:
    """The other brick is well, and yet every call hangs for one to two ping-timeouts; the volume goes on while it is frozen."""
    before = settled(shared)
    patience = 42 if os.environ.get("CERTFAN_SWEEP") == "all" else 5
    gluster(shared, "volume", "set", "le", "network.ping-timeout", str(patience))
    hung = next(fault.said for fault in FAULTS if fault.felt == "hung")
    with watching(shared) as watch:
        signal_bricks(shared, "STOP", shared.farm.host)
        began = time.monotonic()
        try:
            machine.wait_until(lambda: told(shared, hung), "the hang named", 10)
            named = time.monotonic() - began
            shared.renew()
            machine.wait_until(lambda: issued_here(shared, before + 1), "issued into local state", 20)
            machine.wait_until(
                lambda: pointer(shared, brick="cert") == before + 1,
                "published on the other brick",
                30 + 3 * patience,  # a try that was hung for too long is begun again
            )
            alone = time.monotonic() - began
        finally:
            signal_bricks(shared, "CONT", shared.farm.host)
            gluster(shared, "volume", "set", "le", "network.ping-timeout", "20")
    shared.farm.gluster.heal()
    machine.wait_until(lambda: settled(shared) == before + 1, "both bricks alike", 60)
    print(f"\nping-timeout {patience}: named after {named:.1f} s, published on one brick after {alone:.1f} s")

    assert named < NAMED
    assert watch.worst < LAG


def test_the_watcher_sees_a_loop_that_stands_still(shared: Fleet) -> None:
    """The control of all the lags above: a daemon that is stopped for a third of a second is seen to be."""
    with watching(shared) as watch:
        for name in ("STOP", "CONT"):
            shared.cert.run(["systemctl", "kill", f"--signal={name}", "--kill-who=main", "certfan"])
            time.sleep(0.35)  # how long is the point here

    assert 0.2 < watch.worst < 2
