"""certfan itself, installed on the farm as its README says: daemon on cert, agents on web1 and (as mail1) on cert.

What a test or the demo does to it is what an admin would do: write a file, run a command, look at the status.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.lab import machine, mail
from tests.lab.farm import Farm
from tests.lab.machine import CommandFailed
from tests.lab.vm import Vm

NAME = "example.test"
STATUS_URL = "http://127.0.0.1:8056"
DAEMON = """\
fleet = "story"

[share]
path = "/srv/le"

[http01]
listen = ["10.62.0.10:8055", "10.61.0.10:80", "[fd61::10]:80"]

[channel]
listen = ["10.62.0.10:8443"]

[status]
listen = ["127.0.0.1:8056"]
probe_interval = {probe_interval}

[authority.pebble]
directory = "{directory}"
ca_file = "/etc/certfan/pebble.pem"
roots_file = "/etc/certfan/roots.pem"
contact = ["mailto:hostmaster@example.test"]
profile = "default"
agree_to_terms = true

[consumer.web1]
group = "certfan-agent"

[consumer.mail1]
group = "certfan-agent"
"""
WEB1 = """\
[agent]
share = "/srv/le"
probe_interval = {probe_interval}

[[service]]
name = "apache2"
recipe = "apache2"
certificates = ["example.test"]
endpoints = [
  {{ address = ["10.61.0.20", "fd61::20"], server_names = ["example.test", "www.example.test", "v6.example.test"] }},
]
"""
MAIL1 = """\
[agent]
share = "/srv/le-mail1"
probe_interval = {probe_interval}

[[service]]
name = "postfix"
recipe = "postfix"
certificates = ["example.test"]
endpoints = [{{ protocol = "smtp", address = ["10.61.0.10", "fd61::10"], port = 25, server_names = ["mail.example.test"] }}]

