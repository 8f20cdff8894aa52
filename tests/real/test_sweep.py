"""The daemon killed after every durable step, from an empty state folder to an offered generation, without VMs.

strace numbers its fsyncs, fdatasyncs and renames, those of its share worker too, and holds each back for a moment, so
that a kill falls between one and the next. The CA validates through a proxy that, as a vhost's, outlives the daemon.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfan import pki
from tests.lab import machine
from tests.lab.pebble import LoopbackDns, Pebble, free_port
from tests.real.crash_parts import Ledger, kill, kill_after, points_of, seed_of, sweeps_all, tracing

pytestmark = [
    pytest.mark.real,
    pytest.mark.sweep,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        machine.pebble_program() is None or not LoopbackDns.available(), reason="pebble is not installed"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="tracing needs root"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

NAME, CONSUMER = "example.test", "web1"
PATIENCE = 30.0
CONFIG = """\
fleet = "story"
state = "{here}/state"
[share]
path = "{here}/share"
require_mount = false
[http01]
listen = ["127.0.0.1:{responder}"]
self_check = "off"
[channel]
listen = ["127.0.0.1:{channel}"]
[status]
listen = ["127.0.0.1:{status}"]
[control]
socket = "{here}/control.sock"
group = "root"
[authority.pebble]
directory = "{directory}"
ca_file = "{ca_file}"
roots_file = "{roots_file}"
contact = ["mailto:hostmaster@example.test"]
profile = "default"
agree_to_terms = true
[consumer.web1]
group = "root"
"""
CERTIFICATE = f"""\
[[certificate]]
names = ["{NAME}", "www.{NAME}"]
consumers = ["{CONSUMER}"]
"""


class Vhost:
    """A TCP proxy that waits for a backend that is being restarted."""

    def __init__(self, backend: int) -> None:
        self._backend = backend
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client:
            request = client.recv(65536)
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    if answer := self._asked(request):
                        client.sendall(answer)
                        return
                time.sleep(0.02)

    def _asked(self, request: bytes) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", self._backend), timeout=2) as backend:
            backend.sendall(request)
            while chunk := backend.recv(65536):
                answer += chunk
        return answer


class Place:
    """One Pebble behind one proxy, and as many fresh daemons as are asked for, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self.responder = free_port()
        self.vhost = Vhost(self.responder)
        self.dns = LoopbackDns(folder)
        self.pebble = Pebble(
            folder, self.dns.server, http_port=self.vhost.port, nonce_reject=0, retry_after=0,
            env={"PEBBLE_AUTHZREUSE": "0"},
        )  # fmt: skip
        self.dns.start()
        self.pebble.start()
        self._template = self._lay(folder / "template")
        argv = [sys.executable, "-m", "certfan", "share", "setup", "--user", "root"]
        machine.run([*argv, "--config", str(self._template / "certfan.toml")])

    def close(self) -> None:
        """End what was started."""
        self.pebble.stop()
        self.dns.stop()
        self.vhost.close()

    def fresh(self) -> Path:
        """Return a folder with a config and an empty share."""
        self._count += 1
        here = self._lay(self._folder / str(self._count))
        shutil.copytree(self._template / "share", here / "share", symlinks=True, dirs_exist_ok=True)
        return here

    def _lay(self, here: Path) -> Path:
        (here / "share").mkdir(parents=True)
        text = CONFIG.format(
            here=here, responder=self.responder, channel=free_port(), status=free_port(),
            directory=self.pebble.directory_url, ca_file=self.pebble.ca_file, roots_file=self.pebble.roots_file,
        )  # fmt: skip
        (here / "certfan.toml").write_text(text + CERTIFICATE)
        return here


