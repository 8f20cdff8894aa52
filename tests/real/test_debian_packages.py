"""The Debian packages as an admin meets them: installed on a booted machine, started once configured, purged clean."""

from collections.abc import Iterator

import pytest

from certfan import __version__
from tests.lab import machine
from tests.lab.lab import Lab
from tests.lab.network import Network, Seat
from tests.lab.vm import Vm
from tests.real.test_dpkg import NAMES, built

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),  # building means downloading, and compiling all of it
    pytest.mark.skipif(bool(machine.capabilities()), reason="; ".join(machine.capabilities())),
]

CONFIG = """\
fleet = "home"
[share]
path = "/srv/le"
require_mount = false
[http01]
listen = ["127.0.0.1:8055"]
[channel]
listen = ["127.0.0.1:8057"]
[status]
listen = ["127.0.0.1:8056"]
[authority.ca]
directory = "https://127.0.0.1:1/dir"
agree_to_terms = true
[consumer.web1]
"""
AGENT = '[[service]]\nname = "apache2"\nrecipe = "apache2"\nendpoints = [{ address = "127.0.0.1" }]\n'
TRACES = "/etc/certfan /var/lib/certfan /var/lib/certfan-agent /usr/lib/certfan /usr/bin/certfan /lib/systemd/system/certfan*"


@pytest.fixture(scope="module")
def vm() -> Iterator[Vm]:
    lab = Lab()
    debs = built()
    lab.start()
    try:
        Network(lab, [Seat("web1", 20)]).up()
        vm = Vm(lab, "web1")
        (vm.prepare() / "srv/debs").mkdir()
        vm.boot(
            binds=[f"--bind-ro={deb}:/srv/debs/{name}.deb" for deb, name in zip(debs, NAMES, strict=True)]
        )
        yield vm
    finally:
        lab.down()


def state(vm: Vm, unit: str) -> list[str]:
    words = ["systemctl", "show", "--value", "-p", "UnitFileState", "-p", "ActiveState", unit]
    return sorted(vm.run(words).stdout.split())


def test_packages_are_installed_started_and_purged(vm: Vm) -> None:
    """Enabled and waiting without a config, running with one, and nothing is left when both are purged."""
    vm.run(["dpkg", "-i", "/srv/debs/certfan-agent.deb"], timeout=300)
    vm.run(["tee", "/root/agent.toml"], input=AGENT)
    alone = vm.run(["certfan", "agent", "check", "--config", "/root/agent.toml"], check=False)
    lacking = vm.run(["certfan", "daemon"], check=False)
    vm.run(["dpkg", "-i", "/srv/debs/certfan-daemon.deb"], timeout=300)

    assert "Traceback" not in alone.stderr
    assert "apt install certfan-daemon" in lacking.stderr
    assert __version__ in vm.run(["certfan", "--version"]).stdout
    assert state(vm, "certfan.service") == ["enabled", "inactive"]
    assert state(vm, "certfan-agent.service") == ["enabled", "inactive"]
    assert vm.failed_units() == []

    vm.run(["tee", "/etc/certfan/certfan.toml"], input=CONFIG)
    vm.run(["tee", "/etc/certfan/agent.toml"], input=AGENT)
    assert "le_proxy" in vm.run(["certfan", "snippet", "apache"]).stdout
    vm.run(["mkdir", "-p", "/srv/le"])
    vm.run(["certfan", "share", "setup"])
    vm.run(["systemctl", "start", "certfan"])
    line = vm.run(["certfan", "consumer", "add", "web1"]).stdout
    vm.run(["certfan", "agent", "enrol", next(word for word in line.split() if word.startswith("certfan1:"))])
    vm.run(["systemctl", "start", "certfan-agent-boot", "certfan-apply.socket", "certfan-agent"])
    page = vm.run(["curl", "-sS", "--max-time", "20", "http://127.0.0.1:8056/"]).stdout

    assert "<html" in page
    assert state(vm, "certfan.service") == state(vm, "certfan-agent.service") == ["active", "enabled"]
    argv = ["systemctl", "show", "--value", "-p", "ExecMainPID", "certfan.service"]
    pid = vm.run(argv).stdout.strip()
    assert vm.run(["readlink", f"/proc/{pid}/exe"]).stdout.startswith("/usr/bin/python3")
    assert "/usr/lib/certfan/" in vm.run(["cat", f"/proc/{pid}/cmdline"]).stdout

    vm.run(["dpkg", "--remove", *NAMES])
    left = vm.run(["sh", "-c", f"ls -d {TRACES}"], check=False).stdout.split()
    assert left == ["/etc/certfan", "/var/lib/certfan", "/var/lib/certfan-agent"]
    assert vm.run(["systemctl", "is-active", "certfan.service"], check=False).returncode != 0

    vm.run(["dpkg", "--purge", *NAMES])
    assert vm.run(["sh", "-c", f"ls -d {TRACES}"], check=False).stdout == ""
    assert vm.run(["find", "/etc/systemd/system", "-name", "certfan*"]).stdout == ""
