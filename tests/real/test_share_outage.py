"""The story's own case on the real volume: one of the two machines with a brick is off, and the other one goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import machine
from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.real.share_faults import pointer, settled

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