class Daemon:
    """The whole daemon in one folder."""

    def __init__(self, here: Path) -> None:
        self._here = here
        self.ledger = Ledger(here / "state")

    def killed_after(self, steps: int) -> int:
        """Start it, kill it after so many durable steps, or stop it when it is done; return how many it took."""
        readable, writable = os.pipe()
        process = self._start([*tracing(writable), "-D"], writable)
        os.close(writable)
        try:
            return self._follow(process, readable, steps)
        finally:
            kill(process.pid)
            process.wait(10)

    def finish(self) -> None:
        """Start it, wait until all is done, and kill it once more."""
        process = self._start([])
        try:
            machine.wait_until(self.is_done, f"an offered generation; see {self._here}/log", PATIENCE)
        finally:
            kill(process.pid)
            process.wait(10)

    def is_done(self) -> bool:
        """Whether generation 1 was offered; the event that tells it may be lost in a crash, the fact is not."""
        offered = "SELECT 1 FROM assignments WHERE certificate = ? AND generation = 1"
        with contextlib.suppress(sqlite3.Error):
            return bool(self.ledger.ask(offered, NAME))
        return False

    def _start(self, before: list[str], *passed: int) -> subprocess.Popen[bytes]:
        argv = [
            *before,
            sys.executable,
            "-m",
            "certfan",
            "daemon",
            "--config",
            str(self._here / "certfan.toml"),
        ]
        with (self._here / "log").open("ab") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,
            )

    def _follow(self, process: subprocess.Popen[bytes], readable: int, steps: int) -> int:
        stopper = threading.Thread(target=self._stop_when_done, args=(process,), daemon=True)
        stopper.start()
        done = kill_after(steps, process.pid, readable)
        stopper.join(PATIENCE)
        return done

    def _stop_when_done(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            if self.is_done():
                process.terminate()
                return
            time.sleep(0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("sweep"))
    yield place
    place.close()


def test_killed_after_any_durable_step_the_daemon_loses_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it was killed after: one account, one key, one certificate; two orders only if newOrder's answer was lost."""
    counted = Daemon(place.fresh()).killed_after(10**6)
    seed = seed_of(4)
    points = points_of(counted, seed)
    extra = [point for point in points if _kill_and_finish(place, point)]
    with capsys.disabled():
        print(
            f"\nkilled after {len(points)} of {counted} durable steps, seed {seed}; one order more at {extra or 'none'}"
        )

    assert len(points) >= (counted if sweeps_all() else counted // 10)
    assert counted > 60


def _kill_and_finish(place: Place, point: int) -> bool:
    """Kill after one step, start again, and check; return whether the CA saw a second order."""
    ca = place.pebble.log_path
    here, told = place.fresh(), ca.stat().st_size
    daemon = Daemon(here)
    daemon.killed_after(point)
    may_cost_one = daemon.ledger.has_intent_without_order()
    daemon.finish()
    said = ca.read_bytes()[told:].decode(errors="replace")
    orders = len(re.findall(r"orders in the db", said))
    assert 1 == len(re.findall(r"accounts in memory", said)), point
    assert 1 == len(daemon.ledger.ask("SELECT uri FROM accounts")), point
    assert 1 == len(re.findall(r"Issued certificate serial", said)), point
    assert [] == daemon.ledger.lost_keys(), point
    assert _published(here) == daemon.ledger.ask("SELECT fingerprint FROM generations"), point
    assert 1 <= orders <= 1 + may_cost_one, point
    assert 1 == daemon.ledger.ask("SELECT count(*) FROM orders")[0][0], point
    shutil.rmtree(here)
    return orders > 1


def _published(here: Path) -> list[tuple[object, ...]]:
    """Return the leaf that consumers see on the share, as a list of rows."""
    live = here / "share" / CONSUMER / "live" / NAME
    pair = pki.load_pair((live / "privkey.pem").read_bytes(), (live / "fullchain.pem").read_bytes())
    assert pair.leaf.fingerprint == json.loads((live / "manifest.json").read_bytes())["fingerprint"]
    return [(pair.leaf.fingerprint,)]
