"""Local pairs, laid out as certbot does: live/NAME -> ../generations/NAME/<n>, with owner and mode as configured.

Everything here is on a local disk and is root's. A generation's folder is complete and durable before the pointer
moves; a pointer that certfan did not make is never touched. In place, live/NAME leads to the mounted generation by way
of one link to the share, and nothing here ever follows it. What must never come in: whether a pair may be trusted.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import secrets
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from certfan import files, pki
from certfan.agent import forms
from certfan.agent.forms import KeyFile, Layout
from certfan.core.model import CERTIFICATE_NAME
from certfan.errors import InstallFailed, PkiError

MAX_FILE = 1 << 20
KEPT = 2  # generations beside the live one
MOUNTED = "mounted"  # the link to where the share is mounted, beside live
_GENERATIONS = re.compile(r"(?:[a-z0-9][a-z0-9._-]{0,99}/)?generations")
_FOLDER = re.compile(r"(?:(?P<number>[1-9][0-9]{0,17})(?:\.[0-9a-f]{8})?|placeholder-[0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Laid:
    """A folder that live/NAME can point at; `generation` is 0 for a placeholder.

    Below generations/NAME, or, where `mounted` says so, below that folder of the share.
    """

    folder: str
    generation: int
    mounted: str = ""

    @classmethod
    def parse(cls, text: str) -> Laid | None:
        """Read what `str` has written; None when certfan gives no such names."""
        mounted, _, folder = text.rpartition("/")
        match = _FOLDER.fullmatch(folder)
        if match is None or (mounted and not (_GENERATIONS.fullmatch(mounted) and match["number"])):
            return None
        return cls(folder, int(match["number"] or 0), mounted)

    def __str__(self) -> str:
        return f"{self.mounted}/{self.folder}" if self.mounted else self.folder

    def target(self, certificate: str) -> str:
        """Return what live/NAME holds."""
        if self.mounted:
            return f"../{MOUNTED}/{self.mounted}/{certificate}/{self.folder}"
        return f"../generations/{certificate}/{self.folder}"


class Installer:
    """The local tree below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._live = root / "live"
        self.generations = root / "generations"

    def live_path(self, certificate: str) -> Path:
        """Return what services name in their configs."""
        return self._live / certificate

    def names(self) -> tuple[str, ...]:
        """Return every certificate that has anything here."""
        found: set[str] = set()
        for folder in (self.generations, self._live):
            with suppress(FileNotFoundError):
                found |= {path.name for path in folder.iterdir()}
        return tuple(sorted(name for name in found if CERTIFICATE_NAME.fullmatch(name)))

    def current(self, certificate: str) -> int | None:
        """Return the generation that services see: 0 for a placeholder, None for nothing.

        Raises:
            InstallFailed: something stands there that certfan did not make.
        """
        laid = self.pointer(certificate)
        return None if laid is None else laid.generation

    def pointer(self, certificate: str) -> Laid | None:
        """Return where live/NAME points.

        Raises:
            InstallFailed: something stands there that certfan did not make.
        """
        path = self.live_path(certificate)
        try:
            target = str(path.readlink())
        except FileNotFoundError:
            return None
        except OSError:
            raise _foreign(path) from None
        above, _, folder = target.rpartition("/")
        mounted = above.removeprefix(f"../{MOUNTED}/").removesuffix(f"/{certificate}")
        for text in (folder, f"{mounted}/{folder}"):
            laid = Laid.parse(text)
            if laid is not None and laid.target(certificate) == target:
                return laid
        raise _foreign(path)

    def pointers(self) -> dict[str, Laid]:
        """Return where every pointer of ours leads, as anybody may look; none is followed."""
        found = {}
        for certificate in self.names():
            with suppress(InstallFailed):
                if (laid := self.pointer(certificate)) is not None:
                    found[certificate] = laid
        return found

    def point(self, certificate: str, laid: Laid | None) -> None:
        """Move live/NAME in one step, or take it away; durable on return, repeatable.

        Raises:
            InstallFailed: something stands there that certfan did not make, or the disk refuses.
        """
        if self.pointer(certificate) == laid:
            return
        path = self.live_path(certificate)
        try:
            if laid is None:
                path.unlink()
                files.sync_folder(self._live)
            else:
                _folder(self._live)
                files.replace_symlink(path, laid.target(certificate))
        except OSError as error:
            raise _failed(path, error) from error

    def mount_at(self, share: Path) -> None:
        """Let mounted pointers lead to where the share is mounted; durable on return, repeatable.

        Raises:
            InstallFailed: something stands there that certfan did not make, or the disk refuses.
        """
        path = self._root / MOUNTED
        try:
            _folder(self.generations)  # where a swap keeps its journal
            if path.is_symlink() and path.readlink() == share:
                return
            if path.exists() and not path.is_symlink():
                raise _foreign(path)
            files.replace_symlink(path, str(share))
        except OSError as error:
            raise _failed(path, error) from error

    def put(self, certificate: str, generation: int, pair: pki.Pair, layout: Layout) -> Laid:
        """Write a generation's folder, complete and durable on return; the pointer stays. Repeatable.

        Raises:
            InstallFailed: no such owner or group, or the disk refuses.
        """
        laid = Laid(self._folder_for(certificate, generation, pair), generation)
        self.complete(certificate, laid, pair, layout)
        return laid

    def put_placeholder(self, certificate: str, now: datetime, layout: Layout) -> Laid:
        """Write a new placeholder's folder; the pointer stays.

        Raises:
            InstallFailed: no such owner or group, or the disk refuses.
        """
        key_pem, cert_pem = pki.make_placeholder((certificate,), now)
        laid = Laid(f"placeholder-{secrets.token_hex(8)}", 0)
        self.complete(certificate, laid, pki.load_pair(key_pem, cert_pem), layout)
        return laid

    def complete(self, certificate: str, laid: Laid, pair: pki.Pair, layout: Layout) -> None:
        """Write whatever a pair's folder lacks or has otherwise; durable on return, repeatable.

        Raises:
            InstallFailed: no such owner or group, no usable password, or the disk refuses.
        """
        folder = self.generations / certificate / laid.folder
        try:
            for one in (self.generations, folder.parent, folder):
                _folder(one)
            for part in forms.parts(pair, layout):
                _write(folder, part)
            files.sync_folder(folder)
            files.sync_folder(folder.parent)
        except KeyError as error:
            raise InstallFailed(
                f"key of {certificate} cannot be installed: {error.args[0]}",
                subject=certificate,
                hint="see owner and group in agent.toml",
            ) from error
        except OSError as error:
            raise _failed(folder, error) from error

    def stored(self, certificate: str) -> tuple[Laid, ...]:
        """Return every folder of a certificate, the newest generation first."""
        try:
            found = [Laid.parse(p.name) for p in (self.generations / certificate).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted((one for one in found if one), key=lambda one: (-one.generation, one.folder)))

    def read(self, certificate: str, laid: Laid) -> pki.Pair | None:
        """Load and match a local pair; None when it is incomplete, broken, or not local."""
        if laid.mounted:
            return None
        folder = self.generations / certificate / laid.folder
        try:
            return pki.load_pair(_read(folder / "privkey.pem"), _read(folder / "fullchain.pem"))
        except (OSError, PkiError):
            return None

    def prune(self, certificate: str) -> None:
        """Remove all but the live folder and the newest two generations; what cannot be removed stays."""
        live = self.pointer(certificate)
        stored = self.stored(certificate)
        newest = sorted({one.generation for one in stored if one.generation}, reverse=True)[:KEPT]
        for one in stored:
            if one != live and one.generation not in newest:
                shutil.rmtree(self.generations / certificate / one.folder, ignore_errors=True)

    def _folder_for(self, certificate: str, generation: int, pair: pki.Pair) -> str:
        """Choose `<n>`, or `<n>.<hash>` when `<n>` holds another pair: a folder in use never changes its pair."""
        folder = self.generations / certificate / str(generation)
        with suppress(FileNotFoundError):
            if any(
                _read(folder / name) != data
                for name, data in forms.contents(pair).items()
                if (folder / name).exists()
            ):
                return f"{generation}.{hashlib.sha256(pair.fullchain_pem + pair.key_pem).hexdigest()[:8]}"
        return str(generation)


