"""The state folder as one archive: a tar of private files, its sums last, so that a cut one is found out.

    certfan-backup.json  certfan.db  accounts/...  ca/...  generations/...  SHA256SUMS

The database is copied first. Facts follow their files (a generation is recorded when its key and chain are durable), so all
that the copy speaks of is in the folder that is read after it; what is there beside is used by the next try, or by nobody.
What must never come in: another format, and a way for a key to leave that is not this archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO

from certfan import __version__, files
from certfan.daemon.store import engine
from certfan.errors import BackupInvalid

FORMAT = 1
ABOUT, SUMS, DATABASE, LOCK = "certfan-backup.json", "SHA256SUMS", "certfan.db", "certfan.lock"
FOLDERS = ("accounts", "ca", "generations")
_MOST_BYTES = 1 << 20  # of a file that is not the database
_PART = re.compile(r"[a-z0-9][A-Za-z0-9._@-]{0,199}")


@dataclass(frozen=True, slots=True)
class About:
    """What an archive says of itself."""

    fleet: str
    version: str
    made_at: datetime
    files: int = 0


@contextlib.contextmanager
def archived(state: Path, fleet: str, now: datetime) -> Iterator[tuple[BinaryIO, int]]:
    """Yield an archive of a state folder, to be read from its start, and how many files are in it.

    The daemon may work meanwhile. Cut short, a closed `.backup.<random>` is left, which the next start removes.

    Raises:
        StateTooOpen: a file of the folder may be read by others.
        OSError: no room is left, or the folder cannot be read.
    """
    working = state / files.temporary_name("backup")
    working.mkdir(mode=0o700)
    try:
        engine.copy_database(state / DATABASE, working / DATABASE)
        with files.open_private(working / "archive") as out:
            (working / "archive").unlink()
            count = _write(out, state, working / DATABASE, About(fleet, __version__, now))
            shutil.rmtree(working)
            out.seek(0)
            yield out, count
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _write(out: BinaryIO, state: Path, database: Path, about: About) -> int:
    sums: dict[str, str] = {}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        told: dict[str, Any] = {"format": FORMAT, "fleet": about.fleet, "version": about.version}
        told["made_at"] = about.made_at.astimezone(UTC).isoformat()
        _add(tar, ABOUT, json.dumps(told).encode(), about, sums)
        with database.open("rb") as source:
            sums[DATABASE] = hashlib.file_digest(source, "sha256").hexdigest()
            source.seek(0)
            tar.addfile(_member(DATABASE, database.stat().st_size, about), source)
        for path in _kept(state):
            with contextlib.suppress(FileNotFoundError):  # retired while we were at it
                _add(
                    tar,
                    str(path.relative_to(state)),
                    files.read_private(path, uid=_owner(state)),
                    about,
                    sums,
                )
        lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
        _add(tar, SUMS, lines.encode(), about, {})
    return len(sums)


def _owner(state: Path) -> int:
    return state.stat().st_uid


def _kept(state: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted(
            path for path in (state / folder).rglob("*") if path.is_file() and not path.name.startswith(".")
        )


def _add(tar: tarfile.TarFile, name: str, data: bytes, about: About, sums: dict[str, str]) -> None:
    tar.addfile(_member(name, len(data), about), io.BytesIO(data))
    sums[name] = hashlib.sha256(data).hexdigest()


def _member(name: str, size: int, about: About) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(about.made_at.timestamp())
    return member


def verify(archive: BinaryIO) -> About:
    """Read a whole archive and return what it says of itself; nothing is written.

    Raises:
        BackupInvalid: it is none, is cut, was altered, or holds what no backup does.
    """
    return _read(archive, None)


def extract(archive: BinaryIO, into: Path) -> About:
    """Write what an archive holds into an empty folder of ours: folders 0700, files 0600, all durable.

    Raises:
        BackupInvalid: as `verify`; what was written until then is left.
    """
    return _read(archive, into)


def _read(archive: BinaryIO, into: Path | None) -> About:
    sums: dict[str, str] = {}
    about, told = None, b""
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or member.name in sums or told:
                    raise BackupInvalid(f"the archive holds {member.name!r}, which no backup does")
                if member.name == SUMS:
                    told = source.read(_most(member))
                elif member.name == DATABASE:
                    sums[DATABASE] = _take(source, into / DATABASE if into else None)
                else:
                    data = source.read(_most(member))
                    sums[member.name] = hashlib.sha256(data).hexdigest()
                    if member.name == ABOUT:
                        about = _about(data)
                    elif into is not None:
                        path = _place(into, member.name)
                        files.private_folder(path.parent)
                        files.create(path, data)
                        files.sync_folder(path.parent)
                    else:
                        _place(Path(), member.name)
    except (tarfile.TarError, EOFError) as error:
        raise BackupInvalid(f"that is no backup of certfan, or only the beginning of one: {error}") from error
    if about is None or dict(_sums(told)) != sums or DATABASE not in sums:
        raise BackupInvalid("the backup is cut short, or was altered: its sums do not agree")
    return About(about.fleet, about.version, about.made_at, len(sums))


def _most(member: tarfile.TarInfo) -> int:
    most = _MOST_BYTES if member.name != SUMS else 1 << 28
    if member.size > most:
        raise BackupInvalid(
            f"the archive holds {member.name!r} with {member.size} bytes, which no backup does"
        )
    return member.size


def _take(source: IO[bytes], path: Path | None) -> str:
    """Return the sum of the database, written to `path` on the way."""
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(files.open_private(path)) if path else None
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            if out is not None:
                out.write(chunk)
        if out is not None:
            out.flush()
            os.fsync(out.fileno())
    return digest.hexdigest()


def _place(into: Path, name: str) -> Path:
    """Return where a member goes; names are ours alone, and lead nowhere else."""
    folder, *rest = name.split("/")
    if folder not in FOLDERS or not 1 <= len(rest) <= 3 or not all(map(_PART.fullmatch, rest)):
        raise BackupInvalid(f"the archive holds {name!r}, which no backup does")
    return into.joinpath(folder, *rest)


def _about(data: bytes) -> About:
    try:
        match json.loads(data):
            case {
                "format": int(number),
                "fleet": str(fleet),
                "version": str(version),
                "made_at": str(made_at),
            }:
                if number > FORMAT:
                    raise BackupInvalid(
                        f"the backup was made by certfan {version}, in a form that this release does not know",
                        hint=f"install certfan {version} or a later one",
                    )
                return About(fleet, version, datetime.fromisoformat(made_at))
    except ValueError:
        pass
    raise BackupInvalid("what the archive says of itself does not parse")


def _sums(told: bytes) -> Iterator[tuple[str, str]]:
    for line in told.decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest
