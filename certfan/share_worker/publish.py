"""Publishing: one immutable folder per generation, then one symlink. It may be repeated.

The process's umask is 027 (set in __main__), folders inherit their group from `<consumer>/`, which root made.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

from certfan import files
from certfan.errors import BundleInvalid, PermissionTooOpen
from certfan.share_worker import tree
from certfan.share_worker.faults import tampered
from certfan.share_worker.ownership import OTHERS, WRITABLE, no_folder, own, own_consumer

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_PUBLIC_MODE = 0o644  # certificates and manifests; the folders above are closed to others


def publish(
    root: int,
    consumer: str,
    certificate: str,
    generation: int,
    contents: Mapping[str, bytes],
    *,
    key_mode: int,
    gid: int,
    bundle: str = "",
) -> None:
    """Put a generation on the share, then point `live/<certificate>` at it unless that is ahead already.

    `bundle` tells sealings of its key apart: the pointer goes to the latest one that was published of a number.
    Readers see all of it or nothing. A whole folder with the same content is adopted, an unfinished one is
    removed first. Cut off anywhere, it leaves an unfinished folder or one that no pointer names yet.

    Raises:
        PermissionTooOpen: a file would be, or is, open to others than asked; the pointer has not moved.
        BundleInvalid: the number is taken by other content, or `contents` is no whole bundle.
        ShareTampered: something is not as certfan made it.
    """
    modes, folder = _modes(contents, key_mode), tree.Folder.checked(generation, bundle)
    try:
        with own_consumer(root, consumer) as at:
            _publish_at(at, consumer, certificate, folder, contents, modes=modes, gid=gid)
    except (FileNotFoundError, NotADirectoryError) as why:
        if why.filename != consumer:
            raise
        raise no_folder(consumer, why) from None


def _publish_at(
    at: int,
    consumer: str,
    certificate: str,
    folder: tree.Folder,
    contents: Mapping[str, bytes],
    *,
    modes: Mapping[str, int],
    gid: int,
) -> None:
    if (found := os.fstat(at).st_gid) != gid:
        raise tampered(
            f"folder {consumer}/ on the share belongs to group {found}, not {gid}", subject=consumer
        )
    with own(tree.GENERATIONS, at) as generations, own(tree.checked(certificate), generations) as line:
        _write_whole(str(folder), line, contents, modes, gid, above=generations)
    with own(tree.LIVE, at) as live:
        before = tree.pointer(certificate, live)
        if before is None or (before.number <= folder.number and before != folder):
            files.replace_symlink(certificate, f"../{tree.GENERATIONS}/{certificate}/{folder}", dir_fd=live)


def _modes(contents: Mapping[str, bytes], key_mode: int) -> dict[str, int]:
    if not {tree.MANIFEST, tree.SIGNATURE} < contents.keys():
        raise BundleInvalid("a bundle to publish needs manifest, signature and files")
    if key_mode & ~0o640 or not key_mode & 0o400:
        raise PermissionTooOpen(
            f"key files with mode {key_mode:04o} are refused",
            hint="use 0600, 0640, 0400 or 0440 as the consumer's mode",
        )
    if tree.sizes(contents[tree.MANIFEST]) != {
        name: len(data) for name, data in contents.items() if name not in {tree.MANIFEST, tree.SIGNATURE}
    }:
        raise BundleInvalid("the manifest does not describe the files it was published with")
    return {tree.checked(name): key_mode if name.startswith("privkey") else _PUBLIC_MODE for name in contents}


def _write_whole(
    number: str, line: int, contents: Mapping[str, bytes], modes: Mapping[str, int], gid: int, *, above: int
) -> None:
    """Have the generation whole and durable in `line`, which is in `above`: both may be new too."""
    try:
        with tree.folder(number, line) as fd:
            if tree.is_whole(fd):
                _adopt(fd, number, contents, modes, gid)
                for folder in (fd, line, above):
                    os.fsync(folder)
                return
        tree.remove(number, line)
    except FileNotFoundError:
        pass
    try:
        with tree.folder(number, line, make=True) as fd:
            _write(fd, contents, modes, gid, parents=(line, above))
            durable = _beside().submit(os.fsync, fd)
            try:
                with tree.folder(number, line) as again:
                    _verify(again, contents, modes, gid)
            finally:
                durable.result()
    except BaseException:
        # What is left would be swept in an hour; a key that is too open, or a full disk, should not wait.
        with contextlib.suppress(OSError):
            tree.remove(number, line)
        raise


def _write(
    fd: int, contents: Mapping[str, bytes], modes: Mapping[str, int], gid: int, *, parents: tuple[int, int]
) -> None:
    # Where the folder's setgid bit gives the group already, an unprivileged daemon need not (and may not) set it.
    asked = -1 if os.fstat(fd).st_gid == gid else gid
    if asked != -1:
        os.fchown(fd, -1, gid)
    # Renamed into place: with the manifest the generation is whole, so the manifest must appear whole, and last.
    temporary = files.temporary_name(tree.MANIFEST)
    born = {name if name != tree.MANIFEST else temporary: name for name in contents}
    _at_once(
        *(
            partial(files.create, birth, contents[name], mode=modes[name], gid=asked, dir_fd=fd)
            for birth, name in born.items()
        ),
        *(partial(os.fsync, folder) for folder in parents),
    )
    os.rename(temporary, tree.MANIFEST, src_dir_fd=fd, dst_dir_fd=fd)


def _at_once(*calls: Callable[[], None]) -> None:
    """Do all side by side: what takes time is waiting for disks, and six fsyncs may share one commit of theirs."""
    begun = [_beside().submit(call) for call in calls]
    # All of them: whoever tidies up must not meet a file that is still being made.
    for failure in [one.exception() for one in begun]:
        if failure is not None:
            raise failure


@cache
def _beside() -> ThreadPoolExecutor:
    """Return threads for six files and two folders; starting them anew each time cost more than using them."""
    from concurrent.futures import ThreadPoolExecutor  # 25 ms that nobody who only reads should pay

    return ThreadPoolExecutor(8)


def _adopt(fd: int, number: str, contents: Mapping[str, bytes], modes: Mapping[str, int], gid: int) -> None:
    if set(tree.entries(fd)) != set(contents) or any(
        tree.read_file(name, fd) != data for name, data in contents.items() if name != tree.SIGNATURE
    ):
        raise BundleInvalid(
            f"generation {number} is on the share with other content; a number is never used twice"
        )
    if tree.read_file(tree.SIGNATURE, fd) != contents[tree.SIGNATURE]:
        # The same manifest, signed anew: the signer's certificate was renewed since.
        asked = -1 if os.fstat(fd).st_gid == gid else gid
        files.write_private(tree.SIGNATURE, contents[tree.SIGNATURE], mode=_PUBLIC_MODE, gid=asked, dir_fd=fd)
    _verify(fd, contents, modes, gid)


def _verify(fd: int, contents: Mapping[str, bytes], modes: Mapping[str, int], gid: int) -> None:
    folder = os.fstat(fd)
    if folder.st_uid != os.geteuid() or folder.st_mode & (OTHERS | WRITABLE):
        raise PermissionTooOpen(
            f"a generation's folder has mode {stat.S_IMODE(folder.st_mode):04o}, owner {folder.st_uid}"
        )
    for name, data in contents.items():
        about = tree.look_again(name, fd)
        found = (about.st_uid, about.st_gid, about.st_mode, about.st_size)
        if found != (os.geteuid(), gid, stat.S_IFREG | modes[name], len(data)):
            raise PermissionTooOpen(
                f"{name} has mode {stat.S_IMODE(about.st_mode):04o}, owner {about.st_uid}:{about.st_gid}, "
                f"asked were {modes[name]:04o}, {os.geteuid()}:{gid}",
                hint="the file system of the share must keep POSIX owners and modes",
            )
        if about.st_nlink != 1:
            raise tampered(f"{name} is reachable by {about.st_nlink} names: somebody made a hard link to it")
