"""The whole daemon in a folder, against any authorities, without VMs: started, stopped, killed, and looked at from outside.

A `Place` has what outlives a daemon: the DNS server, the CAs, the port where they validate, the share's first look. Each
`fresh` folder is one daemon's; one daemon at a time may run in a place.
"""

import contextlib
import http.client
import json
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from certfan import pki
from tests.lab import machine
from tests.lab.faulty import FaultyAuthority
from tests.lab.faulty.records import Behaviour
from tests.lab.pebble import LoopbackDns, Pebble, free_port
from tests.lab.private import last_lines
from tests.real.crash_parts import Ledger, kill

CONSUMER = "web1"
PATIENCE = 30.0  # seconds for what takes a moment when nothing is wrong
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
Json = Mapping[str, Any]
_MAIN = """\
fleet = "story"
state = "{here}/state"
{top}
[share]
path = "{here}/share"
require_mount = false
[http01]
listen = ["127.0.0.1:{responder}", "[::1]:{responder}"]
self_check = "off"
[channel]
listen = ["127.0.0.1:{channel}"]
[status]
listen = ["127.0.0.1:{status}"]
probe_interval = {probe_interval}
[control]
socket = "{here}/control.sock"
group = "root"
[consumer.{consumer}]
group = "root"
"""


def toml(table: str, **keys: object) -> str:
    """One table of a config; a key whose value is None is left out, and JSON's words are TOML's."""
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items() if value is not None
    ]
    return "\n".join([table, *lines, ""])


def certificate(*names: str, **keys: object) -> str:
    """A certificate of the config, for the one consumer."""
    return toml("[[certificate]]", names=list(names), consumers=[CONSUMER], **keys)


def authority(name: str, ca: "Pebble | FaultyAuthority", **keys: object) -> str:
    """An authority of the config."""
    wanted: dict[str, object] = {
        "directory": ca.directory_url,
        "ca_file": str(ca.ca_file),
        "roots_file": str(ca.roots_file),
        "contact": ["mailto:hostmaster@example.test"],
        "agree_to_terms": True,
        **keys,
    }
    # Pebble picks one at random when an order names none.
    if isinstance(ca, Pebble):
        wanted.setdefault("profile", "default")
    return toml(f"[authority.{name}]", **wanted)


class Place:
    """One DNS server and one port where every CA here validates; CAs are added."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._open = contextlib.ExitStack()
        self.responder = free_port()
        self.dns = LoopbackDns(folder)
        self.dns.start()
        self._open.callback(self.dns.stop)
        self._template: Path | None = None

    def close(self) -> None:
        """End what was started."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pebble(self, **options: Any) -> Pebble:
        """Start a Pebble that behaves, but for `options`."""
        options = {"nonce_reject": 0, "retry_after": 0, "http_port": self.responder, **options}
        pebble = Pebble(self._new_folder("pebble"), self.dns.server, **options)
        pebble.start()
        self._open.callback(pebble.stop)
        return pebble

    def faulty(self) -> FaultyAuthority:
        """Start a faulty authority, behaving."""
        ca = FaultyAuthority(
            self._new_folder("faulty"),
            http_at=("127.0.0.1", self.responder),
            behaviour=Behaviour(processing=0),  # what takes a second or two else, for nothing
        )
        return self._open.enter_context(ca.running())

    def file(self, name: str, content: bytes) -> Path:
        """Write something that a config names."""
        path = self._new_folder("file") / name
        path.write_bytes(content)
        return path

    def fresh(self, *fragments: str, top: str = "", probe_interval: int = 20) -> "Daemon":
        """Return a daemon that was never started, with these parts of a config and an empty share."""
        here = self._new_folder("daemon")
        (here / "share").mkdir()
        (here / "conf.d").mkdir()
        ports = {"responder": self.responder, "channel": free_port(), "status": free_port()}
        text = _MAIN.format(here=here, top=top, consumer=CONSUMER, probe_interval=probe_interval, **ports)
        (here / "certfan.toml").write_text("\n".join([text, *fragments]))
        self._set_up_share(here)
        return Daemon(here, status=ports["status"])

    @contextlib.contextmanager
    def running(self, *fragments: str, **options: Any) -> Iterator["Daemon"]:
        """Have a fresh daemon run; whatever a test left of it is killed at the end."""
        daemon = self.fresh(*fragments, **options)
        with daemon.started():
            yield daemon

    def _set_up_share(self, here: Path) -> None:
        """Make the share's sentinel and folders; a copy of those made for the first daemon is as good."""
        if self._template is None:
            argv = [sys.executable, "-m", "certfan", "share", "setup", "--user", "root"]
            machine.run([*argv, "--config", str(here / "certfan.toml")])
            self._template = Path(shutil.copytree(here / "share", self._folder / "share", symlinks=True))
        else:
            shutil.copytree(self._template, here / "share", symlinks=True, dirs_exist_ok=True)

    def _new_folder(self, kind: str) -> Path:
        self._count += 1
        folder = self._folder / f"{self._count}-{kind}"
        folder.mkdir()
        return folder


