"""The parts that every operation on the share is made of: names, folders, files, pointers, whole generations.

All of it works below a descriptor, follows no symlink, and trusts no name that came over the pipe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from certfan import files
from certfan.errors import BundleInvalid, ShareTampered
from certfan.share_worker.faults import tampered

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
GENERATIONS = "generations"
LIVE = "live"
MAX_FILE = 1 << 20  # bytes
MAX_FILES = 16  # in one bundle

_NAME = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{0,99}")
_GENERATION = re.compile(r"([1-9][0-9]{0,17})(?:\.([0-9a-f]{8}))?")
_POINTER = re.compile(r"\.\./generations/([^/]+)/([^/]+)")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a planted FIFO must not hold the open up.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder(NamedTuple):
    """What one bundle of a generation lies in; `bundle` tells sealings of its key apart, "" where it is not sealed."""

    number: int
    bundle: str = ""

    def __str__(self) -> str:
        return f"{self.number}.{self.bundle}" if self.bundle else str(self.number)

    def is_of(self, number: int, bundle: str | None) -> bool:
        """Whether it is that bundle of a generation, any of them for None."""
        return self.number == number and bundle in {None, self.bundle}

    @classmethod
    def parse(cls, name: str) -> Folder | None:
        """Read a folder's name; None when certfan gives no such names."""
        found = _GENERATION.fullmatch(name)
        return cls(int(found[1]), found[2] or "") if found else None

    @classmethod
    def checked(cls, number: int, bundle: str) -> Folder:
        """Return the folder of what came over the wire; raises BundleInvalid."""
        folder = cls(number, bundle)
        if cls.parse(str(folder)) != folder:
            raise BundleInvalid(f"{str(folder)[:120]!r} cannot be a generation's folder on the share")
        return folder


def is_name(text: str) -> bool:
    """Whether a text may be the name of a folder or file on the share."""
    return _NAME.fullmatch(text) is not None


def checked(name: str) -> str:
    """Return the name of a consumer, certificate or file; it may come from the wire.

    Raises:
        BundleInvalid: it could lead elsewhere.
    """
    if not is_name(name):
        raise BundleInvalid(f"{name[:120]!r} cannot be a name on the share")
    return name


@contextlib.contextmanager
def folder(name: str, at: int, *, make: bool = False) -> Iterator[int]:
    """Open a folder below `at`; `make` creates it closed to others when it is not there, which the caller makes durable.

    Raises:
        FileNotFoundError: it is not there.
        NotADirectoryError: something else, a symlink too, has the name.
    """
    try:
        fd = os.open(name, _FOLDER, dir_fd=at)
    except FileNotFoundError:
        if not make:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o750, dir_fd=at)
        fd = os.open(name, _FOLDER, dir_fd=at)
    try:
        yield fd
    finally:
        os.close(fd)


def entries(at: int) -> list[str]:
    """List a folder, sorted."""
    return sorted(os.listdir(at))


def read_file(name: str, at: int, *, limit: int = MAX_FILE) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        BundleInvalid: it is longer.
        ShareTampered: it is no regular file.
    """
    try:
        fd = os.open(name, _FILE, dir_fd=at)
    except OSError as why:
        if why.errno in {errno.ELOOP, errno.ENXIO}:
            raise tampered(f"{name} is no regular file") from None
        raise
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise tampered(f"{name} is no regular file")
        data = bytearray()
        while chunk := file.read(limit + 1 - len(data)):
            data += chunk
        if len(data) > limit:
            raise BundleInvalid(f"{name} is longer than {limit} bytes")
        return bytes(data)


def is_whole(at: int) -> bool:
    """Whether the generation in folder `at` is complete: manifest and signature, and each file with its size."""
    try:
        told = sizes(read_file(MANIFEST, at))
        return _size(SIGNATURE, at) > 0 and all(_size(name, at) == size for name, size in told.items())
    except (FileNotFoundError, BundleInvalid, ShareTampered):
        return False


def sizes(manifest: bytes) -> dict[str, int]:
    """Return the size of each file that a manifest names.

    Raises:
        BundleInvalid: it is none.
    """
    try:
        return {checked(name): fact["size"] for name, fact in json.loads(manifest)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BundleInvalid(f"{MANIFEST} does not parse") from None


def look_again(name: str, at: int) -> os.stat_result:
    """Return what a file is by a new descriptor of it: no cache of names answers for its owner and mode."""
    fd = os.open(name, _FILE, dir_fd=at)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _size(name: str, at: int) -> int:
    about = os.stat(name, dir_fd=at, follow_symlinks=False)
    return about.st_size if stat.S_ISREG(about.st_mode) else -1


def folders(certificate: int) -> list[Folder]:
    """List the generations in a certificate's folder, whole or not."""
    return sorted(found for name in entries(certificate) if (found := Folder.parse(name)))


def pointer(certificate: str, live: int) -> Folder | None:
    """Return the generation's folder that `live/<certificate>` points at; None when it does not point as ours do."""
    try:
        target = os.readlink(certificate, dir_fd=live)
    except OSError as why:
        if why.errno in {errno.ENOENT, errno.EINVAL}:
            return None
        raise
    found = _POINTER.fullmatch(target)
    return Folder.parse(found[2]) if found and found[1] == certificate else None


def remove(generation: str, certificate: int) -> None:
    """Remove one generation, its manifest first so that it is whole no longer, its keys last; repeatable.

    Raises:
        OSError: ENOTEMPTY or EISDIR when it holds what certfan never put there.
    """
    try:
        with folder(generation, certificate) as fd:
            for name in sorted(entries(fd), key=_removal_order):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
        os.rmdir(generation, dir_fd=certificate)
    except FileNotFoundError:
        return
    files.sync_folder(".", dir_fd=certificate)


def _removal_order(name: str) -> tuple[bool, bool, str]:
    return (name.startswith("privkey"), name != MANIFEST, name)
