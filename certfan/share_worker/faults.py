"""What the share's errno values mean, and which command to look with."""

from __future__ import annotations

import errno
import os

from certfan.errors import ShareError, ShareFull, ShareTampered, ShareUnavailable

# After these the descriptor of the root is worth nothing: it is opened again, once.
DISCONNECTED = frozenset({errno.ENOTCONN, errno.ESTALE, errno.ECONNABORTED})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PLANTED = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
CHANGED_BY_OTHERS = _PLANTED | _DENIED


def where_to_look(root: str) -> str:
    """Name the commands that show what became of the share."""
    return f"look with: mount | grep -F ' {root} '; gluster volume status"


def unavailable(text: str, root: str, hint: str = "") -> ShareUnavailable:
    """Say that the share as a whole cannot be used now."""
    return ShareUnavailable(f"share {root}: {text}", subject=root, hint=hint or where_to_look(root))


def translate(why: OSError, root: str) -> ShareError:
    """Turn what the kernel said about the share at `root` into a leaf of the error tree."""
    said = os.strerror(why.errno) if why.errno else str(why)
    name = os.fsdecode(why.filename) if isinstance(why.filename, str | bytes) else ""
    at = f" at {name}" if name and name != root else ""
    if why.errno in _FULL:
        hint = f"look with: df -h {root}; df -i {root}; gluster volume quota VOLUME list"
        return ShareFull(f"share {root} is full{at}: {said}", subject=root, hint=hint)
    if why.errno == errno.EROFS:
        return unavailable(f"mounted read-only{at}", root)
    if why.errno == errno.EIO:
        hint = f"{where_to_look(root)}; gluster volume heal VOLUME info split-brain; dmesg"
        return unavailable(f"{said}{at}", root, hint)
    if why.errno in _PLANTED:
        return tampered(f"{name or 'an entry'} is not what certfan made: {said}", root, subject=name)
    if why.errno in _DENIED:
        return unavailable(f"{said}{at}", root, hint="run as root: certfan share setup")
    return unavailable(f"{said}{at}", root)


def tampered(text: str, root: str = "", subject: str = "") -> ShareTampered:
    """Say that something on the share is not as certfan made it, and will not be touched or followed."""
    place = f"share {root}: " if root else ""
    return ShareTampered(
        place + text,
        subject=subject or root,
        hint="look with: ls -la, remove what is not certfan's, then run as root: certfan share setup",
    )
