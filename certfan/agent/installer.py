"""Local pairs, laid out as certbot does: live/NAME -> ../generations/NAME/<n>, with owner and mode as configured.

Everything here is on a local disk and is root's. A generation's folder is complete and durable before the pointer
moves; a pointer that certfan did not make is never touched. What must never come in: whether a pair may be trusted.
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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from certfan import files, pki
from certfan.agent.config import KeyFile
from certfan.core.model import CERTIFICATE_NAME
from certfan.errors import InstallFailed, PkiError

MAX_FILE = 1 << 20
KEPT = 2  # generations beside the live one
# Services that open their files whenever a process starts want key and chain in one file.
COMBINED = "combined.pem"
_SECRET = frozenset({"privkey.pem", COMBINED})
_FOLDER = re.compile(r"(?:(?P<number>[1-9][0-9]{0,17})(?:\.[0-9a-f]{8})?|placeholder-[0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Laid:
    """A folder below generations/NAME; `generation` is 0 for a placeholder."""

    folder: str
    generation: int

    @classmethod
    def parse(cls, folder: str) -> Laid | None:
        """Read a folder's name; None when certfan gives no such names."""
        match = _FOLDER.fullmatch(folder)
        return cls(folder, int(match["number"] or 0)) if match else None


class Installer:
    """The local tree below `root`."""

    def __init__(self, root: Path) -> None:
        self._live = root / "live"
        self.generations = root / "generations"

    def live_path(self, certificate: str) -> Path:
        """Return what services name in their configs."""
        return self._live / certificate

    def names(self) -> tuple[str, ...]:
        """Return every certificate that has anything here."""
        try:
            found = [path.name for path in self.generations.iterdir()]
        except FileNotFoundError:
            return ()
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
            target = path.readlink()
        except FileNotFoundError:
            return None
        except OSError:
            raise _foreign(path) from None
        laid = Laid.parse(target.name)
        if laid is None or target != Path("..", "generations", certificate, laid.folder):
            raise _foreign(path)
        return laid

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
                files.replace_symlink(path, f"../generations/{certificate}/{laid.folder}")
        except OSError as error:
            raise _failed(path, error) from error

    def put(self, certificate: str, generation: int, pair: pki.Pair, key: KeyFile) -> Laid:
        """Write a generation's folder, complete and durable on return; the pointer stays. Repeatable.

        Raises:
            InstallFailed: no such owner or group, or the disk refuses.
        """
        laid = Laid(self._folder_for(certificate, generation, pair), generation)
        self._write(certificate, laid, pair, key)
        return laid

    def put_placeholder(self, certificate: str, now: datetime, key: KeyFile) -> Laid:
        """Write a new placeholder's folder; the pointer stays.

        Raises:
            InstallFailed: no such owner or group, or the disk refuses.
        """
        key_pem, cert_pem = pki.make_placeholder((certificate,), now)
        laid = Laid(f"placeholder-{secrets.token_hex(8)}", 0)
        self._write(certificate, laid, pki.load_pair(key_pem, cert_pem), key)
        return laid

    def stored(self, certificate: str) -> tuple[Laid, ...]:
        """Return every folder of a certificate, the newest generation first."""
        try:
            found = [Laid.parse(p.name) for p in (self.generations / certificate).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted((one for one in found if one), key=lambda one: (-one.generation, one.folder)))

    def read(self, certificate: str, laid: Laid) -> pki.Pair | None:
        """Load and match a local pair; None when it is incomplete or broken."""
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
                for name, data in _contents(pair).items()
                if (folder / name).exists()
            ):
                return f"{generation}.{hashlib.sha256(pair.fullchain_pem + pair.key_pem).hexdigest()[:8]}"
        return str(generation)

    def _write(self, certificate: str, laid: Laid, pair: pki.Pair, key: KeyFile) -> None:
        folder = self.generations / certificate / laid.folder
        try:
            uid, gid = _uid(key.owner), _gid(key.group)
            for one in (self.generations, folder.parent, folder):
                _folder(one)
            for name, data in _contents(pair).items():
                mode = key.mode if name in _SECRET else 0o644
                owner, group = (uid, gid) if name in _SECRET else (os.geteuid(), os.getegid())
                if not _is_already(folder / name, data, mode=mode, uid=owner, gid=group):
                    files.write_private(folder / name, data, mode=mode, uid=owner, gid=group)
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


def live(root: Path) -> dict[str, int]:
    """Return what every pointer of ours shows, as anybody may look: a generation, or 0 for a placeholder."""
    installer = Installer(root)
    found = {}
    for certificate in installer.names():
        with suppress(InstallFailed):
            if (generation := installer.current(certificate)) is not None:
                found[certificate] = generation
    return found


def _contents(pair: pki.Pair) -> Mapping[str, bytes]:
    return {
        "privkey.pem": pair.key_pem,
        "cert.pem": pair.cert_pem,
        "chain.pem": pair.chain_pem or pair.cert_pem,  # servers refuse an empty file
        "fullchain.pem": pair.fullchain_pem,
        COMBINED: pair.key_pem.rstrip() + b"\n" + pair.fullchain_pem,
    }


def _is_already(path: Path, data: bytes, *, mode: int, uid: int, gid: int) -> bool:
    try:
        about = path.lstat()
        same = (stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid) == (mode, uid, gid)
        return stat.S_ISREG(about.st_mode) and same and _read(path) == data
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
