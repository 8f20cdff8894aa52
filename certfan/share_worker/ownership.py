"""Opening a folder of the share only when it is ours as we made it: owner, mode, kind."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from certfan.errors import PermissionTooOpen, ShareError, ShareUnavailable
from certfan.share_worker import tree
from certfan.share_worker.faults import CHANGED_BY_OTHERS, tampered

OTHERS = 0o007
WRITABLE = 0o022


@contextlib.contextmanager
def own_consumer(root: int, consumer: str) -> Iterator[int]:
    """Open `<consumer>/`, provided it is ours and closed to others.

    What is met below it, and is not as we made it, is that consumer's trouble alone.

    Raises:
        PermissionTooOpen: others may look into it.
        ShareTampered: it, or something below it, is not as we made it.
    """
    with own(tree.checked(consumer), root, make=False) as fd:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & OTHERS:
            raise PermissionTooOpen(
                f"folder {consumer}/ on the share has mode {mode:04o}: others may look into it",
                subject=consumer,
                hint="run as root: certfan share setup",
            )
        try:
            yield fd
        except OSError as why:
            if why.errno not in CHANGED_BY_OTHERS:
                raise
            raise tampered(
                f"{why.filename or 'an entry'} in folder {consumer}/ on the share is not what certfan made: {why.strerror}",
                subject=consumer,
            ) from None


@contextlib.contextmanager
def own(name: str, at: int, *, make: bool = True) -> Iterator[int]:
    """Open a folder, made first if need be, provided it is ours and nobody else may write to it.

    Raises:
        ShareTampered: it belongs to someone else, or others may write to it.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = stack.enter_context(tree.folder(name, at, make=make))
            about = os.fstat(fd)
        except PermissionError:
            about = os.stat(name, dir_fd=at, follow_symlinks=False)
            if about.st_uid == os.geteuid():
                raise
        if about.st_uid != os.geteuid():
            raise tampered(
                f"folder {name}/ on the share belongs to uid {about.st_uid}, not to {os.geteuid()}",
                subject=name,
            )
        if about.st_mode & WRITABLE:
            raise tampered(
                f"folder {name}/ on the share has mode {stat.S_IMODE(about.st_mode):04o}: writable by others",
                subject=name,
            )
        yield fd


def no_folder(consumer: str, why: OSError) -> ShareError:
    """Say that root has not made a consumer's folder yet, or that something else has its name."""
    if isinstance(why, NotADirectoryError):
        return tampered(f"{consumer} on the share is no folder", subject=consumer)
    return ShareUnavailable(
        f"the share has no folder {consumer}/", subject=consumer, hint="run as root: certfan share setup"
    )