def _write(folder: Path, part: forms.Part) -> None:
    key = part.key or KeyFile(str(os.geteuid()), str(os.getegid()), 0o644)
    wanted = (key.mode, _uid(key.owner), _gid(key.group))
    if not _is_already(folder / part.file, part, wanted):
        mode, uid, gid = wanted
        files.write_private(folder / part.file, part.make(), mode=mode, uid=uid, gid=gid)


def _is_already(path: Path, part: forms.Part, wanted: tuple[int, int, int]) -> bool:
    try:
        about = path.lstat()
        same = (stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == wanted
        return stat.S_ISREG(about.st_mode) and same and part.is_same(_read(path))
    except OSError:
        return False


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        return file.read(MAX_FILE)


def _folder(path: Path) -> None:
    """Make a folder that services can walk through, whatever the umask: keys are guarded by their own modes."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o755)
    finally:
        os.close(fd)
    files.sync_folder(path.parent)


def _uid(owner: str) -> int:
    return int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid


def _gid(group: str) -> int:
    return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid


def _failed(path: Path, error: OSError) -> InstallFailed:
    return InstallFailed(
        f"{path} cannot be written: {error.strerror}", subject=str(path), hint=f"run: ls -ld {path.parent}"
    )


def _foreign(path: Path) -> InstallFailed:
    return InstallFailed(
        f"{path} was not made by certfan and stays as it is",
        subject=str(path),
        hint=f"run: mv {path} {path}.before-certfan",
    )
