"""Reading the share: what is published for whom, and one bundle at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from certfan.errors import BundleInvalid, CertfanError, PermissionTooOpen, ShareTampered
from certfan.share_worker import tree
from certfan.share_worker.faults import translate
from certfan.share_worker.ownership import no_folder, own, own_consumer
from certfan.share_worker.patrol import Patrol

_GONE = frozenset({errno.ENOENT, errno.ESTALE})
_STALE_FOR = 0.3  # seconds; measured on GlusterFS 10
_ROOM = 64 << 10  # bytes; a bundle takes about half of it


class Eye:
    """Looks at the whole share; remembers which folders were found whole, as they never change afterwards."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._whole: dict[tuple[str, str, tree.Folder], tuple[int, int, int]] = {}

    def look(self, root: int) -> dict[str, Any]:
        """Return per consumer the whole generations, the live pointers, and what is wrong with its folder."""
        consumers: dict[str, Any] = {}
        for name in filter(tree.is_name, tree.entries(root)):
            # Files beside the consumers, and folders of others, are none of ours.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                consumers[name] = self._consumer(root, name)
        return consumers

    def _consumer(self, root: int, name: str) -> dict[str, Any]:
        seen: dict[str, Any] = {"published": {}, "live": {}}
        try:
            with own_consumer(root, name) as at:
                with tree.folder(tree.GENERATIONS, at) as generations:
                    for certificate in filter(tree.is_name, tree.entries(generations)):
                        seen["published"][certificate] = self._folders(generations, name, certificate)
                seen["live"] = _pointers(at)
        except (ShareTampered, PermissionTooOpen) as why:
            # One consumer's folder must not hide the others.
            seen["problem"] = _problem(why)
        return seen

    def _folders(self, generations: int, consumer: str, certificate: str) -> list[str]:
        try:
            with tree.folder(certificate, generations) as line:
                found = tree.folders(line)
                return [str(one) for one in found if self._is_whole(line, consumer, certificate, one)]
        except NotADirectoryError:
            return []

    def _is_whole(self, line: int, consumer: str, certificate: str, folder: tree.Folder) -> bool:
        self._beat()
        try:
            about = os.stat(str(folder), dir_fd=line, follow_symlinks=False)
            mark = (about.st_dev, about.st_ino, about.st_mtime_ns)
            key = (consumer, certificate, folder)
            if self._whole.get(key) == mark:
                return True
            with tree.folder(str(folder), line) as fd:
                whole = tree.is_whole(fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if whole:
            self._whole[key] = mark
        return whole


def _problem(why: CertfanError) -> dict[str, str]:
    return {"code": why.code, "text": why.text, "hint": why.hint}


def glance(root: int, path: str, consumers: Mapping[str, int], patrol: Patrol) -> dict[str, Any]:
    """Tell in a few calls whether the share can be used: what is wrong with a consumer's folder, what with all of it.

    `consumers` are those of the config, with the mode that their key files may have at most.

    The caller has read the sentinel: neither stat of the root nor statvfs tells a dead share.
    """
    room = os.fstatvfs(root)
    problems = {name: _problem(why) for name, why in patrol.walk(root, consumers).items()}
    for name in consumers:
        try:
            with own_consumer(root, name) as at:
                for inner in (tree.GENERATIONS, tree.LIVE):
                    with own(inner, at, make=False):
                        pass
        except (FileNotFoundError, NotADirectoryError) as why:
            problems[name] = _problem(no_folder(name, why))
        except (ShareTampered, PermissionTooOpen) as why:
            problems[name] = _problem(why)
    is_full = room.f_bavail * room.f_frsize < _ROOM or (room.f_files and not room.f_favail)
    full = _problem(translate(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path)) if is_full else None
    return {"consumers": problems, "full": full, "read_only": bool(room.f_flag & os.ST_RDONLY)}


def _pointers(consumer: int) -> dict[str, str]:
    with tree.folder(tree.LIVE, consumer) as live:
        found = {name: tree.pointer(name, live) for name in filter(tree.is_name, tree.entries(live))}
    return {name: str(folder) for name, folder in found.items() if folder is not None}


def read_bundle(consumer: int, certificate: str, generation: int, bundle: str = "") -> dict[str, bytes]:
    """Read every file of one generation through one descriptor of its folder, so they belong together.

    Nothing in it is parsed. Another mount's changes show up as ESTALE or ENOENT for up to 0.3 s: tried again at once,
    after a second ESTALE once more.

    Raises:
        BundleInvalid: it is not there (yet), or holds too much.
    """
    folder = tree.Folder.checked(generation, bundle)
    seen: list[int | None] = []
    while True:
        try:
            return _read_once(consumer, tree.checked(certificate), folder)
        except OSError as why:
            if why.errno not in _GONE:
                raise
            seen.append(why.errno)
            if seen.count(errno.ENOENT) == 2:
                raise not_there(certificate, folder.number) from None
            if len(seen) == 3:
                raise
        if len(seen) == 2:
            time.sleep(_STALE_FOR)


def _read_once(consumer: int, certificate: str, folder: tree.Folder) -> dict[str, bytes]:
    with (
        tree.folder(tree.GENERATIONS, consumer) as generations,
        tree.folder(certificate, generations) as line,
        tree.folder(str(folder), line) as fd,
    ):
        names = tree.entries(fd)
        if tree.MANIFEST not in names or tree.SIGNATURE not in names:
            raise not_there(certificate, folder.number)
        if len(names) > tree.MAX_FILES:
            raise BundleInvalid(f"{certificate}@{folder.number} on the share holds {len(names)} files")
        return {name: tree.read_file(name, fd) for name in filter(tree.is_name, names)}


def not_there(certificate: str, generation: int) -> BundleInvalid:
    """Say that a bundle has not appeared whole."""
    subject = f"{certificate}@{generation}"
    return BundleInvalid(
        f"{subject} is not on the share yet", subject=subject, hint="run on the cert VM: certfan status"
    )
