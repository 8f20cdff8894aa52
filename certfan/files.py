"""Private files: born closed, owned before they hold a byte, durable when the call returns.

Whatever touches a file that holds a key lives here. Nothing is chmod-ed by path: owner and mode are set on the
descriptor of a file created 0600 with O_EXCL under a random name, then the bytes are written, then fsync,
rename, fsync of the folder; of what nobody relies on yet, rename and then both at once. Where others have a part in
a folder a `dir_fd` leads to it, so a share is never reached by path.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from certfan.errors import StateLocked, StateTooOpen

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _each(*fds: int) -> None:
    for fd in fds:
        os.fsync(fd)


# How the code that runs waits until what it has written to descriptors is on the disk.
syncing: ContextVar[Callable[..., None]] = ContextVar("syncing", default=_each)


def write_private(
    path: str | Path,
    data: bytes,
    *,
    mode: int = 0o600,
    uid: int = -1,
    gid: int = -1,
    dir_fd: int | None = None,
) -> None:
    """Replace `path` with a new file holding `data`, whole or not at all.

    Durable on return. Interrupted, it leaves at most a closed temporary file `.NAME.<random>`. Repeatable.

    Raises:
        OSError: the file system said so; the old file still stands.
    """
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, temporary_name(name))
    try:
        create(temporary, data, mode=mode, uid=uid, gid=gid, dir_fd=dir_fd)
        os.replace(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    sync_folder(folder or ".", dir_fd=dir_fd)


def temporary_name(name: str) -> str:
    """Return a name that nobody can know before, for what becomes `name` by a rename."""
    return f".{name}.{secrets.token_hex(8)}"


def write_new(name: str, data: bytes, folder: int) -> None:
    """Write a file for us alone (0600) on which nobody relies before this returns: it waits for the disk but once.

    `folder` is the descriptor of the one that it is in. Durable on return. Whole after a crash of this process; after one
    of the machine it may be empty or cut short. Raising, it leaves no new file.

    Raises:
        OSError: the file system said so.
    """
    left = temporary = temporary_name(name)
    try:
        fd = _created(temporary, data, dir_fd=folder)
        try:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            left = name
            syncing.get()(fd, folder)
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(left, dir_fd=folder)
        raise


def make_durable(name: str, folder: int) -> None:
    """Wait until a file and its name in a folder, a descriptor, are on the disk, whoever wrote them."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        syncing.get()(fd, folder)
    finally:
        os.close(fd)


def create(
    path: str | Path,
    data: bytes,
    *,
    mode: int = 0o600,
    uid: int = -1,
    gid: int = -1,
    dir_fd: int | None = None,
) -> None:
    """Create a file that must not exist yet; its contents are fsynced on return, its name is not.

    Raises:
        FileExistsError: something, even a dangling symlink, already has the name.
    """
    fd = _created(path, data, mode, uid, gid, dir_fd)
    try:
        syncing.get()(fd)
    finally:
        os.close(fd)


def _created(
    path: str | Path, data: bytes, mode: int = 0o600, uid: int = -1, gid: int = -1, dir_fd: int | None = None
) -> int:
    """Return the descriptor of a new file that holds the data."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600, dir_fd=dir_fd)
    try:
        if uid != -1 or gid != -1:
            os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_private(path: str | Path) -> BinaryIO:
    """Create a file for us alone (0600) that must not exist yet, to be written and read; durable when its owner says so.

    Raises:
        FileExistsError: something already has the name.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "w+b")


def read_private(
    path: str | Path, *, limit: int = 1 << 20, uid: int = -1, dir_fd: int | None = None
) -> bytes:
    """Read a secret of ours, or one that we keep for `uid`.

    Raises:
        StateTooOpen: group or others may read or write it, or it belongs to someone else.
        FileNotFoundError: it is not there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        about = os.fstat(fd)
        if (
            about.st_uid not in {os.geteuid(), 0, uid}
            or about.st_mode & 0o077
            or not stat.S_ISREG(about.st_mode)
        ):
            raise StateTooOpen(
                f"{path} holds a secret but has mode {stat.S_IMODE(about.st_mode):04o}, owner {about.st_uid}",
                subject=str(path),
                hint=f"run: chmod 600 {path}; chown {os.geteuid()} {path}",
            )
        chunks = []
        while chunk := os.read(fd, limit):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def private_folder(path: str | Path) -> Path:
    """Return a folder's path once `ensure_folder` has made sure of it; raises what that does."""
    folder = Path(path)
    ensure_folder(str(folder))
    return folder


@contextlib.contextmanager
def opened_folder(path: str | Path) -> Iterator[int]:
    """Yield a folder's descriptor: what is read and written by it stays there, whatever becomes of the path."""
    fd = os.open(path, _FOLDER)
    try:
        yield fd
    finally:
        os.close(fd)


def ensure_folder(folder: str) -> None:
    """Make sure a folder exists that is ours alone (0700), parents included; repeatable.

    No slash ends its path.

    Raises:
        StateTooOpen: it exists, and others may look into it.
    """
    try:
        about = os.stat(folder)
    except FileNotFoundError:
        _make_folder(folder)
        about = os.stat(folder)
    if about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise StateTooOpen(
            f"folder {folder} has mode {stat.S_IMODE(about.st_mode):04o}, owner {about.st_uid}",
            subject=folder,
            hint=f"run: chmod 700 {folder}; chown {os.geteuid()} {folder}",
        )


def _make_folder(folder: str) -> None:
    # mkdir(parents=True) would give the parents whatever the umask leaves.
    above = os.path.dirname(folder) or "."
    with contextlib.suppress(FileExistsError):
        try:
            os.mkdir(folder, 0o700)
        except FileNotFoundError:
            _make_folder(above)
            os.mkdir(folder, 0o700)
    sync_folder(above)


def sync_folder(path: str | Path, *, dir_fd: int | None = None) -> None:
    """Make the names in a folder durable."""
    if dir_fd is not None and str(path) == ".":
        syncing.get()(dir_fd)  # on a network, opening it once more would be a round trip
        return
    fd = os.open(path, _FOLDER, dir_fd=dir_fd)
    try:
        syncing.get()(fd)
    finally:
        os.close(fd)


def replace_symlink(path: str | Path, target: str, *, dir_fd: int | None = None) -> None:
    """Point `path` at `target` in one step that readers cannot see the middle of; durable on return."""
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, temporary_name(name))
    os.symlink(target, temporary, dir_fd=dir_fd)
    try:
        os.replace(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    sync_folder(folder or ".", dir_fd=dir_fd)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[int]:
    """Hold an exclusive flock on `path` and write our pid into it; the lock dies with the process.

    Raises:
        StateLocked: someone else holds it; the text names its pid.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StateLocked(
                f"{path} is held by process {pid}", subject=str(path), hint=f"run: systemctl status {pid}"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield fd
    finally:
        os.close(fd)
