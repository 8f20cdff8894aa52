"""What `make bench-fanout` measures with and beside: seeded identities, the processes, Mosquitto, one real agent."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, insert

from certfan import files, pki
from certfan.daemon.ca import CaFolder, open_ca
from certfan.daemon.state import StateFolder
from certfan.daemon.store import IdentityFact, Store, issued, tables
from certfan.daemon.store.store import transaction
from certfan.daemon.wiring import now
from tests.lab import machine
from tests.lab.fanout_daemon import FLEET, consumer, generation

TICKS = os.sysconf("SC_CLK_TCK")
GENERATIONS = 100
_MOSQUITTO = """\
listener {port} 127.0.0.1
cafile {ca}
certfile {cert}
keyfile {key}
require_certificate true
tls_version tlsv1.3
allow_anonymous true
persistence false
max_connections -1
set_tcp_nodelay true
user root
log_dest none
"""
_AGENT = """\
[agent]
state = "{home}/state"
trust = "{home}/trust"
install_to = "{home}/installed"
delivery = "channel"
apply_socket = "{home}/apply.sock"
user = "root"
"""


class Talker:
    """A Python module of the bench as a process that answers each line with one line of JSON."""

    def __init__(self, folder: Path, module: str, argument: Path) -> None:
        self.log = folder / f"{module}.log"
        self._argv = [sys.executable, "-m", module, str(argument)]

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=machine.PROJECT
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        machine.end(self._process, 20)
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def ask(self, *words: object) -> dict[str, Any]:
        """Say one thing and wait for the answer; raises NotInTime with the log when the process has ended."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise machine.NotInTime(f"{words} ended {self._argv}: {self.log.read_text()[-4000:]}")
        return dict(json.loads(answer))


def seed(folder: Path, count: int) -> CaFolder:
    """Make a state folder with so many enrolled consumers, and their identities for the load generator.

    They share one key: nobody looks at it, and making keys is most of the time.
    """
    identities = files.private_folder(folder / "identities")
    with StateFolder(folder / "daemon") as state:
        ca = open_ca(state.ca, FLEET, now())
        asyncio.run(_enrol(ca.ca, state.database, identities, count))
    (identities / "ca.pem").write_bytes(ca.ca.cert_pem)
    return ca


async def _enrol(ca: pki.InternalCA, database: Path, folder: Path, count: int) -> None:
    at, key_pem = now(), pki.make_key()
    (folder / "key.pem").write_bytes(key_pem)
    csr = pki.make_csr(key_pem, ())
    facts = []
    for name in map(consumer, range(count)):
        cert_pem, leaf = ca.issue_consumer(csr, name, at)
        (folder / f"{name}.pem").write_bytes(cert_pem)
        dates = {"not_before": leaf.not_before, "not_after": leaf.not_after, "used_at": at}
        facts.append(IdentityFact(leaf.serial, name, spki="", certificate_pem=cert_pem, **dates))

    def fill(db: Connection) -> None:
        db.execute(insert(tables.consumers), [{"name": fact.consumer, "added_at": at} for fact in facts])
        db.execute(insert(tables.identities), [asdict(fact) for fact in facts])
        for number in range(1, GENERATIONS + 1):
            issued.record_generation(db, generation(number))

    store = await Store.open(database, now)
    await transaction(fill)(store)
    await store.close()


def bring_mosquitto() -> str:
    """Install Mosquitto from Debian if it is not there, and return its version; no service of it is started."""
    found = machine.run(["dpkg-query", "-W", "-f", "${Version}", "mosquitto"], check=False)
    if found.returncode or not found.stdout:
        install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", "mosquitto"]
        denies = Path("/usr/sbin/policy-rc.d")
        with contextlib.ExitStack() as stack:
            if not denies.exists():
                denies.write_text("#!/bin/sh\nexit 101\n")
                denies.chmod(0o755)
                stack.callback(denies.unlink)
            if machine.run(install, check=False, timeout=120).returncode:
                machine.run(["apt-get", "-qq", "update"], timeout=120)
                machine.run(install, timeout=120)
        found = machine.run(["dpkg-query", "-W", "-f", "${Version}", "mosquitto"])
    return found.stdout


@contextlib.contextmanager
def mosquitto(folder: Path, ca: CaFolder) -> Iterator[tuple[int, int]]:
    """Run a broker that wants certificates of the same CA; yields its port and pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    config = folder / "mosquitto.conf"
    config.write_text(
        _MOSQUITTO.format(port=port, ca=folder / "identities/ca.pem", cert=ca.server_cert, key=ca.server_key)
    )
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
    assert program
    process = machine.spawn([program, "-c", str(config)], folder / "mosquitto.log")
    try:
        machine.wait_until(lambda: machine.listens(process.pid, port), "mosquitto to listen")
        yield port, process.pid
    finally:
        machine.end(process)


def agent_rss_mib(folder: Path, daemon: Talker) -> float:
    """Enrol one real agent at the bench's channel, run it until it is idle, and return its resident memory."""
    home = folder / "agent"
    home.mkdir()
    config = home / "agent.toml"
    config.write_text(_AGENT.format(home=home))
    certfan = [sys.executable, "-m", "certfan", "agent"]
    machine.run([*certfan, "enrol", daemon.ask("enrol", "real")["line"], "--config", str(config)])
    process = machine.spawn([*certfan, "run", "--config", str(config)], home / "log")
    try:
        machine.wait_until(lambda: "agent.started" in (home / "log").read_text(), "the agent to start")
        return round(when_quiet(process.pid) / 1024, 1)
    finally:
        machine.end(process)


def cpu_seconds(pid: int) -> float:
    """Return what the kernel has accounted to a process, in seconds of CPU."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def when_quiet(pid: int) -> int:
    """Wait until a process has hardly worked for half a second; return its resident memory in KiB."""

    def quiet() -> bool:
        before = cpu_seconds(pid)
        time.sleep(0.5)
        return cpu_seconds(pid) - before < 0.03

    machine.wait_until(quiet, f"process {pid} to be quiet", 60)
    return rss_kib(pid)
