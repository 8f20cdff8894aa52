"""Reading the share: what is published for whom, and one bundle at a time."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any

from certfan.errors import BundleInvalid, PermissionTooOpen, ShareTampered
from certfan.share_worker import tree
from certfan.share_worker.publish import own_consumer

_GONE = frozenset({errno.ENOENT, errno.ESTALE})


class Eye:
    """Looks at the whole share; remembers which folders were found whole, as they never change afterwards."""

    def __init__(self) -> None:
        self._whole: dict[tuple[str, str, int], tuple[int, int, int]] = {}

    def look(self, root: int) -> dict[str, Any]:
        """Return per consumer the whole generations, the live pointers, and what is wrong with its folder."""
        consumers: dict[str, Any] = {}
        for name in filter(tree.is_name, tree.entries(root)):
            # Files beside the consumers, and folders of others, are none of ours.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                consumers[name] = self._consumer(root, name)
        return consumers

    def forget(self) -> None:
        """Look anew at every folder: the root was opened again."""
        self._whole.clear()

    def _consumer(self, root: int, name: str) -> dict[str, Any]:
        seen: dict[str, Any] = {"published": {}, "live": {}}
        try:
            with own_consumer(root, name) as at:
                with tree.folder(tree.GENERATIONS, at) as generations:
                    for certificate in filter(tree.is_name, tree.entries(generations)):
                        seen["published"][certificate] = self._numbers(generations, name, certificate)
                seen["live"] = _pointers(at)
        except (ShareTampered, PermissionTooOpen) as why:
            # One consumer's folder must not hide the others.
            seen["problem"] = {"code": why.code, "text": why.text, "hint": why.hint}
        return seen

    def _numbers(self, generations: int, consumer: str, certificate: str) -> list[int]:
        try:
            with tree.folder(certificate, generations) as line:
                return [n for n in tree.numbers(line) if self._is_whole(line, consumer, certificate, n)]
        except NotADirectoryError:
            return []

    def _is_whole(self, line: int, consumer: str, certificate: str, number: int) -> bool:
        try:
            about = os.stat(str(number), dir_fd=line, follow_symlinks=False)
            mark = (about.st_dev, about.st_ino, about.st_mtime_ns)
            key = (consumer, certificate, number)
            if self._whole.get(key) == mark:
                return True
            with tree.folder(str(number), line) as fd:
                whole = tree.is_whole(fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if whole:
            self._whole[key] = mark
        return whole


def _pointers(consumer: int) -> dict[str, int]:
    with tree.folder(tree.LIVE, consumer) as live:
        found = {name: tree.pointer(name, live) for name in filter(tree.is_name, tree.entries(live))}
    return {name: number for name, number in found.items() if number is not None}


def read_bundle(consumer: int, certificate: str, generation: int) -> dict[str, bytes]:
    """Read every file of one generation through one descriptor of its folder, so they belong together.

    Nothing in it is parsed. Tried twice, as another mount's changes show up as ESTALE or ENOENT for a moment.

    Raises:
        BundleInvalid: it is not there (yet), or holds too much.
    """
    for last in (False, True):
        try:
            return _read_once(consumer, tree.checked(certificate), generation)
        except OSError as why:
            if why.errno not in _GONE:
                raise
            if last and why.errno == errno.ENOENT:
                break
            if last:
                raise
    raise not_there(certificate, generation)


def _read_once(consumer: int, certificate: str, generation: int) -> dict[str, bytes]:
    with (
        tree.folder(tree.GENERATIONS, consumer) as generations,
        tree.folder(certificate, generations) as line,
        tree.folder(str(generation), line) as fd,
    ):
        names = tree.entries(fd)
        if tree.MANIFEST not in names or tree.SIGNATURE not in names:
            raise not_there(certificate, generation)
        if len(names) > tree.MAX_FILES:
            raise BundleInvalid(f"{certificate}@{generation} on the share holds {len(names)} files")
        return {name: tree.read_file(name, fd) for name in filter(tree.is_name, names)}


def not_there(certificate: str, generation: int) -> BundleInvalid:
    """Say that a bundle has not appeared whole."""
    subject = f"{certificate}@{generation}"
    return BundleInvalid(
        f"{subject} is not on the share yet", subject=subject, hint="run on the cert VM: certfan status"
    )
