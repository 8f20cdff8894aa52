"""Network namespaces that stand for machines, on a public and an internal bridge."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import machine
from tests.lab.lab import Lab

PUBLIC, INTERNAL = "xenbr0", "xenbr1"


@dataclass(frozen=True, slots=True)
class Seat:
    """One machine's place: the last part of all its addresses, and the bridges it is on."""

    name: str
    octet: int
    bridges: tuple[str, ...] = (PUBLIC, INTERNAL)

    @property
    def internal(self) -> str:
        """The address behind `<name>.int`: internal, or public for a machine that has no other."""
        return f"10.{62 if INTERNAL in self.bridges else 61}.0.{self.octet}"


SEATS = (
    Seat("dns", 2),
    Seat("ca", 3, (PUBLIC,)),
    Seat("cert", 10),
    Seat("web1", 20),
    Seat("host", 254, (INTERNAL,)),
)


@dataclass(frozen=True, slots=True)
class Namespace:
    """One machine's network, to run programs in; its files are those of the outer machine, hosts and resolv.conf apart."""

    netns: str

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; see `machine.run`."""
        return machine.run(
            ["ip", "netns", "exec", self.netns, *argv], check=check, input=input, timeout=timeout
        )

    @property
    def enter(self) -> list[str]:
        """Words before an argv that must last: unlike `ip netns exec`, they keep no copy of the machine's mounts."""
        return ["nsenter", f"--net=/run/netns/{self.netns}"]


class Network:
    """Both bridges (in a namespace of their own, `dom0`) and every seat."""

    def __init__(self, lab: Lab, seats: Sequence[Seat] = SEATS) -> None:
        self._lab, self._seats = lab, tuple(seats)

    def __getitem__(self, name: str) -> Namespace:
        """The network of a seat, or of `dom0`."""
        return Namespace(f"{self._lab.prefix}{name}")

    def up(self) -> None:
        """Make the namespaces, links, addresses, and the files with their names."""
        self._add("dom0")
        self._batch("dom0", [line for bridge in (PUBLIC, INTERNAL) for line in _bridge_lines(bridge)])
        for seat in self._seats:
            self._add(seat.name)
            for bridge in seat.bridges:
                self._attach(seat, bridge)
            self._write_files(seat)

    def cut(self, name: str, bridge: str = PUBLIC) -> None:
        """Pull a machine's cable out of a bridge; `heal` puts it back with all addresses."""
        machine.run(["ip", "-n", self["dom0"].netns, "link", "set", _port(name, bridge), "nomaster"])

    def heal(self, name: str, bridge: str = PUBLIC) -> None:
        """Undo `cut`."""
        machine.run(["ip", "-n", self["dom0"].netns, "link", "set", _port(name, bridge), "master", bridge])

    def _add(self, name: str) -> None:
        machine.run(["ip", "netns", "add", self[name].netns])
        machine.run(["ip", "-n", self[name].netns, "link", "set", "lo", "up"])

    def _batch(self, name: str, lines: Sequence[str]) -> None:
        machine.run(["ip", "-n", self[name].netns, "-batch", "-"], input="\n".join(lines) + "\n")

    def _attach(self, seat: Seat, bridge: str) -> None:
        number = int(bridge[-1])
        interface, port, dom0 = f"eth{number}", _port(seat.name, bridge), self["dom0"].netns
        self._batch("dom0", [
            f"link add {interface} netns {self[seat.name].netns} type veth peer name {port} netns {dom0}",
            f"link set {port} master {bridge} up",
        ])  # fmt: skip
        self._batch(seat.name, [
            f"addr add 10.6{number + 1}.0.{seat.octet}/24 dev {interface}",
            f"addr add fd6{number + 1}::{seat.octet}/64 dev {interface} nodad",
            f"link set {interface} up",
        ])  # fmt: skip

    def _write_files(self, seat: Seat) -> None:
        folder = Path("/etc/netns") / self[seat.name].netns
        folder.mkdir(parents=True)
        names = [f"127.0.0.1 localhost {seat.name}", "::1 localhost ip6-localhost"]
        names += [f"{other.internal} {other.name}.int" for other in self._seats]
        (folder / "hosts").write_text("\n".join(names) + "\n")
        server = "10.61.0.2" if PUBLIC in seat.bridges else "10.62.0.2"
        (folder / "resolv.conf").write_text(f"nameserver {server}\noptions timeout:1 attempts:2\n")


def _bridge_lines(bridge: str) -> tuple[str, str]:
    return f"link add {bridge} type bridge forward_delay 0", f"link set {bridge} up"


def _port(name: str, bridge: str) -> str:
    return f"v-{name}-{bridge[-1]}"
