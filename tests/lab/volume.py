"""The volume `le` alone: host and cert VM with a brick each, web1 for a second mount. No CA, no DNS, no services."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from tests.lab import machine, project
from tests.lab.gluster import Gluster, lay_disk
from tests.lab.lab import Lab
from tests.lab.network import Network
from tests.lab.vm import Vm

PYTHON = f"{project.OPT}/bin/python"
LOCAL = "/srv/local"


class Volume:
    """Three booted machines and the volume; certfan is installed on them, and nothing of it runs."""

    def __init__(self, *, ping_timeout: int = 10, megabytes: int = 96) -> None:
        self.lab = Lab()
        self.network = Network(self.lab)
        self.cert, self.web1, self.host = (Vm(self.lab, name) for name in ("cert", "web1", "host"))
        self.gluster = Gluster(self.lab, self.host, self.cert, ping_timeout=ping_timeout)
        self.local_disk = self.lab.rundir / "disk/local"  # on cert at LOCAL
        self._megabytes = megabytes

    def up(self) -> Self:
        """Build everything; at return the volume is mounted read-write at cert's /srv/le, and on no consumer yet."""
        try:
            self.lab.start()
            self.network.up()
            opt = project.lay_opt(self.lab)
            with ThreadPoolExecutor() as pool:
                for boot in [pool.submit(self._boot, vm, opt) for vm in (self.cert, self.web1, self.host)]:
                    boot.result()
            self.gluster.volume_up()
            self.gluster.mount_rw(self.cert)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the first failure is the one to tell
                self.down()
            raise
        return self

    def down(self) -> None:
        """Stop and remove everything; repeatable."""
        self.lab.down()

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    def _boot(self, vm: Vm, opt: str) -> None:
        root, binds, units = vm.prepare(), [opt], []
        project.link_command(root)
        project.install_units(root)
        if vm is not self.web1:
            binds.append(self.gluster.lay_brick(vm, self._megabytes))
            units = ["glusterd.service"]
        if vm is self.cert:
            lay_disk(self.local_disk, self._megabytes)
            (root / LOCAL.lstrip("/")).mkdir()
            binds.append(f"--bind={self.local_disk}:{LOCAL}")
        vm.boot(units, binds=binds)


def written(folder: str) -> int:
    """Return the bytes that the block device below a mount point has taken so far."""
    source = machine.run(["findmnt", "-no", "SOURCE", folder]).stdout.strip().removeprefix("/dev/")
    with open(f"/sys/block/{source}/stat") as file:
        return int(file.read().split()[6]) * 512
