"""Pebble, the ACME test CA, and its small DNS server for tests on loopback.

Known limits, measured with 2.10.0: it may deadlock with more than eight orders at once (the directory answers, every
POST hangs); it picks a profile at random when an order names none; and it panics, closing the connection, when a
name in an order is a parent of a name on its blocklist, hence BLOCKED beside example.test and not below it.
"""

import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import trustme

from tests.lab import machine

_DAY = 86400
PROFILES = {
    "default": {"description": "90 days", "validityPeriod": 90 * _DAY},
    "shortlived": {"description": "6 days", "validityPeriod": 6 * _DAY},
    "minute": {"description": "90 seconds", "validityPeriod": 90},
}
NAME = "ca.example.test"
BLOCKED = "blocked.test"


class Pebble:
    """One Pebble; without a network of its own it listens on free ports of `bind`.

    `retry_after` is what it asks pollers to wait, in seconds; `nonce_reject` the percentage of good nonces it refuses.
    With `eab_keys` (kid -> base64url MAC key) only their holders get an account; every certificate has
    `alternate_roots` chains beside the first. A restart is a new CA: it keeps everything in memory, and
    `roots_file` (PEM, every root of its chains) is written anew.
    """

    def __init__(
        self, rundir: Path, dns: str, *, http_port: int = 80, prefix_argv: Sequence[str] = (), bind: str = "127.0.0.1",
        ports: tuple[int, int] | None = None, host: str | None = None, retry_after: int = 1, nonce_reject: int = 5,
        blocklist: Sequence[str] = (BLOCKED,), eab_keys: Mapping[str, str] | None = None, alternate_roots: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.folder = rundir / "ca"
        self.ca_file = self.folder / "listener-ca.pem"
        self.roots_file = self.folder / "roots.pem"
        self.log_path = self.folder / "pebble.log"
        self._eab_keys, self._roots = eab_keys or {}, alternate_roots + 1
        self._dns, self._prefix, self._bind = dns, list(prefix_argv), bind
        self._port, self._management = ports or (free_port(bind), free_port(bind))
        self._http_port, self._retry_after, self._blocklist = http_port, retry_after, list(blocklist)
        self._env = {
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": str(nonce_reject),
            "PEBBLE_ALTERNATE_ROOTS": str(alternate_roots),
            **(env or {}),
        }
        self.directory_url = f"https://{host or bind}:{self._port}/dir"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when both listeners are open and the roots are in their file.

        Raises:
            NotInTime: it ended or did not listen; the text ends with its log.
        """
        program = machine.pebble_program()
        if program is None:
            raise machine.NotInTime("no pebble here: tests/lab/setup.sh brings it")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.ca_file.exists():
            self._make_listener_pair()
        config = self.folder / "pebble.json"
        config.write_text(json.dumps({"pebble": self._config()}))
        argv = [*self._prefix, str(program), "-config", str(config), "-dnsserver", self._dns]
        self._process = machine.spawn(argv, self.log_path, env=self._env)
        machine.wait_until(self._ready, f"pebble to listen (log: {self.log_path})")
        self.roots_file.write_text("".join(self.root_pem(number) for number in range(self._roots)))

    def stop(self) -> None:
        """End it; repeatable."""
        if self._process:
            machine.end(self._process)
            self._process = None

    @property
    def pid(self) -> int:
        """Its pid, 0 when it does not run."""
        return self._process.pid if self._process else 0

    def root_pem(self, number: int = 0) -> str:
        """The root of the chains that it issues; from 1 on, those of the alternates."""
        return self.management(f"/roots/{number}")

    def management(self, path: str, body: Mapping[str, object] | None = None) -> str:
        """Ask the management interface; with a body it is a POST, such as to /set-renewal-info/."""
        post = [] if body is None else ["--data", json.dumps(body)]
        address = "127.0.0.1" if self._bind == "0.0.0.0" else self._bind
        url = f"https://{address}:{self._management}{path}"
        return machine.run([*self._prefix, "curl", "-sSf", "--cacert", str(self.ca_file), *post, url]).stdout

    def _make_listener_pair(self) -> None:
        authority = trustme.CA()
        names = {NAME, "localhost", "127.0.0.1", "10.61.0.3", self._bind} - {"0.0.0.0"}
        pair = authority.issue_cert(*sorted(names))
        pair.private_key_pem.write_to_path(self.folder / "listener.key")
        pair.cert_chain_pems[0].write_to_path(self.folder / "listener.pem")
        authority.cert_pem.write_to_path(self.ca_file)

    def _config(self) -> dict[str, object]:
        return {
            "listenAddress": f"{self._bind}:{self._port}",
            "managementListenAddress": f"{self._bind}:{self._management}",
            "certificate": str(self.folder / "listener.pem"),
            "privateKey": str(self.folder / "listener.key"),
            "httpPort": self._http_port,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": bool(self._eab_keys),
            "externalAccountMACKeys": self._eab_keys,
            "domainBlocklist": self._blocklist,
            "retryAfter": {"authz": self._retry_after, "order": self._retry_after},
            "keyAlgorithm": "ecdsa",
            "profiles": PROFILES,
        }

    def _ready(self) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            raise machine.NotInTime(f"pebble ended: {self.log_path.read_text()[-2000:]}")
        return all(machine.listens(process.pid, port) for port in (self._port, self._management))


class LoopbackDns:
    """Pebble's own test DNS server: every name is at one address, without AAAA."""

    def __init__(self, rundir: Path, address: str = "127.0.0.1", *, prefix_argv: Sequence[str] = ()) -> None:
        self._folder, self._address, self._prefix = rundir / "challtestsrv", address, list(prefix_argv)
        self._dns_port, self._management = free_port(udp=True), free_port()
        self.server = f"127.0.0.1:{self._dns_port}"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        """Whether the program is beside Pebble."""
        return machine.pebble_program("pebble-challtestsrv") is not None

    def start(self) -> None:
        """Start, and return when it listens."""
        self._folder.mkdir(parents=True, exist_ok=True)
        program = str(machine.pebble_program("pebble-challtestsrv"))
        help_text = machine.run([program, "-help"], check=False).stderr
        listen = "-dnsserver" if "-dnsserver" in help_text else "-dns01"  # renamed after 2.4
        off = [f"-{kind}=" for kind in ("http01", "https01", "tlsalpn01", "doh") if f"-{kind} " in help_text]
        argv = [*self._prefix, program, "-management", f"127.0.0.1:{self._management}", listen, self.server]
        argv += ["-defaultIPv4", self._address, "-defaultIPv6", "", *off]
        self._process = machine.spawn(argv, self._folder / "log")
        machine.wait_until(self._ready, f"{self.server} to answer")

    def stop(self) -> None:
        """End it; repeatable."""
        if self._process:
            machine.end(self._process)
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Its pid, 0 when it does not run."""
        return self._process.pid if self._process else 0

    @property
    def log_path(self) -> Path:
        """What it said."""
        return self._folder / "log"

    def _ready(self) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            raise machine.NotInTime(f"the dns server ended: {(self._folder / 'log').read_text()[-2000:]}")
        return all(machine.listens(process.pid, port) for port in (self._dns_port, self._management))

    def tell(self, path: str, body: Mapping[str, object]) -> None:
        """Change its answers, e.g. ("/add-a", {"host": "a.example.test.", "addresses": ["127.0.0.2"]})."""
        line = http.client.HTTPConnection("127.0.0.1", self._management, timeout=10)
        line.request("POST", path, json.dumps(body))
        assert line.getresponse().status == 200, path
        line.close()


_given: set[int] = set()


def free_port(address: str = "127.0.0.1", *, udp: bool = False) -> int:
    """A TCP port of the address that nobody has just now, and none of before; with `udp`, free there for both."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            tcp.bind((address, 0))
            port: int = tcp.getsockname()[1]
            try:
                if udp:
                    datagrams.bind((address, port))
            except OSError:
                continue
            if port not in _given:  # or two listeners of one server might be told the same one
                _given.add(port)
                return port
