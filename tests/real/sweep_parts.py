"""What sweeps of the whole daemon share: a place without VMs to start one in, and a daemon that is killed and goes on.

The CA validates through a proxy that, as a vhost's, outlives the daemon. Where it is killed is the sweep's own.
"""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self

from certfan import pki
from tests.lab import machine
from tests.lab.pebble import free_port
from tests.real.crash_parts import Ledger, kill_after, tracing

NAME, CONSUMER, AUTHORITY = "example.test", "web1", "ca"
PATIENCE = 30.0
CONFIG = f"""\
fleet = "story"
state = "{{here}}/state"
[share]
path = "{{here}}/share"
require_mount = false
[http01]
listen = ["127.0.0.1:{{responder}}"]
self_check = "off"
[channel]
listen = ["127.0.0.1:{{channel}}"]
[status]
listen = ["127.0.0.1:{{status}}"]
[control]
socket = "{{here}}/control.sock"
group = "root"
[authority.{AUTHORITY}]
directory = "{{directory}}"
ca_file = "{{ca_file}}"
roots_file = "{{roots_file}}"
contact = ["mailto:hostmaster@example.test"]
profile = "default"
agree_to_terms = true
[consumer.{CONSUMER}]
group = "root"
[[certificate]]
names = ["{NAME}", "www.{NAME}"]
consumers = ["{CONSUMER}"]
"""


class Vhost:
    """A TCP proxy that waits for a backend that is being restarted, but never longer than a CA would."""

    def __init__(self, backend: int, patience: float) -> None:
        self._backend, self._patience = backend, patience
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
        with client, contextlib.suppress(OSError):
            # One request a connection, and the answer ends with it.
            request = client.recv(65536).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
            deadline = time.monotonic() + self._patience
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


class Authority(Protocol):
    """What a config says of one."""

    directory_url: str
    ca_file: Path
    roots_file: Path


class Place:
    """As many daemons as are asked for, one after the other, each in a folder of its own, at one authority."""

    def __init__(self, folder: Path, *, patience: float = 4) -> None:
        self._folder, self._count = folder, 0
        self._responder = free_port()
        self.vhost = Vhost(self._responder, patience)
        self._authority: Authority | None = None
        self._empty: Path | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Self]:
        """Close its proxy when the block ends."""
        try:
            yield self
        finally:
            self.vhost.close()

    def order_at(self, authority: Authority) -> None:
        """Say whose certificates its daemons get."""
        self._authority = authority
        self._empty = self._lay()
        argv = [sys.executable, "-m", "certfan", "share", "setup", "--user", "root"]
        machine.run([*argv, "--config", str(self._empty / "certfan.toml")])

    def fresh(self, like: Path | None = None) -> Path:
        """Return a folder with a config, and with a copy of another folder's state and share, or with an empty share."""
        here, template = self._lay(), like or self._empty
        assert template is not None
        for part in ("share", "state"):
            if (template / part).exists():
                shutil.copytree(template / part, here / part, symlinks=True)
        return here

    def _lay(self) -> Path:
        self._count += 1
        here, authority = self._folder / str(self._count), self._authority
        here.mkdir()
        assert authority is not None
        text = CONFIG.format(
            here=here, responder=self._responder, channel=free_port(), status=free_port(),
            directory=authority.directory_url, ca_file=authority.ca_file, roots_file=authority.roots_file,
        )  # fmt: skip
        (here / "certfan.toml").write_text(text)
        if not self._empty:
            (here / "share").mkdir()
        return here


class Daemon:
    """The whole daemon in one folder, until a generation is offered and nothing else is left to do."""

    def __init__(self, here: Path, generation: int = 1) -> None:
        self._here, self._generation = here, generation
        self.ledger = Ledger(here / "state")

    def killed_after(self, steps: int) -> int:
        """Start it, kill it after so many durable steps, or stop it when it is done; return how many it took."""
        readable, writable = os.pipe()
        process = self._start([*tracing(writable), "--seccomp-bpf", "-D"], writable)
        os.close(writable)
        with _ended(process):
            stopper = threading.Thread(target=self._stop_when_done, args=(process,), daemon=True)
            stopper.start()
            done = kill_after(steps, process.pid, readable)
            stopper.join(PATIENCE)
        return done

    def killed_by(self, watch: Callable[[int], object]) -> None:
        """Start it, tell its number to who is to kill it, and stop it when it is done."""
        process = self._start([])
        with _ended(process):
            watch(process.pid)
            self._stop_when_done(process)

    def run(self) -> None:
        """Start it, and stop it when all is done."""
        self.killed_by(lambda _pid: None)
        assert self.is_done(), f"see {self._here}/log"

    def finish(self) -> None:
        """Start it, wait until all is done, and kill it once more."""
        process = self._start([])
        with _ended(process):
            machine.wait_until(self.is_done, f"an offered generation; see {self._here}/log", PATIENCE)

    def is_done(self) -> bool:
        """Whether it is so by its books; the event that tells it may be lost in a crash, the facts are not."""
        offered = "SELECT 1 FROM assignments WHERE certificate = ? AND generation = ?"
        wanted = [f"SELECT 1 FROM {table}" for table in ("leftovers", "rollovers", "revocations")]
        with contextlib.suppress(sqlite3.Error):
            return bool(self.ledger.ask(offered, NAME, self._generation)) and not any(
                self.ledger.ask(one) for one in wanted
            )
        return False

    def _start(self, before: list[str], *passed: int) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "certfan", "daemon", "--config", str(self._here / "certfan.toml")]
        with (self._here / "log").open("ab") as log:
            return subprocess.Popen(
                [*before, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,
            )

    def _stop_when_done(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            if self.is_done():
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                return
            time.sleep(0.02)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait(10)


def shown(here: Path) -> str:
    """Return the fingerprint of the leaf that consumers see on the share, with its own key beside it."""
    live = here / "share" / CONSUMER / "live" / NAME
    pair = pki.load_pair((live / "privkey.pem").read_bytes(), (live / "fullchain.pem").read_bytes())
    assert pair.leaf.fingerprint == json.loads((live / "manifest.json").read_bytes())["fingerprint"]
    return pair.leaf.fingerprint
