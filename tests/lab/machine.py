"""What this machine can do, and how the lab runs programs and waits for them."""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
TOOLS = PROJECT / "build/tools/usr/bin"

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONPATH": str(PROJECT),  # this very tree, for children in another folder too
}
_PROGRAMS = (
    "ip",
    "nsenter",
    "systemd-nspawn",
    "systemd-sysusers",
    "losetup",
    "mkfs.ext4",
    "glusterd",
    "mount.glusterfs",
)
_SERVERS = ("named", "apache2", "postfix", "dovecot", "curl", "openssl")


class CommandFailed(Exception):
    """A program ended with another code than 0; the text holds what it printed."""

    def __init__(self, argv: Sequence[str], code: int, printed: str) -> None:
        super().__init__(f"exit {code}: {' '.join(argv)}\n{printed[-4000:]}")
        self.code, self.printed = code, printed


class NotInTime(Exception):
    """Something awaited did not come true in time."""


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    input: str | None = None,  # noqa: A002
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with a plain environment; `timeout` in seconds.

    Raises:
        CommandFailed: it ended with another code than 0, and `check` is true.
        subprocess.TimeoutExpired: it was killed at the timeout.
    """
    stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    done = subprocess.run(
        list(argv), check=False, capture_output=True, text=True, errors="replace", timeout=timeout,
        env=_ENVIRONMENT, **stdin,
    )  # fmt: skip
    if check and done.returncode:
        raise CommandFailed(argv, done.returncode, done.stdout + done.stderr)
    return done


def spawn(
    argv: Sequence[str], log: Path, *, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own (a Ctrl-C at the terminal does not reach it); its output goes to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd,
            env=_ENVIRONMENT | (env or {}), start_new_session=True,
        )  # fmt: skip


def end(process: subprocess.Popen[bytes], patience: float = 5) -> None:
    """Terminate, after `patience` seconds kill, and reap; repeatable."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def wait_until(question: Callable[[], object], what: str, timeout: float = 10) -> None:
    """Return as soon as the question has a true answer.

    Raises:
        NotInTime: it had none within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not question():
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {timeout} s: {what}")
        time.sleep(0.02)


def listens(pid: int, port: int) -> bool:
    """Whether anything listens on the TCP port in the network namespace of a process."""
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        if any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows):
            return True
    return False


@functools.cache
def cgroup2() -> Path | None:
    """Where the unified hierarchy is mounted; beside v1 ones is good enough."""
    rows = (row.split() for row in Path("/proc/mounts").read_text().splitlines())
    return next((Path(row[1]) for row in rows if row[2] == "cgroup2"), None)


@functools.cache
def capabilities() -> tuple[str, ...]:
    """What is missing here for the full lab, each with its reason; empty when nothing is."""
    if os.geteuid() != 0:
        return ("root: this runs as another user, and namespaces, mounts and loop devices need root",)
    checks = (_no_namespaces, _no_fuse, _no_overlay, _no_loop, _no_cgroup2, _no_programs)
    return tuple(reason for check in checks if (reason := check()))


def pebble_program(name: str = "pebble") -> Path | None:
    """The program (Pebble, Caddy, lego) that setup.sh brought, else the installed one, else None."""
    found = shutil.which(name, path=f"{TOOLS}:{_ENVIRONMENT['PATH']}")
    return Path(found) if found else None


def _no_namespaces() -> str:
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"],
        check=False,
        capture_output=True,
        text=True,
    )
    return f"namespaces: {done.stderr.strip()}" if done.returncode else ""


def _no_fuse() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory(prefix="certfan-") as folder:
        try:
            fd = os.open("/dev/fuse", os.O_RDWR)
        except OSError as why:
            return f"FUSE: {why}"
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
        failed = libc.mount(b"certfan", folder.encode(), b"fuse", 0, options)
        reason = f"FUSE: cannot mount: {os.strerror(ctypes.get_errno())}" if failed else ""
        if not failed:
            libc.umount2(folder.encode(), 2)  # MNT_DETACH
        os.close(fd)
        return reason


def _no_overlay() -> str:
    known = Path("/proc/filesystems").read_text().split()
    return "" if "overlay" in known else "overlayfs: the kernel does not offer it"


def _no_loop() -> str:
    return "" if Path("/dev/loop-control").exists() else "loop devices: there is no /dev/loop-control"


def _no_cgroup2() -> str:
    root = cgroup2()
    if root is None:
        return "cgroup2: it is mounted nowhere"
    probe = root / f"certfan-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as why:
        return f"cgroup2: {why}"
    return ""


def _no_programs() -> str:
    missing = [name for name in (*_PROGRAMS, *_SERVERS) if not shutil.which(name, path=_ENVIRONMENT["PATH"])]
    if pebble_program() is None:
        missing.append("pebble")
    return f"programs: {', '.join(missing)} (tests/lab/setup.sh brings them)" if missing else ""
