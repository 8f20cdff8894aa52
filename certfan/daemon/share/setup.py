"""`certfan share setup`: what root does once for a share, and again when a consumer is added."""

from __future__ import annotations

import contextlib
import socket
import stat
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from certfan.core.model import Consumer
from certfan.daemon.config.loading import Config
from certfan.daemon.share.lines import CUSTODY, PING_TIMEOUT, VolumeName, creation, lines, placeholder
from certfan.daemon.share.share import Mount, group_number, mount_of
from certfan.share_worker.client import ShareWorker

GLUSTERFS = "fuse.glusterfs"
_SETTING_UP = timedelta(seconds=60)
_FOLDER_MODE = 0o2750
_SAFE = frozenset({"noexec", "nodev", "nosuid"})
_ASKING = 10  # seconds that glusterd may take


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was looked at: `problem` is empty when it is well, `todo` when a line that is printed mends it."""

    what: str
    problem: str = ""
    todo: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class SetUp:
    """A share that was set up: its id, what carries it, and what a look afterwards showed."""

    share: str
    mount: Mount
    checks: tuple[Check, ...]


async def set_up_share(
    root: Path,
    consumers: Iterable[Consumer],
    *,
    uid: int,
    lock: Path,
    share_id: str | None = None,
    require_mount: bool = False,
) -> SetUp:
    """Make the share's sentinel and each consumer's closed folder, owned by `uid`; look at it all again.

    Run as root. Repeatable, also beside a running daemon: `lock` is a local file of its own, not the daemon's.

    Raises:
        ConfigInvalid: a consumer's group does not exist.
        ShareError: not mounted, another share, read-only, or something is in the way.
    """
    groups = {consumer.name: group_number(consumer) for consumer in consumers}
    worker = ShareWorker(root, lock=lock, writable=True, sentinel_id=share_id, require_mount=require_mount)
    try:
        made = await worker.call("setup", {"consumers": groups, "uid": uid}, patience=_SETTING_UP)
        seen = (await worker.call("survey", patience=_SETTING_UP)).header
    finally:
        await worker.stop()
    mount = mount_of(seen["mount"])
    checks = (*_mount_checks(mount, root), *folder_checks(seen["consumers"], groups, uid))
    return SetUp(str(made.header["share"]), mount, checks)


def _mount_checks(mount: Mount, root: Path) -> Iterator[Check]:
    yield Check(f"{root} is on {mount.fstype} ({mount.source}), mounted at {mount.mounted_at}")
    if mount.fstype == GLUSTERFS:
        missing = sorted(_SAFE - set(mount.options))
        yield Check(
            "mount options",
            f"{', '.join(missing)} missing: see the line for fstab" if missing else "",
            todo=True,
        )


def folder_checks(seen: Mapping[str, Any], groups: Mapping[str, int], uid: int) -> Iterator[Check]:
    """Compare what a survey saw of each consumer's folders with what was asked; some file systems keep no modes."""
    for consumer, gid in sorted(groups.items()):
        facts = seen.get(consumer, {}).get("facts", {})
        wrong = [
            f"{consumer}/{name} is {_told(facts.get(name))}, wanted is a folder {_FOLDER_MODE:04o} of {uid}:{gid}"
            for name in ("", "live", "generations")
            if facts.get(name, [])[:4] != ["folder", _FOLDER_MODE, uid, gid]
        ]
        yield Check(f"folder {consumer}/, {_FOLDER_MODE:04o}, of {uid}:{gid}", "; ".join(wrong))


def _told(fact: list[Any] | None) -> str:
    return f"a {fact[0]} {stat.S_IMODE(fact[1]):04o} of {fact[2]}:{fact[3]}" if fact else "missing"


def advice(config: Config, mount: Mount | None = None) -> dict[str, Any]:
    """Return what to type for the consumers of a config, as JSON values; `create` is for a volume that is not there."""
    volume = _volume_of(mount)
    counts = Counter(name for one in config.desired.certificates.values() for name in one.consumers)
    daemon = config.channel[0].host
    told = lines(
        volume,
        config.share.path,
        config.desired.consumers.values(),
        writers=_writers(volume, daemon),
        certificates=counts,
    )
    return {
        "create": None if mount else creation(volume, config.share.path, daemon),
        "commands": list(told.commands),
        "fstab": dict(told.fstab),
        "custody": CUSTODY,
    }


def _volume_of(mount: Mount | None) -> VolumeName:
    return VolumeName.of(mount.source) if mount and mount.fstype == GLUSTERFS else VolumeName()


def _writers(volume: VolumeName, daemon: str) -> tuple[str, ...]:
    """Return the addresses that must reach all of a volume: the daemon's, and those of the server it mounts from."""
    try:
        rows = socket.getaddrinfo(volume.server, None, type=socket.SOCK_STREAM)
        found = sorted({str(row[4][0]) for row in rows})
    except OSError:
        found = [placeholder(volume.server)]
    return tuple(dict.fromkeys([daemon, *found]))


def volume_checks(config: Config, mount: Mount) -> Iterator[Check]:
    """Tell what of the printed lines the volume lacks yet; nothing where no glusterd of it answers here."""
    info = _volume_info(_volume_of(mount).volume) if mount.fstype == GLUSTERFS else None
    if info is None:
        return
    bricks = [brick.findtext("name") or "" for brick in info.iter("brick")]
    options = {one.findtext("name"): one.findtext("value") or "" for one in info.iter("option")}
    yield Check(f"bricks: {', '.join(bricks)}", _own_brick_first(bricks), todo=True)
    patience = options.get("network.ping-timeout", "42")
    slow = patience.isdecimal() and int(patience) > PING_TIMEOUT
    wait = "a frozen brick holds every call up for one to two times that" if slow else ""
    yield Check(f"network.ping-timeout {patience}", wait, todo=True)
    allowed = options.get("auth.allow", "*")
    outside = [name for name in sorted(config.desired.consumers) if f"/{name}(" not in allowed]
    open_to = f"the volume itself keeps nobody from the keys of {', '.join(outside)}" if outside else ""
    yield Check(f"auth.allow {allowed}", open_to, todo=True)


def _own_brick_first(bricks: Sequence[str]) -> str:
    first = bricks[0].partition(":")[0] if bricks else ""
    own = {socket.gethostname(), socket.getfqdn()}
    if first.partition(".")[0] in {name.partition(".")[0] for name in own}:
        return (
            "the first one is this machine's own: with quorum the volume stops whenever this machine is down"
        )
    return ""


def _volume_info(volume: str) -> ElementTree.Element | None:
    argv = ["gluster", "--mode=script", "--xml", "volume", "info", volume]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ElementTree.ParseError):
        done = subprocess.run(argv, capture_output=True, timeout=_ASKING, check=True)
        return ElementTree.fromstring(done.stdout).find(".//volume")  # noqa: S314 - our own glusterd's
    return None
