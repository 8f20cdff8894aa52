"""The story's own case on the real volume: one of the two machines with a brick is off, and the other one goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import machine
from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.real.share_faults import SHARE, pointer, remount, settled, told

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A farm of its own: a volume that has been through every fault may still be healing when a brick is cut off."""
    with Fleet(probe_interval=5).up() as up:
        up.add_certificate()
        up.wait_proven()
        yield up


def test_web1_boots_from_the_hosts_brick_while_the_cert_vm_is_off(fleet: Fleet) -> None:
    """The story's own case: web1 mounts, Apache starts and serves; the cert VM comes back, and nothing was lost."""
    before = settled(fleet)
    fleet.wait_proven(before)
    (served,) = {fleet.serial(one) for one in ENDPOINTS if one.label.startswith("web1")}
    fleet.cert.power_cut()
    fleet.web1.power_cut()
    try:
        fleet.web1.boot()
        shown = fleet.web1.run(["readlink", f"/srv/le/live/{NAME}"]).stdout.strip()
        machine.wait_until(
            lambda: {fleet.serial(one) for one in ENDPOINTS if one.label.startswith("web1")} == {served},
            "Apache to serve what it had", 30,
        )  # fmt: skip
        failed = fleet.web1.failed_units()
    finally:
        fleet.cert.boot()
    machine.wait_until(lambda: fleet.cert.listens(8443), "the daemon", 30)
    fleet.renew()
    after = fleet.wait_proven(before + 1, timeout=120)

    assert shown == f"../generations/{NAME}/{before}"
    assert failed == []
    assert (after, after) == (pointer(fleet, brick="host"), settled(fleet))
    assert fleet.cert.run(["certfan", "share", "verify"]).stdout.endswith("as it should be\n")


def test_publishing_goes_on_while_the_host_is_off(fleet: Fleet) -> None:
    """And the other way round: the cert VM's own brick takes the new generation, and the host's brick gets it later."""
    before = settled(fleet)
    fleet.farm.host.power_cut()
    try:
        fleet.renew()
        machine.wait_until(lambda: pointer(fleet, brick="cert") == before + 1, "published on one brick", 60)
        stale = pointer(fleet, brick="host")
    finally:
        fleet.farm.host.boot()
    machine.wait_until(lambda: pointer(fleet, brick="host") == before + 1, "the host's brick to heal", 60)
    fleet.farm.gluster.wait_alike()
    fleet.wait_proven(before + 1, timeout=120)

    assert stale == before
    assert fleet.cert.run(["certfan", "share", "verify"]).stdout.endswith("as it should be\n")


def test_a_lost_volume_is_made_anew_from_the_daemons_own_state(fleet: Fleet) -> None:
    """Deleted with both bricks' bytes: made again, set up, rebuilt, what may be served is what it was, and renewals go on."""
    fleet.renew()
    before = fleet.wait_proven(settled(fleet) + 1)
    settled(fleet)
    kept = _bundles(fleet, before - 1, before)
    fleet.farm.gluster.lose()
    try:
        machine.wait_until(lambda: told(fleet, r"^share share\.unavailable"), "the loss named", 10)
    finally:
        fleet.farm.gluster.make()
    remount(fleet)
    fleet.cert.run(["certfan", "share", "setup"])
    lacking = fleet.cert.run(["certfan", "share", "verify"], check=False)
    rebuilt = fleet.cert.run(["certfan", "share", "rebuild"]).stdout
    for vm, where, unit in ((fleet.cert, "/srv/le-mail1", "srv-le\\x2dmail1"), (fleet.web1, SHARE, "srv-le")):
        vm.run(["umount", "-l", where], check=False)
        vm.run(["systemctl", "restart", f"{unit}.mount"])
    again = _bundles(fleet, before - 1, before)
    fleet.renew()
    fleet.wait_proven(before + 1, timeout=120)

    assert lacking.returncode == 1
    assert f"{NAME}/{before - 1} is missing" in lacking.stdout
    assert rebuilt.endswith("generations are on the share\n")
    assert len(kept) >= 2 * 2 * 6
    assert kept == again
    assert fleet.cert.run(["certfan", "share", "verify"]).stdout.endswith("as it should be\n")


def _bundles(fleet: Fleet, *numbers: int) -> dict[str, bytes]:
    """Return every file of some generations as the host's brick holds it."""
    brick = fleet.farm.gluster.brick(fleet.farm.host) / "le"
    return {
        str(path.relative_to(brick)): path.read_bytes()
        for consumer in ("web1", "mail1")
        for number in numbers
        for path in (brick / consumer / "generations" / NAME / str(number)).rglob("*")
        if path.is_file()
    }
