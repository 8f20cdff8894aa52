"""The whole farm: up, its handles, down. `python -m tests.lab.farm` serves debugging by hand."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import apache, machine, mail, project
from tests.lab.dns import Named
from tests.lab.gluster import Gluster
from tests.lab.lab import Lab
from tests.lab.network import Network
from tests.lab.pebble import NAME as CA_NAME
from tests.lab.pebble import Pebble
from tests.lab.vm import Vm

Hook = Callable[[Path], object]


class Farm:
    """The story's machines: `cert` (daemon, mail), `web1` (Apache), `host` (the other brick), and the namespaces `ca`, `dns`.

    `say` hears one line a finished step, with its seconds; `retry_after` and `nonce_reject` are Pebble's.
    """

    def __init__(
        self, say: Callable[[str], object] = lambda _line: None, prefix: str | None = None,
        *, retry_after: int = 1, nonce_reject: int = 5,
    ) -> None:  # fmt: skip
        self.lab = Lab(prefix)
        self.network = Network(self.lab)
        self.cert, self.web1, self.host = (Vm(self.lab, name) for name in ("cert", "web1", "host"))
        self.ca, self.dns = self.network["ca"], self.network["dns"]
        self.gluster = Gluster(self.lab, self.host, self.cert)
        service = self.lab.join("svc")
        self.named = Named(self.lab.rundir, [*service, *self.dns.enter])
        self.pebble = Pebble(
            self.lab.rundir, "10.61.0.2:53", prefix_argv=[*service, *self.ca.enter], bind="0.0.0.0",
            ports=(14000, 15000), host=CA_NAME, retry_after=retry_after, nonce_reject=nonce_reject,
        )  # fmt: skip
        self._say = say
        self._boots: list[Future[None]] = []

    def up(
        self,
        *,
        hooks: Mapping[str, Hook] | None = None,
        units: Mapping[str, Sequence[str]] | None = None,
        sites: Sequence[apache.Site] = apache.SITES,
        keep: bool = False,
    ) -> Self:
        """Build everything; at return the volume is mounted read-write at cert's /srv/le, and on no consumer yet.

        `hooks` get a VM's root before its first boot, `units` are enabled then, both by VM name; the services that
        need a certificate pair are configured but not enabled. On any failure everything is taken down again.
        Unless `keep`, the farm ends with this process.
        """
        self.lab.before_down(self.named.stop)
        self.lab.before_down(self.pebble.stop)
        try:
            self.lab.start(keep=keep)
            self._build(hooks or {}, units or {}, sites)
        except BaseException:
            # Boots still under way end as soon as their VMs do; what they made meanwhile goes in the second round.
            for _ in range(2):
                with contextlib.suppress(RuntimeError):  # the first failure is the one to tell
                    self.down()
                wait(self._boots, timeout=70)
            raise
        return self

    def mount_consumers(self) -> None:
        """Mount web1's and mail1's sub-directories, which must exist on the share by now."""
        with self._step("consumers' mounts"):
            self.gluster.mount_consumer(self.web1, "web1", "/srv/le")
            self.gluster.mount_consumer(self.cert, "mail1", "/srv/le-mail1")

    def down(self) -> None:
        """Stop and remove everything; repeatable."""
        self.lab.down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def _build(
        self, hooks: Mapping[str, Hook], units: Mapping[str, Sequence[str]], sites: Sequence[apache.Site]
    ) -> None:
        with self._step("network"):
            self.network.up()
        with self._step("bind9, pebble"):
            self.named.start()
            self.pebble.start()
        with self._step("three systemd VMs"):
            opt = project.lay_opt(self.lab)
            configure: dict[str, Hook] = {
                "web1": lambda root: apache.configure(root, sites),
                "cert": mail.configure,
            }
            pool = ThreadPoolExecutor()
            for vm in (self.cert, self.web1, self.host):
                steps = [configure.get(vm.name), hooks.get(vm.name)]
                self._boots.append(pool.submit(self._boot, vm, opt, steps, units.get(vm.name, ())))
            pool.shutdown(wait=False)
            for boot in wait(self._boots, return_when=FIRST_EXCEPTION).done:
                boot.result()
        with self._step("gluster volume"):
            self.gluster.volume_up()
            self.gluster.mount_rw(self.cert)

    def _boot(self, vm: Vm, opt: str, hooks: Sequence[Hook | None], units: Sequence[str]) -> None:
        root, binds = vm.prepare(), [opt]
        project.link_command(root)
        project.install_units(root)
        for hook in hooks:
            if hook:
                hook(root)
        if vm is not self.web1:
            binds.append(self.gluster.lay_brick(vm))
            units = ["glusterd.service", *units]
        vm.boot(units, binds=binds)

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._say(f"{time.monotonic() - began:5.1f} s  {what}")


def main(argv: Sequence[str]) -> int:
    """`up` leaves a farm running and prints its prefix; `exec PREFIX MACHINE COMMAND...`; `down PREFIX`."""
    match argv:
        case ["up"]:
            farm = Farm(say=print).up(keep=True)
            print(farm.lab.prefix)
            return 0
        case ["down", prefix]:
            Farm(prefix=prefix).down()
            return 0
        case ["exec", prefix, name, *command] if command:
            farm = Farm(prefix=prefix)
            place = {"cert": farm.cert, "web1": farm.web1, "host": farm.host}.get(name, farm.network[name])
            done = place.run(command, check=False)
            print(done.stdout, end="")
            print(done.stderr, end="", file=sys.stderr)
            return done.returncode
        case _:
            print(main.__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    if reasons := machine.capabilities():
        sys.exit("\n".join(reasons))
    sys.exit(main(sys.argv[1:]))
