"""The main job without namespaces, FUSE or systemd: loopback addresses, a plain folder as the share, plain processes.

CERT and WEB1 stand for the two VMs. One port plays port 80: Apache has it on WEB1 and ::1, the daemon's own
responder on CERT, and Pebble validates there. `python -m tests.lab.loopback down RUNDIR` ends what `keep` left.
"""

import atexit
import contextlib
import grp
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.lab import machine, private
from tests.lab.fleet import CERTIFICATE, NAME, Seen
from tests.lab.pebble import LoopbackDns, Pebble
from tests.lab.private import Server, end_process, last_lines

CERT, WEB1, IPV6 = "127.0.0.10", "127.0.0.20", "::1"
DAEMON = """\
fleet = "story"
state = "{run}/daemon/state"

[share]
path = "{run}/share"
require_mount = false

[http01]
listen = ["{cert}:{responder}", "{cert}:{http}"]

[channel]
listen = ["{cert}:{channel}"]

[status]
listen = ["127.0.0.1:{status}"]
probe_interval = {probe_interval}

[control]
socket = "{run}/daemon/control.sock"
group = "{group}"

[authority.pebble]
directory = "{directory}"
ca_file = "{ca_file}"
contact = ["mailto:hostmaster@example.test"]
profile = "default"
agree_to_terms = true
"""
CONSUMER = """
[consumer.{name}]
group = "{group}"
"""
AGENT = """\
[agent]
state = "{home}/state"
trust = "{home}/trust"
install_to = "{home}/installed"
share = "{share}"
probe_interval = {probe_interval}
apply_socket = "{home}/apply.sock"
user = "{user}"
"""
SERVICE = """
{server}certificates = ["{certificate}"]
owner = "{user}"
group = "{group}"
endpoints = [{{ protocol = "{protocol}", address = {addresses}, port = {port}, server_names = {names} }}]
"""
_LEFT_OUT = (
    "network namespaces: every part is on a loopback address of this machine",
    "booted systemd and the units: plain processes, services reloaded by argv commands",
    "GlusterFS: a plain folder is the share",
    "own uids: every process of certfan runs as {user}",
)


