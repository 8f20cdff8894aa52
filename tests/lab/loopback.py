"""The main job without namespaces, FUSE or systemd: loopback addresses, a plain folder as the share, plain processes.

`with Loopback().up() as place:` is a test's quick way to a whole certfan. `python -m tests.lab.loopback down RUNDIR`
ends what `keep` left.
"""

import atexit
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.lab import machine
from tests.lab.fleet import CERTIFICATE, NAME, Seen
from tests.lab.loopback_layout import Layout, lacking
from tests.lab.pebble import LoopbackDns, Pebble
from tests.lab.private import Server, end_process, last_lines


class Loopback:
    """Everything of the story on this machine's loopback.

    `probe_interval` in seconds; `in_place` are the consumers that copy nothing; the rest is Pebble's.
    """

    mode = "loopback"

    def __init__(
        self, say: Callable[[str], object] = lambda _line: None, missing: tuple[str, ...] = (),
        *, probe_interval: int = 20, nonce_reject: int = 5, retry_after: int = 1, in_place: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._say, self._interval = say, probe_interval
        self.rundir = Path(tempfile.gettempdir()) / f"certfan-lo-{os.urandom(4).hex()}"
        self.layout = Layout(self.rundir, in_place)
        self.omitted = (*(f"mode=full: {reason}" for reason in missing), *self.layout.omitted)
        self.status_url = f"http://127.0.0.1:{self.layout.ports['status']}"
        self.endpoints = self.layout.endpoints
        self.dns = LoopbackDns(self.rundir, address="")
        self.pebble = Pebble(
            self.rundir, self.dns.server, http_port=self.layout.ports["http"],
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
        if absent := lacking():
            raise machine.NotInTime(f"not installed: {', '.join(absent)} (tests/lab/setup.sh brings them)")
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
        """End every process and remove every file; repeatable.

        Raises:
            NotInTime: the run directory would not go.
        """
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
        return machine.run(_argv(words, config or self.layout.config)).stdout

    def add_certificate(
        self, names: Sequence[str] = (), consumers: Sequence[str] = (), *, file: str = "example"
    ) -> None:
        """Do what an admin does: write one file into conf.d of a running daemon."""
        names, consumers = names or self.layout.names, consumers or self.layout.consumers
        self.write_config(file, CERTIFICATE.format(names=_quoted(names), consumers=_quoted(consumers)))

    def add_custody(self, custody: str, consumer: str) -> None:
        """Have a certificate for the web's names on one consumer, whose key is in another custody than the share's."""
        names = [name for name in self.layout.names if not name.startswith("mail.")]
        text = CERTIFICATE.format(names=_quoted(names), consumers=_quoted([consumer]))
        self.write_config(custody, f'{text}custody = "{custody}"\n')

    def write_config(self, file: str, text: str) -> None:
        """Replace a file of conf.d as an editor does: written beside it, then renamed."""
        path = self.layout.config.parent / "conf.d" / f"{file}.toml"
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

    def wait_proven(self, generation: int = 1, *, name: str = NAME, timeout: float = 60) -> int:
        """Wait until every endpoint proves at least that generation; return its number.

        Raises:
            NotInTime: one does not within `timeout` seconds.
        """

        def proven() -> bool:
            try:
                view = self.certificate(name)
            except (machine.CommandFailed, ValueError):  # the daemon is just starting
                return False
            verdicts = {row["verdict"] for row in view.get("endpoints", ())}
            return (view.get("generation") or 0) >= generation and verdicts == {"proven"}

        machine.wait_until(proven, f"{name}@{generation} to be proven everywhere", timeout)
        return int(self.certificate(name)["generation"])

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

    def pids(self) -> list[int]:
        """Every process that was started and stays, with the servers' first ones."""
        running = [process.pid for process in self.processes.values()]
        servers = [server.pid() for server in self.servers.values()]
        return [pid for pid in (*running, *servers, self.pebble.pid, self.dns.pid) if pid]

    def start_daemon(self) -> None:
        """Start the daemon, and return when it is alive and the command line reaches it."""
        self._start("daemon", "daemon", config=self.layout.config)
        self._wait("daemon", self._daemon_lives)

    def start_agent(self, consumer: str) -> None:
        """Start both halves of a consumer's agent, the privileged one first."""
        self.start_privileged(consumer)
        self.start_unprivileged(consumer)

    def start_privileged(self, consumer: str) -> None:
        """Start the privileged half, CONSUMER-apply, and return when it listens."""
        home = self.layout.home(consumer)
        (home / "apply.sock").unlink(missing_ok=True)  # one that was killed left it
        self._start(f"{consumer}-apply", "agent", "apply", config=home / "agent.toml")
        self._wait(f"{consumer}-apply", (home / "apply.sock").exists)

    def start_unprivileged(self, consumer: str) -> None:
        """Start the half that talks to the daemon, CONSUMER-agent."""
        self._start(f"{consumer}-agent", "agent", "run", config=self.layout.home(consumer) / "agent.toml")

    def _build(self) -> None:
        self.rundir.mkdir(mode=0o755)
        self._start_authority()
        (self.rundir / "share").mkdir()
        config = self.layout.config
        (config.parent / "conf.d").mkdir(parents=True)
        config.write_text(self.layout.daemon_toml(self.pebble, self._interval))
        self.certfan("share", "setup", "--user", self.layout.user)
        self.start_daemon()
        self._say("         the daemon, Pebble and its DNS run")
        for consumer in self.layout.consumers:
            self._join(consumer)

    def _start_authority(self) -> None:
        self.dns.start()
        self.pebble.start()
        for name in self.layout.names:
            address = self.layout.address_of(name)
            record = "/add-aaaa" if ":" in address else "/add-a"
            self.dns.tell(record, {"host": f"{name}.", "addresses": [address]})

    def _join(self, consumer: str) -> None:
        """Make one consumer: config, enrolment, placeholders, servers that serve them, both halves of the agent."""
        home = self.layout.home(consumer)
        home.mkdir()
        self.layout.mount(consumer).symlink_to(self.rundir / "share" / consumer)
        servers = self.layout.lay_servers(consumer, self._macros())
        self.servers |= {server.name: server for server in servers}
        config = home / "agent.toml"
        config.write_text(self.layout.agent_toml(consumer, servers, self._interval))
        printed = self.certfan("consumer", "add", consumer)
        line = re.search(r"certfan1:\S+", printed)
        assert line, printed
        self.certfan("agent", "enrol", line[0], config=config)
        self.certfan("agent", "boot", config=config)
        for server in servers:
            server.begin(*self.layout.ports_of(server))
        self.start_agent(consumer)
        self._say(f"         {consumer} enrolled, its services serve a placeholder")

    def _macros(self) -> str:
        """Return the macros that certfan ships for Apache, as its admin gets them."""
        return self.certfan("snippet", "apache")

    def _start(self, name: str, *words: str, config: Path) -> None:
        self.processes[name] = machine.spawn(_argv(words, config), self._log(name))

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
            return (self.layout.config.parent / "control.sock").exists()
        return False

    def _leave(self) -> None:
        """Write down what to end, for another process to do it, and tell how."""
        left = [[pid, _started_at(pid)] for pid in self.pids()]
        (self.rundir / "left.json").write_text(json.dumps(left))
        command = f"CERTFAN_CONFIG={self.layout.config} {sys.executable} -m certfan"
        self._say(f"         to look: {command} status")
        self._say(f"         to end it: {sys.executable} -m tests.lab.loopback down {self.rundir}")


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


def _argv(words: Sequence[str], config: Path) -> list[str]:
    return [sys.executable, "-m", "certfan", *words, "--config", str(config)]


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


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
