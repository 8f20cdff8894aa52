"""How the files of a generation are named in the state folder, and how earlier releases had laid them.

All are in one folder: to make one for each, and to sync that, would cost more than all that is in it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from certfan import files
from certfan.core.model import CERTIFICATE_NAME

PAIR_FILES = ("privkey.pem", "request.pem", "fullchain.pem")
SEALED, SEALED_SUFFIX = "sealed", ".hpke"  # the one folder that a generation may have, and what is in it
_NUMBER = re.compile("[1-9][0-9]*")
_NAMED = re.compile(rf"({CERTIFICATE_NAME.pattern})@({_NUMBER.pattern})\.")
_PARTS = ("cert.pem", "chain.pem")  # of fullchain.pem, which were kept beside it


def checked(name: str) -> str:
    """Return what may be (part of) a file's name.

    Raises:
        ValueError: it could lead elsewhere.
    """
    if not CERTIFICATE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a file name here")
    return name


def pair_file(certificate: str, number: int, kind: str) -> str:
    """Return the name of one of PAIR_FILES, or of SEALED, of a generation.

    Raises:
        ValueError: there is no such certificate, or no such number.
    """
    if number < 1:
        raise ValueError(f"{certificate}@{number} is no generation")
    return f"{checked(certificate)}@{number}.{kind}"


def numbers(generations: Path) -> dict[str, set[int]]:
    """Return every number that has a file, by certificate."""
    found: dict[str, set[int]] = {}
    with os.scandir(generations) as there:
        for one in there:
            if named := _NAMED.match(one.name):
                found.setdefault(named[1], set()).add(int(named[2]))
    return found


def rename_old(generations: Path) -> None:
    """Give what lies in folders `CERTIFICATE/NUMBER/` its name of today; durable on return, repeatable.

    Whatever cuts it off, each file is there under one of its names at least. What is not ours stays.
    """
    folders = list(_old_folders(generations))
    names = {old: new for folder in folders for old, new in _names(folder, generations)}
    for old, new in names.items():
        with contextlib.suppress(FileExistsError):
            os.link(old, new)
    for folder in {new.parent for new in names.values()}:
        files.sync_folder(folder)
    for old, new in names.items():
        if old.samefile(new):
            old.unlink()
    for folder in folders:
        for part in _PARTS:
            (folder / part).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()
            folder.parent.rmdir()
    if folders:
        files.sync_folder(generations)


def _old_folders(generations: Path) -> Iterator[Path]:
    with os.scandir(generations) as there:
        named = [one.name for one in there if CERTIFICATE_NAME.fullmatch(one.name) and one.is_dir()]
    for certificate in named:
        below = (generations / certificate).iterdir()
        yield from (one for one in below if _NUMBER.fullmatch(one.name) and one.is_dir())


def _names(folder: Path, generations: Path) -> Iterator[tuple[Path, Path]]:
    """Give each file of an old folder with its name of today, in a folder that is there."""
    certificate, number = folder.parent.name, int(folder.name)
    for kind in PAIR_FILES:
        if (folder / kind).exists():
            yield folder / kind, generations / pair_file(certificate, number, kind)
    for sealed in folder.glob(f"*{SEALED_SUFFIX}"):
        beside = files.private_folder(generations / pair_file(certificate, number, SEALED))
        yield sealed, beside / sealed.name
