"""The share's root: opened once, proven to be the share, opened again when the path names something else.

Neither ismount, nor stat of the root, nor statvfs tells a dead share, and a lazily unmounted path silently
becomes the bare directory. So all work is anchored to a descriptor, and that descriptor is compared with what
the path names before each operation.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from certfan.errors import ShareUnavailable
from certfan.share_worker.faults import unavailable
from certfan.share_worker.tree import read_file

SENTINEL = "certfan.share"
FORMAT = 1


class Sentinel(NamedTuple):
    """Which share this is; with a consumer, that consumer's folder of it (all that its mount shows)."""

    share: str
    consumer: str | None


class Place:
    """The root of the share. Holds one descriptor."""

    def __init__(self, path: str, *, share_id: str | None, require_mount: bool) -> None:
        self.path = path
        self._share_id = share_id
        self._require_mount = require_mount
        self._held = -1
        self.opened = 0  # how often the root was opened anew
        self._sentinel = Sentinel("", None)

    def root(self) -> int:
        """Return a descriptor of what the path names now, proven to be the share.

        Raises:
            ShareUnavailable: not mounted, not the share, or another share.
            OSError: the mount is dead.
        """
        fresh = self.unproven()
        if self._held >= 0 and _identity(self._held) == _identity(fresh):
            os.close(fresh)
            return self._held
        self.forget()
        try:
            self._sentinel = self._prove(fresh)
        except BaseException:
            os.close(fresh)
            raise
        self._held = fresh
        self.opened += 1
        return fresh

    def prove_again(self) -> None:
        """Read the sentinel anew: what is mounted may have died, or been made another share, since it was opened.

        Raises:
            ShareUnavailable: no sentinel, or another one.
            OSError: the mount is dead.
        """
        try:
            self._sentinel = self._prove(self.root())
        except BaseException:
            self.forget()
            raise

    def unproven(self) -> int:
        """Open what the path names now, a mount point of its own where that is required; the caller closes it."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._require_mount and not _is_mount_point(fd):
                raise unavailable("is not mounted: only the bare directory is there", self.path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def forget(self) -> None:
        """Let go of the descriptor; the next `root` opens and proves again."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    @property
    def consumer(self) -> str | None:
        """The consumer whose folder the root is, or None for the whole share."""
        return self._sentinel.consumer

    def describe(self) -> dict[str, Any]:
        """Return the facts about the root that is held: share id, consumer, its mount entry."""
        return {
            "share": self._sentinel.share,
            "consumer": self._sentinel.consumer,
            **_mount_entry(_mount_id(self._held)),
        }

    def _prove(self, fd: int) -> Sentinel:
        try:
            sentinel = read_sentinel(fd)
        except FileNotFoundError:
            raise unavailable(
                f"no {SENTINEL} in it: not mounted, or never set up",
                self.path,
                hint=f"look with: mount | grep -F ' {self.path} '; a new share: run as root: certfan share setup",
            ) from None
        except ValueError as why:
            raise unavailable(f"{SENTINEL} says nothing we understand: {why}", self.path) from None
        if self._share_id is not None and sentinel.share != self._share_id:
            raise _other_share(self.path, sentinel.share, self._share_id)
        return sentinel


def read_sentinel(fd: int) -> Sentinel:
    """Read which share the folder `fd` belongs to.

    Raises:
        ValueError: not a sentinel, or one of a format that this release does not know.
        FileNotFoundError: there is none.
    """
    said = json.loads(read_file(SENTINEL, fd, limit=65536))
    match said:
        case {"format": int(number)} if number != FORMAT:
            raise ValueError(f"format {number}, this release knows {FORMAT}")
        case {"format": int(), "share": str(share), **rest} if share:
            consumer = rest.get("consumer")
            return Sentinel(share, consumer if isinstance(consumer, str) else None)
    raise ValueError("not a share's sentinel")


def write_sentinel(sentinel: Sentinel) -> bytes:
    """Put a sentinel into bytes."""
    said: dict[str, Any] = {"format": FORMAT, "share": sentinel.share}
    if sentinel.consumer is not None:
        said["consumer"] = sentinel.consumer
    return json.dumps(said, sort_keys=True).encode() + b"\n"


def _other_share(path: str, found: str, wanted: str) -> ShareUnavailable:
    return unavailable(f"another share is mounted: {found} instead of {wanted}", path)


def _identity(fd: int) -> tuple[int, int, int]:
    about = os.fstat(fd)
    return about.st_dev, about.st_ino, _mount_id(fd)


def _is_mount_point(fd: int) -> bool:
    above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return _mount_id(above) != _mount_id(fd)
    finally:
        os.close(above)


def _mount_id(fd: int) -> int:
    # st_dev would take a bind mount for a bare directory; the id of the mount does not.
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))


def _mount_entry(mount_id: int) -> dict[str, Any]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            fields = left.split()
            if int(fields[0]) == mount_id:
                fstype, source, *_ = right.split()
                # Of the mount, then of the file system: a remount may change either.
                options = [*fields[5].split(","), *right.split()[2].split(",")]
                return {"fstype": fstype, "source": source, "mounted_at": fields[4], "options": options}
    return {"fstype": "", "source": "", "mounted_at": "", "options": []}
