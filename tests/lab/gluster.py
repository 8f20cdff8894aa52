"""The volume `le`: replica 2, a brick on the host's side and one on the cert VM, isolated by sub-directory."""

import re
from pathlib import Path

from tests.lab import machine
from tests.lab.lab import Lab
from tests.lab.vm import Vm

VOLUME = "le"
_BRICK = "/srv/gfs/le"
_OPTIONS = "noexec,nodev,nosuid,backup-volfile-servers=cert.int"
_ALLOWED = "/(10.62.0.10|10.62.0.254),/web1(10.62.0.20),/mail1(10.62.0.10)"
_UNIT = """[Unit]
Description=the share on {where}
After=network.target glusterd.service

[Mount]
What=host.int:/{what}
Where={where}
Type=glusterfs
Options={options}
TimeoutSec=60

[Install]
WantedBy=multi-user.target
"""


class Gluster:
    """Two peers with a small ext4 brick each; consumers mount only their own sub-directory, read-only."""

    def __init__(self, lab: Lab, host: Vm, cert: Vm, *, ping_timeout: int = 10) -> None:
        self._lab, self._host, self._cert = lab, host, cert
        self._ping_timeout = str(ping_timeout)

    def lay_brick(self, vm: Vm, megabytes: int = 96) -> str:
        """Make a peer's brick, a real file system that outlives the VM's power cuts; return nspawn's word that binds it."""
        folder = self.brick(vm)
        lay_disk(folder, megabytes)
        (vm.path / "srv/gfs").mkdir(parents=True, exist_ok=True)
        return f"--bind={folder}:/srv/gfs"

    def brick(self, vm: Vm) -> Path:
        """Where the outer machine sees a peer's brick file system."""
        return self._lab.rundir / "brick" / vm.name

    def volume_up(self) -> None:
        """Join the peers, make and start the volume; both VMs run glusterd, and no sub-directory needs to exist."""
        self._until(self._host, "peer", "probe", "cert.int")
        self._until(self._cert, "peer", "probe", "host.int")
        machine.wait_until(self._joined, "gluster peers to join", 20)
        self.make()

    def make(self) -> None:
        """Make and start the volume, on bricks where no other one was."""
        bricks = [f"{peer}.int:{_BRICK}" for peer in ("host", "cert")]
        self._until(self._host, "volume", "create", VOLUME, "replica", "2", *bricks, "force")
        patience = ("network.ping-timeout", self._ping_timeout)
        self._command(self._host, "volume", "set", VOLUME, *patience, "auth.allow", _ALLOWED)
        self._command(self._host, "volume", "start", VOLUME)

    def unhealed(self) -> int:
        """Count what the bricks do not have alike; -1 while one of them does not tell."""
        told = self._host.run(
            ["gluster", "--mode=script", "volume", "heal", VOLUME, "info"], check=False
        ).stdout
        counts = re.findall(r"^Number of entries: (\d+)", told, re.MULTILINE)
        return sum(map(int, counts)) if len(counts) == 2 else -1

    def heal(self) -> None:
        """Have both bricks made alike from now on: by itself a volume may not look again for ten minutes."""
        self._until(self._host, "volume", "heal", VOLUME)

    def wait_alike(self, timeout: float = 60) -> None:
        """Wait until whichever brick is lost nothing is lost with it."""
        machine.wait_until(lambda: self.unhealed() == 0, "both bricks to be alike", timeout)

    def lose(self) -> None:
        """Take the volume away for good, with every byte on both bricks."""
        self._command(self._host, "volume", "stop", VOLUME, "force")
        self._command(self._host, "volume", "delete", VOLUME)
        for vm in (self._host, self._cert):
            vm.run(["rm", "-r", _BRICK])

    def mount_rw(self, vm: Vm, where: str = "/srv/le") -> None:
        """Mount the whole volume, now and at every boot."""
        self._mount(vm, VOLUME, where, f"rw,{_OPTIONS}")

    def mount_consumer(self, vm: Vm, consumer: str, where: str = "/srv/le") -> None:
        """Mount a consumer's sub-directory, which must exist, read-only, now and at every boot."""
        self._mount(vm, f"{VOLUME}/{consumer}", where, f"ro,{_OPTIONS}")

    def _mount(self, vm: Vm, what: str, where: str, options: str) -> None:
        unit = machine.run(["systemd-escape", "--path", "--suffix=mount", where]).stdout.strip()
        text = _UNIT.format(what=what, where=where, options=options)
        vm.run(["tee", f"/etc/systemd/system/{unit}"], input=text)
        vm.run(["mkdir", "-p", where])
        vm.run(["systemctl", "daemon-reload"])
        vm.run(["systemctl", "--quiet", "enable", unit])
        # A refused client is mounted for a moment; looking inside tells.
        shown = vm.run(
            ["sh", "-c", 'systemctl start "$1" && ls "$2" && findmnt "$2"', "sh", unit, where], check=False
        )
        if shown.returncode:
            printed = shown.stderr + vm.journal(unit) + _client_log(vm, where)
            raise machine.CommandFailed(["mount", what, where], shown.returncode, printed)

    def _joined(self) -> bool:
        return "Peer in Cluster (Connected)" in self._command(self._host, "peer", "status")

    def _until(self, vm: Vm, *words: str) -> None:
        """Repeat a command while glusterd is still finding its peers."""
        refusals: list[str] = []

        def done() -> bool:
            tried = vm.run(["gluster", "--mode=script", *words], check=False)
            refusals.append(tried.stdout + tried.stderr)
            return tried.returncode == 0

        try:
            machine.wait_until(done, f"gluster {' '.join(words)}", 20)
        except machine.NotInTime as why:
            raise machine.NotInTime(f"{why}\n{refusals[-1]}") from why

    def _command(self, vm: Vm, *words: str) -> str:
        return vm.run(["gluster", "--mode=script", *words]).stdout


def lay_disk(folder: Path, megabytes: int) -> None:
    """Make a folder and mount an ext4 of its own there, on a loop device."""
    folder.mkdir(parents=True)
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    machine.run(["mkfs.ext4", "-q", "-m0", "-I", "512", str(image)])
    machine.run(["mount", "-o", "loop", str(image), str(folder)])


def _client_log(vm: Vm, where: str) -> str:
    log = Path("/var/log/glusterfs") / f"{where.strip('/').replace('/', '-')}.log"
    return vm.run(["tail", "-n", "20", str(log)], check=False).stdout
