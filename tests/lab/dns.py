"""bind9, authoritative for example.test, plain and unsigned."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab import machine

SPARE_NAMES = tuple(f"n{number:02}" for number in range(50))
_WEB1, _MAIL = ("10.61.0.20", "fd61::20"), ("10.61.0.10", "fd61::10")
_CONF = """
options {{
    directory "{folder}"; pid-file "{folder}/named.pid"; session-keyfile "{folder}/session.key";
    managed-keys-directory "{folder}"; lock-file none;
    listen-on port {port} {{ any; }}; listen-on-v6 port {port} {{ any; }};
    recursion no; allow-query {{ any; }}; dnssec-validation no; empty-zones-enable no; notify no;
}};
controls {{ }};
zone "example.test" {{ type primary; file "{folder}/example.test.db"; }};
"""


def zone() -> str:
    """The farm's zone: www and the spare names at web1 with both families, v6 with AAAA alone, mail at cert."""
    both = {"@": _WEB1, "www": _WEB1, "broken": _WEB1, "mail": _MAIL, "cert": _MAIL} | dict.fromkeys(
        SPARE_NAMES, _WEB1
    )
    lines = ["$TTL 5", "@ IN SOA ns hostmaster 1 60 30 3600 5", "@ IN NS ns", "@ IN MX 10 mail"]
    lines += ["ns IN A 10.61.0.2", "ca IN A 10.61.0.3", f"v6 IN AAAA {_WEB1[1]}"]
    for name, (four, six) in both.items():
        lines += [f"{name} IN A {four}", f"{name} IN AAAA {six}"]
    return "\n".join(lines) + "\n"


class Named:
    """A private bind9 in whatever network the words before its argv lead to."""

    def __init__(self, rundir: Path, prefix_argv: Sequence[str] = (), port: int = 53) -> None:
        self._folder, self._prefix, self._port = rundir / "dns", list(prefix_argv), port
        self.log_path = self._folder / "named.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it answers."""
        self._folder.mkdir(exist_ok=True)
        conf = self._folder / "named.conf"
        conf.write_text(_CONF.format(folder=self._folder, port=self._port))
        (self._folder / "example.test.db").write_text(zone())
        self._process = machine.spawn([*self._prefix, "named", "-g", "-c", str(conf)], self.log_path)
        machine.wait_until(self._ready, f"named to listen (log: {self.log_path})")

    def stop(self) -> None:
        """End it; repeatable."""
        if self._process:
            machine.end(self._process)
            self._process = None

    def _ready(self) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            raise machine.NotInTime(f"named ended: {self.log_path.read_text()[-2000:]}")
        return machine.listens(process.pid, self._port) and "running" in self.log_path.read_text()
