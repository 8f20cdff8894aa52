"""`certfan share setup`: what it makes, what it looks at afterwards, and what it tells an admin to type."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from certfan import files
from certfan.cli.share import _setup_lock
from certfan.core.model import Consumer
from certfan.daemon.share.lines import VolumeName, lines
from certfan.daemon.share.setup import folder_checks
from tests.unit.command import certfan
from tests.unit.share_parts import WEB1

CONFIG = """\
fleet = "home"
state = "{folder}/state"
[share]
path = "{folder}/share"
require_mount = false
[http01]
listen = ["127.0.0.1:8055"]
[channel]
listen = ["192.168.1.1:8057"]
[authority.ca]
directory = "https://ca.int/dir"
agree_to_terms = true
[consumer.web1]
group = "{group}"
address = ["192.168.1.5", "fd00::5"]
[consumer.mail1]
group = "{group}"
[[certificate]]
names = ["www.example.org"]
consumers = ["web1"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir(mode=0o755)
    file = tmp_path / "certfan.toml"
    file.write_text(CONFIG.format(folder=tmp_path, group=os.getegid()))
    file.chmod(0o600)
    return file


def _setup(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return certfan("share", "setup", "--user", str(os.geteuid()), "--config", str(config), *words)


def test_setup_makes_the_folders_and_says_what_it_saw(config: Path) -> None:
    """One command: the id, a line for each thing that was looked at, and exit code 0 when all are well."""
    done = _setup(config)

    assert done.returncode == 0, done.stderr
    assert "is share" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if "folder " in line or "is on" in line] == [
        "ok"
    ] * 3
    assert {"live", "generations", "certfan.share"} == {
        p.name for p in (config.parent / "share/web1").iterdir()
    }


def test_setup_as_json_is_what_a_program_needs(config: Path) -> None:
    """The same things by name; a consumer without an address gets a placeholder that no volume would take."""
    told = json.loads(_setup(config, "--json").stdout)

    assert {"share", "consumers", "checks", "create", "commands", "fstab", "custody"} == told.keys()
    assert ["mail1", "web1"] == told["consumers"]
    assert "/web1(192.168.1.5|fd00::5)" in told["commands"][0]
    assert "/mail1(ADDRESS-OF-mail1)" in told["commands"][0]
    assert '"sealed"' in told["custody"]


def test_setup_waits_for_no_other_share_and_says_when_its_own_is_being_set_up(
    config: Path, tmp_path: Path
) -> None:
    """Two volumes of one machine have nothing to do with each other."""
    with files.locked(_setup_lock(tmp_path / "other-state", Path("/srv/another"))):
        beside = _setup(config)
    with files.locked(_setup_lock(tmp_path / "state", tmp_path / "share")):
        twice = _setup(config)

    assert beside.returncode == 0, beside.stderr
    assert twice.returncode != 0
    assert f"is held by process {os.getpid()}" in twice.stderr


def test_the_lines_can_be_had_before_there_is_a_share(config: Path) -> None:
    """With --lines nothing is made, and the command for a new volume names the host's brick first."""
    (config.parent / "share").rmdir()
    told = json.loads(_setup(config, "--lines", "--json").stdout)

    assert (
        "gluster volume create VOLUME replica 2 HOST:/srv/gfs/share 192.168.1.1:/srv/gfs/share"
        == told["create"]
    )
    assert not (config.parent / "share").exists()


def _lines(*consumers: Consumer, certificates: int = 1) -> tuple[Sequence[str], dict[str, str]]:
    told = lines(
        VolumeName.of("host.int:/le"),
        Path("/srv/le"),
        consumers,
        writers=("10.62.0.10", "10.62.0.254"),
        certificates={one.name: certificates for one in consumers},
    )
    return told.commands, dict(told.fstab)


def test_the_lines_are_exact() -> None:
    """Each consumer reaches its own folder only, from its own addresses; a folder that fills up fills no other."""
    commands, fstab = _lines(
        Consumer("web1", addresses=("10.62.0.20",)), Consumer("mail1", addresses=("10.62.0.10",))
    )

    assert (
        "gluster volume set le auth.allow '/(10.62.0.10|10.62.0.254),/mail1(10.62.0.10),/web1(10.62.0.20)'",
        "gluster volume set le network.ping-timeout 10",
        "gluster volume quota le enable",
        "gluster volume quota le limit-usage /mail1 16MB",
        "gluster volume quota le limit-usage /web1 16MB",
    ) == commands
    assert {
        "": "host.int:/le  /srv/le  glusterfs  noexec,nodev,nosuid,_netdev,nofail,x-systemd.automount  0 0",
        "web1": "host.int:/le/web1  /srv/le  glusterfs  ro,noexec,nodev,nosuid,_netdev,nofail,x-systemd.automount  0 0",
        "mail1": "host.int:/le/mail1  /srv/le  glusterfs  ro,noexec,nodev,nosuid,_netdev,nofail,x-systemd.automount  0 0",
    } == fstab


def test_a_quota_grows_with_the_certificates() -> None:
    """A consumer of a thousand certificates gets a MiB for each."""
    commands, _ = _lines(WEB1, certificates=1000)

    assert "gluster volume quota le limit-usage /web1 1000MB" in commands


def test_a_file_system_that_keeps_no_modes_is_told() -> None:
    """Set up and yet open, as on vfat: the check names folder, found and wanted."""
    open_to_all = ["folder", 0o755, 0, 0, 2, 4096]
    closed = ["folder", 0o2750, 7, 8, 2, 4096]
    (wrong,) = folder_checks({"web1": {"facts": {"": open_to_all, "live": closed}}}, {"web1": 8}, 7)
    (good,) = folder_checks(
        {"web1": {"facts": {"": closed, "live": closed, "generations": closed}}}, {"web1": 8}, 7
    )

    assert "web1/ is a folder 0755 of 0:0, wanted is a folder 2750 of 7:8" in wrong.problem
    assert "web1/generations is missing" in wrong.problem
    assert not good.problem


@pytest.mark.parametrize(
    "said", ['["web1.int"]', '["192.168.1.5", "192.168.1.5"]', '["0.0.0.0"]', '["192.168.1.5/24"]']
)
def test_an_address_that_the_volume_cannot_compare_is_a_config_error(config: Path, said: str) -> None:
    """Names, nets and repetitions are refused with their key path."""
    config.write_text(config.read_text().replace('["192.168.1.5", "fd00::5"]', said))
    done = _setup(config)

    assert done.returncode == 78
    assert "consumer.web1.address" in done.stderr
