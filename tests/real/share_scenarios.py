"""What happens to the share's mount, played in a mount namespace of its own: python -m tests.real.share_scenarios NAME FOLDER."""

import asyncio
import fcntl
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from certfan.daemon.share.share import Share
from certfan.errors import ShareFull, ShareUnavailable
from tests.unit.share_parts import NAME, WEB1, bundle, now, read_live, set_up_at

_SHUT_DOWN = 0x8004587D  # FS_IOC_GOINGDOWN


def _run(*argv: str | Path) -> None:
    subprocess.run([str(word) for word in argv], check=True)


@contextmanager
def _mounted(folder: Path, *words: str | Path) -> Iterator[Path]:
    root = folder / "share"
    root.mkdir()
    _run("mount", *words, root)
    set_up_at(root)
    yield root


async def read_only(folder: Path) -> None:
    """Remounted ro: looking works, publishing says so, and works when it is rw again."""
    with _mounted(folder, "-t", "tmpfs", "tmpfs") as root:
        share = Share(root, folder / "lock", now, require_mount=True)
        await share.publish(WEB1, NAME, 1, bundle(1))
        _run("mount", "-o", "remount,ro", root)
        with pytest.raises(ShareUnavailable, match="mounted read-only"):
            await share.publish(WEB1, NAME, 2, bundle(2))
        assert share.problem is not None
        assert f"mount | grep -F ' {root} '" in share.problem.hint
        seen = await share.look()
        assert (seen.mount.fstype, seen.mount.read_only) == ("tmpfs", True)
        _run("mount", "-o", "remount,rw", root)
        await share.publish(WEB1, NAME, 2, bundle(2))
        assert bundle(2) == read_live(root / "web1")
        await share.stop()


async def full(folder: Path) -> None:
    """No space in the middle of a bundle: said, nothing half is left, the old one stays live, and it heals."""
    with _mounted(folder, "-t", "tmpfs", "-o", "size=200k", "tmpfs") as root:
        share = Share(root, folder / "lock", now)
        await share.publish(WEB1, NAME, 1, bundle(1))
        with pytest.raises(ShareFull, match="is full"):
            await share.publish(WEB1, NAME, 2, bundle(2, 100_000))
        assert share.problem is None  # another consumer's publish may well go on
        assert not (root / "web1/generations" / NAME / "2").exists()
        assert bundle(1) == read_live(root / "web1")
        _run("mount", "-o", "remount,size=2m", root)
        await share.publish(WEB1, NAME, 2, bundle(2, 100_000))
        assert bundle(2, 100_000) == read_live(root / "web1")
        await share.stop()


async def unmounted(folder: Path) -> None:
    """Lazily unmounted under the daemon: neither the bare directory nor the lost mount is written; it heals."""
    (folder / "volume").mkdir()
    with _mounted(folder, "--bind", folder / "volume") as root:
        for require_mount in (False, True):
            number = 3 if require_mount else 1
            share = Share(root, folder / f"lock{number}", now, require_mount=require_mount)
            await share.publish(WEB1, NAME, number, bundle(number))
            _run("umount", "-l", root)
            with pytest.raises(ShareUnavailable, match="not mounted"):
                await share.publish(WEB1, NAME, number + 1, bundle(number + 1))
            assert list(root.iterdir()) == []
            assert not (folder / "volume/web1/generations" / NAME / str(number + 1)).exists()
            _run("mount", "--bind", folder / "volume", root)
            await share.publish(WEB1, NAME, number + 1, bundle(number + 1))
            assert bundle(number + 1) == read_live(root / "web1")
            await share.stop()


async def bare_copy(folder: Path) -> None:
    """A directory with a right sentinel below the mount point is no share where a mount is required."""
    (folder / "volume").mkdir()
    (folder / "share").mkdir()
    set_up_at(folder / "share")
    share = Share(folder / "share", folder / "lock", now, require_mount=True)
    with pytest.raises(ShareUnavailable, match="is not mounted: only the bare directory"):
        await share.publish(WEB1, NAME, 1, bundle(1))
    _run("mount", "--bind", folder / "volume", folder / "share")
    set_up_at(folder / "share")
    await share.publish(WEB1, NAME, 1, bundle(1))
    assert bundle(1) == read_live(folder / "volume/web1")
    await share.stop()


def _tree(fd: int) -> dict[str, tuple[int, int]]:
    """Return every folder and file below a descriptor, with what tells whether anything was ever done to it."""
    top = f"/proc/self/fd/{fd}/"
    found = [
        top,
        *(f"{at}/{name}" for at, folders, others in os.walk(top) for name in (*folders, *others)),
    ]
    return {path: ((about := os.lstat(path)).st_ino, about.st_ctime_ns) for path in found}


