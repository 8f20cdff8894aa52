"""Taking away from the share what is not wanted any more: always so that what services read stays whole, keys last."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from certfan import files
from certfan.errors import GenerationLive, PermissionTooOpen, ShareTampered
from certfan.share_worker import tree
from certfan.share_worker.ownership import own, own_consumer
from certfan.share_worker.place import SENTINEL


def retire(root: int, consumer: str, certificate: str, generation: int, bundle: str | None = None) -> None:
    """Remove a generation, or one bundle of it, that `live/` does not point at; its keys go last. Repeatable.

    Raises:
        GenerationLive: it does point there.
    """
    with contextlib.suppress(FileNotFoundError), own_consumer(root, consumer) as at:
        with tree.folder(tree.LIVE, at) as live:
            shown = tree.pointer(tree.checked(certificate), live)
            if shown is not None and shown.is_of(generation, bundle):
                raise GenerationLive(
                    f"{certificate}@{generation} is what live/ of {consumer} points at", subject=consumer
                )
        with tree.folder(tree.GENERATIONS, at) as generations, tree.folder(certificate, generations) as line:
            for folder in tree.folders(line):
                if folder.is_of(generation, bundle):
                    tree.remove(str(folder), line)


def clear(root: int, consumer: str, certificate: str) -> None:
    """Remove all of a certificate from a consumer's folder: its pointer first, keys last. Nothing there is fine."""
    with contextlib.suppress(FileNotFoundError), own_consumer(root, consumer) as at:
        _clear(at, tree.checked(certificate))


def forget(root: int, beat: Callable[[], None], consumer: str) -> bool:
    """Remove a consumer's folder with all that certfan put there; False if the emptied folder had to stay.

    It stays where only root may change the share's root. Nothing there is fine. Repeatable.

    Raises:
        OSError: ENOTEMPTY or EISDIR when it holds what certfan never put there.
    """
    try:
        with own_consumer(root, consumer) as at:
            for certificate in sorted(filter(tree.is_name, _names_in(at))):
                beat()
                _clear(at, certificate)
            for name in (tree.LIVE, tree.GENERATIONS):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(name, dir_fd=at)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(SENTINEL, dir_fd=at)
    except FileNotFoundError:
        return True
    try:
        os.rmdir(consumer, dir_fd=root)
    except PermissionError:
        return False
    files.sync_folder(".", dir_fd=root)
    return True


def _names_in(at: int) -> frozenset[str]:
    found: set[str] = set()
    for name in (tree.LIVE, tree.GENERATIONS):
        with contextlib.suppress(FileNotFoundError), own(name, at, make=False) as fd:
            found.update(tree.entries(fd))
    return frozenset(found)


def _clear(at: int, certificate: str) -> None:
    with contextlib.suppress(FileNotFoundError), own(tree.LIVE, at, make=False) as live:
        os.unlink(certificate, dir_fd=live)
        files.sync_folder(".", dir_fd=live)
    with contextlib.suppress(FileNotFoundError), own(tree.GENERATIONS, at, make=False) as generations:
        with own(certificate, generations, make=False) as line:
            for folder in tree.folders(line):
                tree.remove(str(folder), line)
        os.rmdir(certificate, dir_fd=generations)
        files.sync_folder(".", dir_fd=generations)


def sweep(root: int, beat: Callable[[], None], before: float) -> int:
    """Remove what an interrupted operation left behind, older than `before` (seconds since 1970); say how much."""
    swept = 0
    for consumer in filter(tree.is_name, tree.entries(root)):
        # Another folder or file of the admin, or one that was tampered with: a look shows it, a sweep keeps off.
        ours = contextlib.suppress(FileNotFoundError, NotADirectoryError, ShareTampered, PermissionTooOpen)
        with ours, own_consumer(root, consumer) as at:
            swept += _sweep_temporaries(at, before) + _sweep_consumer(at, beat, before)
    return swept


def _sweep_temporaries(at: int, before: float) -> int:
    swept = _sweep_dotted(at, before)
    with contextlib.suppress(FileNotFoundError), tree.folder(tree.LIVE, at) as live:
        swept += _sweep_dotted(live, before)
    return swept


def _sweep_dotted(at: int, before: float) -> int:
    swept = 0
    for name in tree.entries(at):
        about = os.stat(name, dir_fd=at, follow_symlinks=False)
        if name.startswith(".") and about.st_mtime < before and not stat.S_ISDIR(about.st_mode):
            os.unlink(name, dir_fd=at)
            swept += 1
    return swept


def _sweep_consumer(at: int, beat: Callable[[], None], before: float) -> int:
    swept = 0
    with own(tree.GENERATIONS, at) as generations, own(tree.LIVE, at) as live:
        for certificate in filter(tree.is_name, tree.entries(generations)):
            with own(certificate, generations, make=False) as line:
                for folder in tree.folders(line):
                    beat()
                    if folder != tree.pointer(certificate, live) and _is_stale(str(folder), line, before):
                        tree.remove(str(folder), line)
                        swept += 1
    return swept


def _is_stale(number: str, line: int, before: float) -> bool:
    with tree.folder(number, line) as fd:
        return os.fstat(fd).st_mtime < before and not tree.is_whole(fd)
