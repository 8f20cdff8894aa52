"""Caddy's `acme_server`, a second real CA: smallstep's code, none of Pebble's.

It validates on port 80 and asks the system where a name is, and neither can be configured: so it runs with an
/etc/hosts of its own (a mount namespace), in which the names are at a loopback address whose port 80 is free.

Known limits: root only; no profiles, no renewal information, no alternate chains, no key change.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab import machine
from tests.lab.pebble import free_port

_CADDYFILE = """{{
    admin off
    skip_install_trust
    auto_https disable_redirects
    http_port {http_port}
    https_port {port}
    storage file_system {storage}
}}
https://127.0.0.1:{port} {{
    bind 127.0.0.1
    tls internal
    acme_server
}}
"""


class Caddy:
    """One Caddy as a CA. `names` are at `address`, where something must answer on port 80."""

    def __init__(self, rundir: Path, names: Sequence[str]) -> None:
        self._folder = rundir / "caddy"
        self.log_path = self._folder / "log"
        # No other program, and no other run, is likely to have port 80 there.
        self.address = "127.80." + ".".join(str(part) for part in os.urandom(2))
        self._names = tuple(names)
        self._port = free_port()
        self.directory_url = f"https://127.0.0.1:{self._port}/acme/local/directory"
        self.ca_file = self._folder / "storage/pki/authorities/local/root.crt"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it listens.

        Raises:
            NotInTime: it ended or did not listen; the text ends with its log.
        """
        program = machine.pebble_program("caddy")
        if program is None:
            raise machine.NotInTime("no caddy here: tests/lab/setup.sh brings it")
        self._folder.mkdir(parents=True, exist_ok=True)
        hosts, config = self._folder / "hosts", self._folder / "Caddyfile"
        hosts.write_text(f"127.0.0.1 localhost\n{self.address} {' '.join(self._names)}\n")
        config.write_text(
            _CADDYFILE.format(port=self._port, http_port=free_port(), storage=self._folder / "storage")
        )
        inside = 'mount --bind "$1" /etc/hosts && exec "$2" run --adapter caddyfile --config "$3"'
        argv = ["unshare", "--mount", "sh", "-c", inside, "sh", str(hosts), str(program), str(config)]
        home = {"XDG_DATA_HOME": str(self._folder), "XDG_CONFIG_HOME": str(self._folder)}
        self._process = machine.spawn(argv, self.log_path, env=home)
        machine.wait_until(self._ready, f"caddy to listen (log: {self.log_path})")

    def stop(self) -> None:
        """End it; repeatable."""
        if self._process:
            machine.end(self._process)
            self._process = None

    def root_pem(self) -> str:
        """The root of the chains that it issues."""
        return self.ca_file.read_text()

    def _ready(self) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            raise machine.NotInTime(f"caddy ended: {self.log_path.read_text()[-2000:]}")
        if not machine.listens(process.pid, self._port):
            return False
        # It listens before it has its own certificate.
        argv = ["curl", "-sS", "--cacert", str(self.ca_file), "--output", "/dev/null", self.directory_url]
        return machine.run(argv, check=False).returncode == 0
