"""The daemon as systemd runs it: sandbox, reload, watchdog, port 80, credentials, journal; and the agent's sandbox."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.lab import Lab
from tests.lab.network import Network, Seat
from tests.lab.project import install_units, lay_opt, link_command
from tests.lab.vm import Vm

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(machine.capabilities()), reason="; ".join(machine.capabilities())),
]

CONFIG = """\
fleet = "home"
[share]
path = "/srv/le"
[http01]
listen = ["127.0.0.1:8055"]
[channel]
listen = ["127.0.0.1:8057"]
[status]
listen = ["127.0.0.1:8056"]
[authority.ca]
directory = "https://127.0.0.1:1/dir"
agree_to_terms = true
eab_kid = "kid-1"
eab_key_file = "/run/credentials/certfan.service/eab-key"
[consumer.web1]
group = "certfan-agent"
"""
DROP_IN = """\
[Service]
LoadCredential=eab-key:/etc/certfan/secrets/eab-key
WatchdogSec=6
"""
CERTIFICATE = '[[certificate]]\nnames = ["www.example.test"]\nconsumers = ["web1"]\n'
UNITS = ["certfan-http01.socket", "certfan.service", "certfan-agent-boot.service"]


def _lay(root: Path) -> None:
    link_command(root)
    install_units(root)
    config = root / "etc/certfan"
    (config / "conf.d").mkdir(parents=True)
    (config / "certfan.toml").write_text(CONFIG)
    (config / "secrets").mkdir(mode=0o700)
    (config / "secrets/eab-key").write_text("c2VjcmV0LXNlY3JldC1zZWNyZXQ\n")
    (config / "secrets/eab-key").chmod(0o600)
    (root / "srv/le").mkdir(parents=True)
    drop_in = root / "etc/systemd/system/certfan.service.d"
    drop_in.mkdir()
    (drop_in / "credential.conf").write_text(DROP_IN)


@pytest.fixture(scope="module")
def vm() -> Iterator[Vm]:
    lab = Lab()
    lab.start()
    try:
        Network(lab, [Seat("web1", 20)]).up()
        vm = Vm(lab, "web1")
        vm.boot(UNITS, _lay, [lay_opt(lab)])
        vm.run(["mount", "-t", "tmpfs", "-o", "mode=755,noexec,nodev,nosuid", "share", "/srv/le"])
        vm.run(["certfan", "share", "setup"])
        yield vm
    finally:
        lab.down()


def shown(vm: Vm, name: str) -> str:
    return vm.run(["systemctl", "show", "--value", "-p", name, "certfan.service"]).stdout.strip()


def asked(vm: Vm, url: str) -> str:
    argv = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "-g", url]
    return vm.run(argv).stdout


def test_the_daemon_is_ready_and_port_80_is_its_own(vm: Vm) -> None:
    """READY=1 came through the sandbox; both families of the socket unit and its own listener answer challenges."""
    assert (vm.failed_units(), shown(vm, "SubState")) == ([], "running")
    for url in ("http://127.0.0.1/", "http://[::1]/", "http://10.61.0.20/", "http://127.0.0.1:8055/"):
        assert asked(vm, url) == "404"
    assert shown(vm, "LimitNOFILE") == "65536"


@pytest.mark.parametrize("mounted", ["after it", "before it"])
def test_the_share_is_written_in_the_sandbox(vm: Vm, mounted: str) -> None:
    """Mounted before the daemon starts or after it: its own to write, and all that is not its own is read-only."""
    if mounted == "before it":
        vm.run(["systemctl", "restart", "certfan"])
    machine.wait_until(lambda: asked(vm, "http://127.0.0.1:8056/readyz") == "200", "readiness", 60)
    pid = shown(vm, "MainPID")
    inside = ["nsenter", "-t", pid, "-m", "--", "sh", "-c"]

    assert vm.run([*inside, "touch /srv/le/x && rm /srv/le/x"], check=False).returncode == 0
    for place in ("/etc/certfan/x", "/var/x", "/usr/x"):
        assert "Read-only" in vm.run([*inside, f"touch {place}"], check=False).stderr, place


def test_reload_returns_when_the_config_is_in_force_and_fails_when_it_is_not(vm: Vm) -> None:
    """`systemctl reload` is over only after the answer; a mistake makes it fail, and the daemon goes on."""
    pid = shown(vm, "MainPID")
    place = "/etc/certfan/conf.d/www.toml"
    vm.run(["tee", place], input=CERTIFICATE)
    vm.run(["systemctl", "reload", "certfan"])
    listed = json.loads(vm.run(["curl", "-sS", "http://127.0.0.1:8056/api/v1/certificates"]).stdout)
    vm.run(["tee", place], input="[[certificate]]\nnames = 3\n")
    refused = vm.run(["systemctl", "reload", "certfan"], check=False)
    told = vm.journal("certfan.service")
    vm.run(["tee", place], input=CERTIFICATE)
    vm.run(["systemctl", "reload", "certfan"])

    assert "www.example.test" in json.dumps(listed)
    assert refused.returncode != 0
    assert "names" in told
    assert shown(vm, "MainPID") == pid


def test_a_secret_comes_as_a_credential(vm: Vm) -> None:
    """The EAB key is root's on disk; the daemon reads it where systemd puts it, and the config is good."""
    key = "/run/credentials/certfan.service/eab-key"
    as_daemon = ["setpriv", "--reuid=certfan", "--regid=certfan", "--clear-groups", "cat"]

    assert vm.run([*as_daemon, "/etc/certfan/secrets/eab-key"], check=False).returncode != 0
    assert vm.run([*as_daemon, key]).stdout.startswith("c2Vj")
    assert "good" in vm.run(["certfan", "check"]).stdout


def test_facts_are_fields_of_the_journal(vm: Vm) -> None:
    """One asks journalctl for an event by name, and gets its facts apart."""
    asked = vm.run(["journalctl", "-o", "json", "--no-pager", "CERTFAN_EVENT=http01.listening"]).stdout
    entry = json.loads(asked.splitlines()[-1])

    assert entry["CERTFAN_INHERITED"] == "2"
    assert (entry["PRIORITY"], entry["_SYSTEMD_UNIT"]) == ("6", "certfan.service")


def test_a_daemon_that_hangs_is_started_anew_and_who_asked_meanwhile_is_answered(vm: Vm) -> None:
    """Stopped in its tracks it feeds no watchdog; port 80 stays open and answers from the next one."""
    before = shown(vm, "MainPID")
    vm.run(["kill", "-STOP", before])
    answered = asked(vm, "http://127.0.0.1/")
    machine.wait_until(lambda: shown(vm, "SubState") == "running", "the next daemon", 60)

    assert answered == "404"
    assert shown(vm, "MainPID") != before
    assert "Watchdog timeout" in vm.journal("certfan.service")


def test_consumers_services_come_after_the_boot_unit(vm: Vm) -> None:
    """The manager of a booted machine has the order of the unit file."""
    after = vm.run(["systemctl", "show", "--value", "-p", "After", "apache2.service"]).stdout

    assert "certfan-agent-boot.service" in after.split()
