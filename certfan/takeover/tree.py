"""What is found in another program's folder, as values, and how its files are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from certfan.errors import TreeUnreadable

_T = TypeVar("_T")
MOST_BYTES = 1 << 16  # of one file: a chain, a key, a few lines of settings
_MAIL = re.compile(r"mailto:[^@\s,?]+@[^@\s,?]+")  # what our config takes as a contact


@dataclass(frozen=True, slots=True)
class FoundAccount:
    """An account at an authority, with its key (PEM)."""

    directory: str
    uri: str  # "" when the program did not write it down
    key_pem: bytes = field(repr=False)
    where: Path = field(kw_only=True)
    contact: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Way:
    """How the program answered challenges for a certificate, and what it ran after a renewal."""

    authenticator: str  # certbot's words: webroot, standalone, apache, nginx, manual, dns-...
    webroots: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundPair:
    """A certificate's newest key and chain (PEM) as the program keeps them."""

    name: str
    key_pem: bytes = field(repr=False)
    fullchain_pem: bytes = field(repr=False)
    directory: str = field(kw_only=True)
    way: Way = field(kw_only=True)
    where: Path = field(kw_only=True)
    account: str = field(default="", kw_only=True)  # part of the account's place, when the program says which
    profile: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that cannot be taken over, and why. `stays`: it is good, and nobody but the other program renews it."""

    name: str
    why: str
    hint: str = field(default="", kw_only=True)
    stays: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Tree:
    """All that was found. `stop` is what ends the program's own renewals, `stop_some` those of all but a few."""

    kind: str  # certbot, dehydrated
    root: Path
    accounts: tuple[FoundAccount, ...] = field(kw_only=True)
    pairs: tuple[FoundPair, ...] = field(kw_only=True)
    left_out: tuple[LeftOut, ...] = field(kw_only=True)
    stop: str = field(kw_only=True)
    stop_some: str = field(kw_only=True)

    def accounts_at(self, directory: str) -> list[FoundAccount]:
        """Return the accounts at an authority, the one that most certificates came from first."""
        found = [one for one in self.accounts if one.directory == directory]
        used = {
            one.where: sum(pair.account in one.where.parts for pair in self.pairs if pair.account)
            for one in found
        }
        return sorted(found, key=lambda one: -used[one.where])


def usable(
    places: Iterable[Path], read: Callable[[Path], _T], name: Callable[[Path], str]
) -> tuple[tuple[_T, ...], tuple[LeftOut, ...]]:
    """Read each place; what raises TreeUnreadable is left out by its name."""
    found, left_out = [], []
    for place in places:
        try:
            found.append(read(place))
        except TreeUnreadable as error:
            left_out.append(LeftOut(name(place), str(error)))
    return tuple(found), tuple(left_out)


def read_bytes(path: Path) -> bytes:
    """Return a file's contents.

    Raises:
        TreeUnreadable: it is not there, may not be read, or is longer than any of its kind.
    """
    try:
        with path.open("rb") as file:
            found = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise TreeUnreadable(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if len(found) > MOST_BYTES:
        raise TreeUnreadable(f"{path}: is longer than {MOST_BYTES} bytes")
    return found


def read_text(path: Path) -> str:
    """Return a file's contents as text; raises TreeUnreadable."""
    return read_bytes(path).decode(errors="replace")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises TreeUnreadable."""
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise TreeUnreadable(f"{path}: is no JSON") from error
    if not isinstance(found, dict):
        raise TreeUnreadable(f"{path}: is no JSON object")
    return found


def text_of(said: dict[str, Any], key: str) -> str:
    """Return a text of a JSON object, "" when it is none."""
    value = said.get(key)
    return value if isinstance(value, str) else ""


def contacts_of(said: Any) -> tuple[str, ...]:
    """Return the contacts of an account's JSON that our config would take."""
    found = said.get("contact") if isinstance(said, dict) else None
    return tuple(one for one in found or () if isinstance(one, str) and _MAIL.fullmatch(one))
