"""In place on the real volume: web1's Apache reads its pairs below the GlusterFS mount, the cert VM's services copy."""

import json
from collections.abc import Iterator

import pytest

from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.lab.machine import wait_until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

WEB = [endpoint for endpoint in ENDPOINTS if endpoint.label.startswith("web1")]
CONFIG, LIVE = "/etc/certfan/agent.toml", f"/etc/certfan/live/{NAME}"


class Web1:
    """web1, whose Apache reads its pairs on the share."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.vm = fleet, fleet.web1

    def pointer(self) -> str:
        return str((self.vm.path / LIVE.lstrip("/")).readlink())

    def wait_for(self, pointer: str, timeout: float = 30) -> None:
        wait_until(lambda: self.pointer() == pointer, f"web1's pointer to be {pointer}", timeout)

    def served(self) -> set[str]:
        """Return the serials that Apache shows."""
        return {self.fleet.serial(endpoint) for endpoint in WEB}

    def configure(self, text: str) -> None:
        self.vm.run(["sh", "-c", f"cat > {CONFIG}"], input=text)

    def problems(self) -> set[str]:
        rows = [row for row in self.fleet.certificate()["endpoints"] if row["consumer"] == "web1"]
        return {row["problem"]["code"] for row in rows if row["problem"]}


def mounted(number: int) -> str:
    return f"../mounted/generations/{NAME}/{number}"


def copied(number: int) -> str:
    return f"../generations/{NAME}/{number}"


@pytest.fixture(scope="module")
def in_place(fleet: Fleet) -> Iterator[Web1]:
    """web1 told to use the share in place, and to copy again afterwards."""
    web1, before = Web1(fleet), fleet.web1.run(["cat", CONFIG]).stdout
    fleet.wait_proven()
    web1.configure(before.replace("[agent]\n", '[agent]\ninstall = "in-place"\n', 1))
    web1.vm.run(["systemctl", "restart", "certfan-agent"])
    yield web1
    web1.configure(before)
    web1.vm.run(["systemctl", "restart", "certfan-agent"])
    web1.wait_for(copied(fleet.wait_proven()))


@pytest.fixture
def web1(in_place: Web1) -> Web1:
    """web1 with the newest generation proven in place."""
    in_place.wait_for(mounted(in_place.fleet.wait_proven()))
    return in_place


def test_a_renewal_and_its_refusal_stay_on_the_mounted_volume(web1: Web1) -> None:
    """A generation that Apache's config test refuses goes back to the former one there; the next is served from there."""
    fleet, former, serials = web1.fleet, web1.fleet.wait_proven(), web1.served()
    config = web1.vm.run(["cat", CONFIG]).stdout
    refusing = f'test = ["sh", "-c", "readlink {LIVE} | grep -q /{former}$ || exit 1"]\nendpoints'
    web1.configure(config.replace("endpoints", refusing, 1))
    fleet.renew()
    wait_until(lambda: web1.problems() == {"service.pair_refused"}, "the refusal to be told", 30)
    refused = web1.pointer(), web1.served()
    web1.configure(config)
    fleet.renew()
    fleet.wait_proven(former + 2)
    keys = f"{LIVE}/privkey.pem"

    assert refused == (mounted(former), serials)
    assert (web1.pointer(), web1.served()) == (mounted(former + 2), {fleet.certificate()["serial"]})
    assert web1.vm.run(["readlink", "-f", keys]).stdout.strip().startswith("/srv/le/generations/")
    assert web1.vm.run(["stat", "-L", "-c", "%a", keys]).stdout.strip() == "640"
    listed = web1.vm.run(["ls", "/etc/certfan/generations/" + NAME], check=False).stdout.split()
    assert str(former + 2) not in listed


def test_a_lazily_unmounted_share_leaves_apache_a_copy_until_it_is_mounted_again(web1: Web1) -> None:
    """The bare directory is no share; a restart meanwhile finds its files, and what is served never changes."""
    number, serials = web1.fleet.wait_proven(), web1.served()
    web1.vm.run(["umount", "-l", "/srv/le"])
    try:
        web1.wait_for(copied(number))
        web1.vm.run(["systemctl", "restart", "apache2"])
        served = web1.served()
    finally:
        web1.vm.run(["systemctl", "restart", "srv-le.mount"], timeout=90)
    web1.wait_for(mounted(number))

    assert (served, web1.served()) == (serials, serials)
    assert web1.fleet.wait_proven(number) == number


def test_a_share_that_hangs_holds_up_neither_half_of_the_agent(web1: Web1) -> None:
    """Every call on it waits in the kernel: both workers are given up, Apache gets a copy, and later the share again."""
    number, serials = web1.fleet.wait_proven(), web1.served()
    client = web1.vm.run(["pgrep", "-o", "-f", "glusterfs .*/srv/le$"]).stdout.strip()
    web1.vm.run(["kill", "-STOP", client])
    try:
        web1.wait_for(copied(number), 60)
        web1.vm.run(["systemctl", "restart", "apache2"])
        served = web1.served()
    finally:
        web1.vm.run(["kill", "-CONT", client])
    web1.wait_for(mounted(number), 60)

    assert (served, web1.served()) == (serials, serials)
    assert web1.fleet.wait_proven(number) == number


def test_with_the_cert_vm_off_web1_boots_on_the_hosts_brick_and_nothing_is_lost(web1: Web1) -> None:
    """The story's own case: Apache starts on a copy, is led to the share that one brick serves, and goes on later.

    Postfix and Dovecot on the cert VM, which copy, start with it.
    """
    fleet, cert = web1.fleet, web1.fleet.cert
    number = fleet.wait_proven() + 1
    fleet.renew()  # of this one web1 has no copy
    fleet.wait_proven(number)
    serials, view = web1.served(), fleet.certificate()
    cert.power_cut()
    try:
        web1.vm.power_cut()
        web1.vm.boot()
        booted = web1.vm.journal("certfan-agent-boot.service", "-b")
        alone = web1.served()
        web1.wait_for(mounted(number), 60)
        on_one_brick = web1.served()
    finally:
        cert.boot()
    wait_until(lambda: _answers(fleet), "the daemon", 60)
    fleet.wait_proven(number)
    after = fleet.certificate()
    fleet.renew()
    fleet.wait_proven(number + 1)

    assert (alone, on_one_brick) == (serials, serials)
    laid = [json.loads(line[line.index("{") :]) for line in booted.splitlines() if "pair.laid" in line]
    assert [one["generation"] for one in laid if one["certificate"] == NAME] == [number]
    assert (after["generation"], after["serial"]) == (number, view["serial"])
    assert web1.pointer() == mounted(number + 1)
    fleet.farm.gluster.wait_alike()


def _answers(fleet: Fleet) -> bool:
    return fleet.cert.run(["curl", "-sSf", f"{fleet.status_url}/readyz"], check=False).returncode == 0
