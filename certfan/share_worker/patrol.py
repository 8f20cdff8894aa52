"""Whether the keys on the share are as closed as they were made: some at each glance, all of them in turn.

A file that somebody opened up is read before `certfan share verify` is run. With many certificates a round takes
minutes: each glance must stay a glance.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping

from certfan.errors import CertfanError, PermissionTooOpen
from certfan.share_worker import tree
from certfan.share_worker.faults import tampered

AT_ONCE = 20  # certificates of all consumers together
_KEYS = ("privkey.pem", "privkey.hpke")


class Patrol:
    """Goes round; what it has found wrong stays told until it has seen it right, or gone."""

    def __init__(self) -> None:
        self._ahead: list[tuple[str, str]] = []  # the rest of this round
        self._found: dict[tuple[str, str], CertfanError] = {}

    def walk(self, root: int, modes: Mapping[str, int]) -> Mapping[str, CertfanError]:
        """Look at the next certificates; return what is wrong with a key of each consumer, by its name.

        `modes` are what the consumers' key files may have at most. What cannot be looked at is somebody else's to tell.
        """
        if not self._ahead:
            self._ahead = [(name, one) for name in sorted(modes) for one in _certificates(root, name)]
        turn, self._ahead = self._ahead[:AT_ONCE], self._ahead[AT_ONCE:]
        for place in turn:
            self._found.pop(place, None)
            with contextlib.suppress(OSError):
                if place[0] in modes and (why := _wrong(root, *place, modes[place[0]])) is not None:
                    self._found[place] = why
        return {name: why for (name, _), why in sorted(self._found.items(), reverse=True) if name in modes}


def _certificates(root: int, consumer: str) -> list[str]:
    with (
        contextlib.suppress(OSError),
        tree.folder(tree.checked(consumer), root) as at,
        tree.folder(tree.GENERATIONS, at) as generations,
    ):
        return [name for name in tree.entries(generations) if tree.is_name(name)]
    return []


def _wrong(root: int, consumer: str, certificate: str, mode: int) -> CertfanError | None:
    with (
        tree.folder(consumer, root) as at,
        tree.folder(tree.GENERATIONS, at) as generations,
        tree.folder(certificate, generations) as line,
    ):
        return next(
            (
                why
                for one in tree.folders(line)
                for name, about in _keys(line, one)
                if (why := _judged(about, f"{consumer}/generations/{certificate}/{one}/{name}", mode))
            ),
            None,
        )


def _keys(line: int, generation: tree.Folder) -> Iterator[tuple[str, os.stat_result]]:
    with contextlib.suppress(OSError), tree.folder(str(generation), line) as fd:
        for name in _KEYS:
            with contextlib.suppress(FileNotFoundError):
                yield name, os.stat(name, dir_fd=fd, follow_symlinks=False)


def _judged(about: os.stat_result, place: str, mode: int) -> CertfanError | None:
    consumer = place.partition("/")[0]
    found = stat.S_IMODE(about.st_mode)
    if stat.S_ISREG(about.st_mode) and found & ~mode:
        return PermissionTooOpen(
            f"key {place} on the share has mode {found:04o}, and may have {mode:04o} at most",
            subject=consumer,
            hint="look who did that, and: certfan share verify; then a new key: certfan renew NAME",
        )
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_nlink != 1:
        return tampered(f"key {place} on the share is not as certfan made it", subject=consumer)
    return None