[[service]]
name = "dovecot"
recipe = "dovecot"
certificates = ["example.test"]
endpoints = [{{ protocol = "imap", address = ["10.61.0.10", "fd61::10"], port = 143, server_names = ["mail.example.test"] }}]
"""
CERTIFICATE = """\
[[certificate]]
names = [{names}]
consumers = [{consumers}]
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """An endpoint that anyone may look at: the label that people read, and what openssl needs."""

    label: str
    address: str
    port: int
    name: str
    starttls: str = ""

    @property
    def argv(self) -> list[str]:
        """The independent look: openssl, not our own probe."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        dialect = ["-starttls", self.starttls] if self.starttls else []
        return ["openssl", "s_client", "-connect", f"{host}:{self.port}", "-servername", self.name, *dialect]


ENDPOINTS = (
    Seen("web1 https example.test", "10.61.0.20", 443, "example.test"),
    Seen("web1 https www.example.test", "fd61::20", 443, "www.example.test"),
    Seen("web1 https v6.example.test", "fd61::20", 443, "v6.example.test"),
    Seen("mail1 smtp STARTTLS", "10.61.0.10", 25, "mail.example.test", "smtp"),
    Seen("mail1 smtp STARTTLS, IPv6", "fd61::10", 25, "mail.example.test", "smtp"),
    Seen("mail1 imap STARTTLS", "10.61.0.10", 143, "mail.example.test", "imap"),
    Seen("mail1 imap STARTTLS, IPv6", "fd61::10", 143, "mail.example.test", "imap"),
)


class Fleet:
    """The farm with certfan on it. `probe_interval` in seconds, of both wings."""

    mode = "full"
    status_url = STATUS_URL
    endpoints = ENDPOINTS
    omitted: tuple[str, ...] = ()

    def __init__(
        self,
        say: Callable[[str], object] = lambda _line: None,
        *,
        probe_interval: int = 20,
        nonce_reject: int = 5,
        retry_after: int = 1,
    ) -> None:
        self.farm = Farm(say, nonce_reject=nonce_reject, retry_after=retry_after)
        self.cert, self.web1 = self.farm.cert, self.farm.web1
        self._say = say
        self._interval = probe_interval

    def up(self, *, keep: bool = False) -> Self:
        """Bring everything up to the point where only the name in the daemon's config is missing."""
        self.farm.up(
            hooks={"cert": self._lay_cert, "web1": self._lay_web1},
            units={"cert": ["certfan.service"], "web1": []},
            keep=keep,
        )
        try:
            self.cert.run(["certfan", "share", "setup"])
            self.farm.mount_consumers()
            self._enrol(self.web1, "web1", ["apache2.service"])
            self._enrol(self.cert, "mail1", ["postfix.service", "dovecot.service"])
        except BaseException:
            self._say(self.logs())
            self.down()
            raise
        return self

    def down(self) -> None:
        """Stop and remove everything; repeatable."""
        self.farm.down()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def add_certificate(
        self,
        names: Sequence[str] = (),
        consumers: Sequence[str] = ("web1", "mail1"),
        *,
        file: str = "example",
    ) -> None:
        """Do what an admin does: write one file into conf.d of a running daemon."""
        names = names or (NAME, f"www.{NAME}", f"v6.{NAME}", f"mail.{NAME}")
        self.write_config(file, CERTIFICATE.format(names=_list(names), consumers=_list(consumers)))

    def write_config(self, file: str, text: str) -> None:
        """Replace a file of conf.d as an editor does: written beside it, then renamed."""
        path = f"/etc/certfan/conf.d/{file}.toml"
        self.cert.run(["sh", "-c", f"cat >{path}.new && mv {path}.new {path}"], input=text)

    def trust_authority(self) -> None:
        """Have the daemon accept the chains of the CA that runs now."""
        roots = self.farm.pebble.roots_file.read_text()
        self.cert.run(["sh", "-c", "cat >/etc/certfan/roots.pem"], input=roots)

    def renew(self, name: str = NAME) -> None:
        """Ask for a new generation."""
        self.cert.run(["certfan", "renew", name])

    def get(self, path: str) -> Any:
        """Read a path of the status endpoint."""
        return json.loads(self.cert.run(["curl", "-sS", "--max-time", "5", STATUS_URL + path]).stdout)

    def events(self, after: int) -> Sequence[Mapping[str, Any]]:
        """Return the journal's events after an id, or the last ones for -1."""
        since = f"after={after}&" if after >= 0 else ""
        return list(self.get(f"/api/v1/events?{since}limit=1000")["events"])

    def certificate(self, name: str = NAME) -> Mapping[str, Any]:
        """Return what the status says of a certificate."""
        return dict(self.get(f"/api/v1/certificates/{name}"))

    def wait_proven(self, generation: int | None = None, *, name: str = NAME, timeout: float = 60) -> int:
        """Wait until every endpoint proves the newest generation, or at least that one; return its number."""

        def proven() -> bool:
            try:
                view = self.certificate(name)
            except (CommandFailed, KeyError, ValueError):  # the daemon is just starting
                return False
            rows = view.get("endpoints") or [{"verdict": "none"}]
            return (view.get("generation") or 0) >= (generation or 1) and all(
                row["verdict"] == "proven" for row in rows
            )

        machine.wait_until(proven, f"{name}@{generation or 'newest'} proven everywhere", timeout)
        return int(self.certificate(name)["generation"])

    def serial(self, endpoint: Seen) -> str:
        """Return the serial that openssl, dialling from the public bridge, sees at an endpoint."""
        shown = self.farm.dns.run(endpoint.argv, input="", check=False, timeout=15).stdout
        return _serial(shown)

    def logs(self) -> str:
        """Return what every part has said lately."""
        parts = [
            (self.cert, "certfan.service"),
            (self.cert, "certfan-agent.service"),
            (self.cert, "certfan-apply.service"),
            (self.web1, "certfan-agent.service"),
            (self.web1, "certfan-apply.service"),
            (self.web1, "certfan-agent-boot.service"),
        ]
        told = [f"--- {unit} on {vm.name}\n{_tail(vm, unit)}" for vm, unit in parts]
        return "\n".join([*told, f"--- pebble\n{_last_lines(self.farm.pebble.log_path)}"])

    def _lay_cert(self, root: Path) -> None:
        mail.configure(root, certificate=NAME)
        config = root / "etc/certfan"
        (config / "conf.d").mkdir(parents=True)
        (config / "pebble.pem").write_bytes(self.farm.pebble.ca_file.read_bytes())
        (config / "roots.pem").write_bytes(self.farm.pebble.roots_file.read_bytes())
        text = DAEMON.format(directory=self.farm.pebble.directory_url, probe_interval=self._interval)
        (config / "certfan.toml").write_text(text)
        (config / "agent.toml").write_text(MAIL1.format(probe_interval=self._interval))

    def _lay_web1(self, root: Path) -> None:
        config = root / "etc/certfan"
        config.mkdir(parents=True)
        (config / "agent.toml").write_text(WEB1.format(probe_interval=self._interval))

    def _enrol(self, vm: Vm, consumer: str, services: Sequence[str]) -> None:
        printed = self.cert.run(["certfan", "consumer", "add", consumer]).stdout
        line = re.search(r"certfan1:\S+", printed)
        assert line, printed
        vm.run(["certfan", "agent", "enrol", line[0]])
        # The boot unit lays placeholders, so that the services start before anything was issued.
        vm.run(["systemctl", "enable", "--now", "certfan-agent-boot.service", *services], timeout=90)
        vm.run(["systemctl", "enable", "--now", "certfan-apply.socket", "certfan-agent.service"], timeout=90)
        self._say(f"         {consumer} enrolled, its services serve a placeholder")


def _serial(shown: str) -> str:
    """Read the leaf's serial out of what s_client printed: lower-case hex without leading zeros; "" for none."""
    from cryptography import x509

    found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", shown, re.DOTALL)
    return f"{x509.load_pem_x509_certificate(found[0].encode()).serial_number:x}" if found else ""


def _list(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _tail(vm: Vm, unit: str) -> str:
    try:
        return "\n".join(vm.journal(unit).splitlines()[-40:])
    except Exception as error:  # the VM itself may be what failed
        return f"no journal: {error}"


def _last_lines(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-20:]) if path.exists() else "no log"
