"""The daemon's edge to the share: whole generations in, what is published out."""

from __future__ import annotations

import grp
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from certfan.core.model import Consumer, Problem
from certfan.core.share_audit import Fact, Line, Tree
from certfan.errors import ConfigInvalid, ShareError, ShareFull
from certfan.protocol import manifest
from certfan.share_worker.client import ShareWorker
from certfan.share_worker.faults import unavailable
from certfan.share_worker.tree import Folder

_PUBLISHING = timedelta(seconds=30)
_LOOKING = timedelta(seconds=10)
_GLANCING = timedelta(seconds=2.5)
_LATE = timedelta(
    seconds=3
)  # a call that gave no sign of life for so long is told as a fault, well before its deadline
_STALE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Mount:
    """What the share's root is."""

    share: str  # the id in its sentinel
    fstype: str
    source: str
    mounted_at: str
    options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there."""
        return "ro" in self.options


@dataclass(frozen=True, slots=True)
class ShareSeen:
    """What is on the share: whole generations, live pointers; keys are (certificate, consumer)."""

    published: Mapping[tuple[str, str], frozenset[Folder]]
    live: Mapping[tuple[str, str], Folder]
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
        self._full: Problem | None = None
        self._folders: Mapping[str, Problem] = {}
        self._folders_since: Mapping[str, datetime] = {}
        self._worker = ShareWorker(
            root, lock=lock, writable=True, sentinel_id=share_id, require_mount=require_mount
        )

    async def move(self, root: Path, *, share_id: str | None, require_mount: bool) -> None:
        """Use another root from now on; what was under way at the old one fails as unavailable."""
        old = self._worker
        self._root = root.absolute()
        self._problem = self._full = None
        self._folders, self._folders_since = {}, {}
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
        """What is wrong with the share as a whole: it did not answer, does not answer now, or is full."""
        late = None if self._problem else self._worker.late(_LATE)
        return self._problem or (_told(late) if late else self._full)

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was last used. A full one does: removing things makes room."""
        return self._problem is None

    @property
    def folder_problems(self) -> Mapping[str, Problem]:
        """What is wrong with the folder of one consumer."""
        return self._folders

    @property
    def folders_since(self) -> Mapping[str, datetime]:
        """When each of those problems was first seen in this run; one that changes its cause goes on."""
        return self._folders_since

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
            "bundle": manifest.bundle_of(files),
            "key_mode": consumer.mode,
            "gid": group_number(consumer),
        }
        with self._watched():
            await self._worker.call("publish", arguments, files, patience=_PUBLISHING)

    async def glance(self, consumers: Iterable[Consumer]) -> None:
        """See in a few calls whether the share can be used; `problem` and `folder_problems` tell what is not well.

        Some keys are looked at each time, all of them in turn: whether somebody has opened them up.

        Raises:
            ShareUnavailable: not mounted, another share, disconnected or hung.
        """
        arguments = {"consumers": {one.name: one.mode for one in consumers}}
        with self._watched():
            answer = (await self._worker.call("glance", arguments, patience=_GLANCING)).header
        self._mind(read_only=answer["read_only"])
        self._folders = _problems(answer["consumers"])
        now = self._clock()
        self._folders_since = {name: self._folders_since.get(name, now) for name in self._folders}
        self._full = _problems({"": full}).get("") if (full := answer["full"]) else None

    async def look(self) -> ShareSeen:
        """Observe the share.

        Raises:
            ShareUnavailable: not mounted, another share, disconnected or hung.
        """
        with self._watched():
            answer = (await self._worker.call("look", patience=_LOOKING)).header
        seen = _seen(answer["consumers"], answer["mount"])
        self._mind(read_only=seen.mount.read_only)
        return seen

    def _mind(self, *, read_only: bool) -> None:
        """A share that can be read only is none to us, even while nothing is to be written."""
        if read_only:
            self._problem = _told(unavailable("mounted read-only", str(self._root)))

    async def survey(self) -> Mapping[str, Tree]:
        """Tell what lies there, by consumer; nothing is followed, and nothing judged.

        Raises:
            ShareError: unavailable, or an entry in the way.
        """
        with self._watched():
            found = (await self._worker.call("survey", patience=_PUBLISHING)).header["consumers"]
        return {name: _tree(said) for name, said in found.items()}

    async def inspect(
        self, consumer: str, certificate: str, folder: Folder
    ) -> tuple[Mapping[str, Fact], Mapping[str, bytes]]:
        """Tell facts and bytes of the files of one bundle.

        Raises:
            ShareError: unavailable, or something else has a folder's place.
        """
        which = {"certificate": certificate, "generation": folder.number, "bundle": folder.bundle}
        with self._watched():
            answer = await self._worker.call("inspect", {"consumer": consumer, **which}, patience=_PUBLISHING)
        return _facts(answer.header["facts"]), answer.files

    async def retire(
        self, consumer: str, certificate: str, generation: int, bundle: str | None = None
    ) -> None:
        """Remove a generation that nobody needs, or one sealing of it; its keys go last. Nothing there is fine.

        Raises:
            GenerationLive: `live/` points at it.
            ShareError: unavailable or tampered with.
        """
        which = {"certificate": certificate, "generation": generation, "bundle": bundle}
        with self._watched():
            await self._worker.call("retire", {"consumer": consumer, **which}, patience=_PUBLISHING)

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
            # Errors about one consumer's folder say nothing about the share, and neither does its quota.
            if why.subject == str(self._root) and not isinstance(why, ShareFull):
                self._problem = _told(why)
            raise
        self._problem = None


def _told(why: ShareError) -> Problem:
    return Problem(why.code, why.text, why.hint)


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


def _folders(names: Iterable[str]) -> frozenset[Folder]:
    return frozenset(folder for name in names if (folder := Folder.parse(name)))


def _seen(consumers: Mapping[str, Any], mount: Mapping[str, Any]) -> ShareSeen:
    return ShareSeen(
        {
            (certificate, consumer): _folders(names)
            for consumer, seen in consumers.items()
            for certificate, names in seen["published"].items()
            if names
        },
        {
            (certificate, consumer): folder
            for consumer, seen in consumers.items()
            for certificate, name in seen["live"].items()
            if (folder := Folder.parse(name))
        },
        mount=mount_of(mount),
        problems=_problems({name: seen["problem"] for name, seen in consumers.items() if "problem" in seen}),
    )


def mount_of(said: Mapping[str, Any]) -> Mount:
    """Return what the worker says about the share's root."""
    words = {name: said[name] for name in ("share", "fstype", "source", "mounted_at")}
    return Mount(**words, options=tuple(said["options"]))


def _tree(said: Mapping[str, Any]) -> Tree:
    lines = {
        name: Line(_fact(one["fact"]), _facts(one["entries"])) for name, one in said["certificates"].items()
    }
    return Tree(_facts(said["facts"]), said["live"], lines)


def _facts(said: Mapping[str, Any]) -> dict[str, Fact]:
    return {name: _fact(one) for name, one in said.items()}


def _fact(said: Sequence[Any]) -> Fact:
    kind, mode, uid, gid, links, size = said
    return Fact(kind, mode, uid=uid, gid=gid, links=links, size=size)


def _problems(said: Mapping[str, Mapping[str, str]]) -> dict[str, Problem]:
    return {name: Problem(one["code"], one["text"], one["hint"]) for name, one in said.items()}
