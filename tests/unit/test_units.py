"""The shipped units, users and folders: clean for systemd, and of one mind with the program's defaults."""

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from certfan import cli
from certfan.agent import config_schema
from certfan.agent.recipes import RECIPES

SHIPPED = Path(__file__).parents[2] / "systemd"
SYSTEM = Path("/lib/systemd/system")
UNITS = sorted(path.name for path in SHIPPED.iterdir() if path.suffix in {".service", ".socket"})


class Unit(configparser.RawConfigParser):
    """A unit file; of keys that come twice the last one counts here."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, interpolation=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read(SHIPPED / name)


def verified(root: Path, unit: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", unit],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the system's units, ours, and a stub of the program."""
    if shutil.which("systemd-analyze") is None or not SYSTEM.is_dir():
        pytest.skip("systemd-analyze is missing")
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    stub = tmp_path / "usr/bin/certfan"
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    shutil.copytree(SYSTEM, tmp_path / "usr/lib/systemd/system", symlinks=True)
    for name in UNITS:
        shutil.copy(SHIPPED / name, tmp_path / "etc/systemd/system")
    return tmp_path


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_about_a_unit(root: Path, unit: str) -> None:
    """No unknown key, no bad value, no missing program."""
    assert verified(root, unit) == ""


def test_systemd_would_have_said_it(root: Path) -> None:
    """The check above can fail: a misspelled key is told."""
    with (root / "etc/systemd/system/certfan.service").open("a") as file:
        file.write("[Service]\nWatchdogSecs=3\n")

    assert "WatchdogSecs" in verified(root, "certfan.service")


@pytest.mark.parametrize("unit", [name for name in UNITS if name.endswith(".service")])
def test_units_start_commands_that_exist(unit: str) -> None:
    """What ExecStart and ExecReload name is a command of ours."""
    section = Unit(unit)["Service"]
    for line in (section["ExecStart"], section.get("ExecReload", "/usr/bin/certfan")):
        program, *words = line.split()
        command: click.Command | None = cli.main
        for word in words:
            assert isinstance(command, click.Group)
            command = command.commands.get(word)

        assert program == "/usr/bin/certfan"
        assert command is not None, line


def test_the_daemon_restarts_for_ever_and_a_hung_child_holds_nothing_up() -> None:
    """A reset several times a day is normal, and so is a share that blocks."""
    assert (
        Unit("certfan-apply.service")["Service"]["KillMode"] == "process"
    )  # socket-activated, it comes when asked
    for name in ("certfan.service", "certfan-agent.service"):
        unit = Unit(name)

        assert unit["Unit"]["StartLimitIntervalSec"] == "0"
        assert (unit["Service"]["Restart"], unit["Service"]["KillMode"]) == ("always", "process")
        assert "RequiresMountsFor" not in unit["Unit"]


def test_the_apply_socket_is_where_the_agent_looks_and_who_may_ask_is_its_user() -> None:
    """Units and defaults of agent.toml agree, and no folder of another unit takes the socket away."""
    defaults = config_schema.AgentTable()
    listening = Unit("certfan-apply.socket")["Socket"]

    assert listening["ListenStream"] == str(defaults.apply_socket)
    assert (listening["SocketUser"], listening["SocketGroup"]) == ("root", defaults.user)
    assert Unit("certfan-agent.service")["Service"]["User"] == defaults.user
    assert str(defaults.state) == f"/var/lib/{Unit('certfan-agent.service')['Service']['StateDirectory']}"
    removed = {
        Unit(name)["Service"].get("RuntimeDirectory", "") for name in UNITS if name.endswith(".service")
    }
    assert defaults.apply_socket.parent.name not in removed


def test_boot_comes_before_every_service_that_has_a_recipe() -> None:
    """Their files are there when they start; the network is not waited for."""
    unit = Unit("certfan-agent-boot.service")

    assert {recipe.unit for recipe in RECIPES.values()} <= set(unit["Unit"]["Before"].split())
    assert "network" not in unit["Unit"]["After"]
    assert unit["Service"]["PrivateNetwork"] == "yes"


@pytest.mark.parametrize("unit", ["certfan.service", "certfan-agent.service"])
def test_what_talks_to_the_network_is_confined(unit: str) -> None:
    """The measure of systemd-analyze for what the unit could reach is at most 1.5 of 10, and groups stay visible."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing")
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--threshold=15",
            "--no-pager",
            str(SHIPPED / unit),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "PrivateUsers" not in Unit(unit)["Service"]


def test_port_80_is_handed_to_the_daemon_by_the_name_that_it_looks_for() -> None:
    """The optional socket unit is the daemon's, both families apart."""
    socket = Unit("certfan-http01.socket")["Socket"]

    assert (socket["FileDescriptorName"], socket["Service"]) == ("http01", "certfan.service")
    assert socket["BindIPv6Only"] == "ipv6-only"


def test_the_users_of_the_units_are_made(tmp_path: Path) -> None:
    """Both users, the admins' group, and the daemon in it."""
    lines = [line.split()[:3] for line in (SHIPPED / "certfan.sysusers.conf").read_text().splitlines()]
    made = {(line[0], line[1]) for line in lines if line and line[0] in {"u", "g"}}

    used = {Unit(name)["Service"].get("User", "root") for name in UNITS if name.endswith(".service")} - {
        "root"
    }
    assert made == {("u", user) for user in used} | {("g", "certfan-admin")}
    assert ["m", "certfan", "certfan-admin"] in lines


@pytest.mark.skipif(os.geteuid() != 0, reason="systemd-sysusers writes a root's passwd")
def test_sysusers_and_tmpfiles_are_understood(root: Path) -> None:
    """The tools make of them what the units expect."""
    for kind in ("sysusers", "tmpfiles"):
        folder = root / f"etc/{kind}.d"
        folder.mkdir()
        shutil.copy(SHIPPED / f"certfan.{kind}.conf", folder / "certfan.conf")
    for argv in (
        ["systemd-sysusers"],
        ["systemd-tmpfiles", "--create", "--prefix=/var/lib", "--prefix=/etc"],
    ):
        done = subprocess.run(
            [*argv, f"--root={root}"], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr

    users = {line.partition(":")[0] for line in (root / "etc/passwd").read_text().splitlines()}
    assert {"certfan", "certfan-agent"} <= users
    assert (root / "var/lib/certfan-agent").stat().st_mode & 0o777 == 0o700
