"""What an admin types once for a share: the volume's commands, the lines of fstab. Text only; nothing here is done."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from certfan.core.model import Consumer

PING_TIMEOUT = (
    10  # seconds; with 42, GlusterFS's own default, a frozen brick holds every call up for 58 to 85 s
)
CUSTODY = (
    'custody "share" trusts the addresses that the volume lets in, a clear wire between it and its clients, and root '
    'of every machine with a brick; "sealed" trusts none of them: only the consumer\'s own key opens what lies there'
)
_OPTIONS = "noexec,nodev,nosuid,_netdev"
_SMALLEST_QUOTA = (
    16  # MiB; a bundle takes six blocks of 4 KiB, and at most a few generations of each are kept
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeName:
    """A volume as its clients name it: the server that they mount from, and what it is called there."""

    server: str = "HOST"
    volume: str = "VOLUME"

    @classmethod
    def of(cls, source: str) -> VolumeName:
        """Read it from the source of a mount, `host.int:/le`."""
        server, _, path = source.rpartition(":")
        volume = path.strip("/").split("/")[0]
        return cls(server=server, volume=volume) if server and volume else cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The volume's commands, and the line of fstab of each machine: `""` is this one, the others are consumers."""

    commands: tuple[str, ...]
    fstab: Mapping[str, str]


def lines(
    volume: VolumeName,
    path: Path,
    consumers: Iterable[Consumer],
    *,
    writers: Sequence[str],
    certificates: Mapping[str, int],
) -> Lines:
    """Return what to type for these consumers.

    `writers` are the addresses of the cert VM and of the machines with a brick, `certificates` how many a consumer has.
    """
    known = sorted(consumers, key=lambda one: one.name)
    return Lines(
        commands=tuple(_commands(volume, known, writers, certificates)),
        fstab={
            "": f"{volume.server}:/{volume.volume}  {path}  glusterfs  {_OPTIONS},nofail,x-systemd.automount  0 0",
            **{
                one.name: f"{volume.server}:/{volume.volume}/{one.name}  {path}  glusterfs  "
                f"ro,{_OPTIONS},nofail,x-systemd.automount  0 0"
                for one in known
            },
        },
    )


def _commands(
    volume: VolumeName, consumers: Sequence[Consumer], writers: Sequence[str], certificates: Mapping[str, int]
) -> Iterable[str]:
    name = volume.volume
    allowed = [f"/({'|'.join(writers)})"]
    allowed += [f"/{one.name}({'|'.join(one.addresses or [placeholder(one.name)])})" for one in consumers]
    yield f"gluster volume set {name} auth.allow {shlex.quote(','.join(allowed))}"
    yield f"gluster volume set {name} network.ping-timeout {PING_TIMEOUT}"
    yield f"gluster volume quota {name} enable"
    for one in consumers:
        size = max(_SMALLEST_QUOTA, certificates.get(one.name, 0))
        yield f"gluster volume quota {name} limit-usage /{one.name} {size}MB"


def creation(volume: VolumeName, path: Path, daemon: str) -> str:
    """Return the command that makes a new volume, the host's brick first.

    With quorum a volume of two bricks goes on only while its first one is there, and the host outlives its VMs.
    """
    bricks = f"{volume.server}:/srv/gfs/{path.name} {daemon}:/srv/gfs/{path.name}"
    return f"gluster volume create {volume.volume} replica 2 {bricks}"


def placeholder(name: str) -> str:
    """Return what stands where nobody has said an address."""
    return f"ADDRESS-OF-{name.replace(' ', '-')}"
