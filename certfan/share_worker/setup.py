"""What root does once for a new share, and again whenever a consumer is added."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping

from certfan import files
from certfan.errors import ShareTampered, ShareUnavailable
from certfan.share_worker import tree
from certfan.share_worker.faults import tampered, unavailable
from certfan.share_worker.place import SENTINEL, Sentinel, read_sentinel, write_sentinel

_CONSUMER_MODE = 0o2750


def set_up(
    root: int,
    path: str,
    consumers: Mapping[str, int],
    beat: Callable[[], None],
    *,
    uid: int,
    share_id: str | None,
) -> str:
    """Make the sentinels and each consumer's folders (owner `uid`, its gid, 2750); return the share's id.

    Repeatable: what is right stays, owner and mode of what is there are put right, no content is touched.

    Raises:
        ShareTampered: a symlink or a file is in the way.
        ShareUnavailable: the root is another share, or one of a format that this release does not know.
    """
    share = _sentinel(root, path, share_id)
    about = os.fstat(root)
    if about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX:
        raise tampered(
            f"its root has mode {stat.S_IMODE(about.st_mode):04o}: anyone may replace folders in it", path
        )
    for consumer, gid in consumers.items():
        with _folder(tree.checked(consumer), root, uid, gid) as at:
            sentinel = write_sentinel(Sentinel(share, consumer))
            if not _is_file(SENTINEL, at, sentinel):
                files.write_private(SENTINEL, sentinel, mode=0o640, uid=uid, gid=gid, dir_fd=at)
            for name in (tree.LIVE, tree.GENERATIONS):
                with _folder(name, at, uid, gid) as fd:
                    _regroup(fd, gid, beat)
            files.sync_folder(".", dir_fd=at)
    files.sync_folder(".", dir_fd=root)
    return share


def _sentinel(root: int, path: str, wanted: str | None) -> str:
    try:
        found = read_sentinel(root)
    except FileNotFoundError:
        share = wanted or secrets.token_hex(8)
        files.write_private(SENTINEL, write_sentinel(Sentinel(share, None)), mode=0o644, dir_fd=root)
        return share
    except ValueError as why:
        raise unavailable(f"{SENTINEL} says nothing we understand: {why}", path) from None
    if found.consumer is not None:
        raise unavailable(f"this is the folder of consumer {found.consumer}, not the whole share", path)
    if wanted is not None and found.share != wanted:
        raise ShareUnavailable(f"share {path} is {found.share}, not {wanted}", subject=path)
    return found.share


@contextlib.contextmanager
def _folder(name: str, at: int, uid: int, gid: int) -> Iterator[int]:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=at)
    with tree.folder(name, at) as fd:
        about = os.fstat(fd)
        if (about.st_uid, about.st_gid) != (uid, gid):
            os.fchown(fd, uid, gid)
        # After chown, which may clear the setgid bit.
        if stat.S_IMODE(os.fstat(fd).st_mode) != _CONSUMER_MODE:
            os.fchmod(fd, _CONSUMER_MODE)
        yield fd


def _regroup(at: int, gid: int, beat: Callable[[], None]) -> None:
    """Give the generations that are there already to a consumer's new group; their modes stay."""
    for name in tree.entries(at):
        beat()
        about = os.stat(name, dir_fd=at, follow_symlinks=False)
        is_right = about.st_gid == gid and not stat.S_ISDIR(about.st_mode)
        if stat.S_ISLNK(about.st_mode) or is_right:
            continue
        flags = os.O_DIRECTORY if stat.S_ISDIR(about.st_mode) else os.O_NONBLOCK
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=at)
        try:
            if os.fstat(fd).st_gid != gid:
                os.fchown(fd, -1, gid)
            if flags == os.O_DIRECTORY:
                _regroup(fd, gid, beat)
        finally:
            os.close(fd)


def _is_file(name: str, at: int, data: bytes) -> bool:
    try:
        return tree.read_file(name, at) == data
    except (FileNotFoundError, ShareTampered):
        return False
