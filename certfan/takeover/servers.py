"""What the configs of this machine's servers say of challenges, and of the pairs of a foreign tree."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from certfan.errors import TreeUnreadable
from certfan.takeover.tree import read_text

FOLDERS = tuple(
    Path("/etc") / name
    for name in ("apache2", "nginx", "haproxy", "caddy", "postfix", "dovecot", "ejabberd", "prosody", "exim4")
)
MOST_FILES = 2000
_CHALLENGE = re.compile(r"\bacme-challenge\b")
_PROXIED = re.compile(
    r"^\s*(?:ProxyPass(?:Match)?|proxy_pass|reverse_proxy|RewriteRule|use_backend)\b", re.IGNORECASE
)


class Kind(StrEnum):
    """What a line is about."""

    PROXY = "proxy"  # challenges go to another machine or program
    CHALLENGE = "challenge"  # challenges are answered out of a folder, or kept from a redirect
    PAIR = "pair"  # a file of the foreign tree is used


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a server's config."""

    file: Path
    number: int
    text: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.text}"


def lines(folders: Sequence[Path], tree: Path) -> tuple[Line, ...]:
    """Return every line that is about challenges or the tree's pairs; what may not be read is passed over."""
    found = []
    live = re.compile(rf"{re.escape(str(tree))}/(?:live|archive|certs)/")
    for file in _files(folders):
        try:
            text = read_text(file)
        except TreeUnreadable:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if (kind := _kind(line, live)) is not None:
                found.append(Line(file, number, line.strip()[:200], kind))
    return tuple(found)


def _kind(line: str, live: re.Pattern[str]) -> Kind | None:
    if line.lstrip().startswith("#"):
        return None
    if live.search(line):
        return Kind.PAIR
    if _CHALLENGE.search(line):
        return Kind.PROXY if _PROXIED.match(line) and "://" in line else Kind.CHALLENGE
    return None


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield each file once: a site that is enabled is a link to one that is available."""
    seen: set[Path] = set()
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner.sort()
            for name in sorted(names):
                file = (Path(place) / name).resolve()
                if file not in seen and file.is_file() and len(seen) < MOST_FILES:
                    seen.add(file)
                    yield file
