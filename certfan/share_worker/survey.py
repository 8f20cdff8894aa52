"""What really lies on the share, told as facts and judged by nobody here: owners, modes, kinds, names, bytes.

Nothing is followed, nothing is changed. A fact is `[kind, mode, uid, gid, links, size]`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any

from certfan.errors import BundleInvalid, ShareTampered
from certfan.share_worker import tree

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}


def survey(root: int, beat: Callable[[], None]) -> dict[str, Any]:
    """Tell about every folder in the root: its own facts and its entries', its pointers, its certificates' folders."""
    names = filter(tree.is_name, tree.entries(root))
    return {name: _consumer(name, root, beat) for name in names if _is_folder(name, root)}


def _consumer(name: str, root: int, beat: Callable[[], None]) -> dict[str, Any]:
    with tree.folder(name, root) as at:
        found: dict[str, Any] = {"facts": {"": _as_fact(os.fstat(at))}, "live": {}, "certificates": {}}
        for entry in tree.entries(at):
            found["facts"][entry] = _fact(entry, at)
        if _is_folder(tree.LIVE, at):
            with tree.folder(tree.LIVE, at) as live:
                found["live"] = {entry: _target(entry, live) for entry in tree.entries(live)}
        if _is_folder(tree.GENERATIONS, at):
            with tree.folder(tree.GENERATIONS, at) as generations:
                for entry in tree.entries(generations):
                    beat()
                    found["certificates"][entry] = _certificate(entry, generations)
    return found


def _certificate(name: str, generations: int) -> dict[str, Any]:
    found: dict[str, Any] = {"fact": _fact(name, generations), "entries": {}}
    if found["fact"][0] == "folder":
        with tree.folder(name, generations) as line:
            found["entries"] = {entry: _fact(entry, line) for entry in tree.entries(line)}
    return found


def inspect(
    root: int, consumer: str, certificate: str, generation: int, bundle: str = ""
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Tell about every file of one generation, with the bytes of those that a bundle may hold.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    with (
        tree.folder(tree.checked(consumer), root) as at,
        tree.folder(tree.GENERATIONS, at) as generations,
        tree.folder(tree.checked(certificate), generations) as line,
        tree.folder(str(tree.Folder.checked(generation, bundle)), line) as fd,
    ):
        names = tree.entries(fd)
        facts = {name: _fact(name, fd) for name in names}
        contents = {}
        for name in names[: tree.MAX_FILES]:
            # Too long, or a file no more: the facts say so.
            with contextlib.suppress(BundleInvalid, ShareTampered, FileNotFoundError):
                contents[name] = tree.read_file(name, fd)
        return facts, contents


def _is_folder(name: str, at: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _fact(name: str, at: int) -> list[Any]:
    return _as_fact(os.stat(name, dir_fd=at, follow_symlinks=False))


def _as_fact(about: os.stat_result) -> list[Any]:
    kind = _KINDS.get(stat.S_IFMT(about.st_mode), "something else")
    return [kind, stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid, about.st_nlink, about.st_size]


def _target(name: str, live: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=live)
    except OSError:
        return None
