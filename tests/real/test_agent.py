"""The agent on the real fleet: hooks, drift, a boot on its own, and what it takes."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.lab.fleet import ENDPOINTS, NAME, Fleet
from tests.lab.machine import wait_until
from tests.lab.network import INTERNAL
from tests.lab.vm import Vm

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

LIMIT = 64 << 20  # bytes of resident memory
WEB = [endpoint for endpoint in ENDPOINTS if endpoint.label.startswith("web1")]
CONFIG, HOOK = "/etc/certfan/agent.toml", "/usr/local/sbin/after-renewal"
SCRIPT = """#!/bin/sh
env | grep -E '^(RENEWED|CERTFAN)_' > /run/after-renewal.env
[ ! -e /run/after-renewal.fails ] || { echo no space left; exit 3; }
"""
AUTOMOUNT = """[Unit]
Description=the share, once somebody looks there

[Automount]
Where=/srv/le

[Install]
WantedBy=multi-user.target
"""


class Web1:
    """What is on web1, seen from outside."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.vm = fleet, fleet.web1

    def live(self) -> int:
        """Return the generation that Apache's configuration leads to."""
        target = (self.vm.path / "etc/certfan/live" / NAME).readlink()
        return int(target.name) if target.name.isdigit() else 0

    def lay(self, generation: int) -> None:
        """Put the pointer to another generation, as an old snapshot would have it."""
        self.vm.run(["ln", "-sfn", f"../generations/{NAME}/{generation}", f"/etc/certfan/live/{NAME}"])

    def go_back_to(self, generation: int) -> None:
        """Put the pointer back and have Apache load what it shows; return when it serves that."""
        newest = self.served()
        self.lay(generation)
        self.vm.run(["systemctl", "reload", "apache2"])
        wait_until(lambda: not self.served() & newest, "Apache to serve the old leaf", 10)

    def outcome(self, generation: int) -> dict[str, Any]:
        """Return what the agent has noted of a generation."""
        noted = json.loads((self.vm.path / "var/lib/certfan-agent/outcomes.json").read_bytes())
        return dict(noted[NAME][str(generation)])

    def is_proven_since(self, generation: int, since: datetime) -> bool:
        """Whether the agent has concluded a generation after an instant, and it is really served everywhere."""
        noted = self.outcome(generation)
        if noted["state"] != "proven" or datetime.fromisoformat(noted["at"]) < since:
            return False
        return self.served() == {self.fleet.certificate()["serial"]}

    def served(self) -> set[str]:
        """Return the serials that Apache shows."""
        return {self.fleet.serial(endpoint) for endpoint in WEB}

    def problems(self) -> set[str]:
        """Return the codes that the status shows for this consumer."""
        rows = [row for row in self.fleet.certificate()["endpoints"] if row["consumer"] == "web1"]
        return {row["problem"]["code"] for row in rows if row["problem"]}


@pytest.fixture
def web1(fleet: Fleet) -> Web1:
    """web1 with two generations at least, the newest proven."""
    before = fleet.wait_proven()
    if before < 2:
        fleet.renew()
        fleet.wait_proven(before + 1)
    return Web1(fleet)


def resident(vm: Vm, unit: str) -> dict[str, int]:
    """Return the resident bytes of a unit's processes, by what they run."""
    listed = vm.run(["systemctl", "show", "-p", "ControlGroup", "--value", unit]).stdout.strip()
    found = {}
    for pid in vm.run(["cat", f"/sys/fs/cgroup{listed}/cgroup.procs"], check=False).stdout.split():
        status = vm.run(["cat", f"/proc/{pid}/status"], check=False).stdout
        words = vm.run(["cat", f"/proc/{pid}/cmdline"], check=False).stdout.split("\0")
        if (kib := re.search(r"VmRSS:\s+(\d+) kB", status)) is not None:
            found[" ".join(words[1:])] = int(kib[1]) << 10
    return found


@pytest.mark.parametrize("consumer", ["web1", "mail1"])
def test_an_agent_at_work_stays_within_64_mib(
    fleet: Fleet, consumer: str, say: Callable[[str], None]
) -> None:
    """After deployments, proofs and reports; its share worker is a process of its own and small."""
    fleet.wait_proven()
    vm = fleet.web1 if consumer == "web1" else fleet.cert
    used = resident(vm, "certfan-agent.service")
    say(f"{consumer}: " + ", ".join(f"{mib / (1 << 20):.1f} MiB {what}" for what, mib in used.items()))

    assert any("agent run" in what for what in used), used
    assert max(used.values()) <= LIMIT
    assert sum(used.values()) <= 1.5 * LIMIT


def test_agent_check_tells_what_is_probed(web1: Web1) -> None:
    """On the consumer, as root: every endpoint of the certificate that is assigned."""
    told = json.loads(web1.vm.run(["certfan", "agent", "check", "--json"]).stdout)
    rows = [row for row in web1.fleet.certificate()["endpoints"] if row["consumer"] == "web1"]

    assert told["services"] == ["apache2"]
    assert set(told["endpoints"][NAME]) == {f"apache2 {row['endpoint']['url']}" for row in rows}


def test_a_service_that_came_back_from_an_old_snapshot_is_repaired_and_proven_again(web1: Web1) -> None:
    """Pointer and process are of yesterday; the agent, when it comes back, brings both forward."""
    newest = web1.live()
    web1.vm.run(["systemctl", "stop", "certfan-agent"])
    try:
        web1.go_back_to(newest - 1)
    finally:
        since = datetime.now(UTC)
        web1.vm.run(["systemctl", "start", "certfan-agent"])

    wait_until(lambda: web1.is_proven_since(newest, since), "web1 to be repaired and proven", 30)
    assert web1.live() == newest
    web1.fleet.wait_proven(newest)


