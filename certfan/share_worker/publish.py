"""Changing the share: one immutable folder per generation, then one symlink. Every operation may be repeated.

The process's umask is 027 (set in __main__), folders inherit their group from `<consumer>/`, which root made.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from certfan import files
from certfan.errors import (
    BundleInvalid,
    GenerationLive,
    PermissionTooOpen,
    ShareError,
    ShareTampered,
    ShareUnavailable,
)
from certfan.share_worker import tree
from certfan.share_worker.faults import CHANGED_BY_OTHERS, tampered
from certfan.share_worker.place import SENTINEL

_OTHERS = 0o007
_WRITABLE = 0o022
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


def no_folder(consumer: str, why: OSError) -> ShareError:
    """Say that root has not made a consumer's folder yet, or that something else has its name."""
    if isinstance(why, NotADirectoryError):
        return tampered(f"{consumer} on the share is no folder", subject=consumer)
    return ShareUnavailable(
        f"the share has no folder {consumer}/", subject=consumer, hint="run as root: certfan share setup"
    )


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


def forget(root: int, consumer: str) -> bool:
    """Remove a consumer's folder with all that certfan put there; False if the emptied folder had to stay.

    It stays where only root may change the share's root. Nothing there is fine. Repeatable.

    Raises:
        OSError: ENOTEMPTY or EISDIR when it holds what certfan never put there.
    """
    try:
        with own_consumer(root, consumer) as at:
            for certificate in sorted(filter(tree.is_name, _names_in(at))):
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
        if mode & _OTHERS:
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
        if about.st_mode & _WRITABLE:
            raise tampered(
                f"folder {name}/ on the share has mode {stat.S_IMODE(about.st_mode):04o}: writable by others",
                subject=name,
            )
        yield fd


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
        with tree.folder(number, line) as fd:
            _verify(fd, contents, modes, gid)
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
    os.fsync(fd)


def _at_once(*calls: Callable[[], None]) -> None:
    """Do all side by side: what takes time is waiting for disks, and six fsyncs may share one commit of theirs."""
    failed: list[OSError] = []

    def do(call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as why:
            failed.append(why)

    threads = [threading.Thread(target=do, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


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
    if folder.st_uid != os.geteuid() or folder.st_mode & (_OTHERS | _WRITABLE):
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
