"""Notices that the admin changed the config, and says what became of it.

Level, not edge: a notification is only a reason to look, and every few seconds we look without one, which also
finds what inotify does not tell (a symlink's target, a folder that was away for a while).
What must never come in: a decision about what a change means to anything but the config.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from certfan import log
from certfan.core.model import Problem
from certfan.daemon.config import loading as config
from certfan.daemon.config.loading import Config
from certfan.errors import ConfigError, ConfigInvalid

if TYPE_CHECKING:
    from watchfiles import Change

_log = log.get("config")

_DEBOUNCE = 100  # ms: an editor's rename and chmod are one change
_STEP = 30  # ms of quiet that end a change
_Signature = tuple[tuple[str, int, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a look found: `config` is the new one to put in force; None means that the old one stays.

    `problems` are all there are now; empty means that none is left. Beside a config they say what of it waits
    for a restart.
    """

    config: Config | None
    problems: tuple[Problem, ...]


class ConfigWatch:
    """Watches one config for changes against the one in force.

    `started_with` is the config whose listeners are bound. One user at a time.
    """

    def __init__(self, started_with: Config, *, every: float = 5.0) -> None:
        self._started_with = started_with
        self._in_force = started_with
        self._problems: tuple[Problem, ...] = ()
        self._signature: _Signature | None = None
        self._every = every  # seconds between looks without a notification

    async def changes(self) -> AsyncGenerator[Loaded, None]:
        """Yield each time that there is something new; never ends by itself. Cancelled, it stops watching."""
        while True:
            folders = _folders(self._in_force.path)
            armed = folders, self._in_force.force_polling
            async with contextlib.aclosing(self._wake_ups(folders)) as wake_ups:
                async for told in wake_ups:
                    if loaded := await self.look(force=told):
                        yield loaded
                    if (_folders(self._in_force.path), self._in_force.force_polling) != armed:
                        break

    async def look(self, *, force: bool = False) -> Loaded | None:
        """Read the files if they may have changed, or with `force` in any case.

        Returns None when that changes nothing: the same values, and the same problems as before.
        """
        path = self._in_force.path
        signature = await asyncio.to_thread(_signature, path)
        if signature == self._signature and not force:
            return None
        loaded = await asyncio.to_thread(try_load, path)
        self._signature = signature
        return self._weigh(loaded)

    def _weigh(self, loaded: Loaded) -> Loaded | None:
        problems = loaded.problems
        if loaded.config is not None:
            problems = needs_restart(self._started_with, loaded.config)
        changed = loaded.config is not None and loaded.config.digest != self._in_force.digest
        if not changed and problems == self._problems:
            return None
        self._problems = problems
        self._in_force = loaded.config or self._in_force
        return Loaded(loaded.config, problems)

    async def _wake_ups(self, folders: tuple[tuple[Path, int], ...]) -> AsyncGenerator[bool, None]:
        yield False  # what happened while nobody watched
        if not folders:
            await asyncio.sleep(self._every)
            return
        from watchfiles import awatch

        try:
            async for changes in awatch(
                *(folder for folder, _ in folders),
                watch_filter=_is_ours,
                debounce=_DEBOUNCE,
                step=_STEP,
                rust_timeout=int(self._every * 1000),
                yield_on_timeout=True,
                recursive=False,
                force_polling=self._in_force.force_polling,
                ignore_permission_denied=True,
            ):
                yield bool(changes)
        except OSError as error:  # the folder went away just now, or inotify has no watches left
            _log.warning("config.unwatched", problem=str(error))
            await asyncio.sleep(self._every)


def try_load(path: Path) -> Loaded:
    """Read a config; a refusal comes back as problems, one value for each."""
    try:
        return Loaded(config.load(path), ())
    except ConfigInvalid as error:
        return Loaded(None, tuple(Problem(error.code, text, error.hint) for text in error.problems))
    except ConfigError as error:
        return Loaded(None, (Problem(error.code, error.text, error.hint),))
    except OSError as error:
        return Loaded(None, (Problem(ConfigInvalid.code, f"{path}: {error}", f"run: ls -l {path.parent}"),))


def needs_restart(started_with: Config, now: Config) -> tuple[Problem, ...]:
    """Tell what of a good config only a restart puts in force: what is bound, opened or signed at start."""
    fixed = {
        "fleet": (started_with.fleet, now.fleet),
        "state": (started_with.state, now.state),
        "http01.listen": (started_with.http01, now.http01),
        "channel.listen": (started_with.channel, now.channel),
        "status.listen": (started_with.status, now.status),
        "status.hosts": (started_with.status_hosts, now.status_hosts),
        "status.tls": (started_with.status_tls, now.status_tls),
        "control": (started_with.control, now.control),
    }
    return tuple(
        Problem(
            "config.needs_restart",
            f"{now.path}: {key} has changed, and takes effect after a restart",
            "run: systemctl restart certfan",
        )
        for key, (before, after) in fixed.items()
        if before != after
    )


def _is_ours(_change: Change, path: str) -> bool:
    return path.endswith((".toml", "/conf.d"))


def _folders(path: Path) -> tuple[tuple[Path, int], ...]:
    """The folders to watch, with their inodes: a folder that was replaced must be watched anew."""
    found = []
    for folder in (path.parent, path.parent / "conf.d"):
        with contextlib.suppress(OSError):
            found.append((folder, folder.stat().st_ino))
    return tuple(found)


def _signature(path: Path) -> _Signature:
    found = []
    for file in (path, path.parent, path.parent / "conf.d", *config.fragments(path)):
        try:
            about = file.stat()
        except OSError as error:
            found.append((str(file), -(error.errno or 1), 0, 0, 0, 0))
        else:
            times = about.st_mtime_ns, about.st_ctime_ns
            found.append((str(file), about.st_ino, about.st_size, *times, about.st_mode))
    return tuple(found)
