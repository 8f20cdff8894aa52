"""A machine with a really booted systemd: nspawn in a seat's network, on an overlay over this machine's own root.

Every package installed here is installed there, and nothing it writes comes back.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab import machine
from tests.lab.lab import Lab, drop_cgroup

_UNITS = "etc/systemd/system"
_INHERITED = (
    _UNITS, "etc/init.d", *(f"etc/rc{level}.d" for level in "0123456S"), "usr/sbin/policy-rc.d", "var/log/journal",
    "var/lib/glusterd", "etc/netns",
)  # fmt: skip
_MASKED = (
    "getty.target", "console-getty.service", "systemd-networkd.service", "systemd-resolved.service",
    "systemd-timesyncd.service", "rpcbind.socket", "rpcbind.service", "nfs-client.target", "remote-fs.target",
    "apt-daily.timer", "apt-daily-upgrade.timer", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
    "systemd-logind.service", "systemd-pstore.service", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "man-db.timer", "dpkg-db-backup.timer", "run-rpc_pipefs.mount", "rpc-statd-notify.service", "rpc-statd.service",
    "systemd-random-seed.service", "slapd.service", "machines.target", "ldconfig.service",
)  # fmt: skip
_JOURNALD = "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\nSyncIntervalSec=1s\n"


class Vm:
    """One VM of a lab; its disk outlives stop and power cut, until the lab is down."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.netns = f"{lab.prefix}{name}"
        self.folder = lab.rundir / "vm" / name
        self.path = self.folder / "root"
        self.console = self.folder / "console.log"
        self._lab = lab
        self._cgroup = lab.cgroup / name
        self._binds: list[str] = ["--bind=/dev/fuse"]
        self._process: subprocess.Popen[bytes] | None = None
        self._laying = threading.Lock()

    def prepare(self) -> Path:
        """Lay the VM's disk, once, and return its root: what is written there before boot is found there."""
        with self._laying:
            if not self.path.exists():
                self._mount_disk()
                self._clear_inherited()
                self._name_it()
        return self.path

    def boot(
        self,
        units: Sequence[str] = (),
        hook: Callable[[Path], object] | None = None,
        binds: Sequence[str] = (),
    ) -> None:
        """Power on; return when systemd says that the boot is over, failed units or not (see `failed_units`).

        `units` are enabled first, `hook` gets the root directory before that. `binds` are nspawn's words, such as
        `--bind-ro=/a:/b`, and hold for later boots too.

        Raises:
            NotInTime: it did not come up; the text ends with its console.
        """
        root = self.prepare()
        if hook:
            hook(root)
        self.enable(*units)
        self._binds += binds
        self._cgroup.mkdir()
        self._process = self._lab.spawn(
            self.name, self._nspawn(), self.console,
            env={"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"},
        )  # fmt: skip
        try:
            machine.wait_until(self._is_up, f"{self.name} to boot", 60)
        except machine.NotInTime as why:
            raise machine.NotInTime(f"{why}\n{self.console.read_text(errors='replace')[-2000:]}") from why

    def enable(self, *units: str) -> None:
        """Have units started at the next boot, without starting them now; the disk must be laid."""
        if units:
            machine.run(["systemctl", "--quiet", f"--root={self.path}", "enable", *units])

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside as root to its end; see `machine.run`."""
        return machine.run([*self._enter(), *argv], check=check, input=input, timeout=timeout)

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a program inside as root, with text pipes; it ends with the VM, and is reaped when the lab is down."""
        process = subprocess.Popen(
            [*self._enter(), *argv],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._lab.reap_later(process)
        return process

    def journal(self, unit: str | None = None, *words: str) -> str:
        """What a unit, or all of the VM, logged, earlier boots included."""
        which = ["-u", unit] if unit else []
        return self.run(["journalctl", "--no-pager", "-o", "short-precise", *which, *words]).stdout

    def failed_units(self) -> list[str]:
        """The units that systemd counts as failed."""
        listed = self.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout
        return [line.split()[0] for line in listed.splitlines()]

    def listens(self, port: int) -> bool:
        """Whether anything inside listens on a TCP port."""
        return (leader := self.leader()) is not None and machine.listens(leader, port)

    def stop(self) -> None:
        """Shut down cleanly; after 30 s it is a power cut."""
        self._end_by(signal.SIGRTMIN + 4, 30)

    def power_cut(self) -> None:
        """End every process of the VM at once, without a word to any of them; the disk stays."""
        self._end_by(signal.SIGKILL, 10)

    def leader(self) -> int | None:
        """The outer number of the VM's process 1, or None while there is none."""
        for listing in self._listings():
            for pid in listing.split():
                with contextlib.suppress(OSError, IndexError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    if status.startswith("Name:\tsystemd\n") and status.split("NSpid:")[1].splitlines()[
                        0
                    ].split()[1:] == ["1"]:
                        return int(pid)
        return None

    def _listings(self) -> list[str]:
        listings = []
        for folder, _, _ in os.walk(self._cgroup):
            with contextlib.suppress(OSError):
                listings.append((Path(folder) / "cgroup.procs").read_text())
        return listings

    def _mount_disk(self) -> None:
        top = self.folder / "disk"
        top.mkdir(parents=True)
        machine.run(["mount", "-t", "tmpfs", "-o", "size=2g,mode=755", self.netns, str(top)])
        for part in ("upper", "work"):
            (top / part).mkdir()
        self.path.mkdir()
        layers = f"lowerdir=/,upperdir={top}/upper,workdir={top}/work"
        machine.run(["mount", "-t", "overlay", self.netns, "-o", layers, str(self.path)])

    def _clear_inherited(self) -> None:
        for inherited in _INHERITED:
            place = self.path / inherited
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        units = self.path / _UNITS
        units.mkdir()
        (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
        for unit in _MASKED:
            (units / unit).symlink_to("/dev/null")

    def _name_it(self) -> None:
        etc = self.path / "etc"
        for file in (Path("/etc/netns") / self.netns).glob("*"):
            (etc / file.name).unlink(missing_ok=True)  # resolv.conf may be a link to somewhere outside
            shutil.copy(file, etc / file.name)
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "machine-id").write_text(f"{secrets.token_hex(16)}\n")
        (etc / "systemd/journald.conf").write_text(_JOURNALD)
        for folder in ("var/log/journal", "var/lib/glusterd"):
            (self.path / folder).mkdir()

    def _nspawn(self) -> list[str]:
        return [
            "systemd-nspawn", "--quiet", "--boot", f"--directory={self.path}", f"--machine={self.netns}",
            f"--hostname={self.name}", "--register=no", "--keep-unit", f"--network-namespace-path=/run/netns/{self.netns}",
            "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe", "--kill-signal=SIGRTMIN+4",
            "--capability=CAP_NET_ADMIN,CAP_SYS_ADMIN", *self._binds, "systemd.show_status=no",
        ]  # fmt: skip

    def _enter(self) -> list[str]:
        leader = self.leader()
        if leader is None:
            raise machine.NotInTime(f"{self.name} is not running")
        return ["nsenter", "-t", str(leader), "-a", "--"]

    def _is_up(self) -> bool:
        if self._process and self._process.poll() is not None:
            raise machine.NotInTime(f"{self.name} ended while booting")
        if self.leader() is None:
            return False
        with contextlib.suppress(machine.NotInTime):
            return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in {
                "running",
                "degraded",
            }
        return False

    def _end_by(self, number: int, patience: float) -> None:
        leader = self.leader()
        if leader is not None:
            os.kill(leader, number)
        if self._process:
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                (self._cgroup / "cgroup.kill").write_text("1")
                self._process.wait(10)
            self._process = None
        if self._cgroup.exists():
            drop_cgroup(self._cgroup)
