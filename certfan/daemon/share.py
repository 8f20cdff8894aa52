"""The daemon's edge to the share: whole generations in, what is published out."""

from __future__ import annotations

import grp
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from certfan.core.model import Consumer, Problem
from certfan.errors import ConfigInvalid, ShareError
from certfan.share_worker.client import ShareWorker

_PUBLISHING = timedelta(seconds=30)
_LOOKING = timedelta(seconds=10)
_STALE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Mount:
    """What the share's root is."""

    share: str  # the id in its sentinel
    fstype: str
    source: str
    mounted_at: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class ShareSeen:
    """What is on the share: whole generations, live pointers; keys are (certificate, consumer)."""

    published: Mapping[tuple[str, str], frozenset[int]]
    live: Mapping[tuple[str, str], int]
    mount: Mount = field(kw_only=True)
    problems: Mapping[str, Problem] = field(kw_only=True)  # by consumer: its folder cannot be used


class Share:
    """The share, through a worker process: a share that hangs never holds the daemon up."""

    def __init__(
        self,
        root: Path,
        lock: Path,
        clock: Callable[[], datetime],
        *,
        share_id: str | None = None,
        require_mount: bool = False,
    ) -> None:
        self._root = root.absolute()
        self._lock = lock
        self._clock = clock
        self._problem: Problem | None = None
        self._worker = ShareWorker(
            root, lock=lock, writable=True, sentinel_id=share_id, require_mount=require_mount
        )

    async def move(self, root: Path, *, share_id: str | None, require_mount: bool) -> None:
        """Use another root from now on; what was under way at the old one fails as unavailable."""
        old = self._worker
        self._root = root.absolute()
        self._problem = None
        self._worker = ShareWorker(
            root, lock=self._lock, writable=True, sentinel_id=share_id, require_mount=require_mount
        )
        await old.stop()

    @property
    def root(self) -> Path:
        """Where the share is."""
        return self._root

    @property
    def problem(self) -> Problem | None:
        """What was wrong with the share as a whole when it was last used; None when it answered."""
        return self._problem

    async def publish(
        self, consumer: Consumer, certificate: str, generation: int, files: Mapping[str, bytes]
    ) -> None:
        """Make a generation visible to a consumer.

        Readers see the whole generation or none of it; the pointer moves last, and never back. Safe to repeat: a
        whole folder with the same content is adopted. Cancelled midway, it may still be done, or leaves an
        unfinished folder, which is swept.

        Raises:
            PermissionTooOpen: a file would have been readable by others.
            ConfigInvalid: the consumer's group does not exist here.
            BundleInvalid: the number is taken by other content, or `files` is no whole bundle.
            ShareError: unavailable, full or tampered with.
        """
        arguments = {
            "consumer": consumer.name,
            "certificate": certificate,
            "generation": generation,
            "key_mode": consumer.mode,
            "gid": group_number(consumer),
        }
        with self._watched():
            await self._worker.call("publish", arguments, files, patience=_PUBLISHING)

    async def look(self) -> ShareSeen:
        """Observe the share.

        Raises:
            ShareUnavailable: not mounted, another share, disconnected or hung.
        """
        with self._watched():
            answer = (await self._worker.call("look", patience=_LOOKING)).header
        return _seen(answer["consumers"], answer["mount"])

    async def retire(self, consumer: str, certificate: str, generation: int) -> None:
        """Remove a generation that nobody needs; its keys go last. Nothing there is fine.

        Raises:
            GenerationLive: `live/` points at it.
            ShareError: unavailable or tampered with.
        """
        arguments = {"consumer": consumer, "certificate": certificate, "generation": generation}
        with self._watched():
            await self._worker.call("retire", arguments, patience=_PUBLISHING)

    async def clear(self, consumer: str, certificate: str) -> None:
        """Remove all of a certificate from a consumer's folder, its pointer first, keys last. Repeatable.

        Raises:
            ShareError: unavailable or tampered with.
        """
        with self._watched():
            arguments = {"consumer": consumer, "certificate": certificate}
            await self._worker.call("clear", arguments, patience=_PUBLISHING)

    async def forget(self, consumer: str) -> bool:
        """Remove a consumer's folder; False if, emptied, it had to stay, as the share's root is not ours. Repeatable.

        Raises:
            ShareError: unavailable or tampered with.
        """
        with self._watched():
            answer = await self._worker.call("forget", {"consumer": consumer}, patience=_PUBLISHING)
        return bool(answer.header["gone"])

    async def sweep(self) -> int:
        """Remove what interrupted publishing left behind more than an hour ago; return how many things."""
        before = (self._clock() - _STALE).timestamp()
        with self._watched():
            answer = await self._worker.call("sweep", {"before": before}, patience=_PUBLISHING)
        return int(answer.header["swept"])

    async def stop(self) -> None:
        """End the worker; takes a second at most, whatever the share does."""
        await self._worker.stop()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except ShareError as why:
            # Errors about one consumer's folder say nothing about the share.
            if why.subject == str(self._root):
                self._problem = Problem(why.code, why.text, why.hint)
            raise
        self._problem = None


def group_number(consumer: Consumer) -> int:
    """Return the gid of a consumer's key files on the share.

    Raises:
        ConfigInvalid: no group of that name on this machine.
    """
    if consumer.group.isdecimal():
        return int(consumer.group)
    try:
        return grp.getgrnam(consumer.group).gr_gid
    except KeyError:
        raise ConfigInvalid(
            (f"consumer {consumer.name}: group {consumer.group} does not exist on this machine",),
            subject=consumer.name,
            hint=f"run: groupadd --system {consumer.group}, or give the group's number",
        ) from None


def _seen(consumers: Mapping[str, Any], mount: Mapping[str, Any]) -> ShareSeen:
    return ShareSeen(
        {
            (certificate, consumer): frozenset(numbers)
            for consumer, seen in consumers.items()
            for certificate, numbers in seen["published"].items()
            if numbers
        },
        {
            (certificate, consumer): number
            for consumer, seen in consumers.items()
            for certificate, number in seen["live"].items()
        },
        mount=Mount(**{name: mount[name] for name in Mount.__slots__}),
        problems={
            consumer: Problem(seen["problem"]["code"], seen["problem"]["text"], seen["problem"]["hint"])
            for consumer, seen in consumers.items()
            if "problem" in seen
        },
    )
