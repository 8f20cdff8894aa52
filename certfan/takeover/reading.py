"""Which program a folder is of, and reading it as that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from certfan.errors import TreeUnreadable
from certfan.takeover import certbot, dehydrated
from certfan.takeover.tree import Tree


class Reader(Protocol):
    """A module that knows one program's folder."""

    def is_one(self, root: Path) -> bool:
        """Say whether a folder is that program's."""

    def read(self, root: Path) -> Tree:
        """Read all of it."""


READERS: Mapping[str, Reader] = {"certbot": certbot, "dehydrated": dehydrated}


def kind_of(folder: Path) -> str:
    """Return which program a folder is of.

    Raises:
        TreeUnreadable: of none that we know.
    """
    for kind, reader in READERS.items():
        if reader.is_one(folder):
            return kind
    raise TreeUnreadable(
        f"{folder} is neither certbot's folder nor dehydrated's",
        subject=str(folder),
        hint="give the folder that has renewal/ (certbot), or domains.txt or certs/ (dehydrated)",
    )


def read(folder: Path, kind: str | None = None) -> Tree:
    """Read a folder as that program's, or as whose it looks like; raises TreeUnreadable."""
    folder = folder.absolute()
    if not folder.is_dir():
        raise TreeUnreadable(f"{folder} is no folder", subject=str(folder))
    return READERS[kind or kind_of(folder)].read(folder)
