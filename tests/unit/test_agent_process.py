"""The agent as a process, started as its unit starts it: how soon it is ready, and how much it takes."""

import configparser
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certfan import pki
from certfan.agent.identity import Trust, write_trust
from certfan.systemd import boot_id

UNIT = Path(__file__).parents[2] / "systemd" / "certfan-agent.service"
LIMIT = 64 << 20  # bytes of resident memory
CONFIG = """
[agent]
state = "{root}/state"
trust = "{root}/trust"
install_to = "{root}/etc"
apply_socket = "{root}/apply.sock"
user = "root"

[[service]]
name = "apache2"
recipe = "apache2"
endpoints = [{{ address = "127.0.0.1" }}]
"""


@dataclass(frozen=True, slots=True)
class Used:
    """What a process has used."""

    resident: int  # bytes
    cpu: float  # seconds


def used(pid: int) -> Used:
    status = Path(f"/proc/{pid}/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident is not None
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return Used(int(resident[1]) << 10, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))


def unit_environment() -> dict[str, str]:
    """Return what the shipped unit sets."""
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.read(UNIT)
    return dict(word.split("=", 1) for word in unit["Service"]["Environment"].split())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What stands for systemd: a socket that hears notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        yield listener


@contextlib.contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent whose daemon is away, as its unit does; ended in good order unless it is dead by then."""
    now = datetime.now(UTC)
    trust = Trust("home", "web1", "127.0.0.1:1", pki.InternalCA.create("home", now).cert_pem.decode())
    write_trust(folder / "trust", trust)
    config = folder / "agent.toml"
    config.write_text(CONFIG.format(root=folder))
    config.chmod(0o644)
    environment = {
        "PATH": os.environ["PATH"],
        "NOTIFY_SOCKET": str(folder / "notify"),
        **unit_environment(),
    }
    argv = [sys.executable, "-m", "certfan", "agent", "run", "--config", str(config)]
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as agent:
        try:
            yield agent
        finally:
            agent.terminate()


def test_an_agent_is_ready_within_a_second_and_64_mib(tmp_path: Path, manager: socket.socket) -> None:
    """In seconds of its own: this machine may be busy. The daemon is away, which holds up nothing."""
    with running(tmp_path) as agent:
        said = manager.recv(4096).decode()
        taken = used(agent.pid)

    assert "READY=1" in said.splitlines()
    assert taken.cpu < 1.0
    assert taken.resident < LIMIT
    assert agent.returncode == 0


def test_an_agent_writes_down_whether_it_was_told_to_end(tmp_path: Path, manager: socket.socket) -> None:
    """Killed, as a reset does it, it leaves a boot without an end; told to stop, one that has ended."""
    kept = tmp_path / "state/boot.json"
    with running(tmp_path) as agent:
        manager.recv(4096)
        agent.kill()
    cut_off = json.loads(kept.read_text())
    with running(tmp_path):
        manager.recv(4096)
    told = json.loads(kept.read_text())

    assert (boot_id(), False) == (cut_off["boot_id"], cut_off["ended"])
    assert (boot_id(), True) == (told["boot_id"], told["ended"])