class Loopback:
    """Everything of the story on this machine's loopback. `probe_interval` in seconds; the rest is Pebble's."""

    mode = "loopback"

    def __init__(
        self, say: Callable[[str], object] = lambda _line: None, missing: tuple[str, ...] = (),
        *, probe_interval: int = 20, nonce_reject: int = 5, retry_after: int = 1,
    ) -> None:  # fmt: skip
        self._say, self._interval = say, probe_interval
        self._user, self._group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        self._ipv6 = [IPV6] if _has_ipv6() else []
        no_mail = _why_no_mail()
        self.omitted = (
            *(f"mode=full, for want of {reason}" for reason in missing),
            *(text.format(user=self._user) for text in _LEFT_OUT),
            *([] if self._ipv6 else [f"IPv6: this machine has no {IPV6}, so no v6.{NAME}"]),
            *([f"Postfix and Dovecot: {no_mail}, so no consumer mail1"] if no_mail else []),
        )
        self.consumers = ("web1",) if no_mail else ("web1", "mail1")
        self.names = (NAME, f"www.{NAME}", *([f"v6.{NAME}"] if self._ipv6 else []))
        self.names += (f"mail.{NAME}",) if "mail1" in self.consumers else ()
        roles = ("http", "https", "smtp", "imap", "responder", "channel", "status")
        self.ports = dict(
            zip(roles, _free_ports(len(roles), ["127.0.0.1", CERT, WEB1, *self._ipv6]), strict=True)
        )
        self.status_url = f"http://127.0.0.1:{self.ports['status']}"
        self.endpoints = tuple(self._seen())
        self.rundir = Path(tempfile.gettempdir()) / f"certfan-lo-{os.urandom(4).hex()}"
        self.config = self.rundir / "daemon/certfan.toml"
        self.dns = LoopbackDns(self.rundir, address="")
        self.pebble = Pebble(
            self.rundir, self.dns.server, http_port=self.ports["http"],
            nonce_reject=nonce_reject, retry_after=retry_after,
        )  # fmt: skip
        self.servers: dict[str, Server] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def up(self, *, keep: bool = False) -> Self:
        """Bring everything up to the point where only the name in the daemon's config is missing.

        On any failure everything is taken down again. Unless `keep`, it ends with this process.

        Raises:
            NotInTime: a part is not installed, or did not come up; the text holds its log.
            CommandFailed: a command of certfan failed.
        """
        if not keep:
            atexit.register(self.down)
        try:
            self._build()
        except BaseException:
            self._say(self.logs())
            self.down()
            raise
        if keep:
            self._leave()
        return self

    def down(self) -> None:
        """End every process and remove every file; repeatable."""
        atexit.unregister(self.down)
        for process in reversed(self.processes.values()):
            machine.end(process)
        self.processes.clear()
        for server in self.servers.values():
            server.end()
        self.pebble.stop()
        self.dns.stop()
        _remove(self.rundir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def certfan(self, *words: str, config: Path | None = None) -> str:
        """Run a command of certfan against this place, and return what it printed."""
        argv = [sys.executable, "-m", "certfan", *words, "--config", str(config or self.config)]
        return machine.run(argv).stdout

    def add_certificate(
        self, names: Sequence[str] = (), consumers: Sequence[str] = (), *, file: str = "example"
    ) -> None:
        """Do what an admin does: write one file into conf.d of a running daemon."""
        text = CERTIFICATE.format(
            names=_quoted(names or self.names), consumers=_quoted(consumers or self.consumers)
        )
        self.write_config(file, text)

    def write_config(self, file: str, text: str) -> None:
        """Replace a file of conf.d as an editor does: written beside it, then renamed."""
        path = self.config.parent / "conf.d" / f"{file}.toml"
        fresh = path.with_suffix(".toml.new")
        fresh.write_text(text)
        fresh.replace(path)

    def renew(self, name: str = NAME) -> None:
        """Ask for a new generation."""
        self.certfan("renew", name)

    def get(self, path: str) -> Any:
        """Read a path of the status endpoint."""
        return json.loads(machine.run(["curl", "-sS", "--max-time", "5", self.status_url + path]).stdout)

    def events(self, after: int) -> Sequence[Mapping[str, Any]]:
        """Return the journal's events after an id, or the last ones for -1."""
        since = f"after={after}&" if after >= 0 else ""
        return list(self.get(f"/api/v1/events?{since}limit=1000")["events"])

    def certificate(self, name: str = NAME) -> Mapping[str, Any]:
        """Return what the status says of a certificate."""
        return dict(self.get(f"/api/v1/certificates/{name}"))

    def serial(self, endpoint: Seen) -> str:
        """Return the serial that openssl sees at an endpoint: lower-case hex without leading zeros; "" for none."""
        shown = machine.run(endpoint.argv, input="", check=False, timeout=15).stdout
        told = machine.run(["openssl", "x509", "-noout", "-serial"], input=shown, check=False).stdout
        return told.strip().partition("=")[2].lower().lstrip("0")

    def logs(self) -> str:
        """Return what every part has said lately."""
        parts = {name: self._log(name) for name in self.processes}
        parts |= {server.name: server.log for server in self.servers.values()}
        parts |= {"pebble": self.pebble.log_path, "dns": self.dns.log_path}
        return "\n".join(f"--- {name}\n{last_lines(path)}" for name, path in parts.items())

    def start(self, name: str, *words: str, config: Path) -> None:
        """Start a part of certfan that stays; `name` is its key in `processes`."""
        argv = [sys.executable, "-m", "certfan", *words, "--config", str(config)]
        self.processes[name] = machine.spawn(argv, self._log(name))

    def start_daemon(self) -> None:
        """Start the daemon, and return when it is alive and the command line reaches it."""
        self.start("daemon", "daemon", config=self.config)
        self._wait("daemon", self._daemon_lives)

    def start_agent(self, consumer: str) -> None:
        """Start both halves of a consumer's agent, the privileged one first."""
        home = self.rundir / consumer
        self.start(f"{consumer}-apply", "agent", "apply", config=home / "agent.toml")
        self._wait(f"{consumer}-apply", lambda: (home / "apply.sock").exists())
        self.start(f"{consumer}-agent", "agent", "run", config=home / "agent.toml")

    def _build(self) -> None:
        if lacking := _lacking():
            raise machine.NotInTime(f"not installed: {', '.join(lacking)} (tests/lab/setup.sh brings them)")
        self.rundir.mkdir(mode=0o755)
        self._start_authority()
        self._lay_daemon()
        self.certfan("share", "setup", "--user", self._user)
        self.start_daemon()
        self._say("         daemon, pebble and its DNS run")
        for consumer in self.consumers:
            self._join(consumer)

    def _start_authority(self) -> None:
        self.dns.start()
        self.pebble.start()
        for name in self.names:
            address = {f"v6.{NAME}": IPV6, f"mail.{NAME}": CERT}.get(name, WEB1)
            record = "/add-aaaa" if ":" in address else "/add-a"
            self.dns.tell(record, {"host": f"{name}.", "addresses": [address]})

    def _lay_daemon(self) -> None:
        (self.rundir / "share").mkdir()
        (self.config.parent / "conf.d").mkdir(parents=True)
        text = DAEMON.format(
            run=self.rundir, cert=CERT, group=self._group, probe_interval=self._interval,
            directory=self.pebble.directory_url, ca_file=self.pebble.ca_file, **self.ports,
        )  # fmt: skip
        consumers = [CONSUMER.format(name=name, group=self._group) for name in self.consumers]
        self.config.write_text(text + "".join(consumers))

    def _join(self, consumer: str) -> None:
        """Make one consumer: config, enrolment, placeholders, servers, both halves of the agent."""
        home = self.rundir / consumer
        home.mkdir()
        config = home / "agent.toml"
        config.write_text(self._web1(home) if consumer == "web1" else self._mail1(home))
        printed = self.certfan("consumer", "add", consumer)
        line = re.search(r"certfan1:\S+", printed)
        assert line, printed
        self.certfan("agent", "enrol", line[0], config=config)
        self.certfan("agent", "boot", config=config)
        for server in self.servers.values():
            if server.folder.parent == home:
                server.begin(*self._ports_of(server))
        self.start_agent(consumer)
        self._say(f"         {consumer} enrolled, its services serve a placeholder")

    def _web1(self, home: Path) -> str:
        addresses = [WEB1, *self._ipv6]
        names = [name for name in self.names if not name.startswith("mail.")]
        self.servers["apache2"] = private.apache(
            home / "apache2",
            http=[_joined(a, self.ports["http"]) for a in addresses],
            https=[_joined(a, self.ports["https"]) for a in addresses],
            names=names,
            pair=home / "installed/live" / NAME,
            responder=f"{CERT}:{self.ports['responder']}",
            macros=machine.run([sys.executable, "-m", "certfan", "snippet", "apache"]).stdout,
        )
        return self._agent(home) + self._service("apache2", "tls", addresses, names)

    def _mail1(self, home: Path) -> str:
        addresses, pair = [CERT, *self._ipv6], home / "installed/live" / NAME
        text = self._agent(home)
        for lay, protocol in ((private.postfix, "smtp"), (private.dovecot, "imap")):
            server = lay(home / lay.__name__, addresses=addresses, port=self.ports[protocol], pair=pair)
            self.servers[server.name] = server
            text += self._service(server.name, protocol, addresses, [f"mail.{NAME}"])
        return text

    def _agent(self, home: Path) -> str:
        share = self.rundir / "share" / home.name
        return AGENT.format(home=home, share=share, probe_interval=self._interval, user=self._user)

    def _service(self, server: str, protocol: str, addresses: Sequence[str], names: Sequence[str]) -> str:
        port = self.ports["https" if protocol == "tls" else protocol]
        return SERVICE.format(
            server=self.servers[server].toml(), certificate=NAME, user=self._user, group=self._group,
            protocol=protocol, addresses=json.dumps(addresses), port=port, names=json.dumps(names),
        )  # fmt: skip

    def _ports_of(self, server: Server) -> list[int]:
        roles = {"apache2": ("http", "https"), "postfix": ("smtp",), "dovecot": ("imap",)}
        return [self.ports[role] for role in roles[server.name]]

    def _seen(self) -> list[Seen]:
        https = self.ports["https"]
        seen = [Seen(f"web1 https {name}", WEB1, https, name) for name in (NAME, f"www.{NAME}")]
        seen += [Seen(f"web1 https v6.{NAME}", six, https, f"v6.{NAME}") for six in self._ipv6]
        if "mail1" in self.consumers:
            for protocol in ("smtp", "imap"):
                for address in (CERT, *self._ipv6):
                    label = f"mail1 {protocol} STARTTLS" + (", IPv6" if ":" in address else "")
                    seen.append(Seen(label, address, self.ports[protocol], f"mail.{NAME}", protocol))
        return seen

    def _log(self, name: str) -> Path:
        return self.rundir / f"{name}.log"

    def _wait(self, name: str, question: Callable[[], object]) -> None:
        """Wait until a part of certfan is ready; one that ends instead is an error at once."""

        def answered() -> object:
            if self.processes[name].poll() is not None:
                raise machine.NotInTime(f"{name} ended: {last_lines(self._log(name))}")
            return question()

        machine.wait_until(answered, f"{name} to be ready (log: {self._log(name)})", timeout=20)

    def _daemon_lives(self) -> bool:
        with contextlib.suppress(machine.CommandFailed):
            machine.run(["curl", "-sSf", "--max-time", "5", f"{self.status_url}/livez"])
            return (self.config.parent / "control.sock").exists()
        return False

    def _leave(self) -> None:
        """Write down what to end, for another process to do it, and tell how."""
        pids = [process.pid for process in self.processes.values()]
        pids += [server.pid() for server in self.servers.values()] + [self.pebble.pid, self.dns.pid]
        (self.rundir / "left.json").write_text(json.dumps([[pid, _started_at(pid)] for pid in pids]))
        self._say(f"to ask it: export CERTFAN_CONFIG={self.config}; {sys.executable} -m certfan status")
        self._say(f"to end it: {sys.executable} -m tests.lab.loopback down {self.rundir}")


def main(argv: Sequence[str]) -> int:
    """`down RUNDIR` ends what a demo with --keep left running."""
    match argv:
        case ["down", folder]:
            rundir = Path(folder)
            for pid, started_at in json.loads((rundir / "left.json").read_text()):
                if _started_at(pid) == started_at:
                    end_process(pid)
            _remove(rundir)
            return 0
        case _:
            print(main.__doc__, file=sys.stderr)
            return 2


def _started_at(pid: int) -> str:
    """When a process began, in ticks since boot; with it a pid is nobody else's (proc(5), field 22)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _remove(rundir: Path) -> None:
    """Remove the run directory; the last children of a server may still be leaving."""

    def gone() -> bool:
        shutil.rmtree(rundir, ignore_errors=True)
        return not rundir.exists()

    machine.wait_until(gone, f"{rundir} to be removed")


def _lacking() -> list[str]:
    lacking = [name for name in ("apache2", "curl", "openssl") if not _installed(name)]
    lacking += [n for n in ("pebble", "pebble-challtestsrv") if machine.pebble_program(n) is None]
    return lacking


def _installed(name: str) -> bool:
    return shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is not None


def _why_no_mail() -> str:
    if os.geteuid() != 0:
        return "they need root"
    lacking = [name for name in ("postfix", "dovecot") if not _installed(name)]
    return f"{' and '.join(lacking)} not installed" if lacking else ""


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind((IPV6, 0))
        return True
    return False


def _free_ports(count: int, addresses: Sequence[str]) -> list[int]:
    """Return different TCP ports that nobody has just now on any of the addresses."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            first = held.enter_context(socket.socket())
            first.bind((addresses[0], 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError):
                for address in addresses[1:]:
                    family = socket.AF_INET6 if ":" in address else socket.AF_INET
                    held.enter_context(socket.socket(family)).bind((address, port))
                found.append(port)
    return found


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