def test_a_service_that_only_remembers_the_old_leaf_is_reloaded_and_proven_again(web1: Web1) -> None:
    """Everything on disk is right, and the agent was never stopped: its next look finds it."""
    newest = web1.live()
    web1.vm.run(["systemctl", "kill", "--signal=STOP", "certfan-agent"])
    try:
        web1.go_back_to(newest - 1)
        web1.lay(newest)
    finally:
        since = datetime.now(UTC)
        web1.vm.run(["systemctl", "kill", "--signal=CONT", "certfan-agent"])

    wait_until(lambda: web1.is_proven_since(newest, since), "web1 to be repaired and proven", 30)
    assert '"why": "repair"' in web1.vm.journal("certfan-agent.service", "-n", "20")
    web1.fleet.wait_proven(newest)


@pytest.fixture
def hooked(web1: Web1) -> Iterator[Web1]:
    """web1 with an existing script as Apache's hook; the privileged half reads agent.toml anew for each request."""
    config = web1.vm.path / CONFIG.lstrip("/")
    before = config.read_text()
    web1.vm.run(["sh", "-c", f"cat > {HOOK} && chmod 755 {HOOK}"], input=SCRIPT)
    web1.vm.run(
        ["sh", "-c", f"cat > {CONFIG}"], input=before.replace("endpoints", f'hook = ["{HOOK}"]\nendpoints')
    )
    yield web1
    web1.vm.run(["sh", "-c", f"cat > {CONFIG}"], input=before)
    web1.vm.run(["rm", "-f", HOOK, "/run/after-renewal.env", "/run/after-renewal.fails"])


def test_a_failing_hook_fails_the_deployment_and_rolls_nothing_back(hooked: Web1) -> None:
    """Served everywhere, and red with what the script said; the next generation does not wait for it."""
    fleet = hooked.fleet
    hooked.vm.run(["touch", "/run/after-renewal.fails"])
    wanted = hooked.live() + 1
    fleet.renew()
    wait_until(lambda: hooked.problems() == {"service.hook_failed"}, "the status to tell of the hook", 30)
    rows = [row for row in fleet.certificate()["endpoints"] if row["consumer"] == "web1"]
    wait_until(lambda: hooked.served() == {fleet.certificate()["serial"]}, "the new leaf to be served", 10)
    said = hooked.vm.run(["cat", "/run/after-renewal.env"]).stdout
    environment = dict(line.split("=", 1) for line in said.splitlines())

    assert {row["problem"]["output"] for row in rows} == {"no space left"}
    assert (hooked.live(), hooked.outcome(wanted)["state"]) == (wanted, "trying")
    assert environment["RENEWED_LINEAGE"] == f"/etc/certfan/live/{NAME}"
    assert set(environment["RENEWED_DOMAINS"].split()) == {NAME, f"www.{NAME}", f"v6.{NAME}", f"mail.{NAME}"}
    assert environment["CERTFAN_GENERATION"] == str(wanted)

    hooked.vm.run(["rm", "/run/after-renewal.fails"])
    fleet.renew()
    fleet.wait_proven(wanted + 1)
    wait_until(lambda: hooked.problems() == set(), "the hook to have passed", 10)
    assert hooked.outcome(wanted + 1)["state"] == "proven"


@pytest.fixture
def automounted(web1: Web1) -> Iterator[Web1]:
    """web1 whose share is mounted when somebody looks there, as the README's line in fstab has it."""
    web1.vm.run(["tee", "/etc/systemd/system/srv-le.automount"], input=AUTOMOUNT)
    web1.vm.run(["systemctl", "disable", "--quiet", "srv-le.mount"])
    web1.vm.run(["systemctl", "enable", "--quiet", "srv-le.automount"])
    yield web1
    web1.vm.run(["systemctl", "disable", "--now", "--quiet", "srv-le.automount"])
    web1.vm.run(["rm", "/etc/systemd/system/srv-le.automount"])
    web1.vm.run(["systemctl", "enable", "--now", "--quiet", "srv-le.mount"], timeout=90)


def test_a_consumer_that_boots_alone_serves_what_was_proven_and_converges_later(automounted: Web1) -> None:
    """Share and daemon are away: Apache starts from its own disk, the agent waits; nothing is done to web1 by hand."""
    web1, fleet = automounted, automounted.fleet
    serials = web1.served()
    fleet.cert.run(["systemctl", "stop", "certfan"])
    fleet.farm.network.cut("web1", INTERNAL)
    try:
        web1.vm.power_cut()
        web1.vm.boot(binds=["--bind=/dev/autofs"])
        alone = web1.served()
        units = ["apache2.service", "certfan-agent.service", "certfan-agent-boot.service"]
        states = web1.vm.run(["systemctl", "is-active", *units], check=False).stdout.split()
    finally:
        fleet.farm.network.heal("web1", INTERNAL)
        fleet.cert.run(["systemctl", "start", "certfan"])
    wait_until(lambda: _daemon_answers(fleet), "the daemon", 30)
    wanted = web1.live() + 1
    fleet.renew()
    fleet.wait_proven(wanted)

    assert (alone, states) == (serials, ["active"] * 3)
    assert web1.live() == wanted
    assert "glusterfs" in web1.vm.run(["findmnt", "-n", "-o", "FSTYPE", "/srv/le"]).stdout


def _daemon_answers(fleet: Fleet) -> bool:
    return fleet.cert.run(["curl", "-sSf", f"{fleet.status_url}/readyz"], check=False).returncode == 0
