"""The Debian packages installed by dpkg in a copy of this machine's root: agent alone, both, removed, purged."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certfan import __version__
from tests.lab import machine

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),  # building means downloading, and compiling all of it
    pytest.mark.skipif(bool(machine.capabilities()), reason="; ".join(machine.capabilities())),
]

NAMES = ("certfan-agent", "certfan-daemon")
ENVIRONMENT = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
STATE = ["/etc/certfan", "/var/lib/certfan", "/var/lib/certfan-agent"]
KEPT = "agent.toml fleet.json ca.pem trust.json sealing.pem sealing-0123.pem .owed.json .certfan-apply.lock"
TRACES = [*STATE, "/usr/lib/certfan", "/usr/bin/certfan", "/lib/systemd/system/certfan.service"]

Inside = Callable[..., subprocess.CompletedProcess[str]]


def built() -> list[Path]:
    """Build the packages of these sources, unless they are there already."""
    dist = machine.PROJECT / "build" / "dist"
    folders = [machine.PROJECT / name for name in ("certfan", "release", "systemd", "config")]
    newest = max(
        file.stat().st_mtime
        for folder in folders
        for file in folder.rglob("*")
        if file.suffix != ".pyc" and file.is_file()
    )
    debs = [path for name in NAMES for path in dist.glob(f"{name}_{__version__}_*.deb")]
    if len(debs) != len(NAMES) or min(deb.stat().st_mtime for deb in debs) < newest:
        argv = [sys.executable, str(machine.PROJECT / "config/release/build.py"), "deb"]
        subprocess.run(argv, check=True, timeout=800)
        debs = [path for name in NAMES for path in dist.glob(f"{name}_{__version__}_*.deb")]
    return debs


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """Return what runs a program in a root that is a throw-away layer over this machine's own."""
    debs = built()
    place = tmp_path_factory.mktemp("root")
    machine.run(["mount", "-t", "tmpfs", "-o", "size=1g,mode=755", "certfan-packages", str(place)])
    try:
        for name in ("upper", "work", "root"):
            (place / name).mkdir()
        root = place / "root"
        layers = f"lowerdir=/,upperdir={place}/upper,workdir={place}/work"
        machine.run(["mount", "-t", "overlay", "certfan-packages", "-o", layers, str(root)])
        for kind, where in (("proc", "proc"), ("tmpfs", "run")):
            machine.run(["mount", "-t", kind, "certfan-packages", str(root / where)])
        (root / "srv/debs").mkdir(parents=True)
        for deb, name in zip(debs, NAMES, strict=True):
            (root / f"srv/debs/{name}.deb").write_bytes(deb.read_bytes())

        def run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
            return machine.run(["chroot", str(root), *ENVIRONMENT, *argv], check=check, timeout=300)

        yield run
    finally:
        machine.run(["umount", "-R", str(place)], check=False)
        machine.run(["umount", "-R", "-l", str(place)], check=False)


def enabled(inside: Inside, *units: str) -> list[str]:
    return inside("systemctl", "is-enabled", *units, check=False).stdout.split()


def test_packages_are_installed_and_purged(inside: Inside) -> None:
    """The agent's stands alone, the daemon's adds to it; units are enabled; removed they keep state, purged nothing."""
    inside("dpkg", "-i", "/srv/debs/certfan-agent.deb")
    alone = inside(
        "certfan", "agent", "check", "--config", "/usr/share/doc/certfan-agent/examples/agent.toml"
    )
    lacking = inside("certfan", "daemon", check=False)
    inside("dpkg", "-i", "/srv/debs/certfan-daemon.deb")
    whole = inside("certfan", "check", "--config", "/usr/share/doc/certfan-daemon/examples/certfan.toml")

    assert "good" in alone.stdout
    assert "apt install certfan-daemon" in lacking.stderr
    assert "good" in whole.stdout
    assert __version__ in inside("certfan", "--version").stdout
    assert "certfan-admin" in inside("id", "certfan").stdout
    units = ("certfan.service", "certfan-agent-boot.service", "certfan-apply.socket", "certfan-agent.service")
    assert enabled(inside, *units, "certfan-http01.socket") == [*["enabled"] * 4, "disabled"]

    inside("sh", "-c", f"cd /etc/certfan && mkdir -p live/www.example.org && touch certfan.toml {KEPT}")
    inside("dpkg", "--remove", *NAMES)
    assert inside("ls", "-d", *TRACES, check=False).stdout.split() == STATE

    inside("dpkg", "--purge", *NAMES)
    assert inside("ls", "-d", *TRACES, check=False).stdout == ""
    assert inside("find", "/etc/systemd/system", "/var/lib/systemd", "-name", "certfan*").stdout == ""


def test_a_package_holds_what_its_wing_needs_and_no_more(inside: Inside) -> None:
    """The agent's has none of the daemon's libraries, nothing is there twice, and man pages come with both."""
    held = {name: set(_files(inside, name)) for name in NAMES}
    agent, daemon = (held[name] for name in NAMES)

    assert not [path for path in agent if "/sqlalchemy/" in path]
    assert [path for path in daemon if "/sqlalchemy/" in path]
    assert not agent & daemon
    pages = {Path(path).name for path in agent | daemon if "/man/" in path}
    assert {"certfan.1.gz", "agent.toml.5.gz", "certfan.toml.5.gz", "certfan-daemon.8.gz"} <= pages


def _files(inside: Inside, name: str) -> list[str]:
    lines = inside("dpkg-deb", "--contents", f"/srv/debs/{name}.deb").stdout.splitlines()
    return [line.split()[5] for line in lines if not line.startswith("d")]