async def unmounted_again_and_again(folder: Path) -> None:
    """The mount comes and goes at any moment of many publishes: what lies below the mount point is never touched.

    It is as inviting as can be: the consumers' folders are there, and where a mount is required even the sentinel. The
    control is a program that writes by path: below the mount point, as soon as the mount is away.
    """
    root, volume = folder / "share", folder / "volume"
    for place in (root, volume):
        place.mkdir()
        set_up_at(place)
    bare = os.open(root, os.O_RDONLY)
    _run("mount", "--bind", volume, root)
    for require_mount in (True, False):
        if not require_mount:
            os.unlink("certfan.share", dir_fd=bare)
        before, chance = _tree(bare), random.Random(5)
        share = Share(root, folder / f"lock{require_mount}", now, require_mount=require_mount)
        refused, done, number = 0, 0, int(require_mount) * 1000
        while refused < 15 or done < 15:
            number += 1
            call = asyncio.create_task(share.publish(WEB1, NAME, number, bundle(number)))
            await asyncio.sleep(chance.random() / 100)  # any moment of it is the point here
            away = chance.random() < 0.5
            if away:
                _run("umount", "-l", root)
            try:
                await call
                done += 1
            except ShareUnavailable:
                refused += 1
            if away:
                with suppress(ShareUnavailable):
                    await share.publish(WEB1, NAME, number, bundle(number))
                    raise AssertionError("published below the mount point")
                refused += 1
                _run("mount", "--bind", volume, root)
        await share.stop()
        assert _tree(bare) == before
    careless = f"/proc/self/fd/{bare}/web1/live/careless"
    _run("umount", "-l", root)
    (root / "web1/live/careless").touch()
    assert careless in _tree(bare)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """Mount an ext4 of four MiB of its own; `root` is the share on it."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    _run("mkfs.ext4", "-q", "-m0", image)
    with _mounted(folder, "-o", "loop", image) as root:
        yield root


async def full_disk(folder: Path) -> None:
    """A real small file system without a block left: said and told at a glance, the old one stays, and it heals."""
    with _small_disk(folder) as root:
        share = Share(root, folder / "lock", now, require_mount=True)
        await share.publish(WEB1, NAME, 1, bundle(1))
        await share.glance([WEB1])
        assert share.problem is None
        with (root / "fill").open("wb", buffering=0) as fill, suppress(OSError):
            while True:
                fill.write(bytes(1024))
        with pytest.raises(ShareFull, match="is full"):
            await share.publish(WEB1, NAME, 2, bundle(2))
        await share.glance([WEB1])
        assert share.problem is not None
        assert share.problem.code == "share.full"
        assert f"df -h {root}" in share.problem.hint
        assert share.is_up
        assert not (root / "web1/generations" / NAME / "2").exists()
        await share.retire("web1", NAME, 3)  # removing goes on: that is what makes room
        (root / "fill").unlink()
        await share.publish(WEB1, NAME, 2, bundle(2))
        await share.glance([WEB1])
        assert share.problem is None
        assert bundle(2) == read_live(root / "web1")
        await share.stop()


async def dead_disk(folder: Path) -> None:
    """The disk answers everything with EIO: named with where to look; mounted again, nothing that was published is lost."""
    with _small_disk(folder) as root:
        share = Share(root, folder / "lock", now, require_mount=True)
        await share.publish(WEB1, NAME, 1, bundle(1))
        fd = os.open(root, os.O_RDONLY)
        fcntl.ioctl(fd, _SHUT_DOWN, struct.pack("I", 2))  # as a power cut: not even the journal is written
        os.close(fd)
        with pytest.raises(ShareUnavailable, match="Input/output error"):
            await share.publish(WEB1, NAME, 2, bundle(2))
        assert share.problem is not None
        assert "dmesg" in share.problem.hint
        _run("umount", "-l", root)
        await share.stop()
        _run("mount", "-o", "loop", folder / "disk.img", root)
        await share.glance([WEB1])
        assert share.problem is None
        assert bundle(1) == read_live(root / "web1")
        await share.publish(WEB1, NAME, 2, bundle(2))
        assert bundle(2) == read_live(root / "web1")
        await share.stop()


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (read_only, full, full_disk, dead_disk, unmounted, unmounted_again_and_again, bare_copy)
}

if __name__ == "__main__":
    asyncio.run(SCENARIOS[sys.argv[1]](Path(sys.argv[2])))
