"""One lab: a random prefix, a run directory, a cgroup, and the sweep that leaves nothing of them behind."""

import atexit
import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.lab import machine

_NETNS = Path("/run/netns")
_NETNS_FILES = Path("/etc/netns")
_PROPAGATE = Path("/run/systemd/nspawn/propagate")


class Lab:
    """Names and clean-up of one lab; several live side by side on one machine.

    Nothing is registered piece by piece: whatever carries the prefix or lies in the run directory is this lab's,
    so `down` works half-way up, after Ctrl-C, and from another process that knows only the prefix.
    """

    def __init__(self, prefix: str | None = None) -> None:
        """Name the lab; a prefix of an earlier one attaches to that one."""
        self.prefix = prefix or f"cf{secrets.token_hex(2)}-"
        self.name = self.prefix.rstrip("-")
        self.rundir = Path(tempfile.gettempdir()) / f"certfan-{self.name}"
        self.cgroup = (machine.cgroup2() or Path("/sys/fs/cgroup")) / self.name
        self._processes: list[subprocess.Popen[Any]] = []
        self._before_down: list[Callable[[], object]] = []

    def start(self, *, keep: bool = False) -> None:
        """Make the run directory and the cgroup; unless `keep`, they end with this process at the latest."""
        if not keep:
            atexit.register(self.down)
        self.rundir.mkdir(mode=0o755)
        (self.cgroup / "svc").mkdir(parents=True)

    def before_down(self, step: Callable[[], object]) -> None:
        """Have a step done at the start of `down`; its failure stops nothing."""
        self._before_down.append(step)

    def join(self, name: str) -> list[str]:
        """Words before an argv that put the program into a cgroup of this lab."""
        return ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(self.cgroup / name)]

    def spawn(
        self, name: str, argv: Sequence[str], log: Path, *, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in the lab's cgroup `name`; `down` kills and reaps it."""
        process = machine.spawn([*self.join(name), *argv], log, env=env)
        self.reap_later(process)
        return process

    def reap_later(self, process: subprocess.Popen[Any]) -> None:
        """Kill, if need be, and reap this child at `down`."""
        self._processes.append(process)

    def down(self) -> None:
        """End every process and remove every trace; repeatable.

        Raises:
            RuntimeError: something would not go; it names what.
        """
        atexit.unregister(self.down)
        for step in reversed(self._before_down):
            with contextlib.suppress(Exception):
                step()
        for sweep in (
            self._end_processes,
            self._unmount,
            self._detach_loops,
            self._drop_netns,
            self._drop_cgroups,
            self._drop_folders,
        ):
            with contextlib.suppress(
                OSError, machine.CommandFailed, machine.NotInTime, subprocess.TimeoutExpired
            ):
                sweep()
        if left := self.leftovers():
            raise RuntimeError(f"lab {self.prefix} left behind: {', '.join(left)}")
        self._before_down.clear()

    def leftovers(self) -> list[str]:
        """What of this lab is still there."""
        named = [
            *_with_prefix(_NETNS, self.prefix),
            *_with_prefix(_NETNS_FILES, self.prefix),
            *self._cgroups(),
        ]
        named += _with_prefix(_PROPAGATE, self.prefix)
        if self.rundir.exists():
            named.append(self.rundir)
        return (
            [str(path) for path in named]
            + [f"mount {m}" for m in self._mounts()]
            + [f"loop {d}" for d in self._loops()]
        )

    def _end_processes(self) -> None:
        kill = self.cgroup / "cgroup.kill"
        if kill.exists():
            kill.write_text("1")
            machine.wait_until(
                lambda: "populated 0" in (self.cgroup / "cgroup.events").read_text(), "processes to end"
            )
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        self._processes.clear()

    def _unmount(self) -> None:
        for point in reversed(self._mounts()):
            if machine.run(["umount", point], check=False).returncode:
                machine.run(["umount", "-l", point], check=False)

    def _mounts(self) -> list[str]:
        points = [row.split()[4] for row in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(f"{self.rundir}/")]

    def _detach_loops(self) -> None:
        for device in self._loops():
            machine.run(["losetup", "-d", device], check=False)
        # The kernel lets go of a device a moment after the last user.
        machine.wait_until(lambda: not self._loops(), "loop devices to go", 3)

    def _loops(self) -> list[str]:
        files = Path("/sys/block").glob("loop*/loop/backing_file")
        found = []
        for file in files:
            with contextlib.suppress(OSError):  # detached while we look
                if file.read_text().startswith(f"{self.rundir}/"):
                    found.append(f"/dev/{file.parts[3]}")
        return found

    def _drop_netns(self) -> None:
        for path in _with_prefix(_NETNS, self.prefix):
            machine.run(["ip", "netns", "del", path.name], check=False)
        for path in _with_prefix(_NETNS_FILES, self.prefix):
            shutil.rmtree(path)

    def _cgroups(self) -> list[Path]:
        # On a machine with v1 hierarchies too, nspawn mirrors the cgroup into them.
        rows = (row.split() for row in Path("/proc/mounts").read_text().splitlines())
        places = [Path(row[1]) / self.name for row in rows if row[2] in {"cgroup", "cgroup2"}]
        return [place for place in places if place.exists()]

    def _drop_cgroups(self) -> None:
        for place in self._cgroups():
            drop_cgroup(place)

    def _drop_folders(self) -> None:
        for path in _with_prefix(_PROPAGATE, self.prefix):
            path.rmdir()
        if not self._mounts() and self.rundir.exists():
            shutil.rmtree(self.rundir)


def drop_cgroup(place: Path) -> None:
    """Remove an empty cgroup with all below it."""

    def gone() -> bool:
        for folder, _, _ in os.walk(place, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not place.exists()

    machine.wait_until(gone, f"cgroup {place} to empty", 5)


def _with_prefix(folder: Path, prefix: str) -> list[Path]:
    return [path for path in folder.glob(f"{prefix}*")] if folder.is_dir() else []  # noqa: C416