class Daemon:
    """One `certfan daemon` in one folder, seen from outside."""

    def __init__(self, here: Path, *, status: int) -> None:
        self.here = here
        self.config = here / "certfan.toml"
        self.ledger = Ledger(here / "state")
        self.log = here / "log"
        self._status = status
        self._process: subprocess.Popen[bytes] | None = None
        self._clock = here / "clock"

    # Its life

    def start(self, *, ahead: timedelta | None = None, wait: bool = True) -> None:
        """Start it, and return when it answers; `ahead` moves its wall clock, which `jump` may do again.

        Raises:
            NotInTime: it ended, or did not answer; the text ends with its log.
        """
        assert self._process is None, "it runs already"
        env = {} if ahead is None else self._faked(ahead)
        argv = [sys.executable, "-m", "certfan", "daemon", "--config", str(self.config)]
        self._process = machine.spawn(argv, self.log, env=env)
        if wait:
            machine.wait_until(self._lives, "the daemon to live", PATIENCE)

    @contextlib.contextmanager
    def started(self, *, ahead: timedelta | None = None) -> Iterator[Self]:
        """Have it run; whatever a test left of it is killed at the end."""
        try:
            self.start(ahead=ahead)
            yield self
        finally:
            self.kill()

    def stop(self) -> int:
        """Stop it in good order; return its exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        process.terminate()
        return process.wait(20)

    def kill(self) -> None:
        """End it at once; repeatable."""
        process, self._process = self._process, None
        if process is not None:
            kill(process.pid)
            process.wait(10)

    def restart(self, *, ahead: timedelta | None = None) -> None:
        """Stop it, and start it again."""
        assert self.stop() == 0, self.said()
        self.start(ahead=ahead)

    def jump(self, ahead: timedelta) -> None:
        """Move the wall clock of a daemon that was started with one `ahead`."""
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(f"{ahead.total_seconds():+.0f}")
        fresh.replace(self._clock)

    def _faked(self, ahead: timedelta) -> dict[str, str]:
        self.jump(ahead)
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "FAKETIME_CACHE_DURATION": "1",  # seconds; read at every call it costs most of the daemon's time
        }

    def _lives(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise machine.NotInTime(f"the daemon ended: {self.said()}")
        with contextlib.suppress(OSError):
            return self.ask("/livez")[0] == 200 and (self.here / "control.sock").exists()
        return False

    # What an admin does

    def write(self, file: str, text: str) -> None:
        """Replace a file of conf.d as an editor does; empty text removes it."""
        path = self.here / "conf.d" / f"{file}.toml"
        if not text:
            path.unlink(missing_ok=True)
            return
        fresh = path.with_suffix(".toml.new")
        fresh.write_text(text)
        fresh.replace(path)

    def edit(self, before: str, after: str) -> None:
        """Replace a piece of certfan.toml, which must be there."""
        text = self.config.read_text()
        assert before in text
        fresh = self.config.with_suffix(".toml.new")
        fresh.write_text(text.replace(before, after))
        fresh.replace(self.config)

    def certfan(self, *words: str) -> str:
        """Run a command of certfan against it; return what it printed. Raises CommandFailed."""
        argv = [sys.executable, "-m", "certfan", *words, "--config", str(self.config)]
        return machine.run(argv).stdout

    def renew(self, name: str) -> None:
        """Ask for a new generation, whatever holds it up."""
        self.certfan("renew", name)

    # What is seen

    def get(self, path: str) -> Any:
        """Read a path of the status endpoint."""
        return json.loads(self.ask(path)[1])

    def certificate(self, name: str) -> Json:
        """Return what the status says of a certificate."""
        return dict(self.get(f"/api/v1/certificates/{urllib.parse.quote(name)}"))

    def events(self, *kinds: str, subject: str | None = None) -> Sequence[Json]:
        """Return the journal, oldest first: events of these kinds, of one subject (a generation's is its certificate's)."""
        found: list[Json] = []
        while page := self.get(f"/api/v1/events?after={found[-1]['id'] if found else 0}&limit=1000")[
            "events"
        ]:
            found += page
        return [
            one
            for one in found
            if (not kinds or one["name"] in kinds)
            and (subject is None or one["subject"].partition("@")[0] == subject)
        ]

    def failure(self, name: str, *, count: int = 1, timeout: float = PATIENCE) -> Json:
        """Wait until an order of a certificate has failed so often; return the problem in the status."""
        self.wait(lambda: len(self.events("step.failed", subject=name)) >= count, f"{name} to fail", timeout)
        problem = self.certificate(name)["problem"]
        assert problem is not None, f"{name} failed, and its status does not say so"
        return dict(problem)

    def issued(self, name: str, generation: int = 1, *, timeout: float = PATIENCE) -> pki.Pair:
        """Wait until a generation is published; return the pair as the consumer has it on the share."""
        live = self.here / "share" / CONSUMER / "live" / name
        self.wait(lambda: generation_of(live) >= generation, f"{name}@{generation} to be published", timeout)
        return pki.load_pair((live / "privkey.pem").read_bytes(), (live / "fullchain.pem").read_bytes())

    def published(self, name: str) -> int:
        """Return the generation that the share shows of a certificate, 0 for none."""
        return generation_of(self.here / "share" / CONSUMER / "live" / name)

    def wait(self, question: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Return as soon as the question has a true answer; NotInTime ends with what the daemon said last."""

        def asked() -> object:
            begun = time.monotonic()
            with contextlib.suppress(OSError, ValueError):  # it is just starting
                if answer := question():
                    return answer
            if self._process is not None and self._process.poll() is not None:
                raise machine.NotInTime(f"the daemon ended before {what}")
            time.sleep(2 * (time.monotonic() - begun))  # it has better things to do than to answer us
            return False

        try:
            machine.wait_until(asked, what, timeout)
        except machine.NotInTime as late:
            raise machine.NotInTime(f"{late}\n{self.said()}") from None

    def said(self) -> str:
        """The end of its log."""
        return last_lines(self.log)

    def ask(self, path: str) -> tuple[int, bytes]:
        """Return status and body of an answer of the status endpoint."""
        connection = http.client.HTTPConnection("127.0.0.1", self._status, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()


def generation_of(live: Path) -> int:
    """Return which generation a pointer shows, 0 for none."""
    with contextlib.suppress(OSError):
        return int(live.readlink().name)
    return 0
