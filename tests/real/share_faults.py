"""What can happen to a share, done for real on the fleet's GlusterFS volume, and how to see what it does to the daemon."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import machine
from tests.lab.fleet import NAME, Fleet
from tests.lab.vm import Vm

PYTHON = "/opt/certfan/bin/python"
SHARE = "/srv/le"
# Asks the responder 40 times a second. What the machine made daemon and watcher wait for a core is no lag of the loop.
WATCHER = r"""
import http.client, json, select, sys, time
from pathlib import Path
def waited(pid):
    # Of every thread: one that holds the interpreter's lock and has no core holds up the loop too.
    return sum(int(file.read_text().split()[1]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
pid, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
worst, asked, line = 0.0, 0, http.client.HTTPConnection(address, port, timeout=10)
print("watching", flush=True)
while not select.select([sys.stdin], [], [], 0.025)[0]:
    theirs, own, began = waited(pid), waited("self"), time.monotonic()
    line.request("GET", "/.well-known/acme-challenge/" + "x" * 43)
    line.getresponse().read()
    took = time.monotonic() - began
    worst, asked = max(worst, took - (waited(pid) - theirs) - (waited("self") - own)), asked + 1
print(json.dumps({"worst": worst, "asked": asked}), flush=True)
"""
TOUCH = (
    f"dd if=/dev/zero of={SHARE}/web1/.probe bs=16k count=1 conv=fsync status=none; rm -f {SHARE}/web1/.probe"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to the share: how to begin and end it, and what is said about it."""

    name: str
    begin: Callable[[Fleet], object]
    end: Callable[[Fleet], object] = field(kw_only=True)
    said: str = field(kw_only=True)  # by the status: code, detail and hint in one line
    felt: str = field(kw_only=True)  # by a program that writes there
    bare: bool = field(default=False, kw_only=True)  # the mount point is a bare directory meanwhile
    restarts: bool = field(default=False, kw_only=True)  # the daemon is restarted at its beginning


@dataclass(slots=True)
class Watch:
    """What the watcher saw, once it has ended: the worst lag in seconds, how often it asked."""

    worst: float = 0.0
    asked: int = 0


@contextlib.contextmanager
def watching(fleet: Fleet) -> Iterator[Watch]:
    """Ask the responder all the while."""
    pid = fleet.cert.run(["systemctl", "show", "-P", "MainPID", "certfan"]).stdout.strip()
    asking = fleet.cert.popen([PYTHON, "-c", WATCHER, pid, "10.62.0.10", "8055"])
    watch = Watch()
    assert asking.stdout is not None
    assert asking.stdout.readline() == "watching\n"
    yield watch
    told, _ = asking.communicate("\n", timeout=20)
    seen = json.loads(told)
    watch.worst, watch.asked = seen["worst"], seen["asked"]


def told(fleet: Fleet, said: str) -> bool:
    """Whether the status page names something, with code, detail and the command to look with in one line."""
    with contextlib.suppress(machine.CommandFailed, ValueError, KeyError):
        problems = fleet.get("/api/v1/status")["problems"]
        return any(
            re.search(said, f"{p['subject']} {p['code']}: {p['detail']} -- {p['hint']}") for p in problems
        )
    return False


def felt(vm: Vm, patience: float = 1.0) -> str:
    """Return what a program that writes to web1's folder is told, `hung` when it is told nothing, "" for nothing wrong."""
    writing = vm.popen(["sh", "-c", TOUCH])
    try:
        said, _ = writing.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        return "hung"
    return said.strip()


def pointer(fleet: Fleet, consumer: str = "web1", *, brick: str = "host") -> int:
    """Return where a live pointer leads, as a brick holds it: no mount is asked."""
    vm = {"host": fleet.farm.host, "cert": fleet.cert}[brick]
    link = fleet.farm.gluster.brick(vm) / "le" / consumer / "live" / NAME
    return int(Path(link.readlink()).name) if link.is_symlink() else 0


def settled(fleet: Fleet) -> int:
    """Wait until the share is well and has the newest generation for both consumers; return its number."""

    def well() -> bool:
        number = fleet.certificate()["generation"]
        return not told(fleet, "share") and all(pointer(fleet, one) == number for one in ("web1", "mail1"))

    machine.wait_until(well, "the share settled", 40)
    return int(fleet.certificate()["generation"])


def issued_here(fleet: Fleet, number: int) -> bool:
    """Whether a generation is complete in the daemon's own state folder."""
    chain = f"/var/lib/certfan/generations/{NAME}@{number}.fullchain.pem"
    return fleet.cert.run(["test", "-s", chain], check=False).returncode == 0


def gluster(fleet: Fleet, *words: str) -> str:
    """Run a command of the volume on the host."""
    return fleet.farm.host.run(["gluster", "--mode=script", *words]).stdout


def brick_pid(vm: Vm) -> str:
    """Return the process that serves a machine's brick."""
    return vm.run(["sh", "-c", "cat /var/run/gluster/vols/le/*.pid"]).stdout.split()[0]


def signal_bricks(fleet: Fleet, name: str, *vms: Vm) -> None:
    """Send a signal to brick processes."""
    for vm in vms:
        vm.run(["kill", f"-{name}", brick_pid(vm)])


def remount(fleet: Fleet) -> None:
    """Have the share mounted as at boot, whatever is there now."""
    fleet.cert.run(
        [
            "sh",
            "-c",
            f"while mountpoint -q {SHARE} || umount -l {SHARE} 2>/dev/null; do umount -l {SHARE}; done; true",
        ]
    )
    fleet.cert.run(["systemctl", "restart", "srv-le.mount"])


def renew_client(fleet: Fleet) -> None:
    """Have the share mounted by a new client; calls that hang in the one before it end."""
    _kill_client(fleet)
    remount(fleet)


def _stop_mount(fleet: Fleet) -> None:
    fleet.cert.run(["systemctl", "stop", "certfan"])
    fleet.cert.run(["systemctl", "stop", "srv-le.mount"])
    fleet.cert.run(["systemctl", "start", "certfan"])


def _other_share(fleet: Fleet) -> None:
    other = "/run/other-share"
    script = f'rm -rf {other}; cp -a --no-preserve=xattr {SHARE} {other} && echo \'{{"format": 1, "share": "another"}}\' > {other}/certfan.share && mount --bind {other} {SHARE}'
    fleet.cert.run(["sh", "-c", script])


def _kill_client(fleet: Fleet) -> None:
    fleet.cert.run(["pkill", "-KILL", "-f", f"glusterfs .*{SHARE}$"])


def _lose_quorum(fleet: Fleet) -> None:
    gluster(fleet, "volume", "set", "le", "cluster.quorum-type", "auto")
    signal_bricks(fleet, "KILL", fleet.farm.host)


def _find_quorum(fleet: Fleet) -> None:
    gluster(fleet, "volume", "start", "le", "force")
    gluster(fleet, "volume", "reset", "le", "cluster.quorum-type")


def _fill_bricks(fleet: Fleet) -> None:
    # The last kilobytes one by one: a bundle is small, and ext4 keeps some of them from a large write.
    script = "cat /dev/zero 2>/dev/null >{0}; sync; for i in $(seq 999); do dd if=/dev/zero of={0}.$i bs=1k count=1 conv=fsync 2>/dev/null || break; done; true"
    for vm in (fleet.cert, fleet.farm.host):
        vm.run(["sh", "-c", script.format("/srv/gfs/fill")])


def _empty_bricks(fleet: Fleet) -> None:
    for vm in (fleet.cert, fleet.farm.host):
        vm.run(["sh", "-c", "rm -f /srv/gfs/fill*"])


def _freeze(fleet: Fleet) -> None:
    signal_bricks(fleet, "STOP", fleet.cert, fleet.farm.host)


def thaw(fleet: Fleet) -> None:
    """Let frozen bricks go on."""
    signal_bricks(fleet, "CONT", fleet.cert, fleet.farm.host)


def _shell(script: str) -> Callable[[Fleet], object]:
    return lambda fleet: fleet.cert.run(["sh", "-c", script])


def _split(fleet: Fleet) -> None:
    """Write the sentinel while one brick is away, then while the other one is: each of both has the only truth."""
    gluster(fleet, "volume", "set", "le", "cluster.self-heal-daemon", "off")
    for vm in (fleet.farm.host, fleet.cert):
        signal_bricks(fleet, "KILL", vm)
        script = f"cp {SHARE}/certfan.share /run/kept && cat /run/kept >{SHARE}/certfan.share && sync {SHARE}/certfan.share"
        fleet.cert.run(["sh", "-c", script])
        gluster(fleet, "volume", "start", "le", "force")
        machine.wait_until(lambda: _bricks_up(fleet), "both bricks up", 20)
    # What the kernel has read it tells for ever; without it there is nothing to tell.
    fleet.cert.run(["dd", f"if={SHARE}/certfan.share", "iflag=nocache", "count=0", "status=none"])


def _join(fleet: Fleet) -> None:
    gluster(
        fleet, "volume", "heal", "le", "split-brain", "source-brick", "host.int:/srv/gfs/le", "/certfan.share"
    )
    gluster(fleet, "volume", "set", "le", "cluster.self-heal-daemon", "on")


def _bricks_up(fleet: Fleet) -> bool:
    """Whether cert's client is connected to both bricks, by its own count."""
    told = fleet.cert.run(
        ["getfattr", "-n", "trusted.glusterfs.pathinfo", "--only-values", SHARE], check=False
    ).stdout
    return told.count("POSIX") == 2


_LOOK = r"-- .*(mount \| grep|gluster volume status|certfan share setup)"
_LOST = r"^share share\.unavailable: "
_HUNG = rf"{_LOST}.*hung in the kernel \(process \d+\) -- .*wchan.*gluster volume status"
FAULTS = (
    Fault(
        "not mounted", _stop_mount, end=remount, bare=True, restarts=True,
        said=rf"{_LOST}.*not mounted.*{_LOOK}", felt="No such file",
    ),
    Fault(
        "lazily unmounted", _shell(f"umount -l {SHARE}"), end=remount, bare=True,
        said=rf"{_LOST}.*not mounted.*{_LOOK}", felt="No such file",
    ),
    Fault(
        "another share", _other_share, end=remount,
        said=rf"{_LOST}.*another share is mounted: another.*{_LOOK}", felt="^$",
    ),
    Fault(
        "read-only", _shell(f"mount -o remount,ro {SHARE}"), end=_shell(f"mount -o remount,rw {SHARE}"),
        said=rf"{_LOST}.*read-only.*{_LOOK}", felt="Read-only file system",
    ),
    Fault(
        "bricks full", _fill_bricks, end=_empty_bricks,
        said=r"share\.full: .* -- .*df -h", felt="No space left",
    ),
    Fault(
        "client killed", _kill_client, end=remount,
        said=rf"{_LOST}.*not connected.*{_LOOK}", felt="not connected",
    ),
    Fault(
        "quorum lost", _lose_quorum, end=_find_quorum,
        said=rf"{_LOST}.*{_LOOK}", felt="not connected|Read-only",
    ),
    Fault(
        "volume stopped", lambda fleet: gluster(fleet, "volume", "stop", "le"),
        end=lambda fleet: gluster(fleet, "volume", "start", "le"),
        said=rf"{_LOST}.*not connected.*{_LOOK}", felt="not connected",
    ),
    Fault("bricks frozen", _freeze, end=thaw, said=_HUNG, felt="hung"),
    Fault(
        "brick cut off", lambda fleet: fleet.farm.network.cut("host", "xenbr1"),
        end=lambda fleet: fleet.farm.network.heal("host", "xenbr1"), said=_HUNG, felt="hung",
    ),
    Fault("split brain", _split, end=_join, said=rf"{_LOST}.*Input/output error.*{_LOOK}.*split-brain", felt="^$"),
    Fault(
        "foreign owner", _shell(f"chown 12345 {SHARE}/web1/generations"), end=_shell("certfan share setup"),
        said=r"^web1 share\.tampered: .*uid 12345.*certfan share setup", felt="^$",
    ),
    Fault(
        "planted symlink", _shell(f"mv {SHARE}/web1/live {SHARE}/web1/aside && ln -s /etc {SHARE}/web1/live"),
        end=_shell(f"rm {SHARE}/web1/live && mv {SHARE}/web1/aside {SHARE}/web1/live"),
        said=r"^web1 share\.tampered: .*live.*ls -la", felt="^$",
    ),
    Fault(
        "open to others", _shell(f"chmod o+rx {SHARE}/web1"), end=_shell("certfan share setup"),
        said=r"^web1 share\.permission_too_open: .*2755.*certfan share setup", felt="^$",
    ),
)  # fmt: skip
