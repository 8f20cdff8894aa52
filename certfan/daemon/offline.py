"""`certfan doctor` without the daemon: what anybody on this machine can see of config, users, clock, disk and sockets.

What must never come in: what needs a key, or the daemon's own eyes (desk.doctor).
"""

from __future__ import annotations

import grp
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from certfan.core.findings import Finding, Grade
from certfan.daemon.config.loading import Config, load
from certfan.errors import ConfigError, ConfigInvalid

_LEAST_FREE = 64 << 20  # bytes for database and generations
_ASKING = 10  # seconds that systemd's clock service may take


def examine(path: Path, *, runs: bool) -> Iterator[Finding]:
    """Yield what is found; `runs`: the daemon answers, and will say more of the share itself. Changes nothing."""
    yield from _clock()
    try:
        config = load(path)
    except ConfigInvalid as error:
        yield from (Finding(Grade.BAD, "config", str(path), text, error.hint) for text in error.problems)
        return
    except ConfigError as error:
        yield Finding(Grade.BAD, "config", str(path), error.text, error.hint)
        return
    yield Finding(Grade.OK, "config", str(path), f"{path} is good")
    yield from _groups(config)
    yield from _socket(config)
    yield from _disk(config)
    if not runs:
        yield _share(config)


def _clock() -> Iterator[Finding]:
    argv = ("timedatectl", "show", "--property=NTPSynchronized", "--value")
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASKING, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return  # a machine without it may well be in step
    if done.stdout.strip() == "no":
        detail = "no time server keeps this machine's clock in step"
        yield Finding(Grade.WARN, "clock", "clock", detail, "run: timedatectl set-ntp true")


def _groups(config: Config) -> Iterator[Finding]:
    """Yield each group that is named and is none here; a number is its own group."""
    wanted = {config.control.group: "whose members may use the control socket"}
    for consumer in config.desired.consumers.values():
        wanted.setdefault(consumer.group, f"that may read what consumer {consumer.name} gets")
    for name, what in wanted.items():
        try:
            _ = name.isdecimal() or grp.getgrnam(name)
        except KeyError:
            detail = f"there is no group {name}, {what}"
            yield Finding(Grade.BAD, "permissions", name, detail, f"run: groupadd --system {name}")


def _socket(config: Config) -> Iterator[Finding]:
    path = config.control.path
    try:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
    except OSError:
        return  # whether the daemon answers is told apart
    if mode & 0o007:
        detail = f"{path} has mode {mode:04o}: everybody may command the daemon"
        yield Finding(Grade.BAD, "permissions", path, detail, "run: systemctl restart certfan")
    else:
        yield Finding(Grade.OK, "permissions", path, f"{path} is for root and group {config.control.group}")


def _disk(config: Config) -> Iterator[Finding]:
    folder = next(one for one in (config.state, *config.state.parents) if one.exists())
    free = shutil.disk_usage(folder).free
    if free < _LEAST_FREE:
        detail = f"{folder} has {free >> 20} MiB left; keys and the database must be written before anything is sent"
        yield Finding(Grade.BAD, "disk", str(folder), detail, f"run: df {folder}")
    else:
        yield Finding(Grade.OK, "disk", str(folder), f"{folder} has {free >> 20} MiB left")


def _share(config: Config) -> Finding:
    path = config.share.path
    # A look at a mount that hangs never ends, and no thread of ours can be taken back from it.
    look = ("test", "-d", str(path)) if not config.share.require_mount else ("mountpoint", "-q", str(path))
    try:
        found = subprocess.run(look, capture_output=True, timeout=_ASKING, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        found = False
    if found:
        return Finding(Grade.OK, "share", str(path), f"{path} is there")
    what = "mounted" if config.share.require_mount else "there, or does not answer"
    return Finding(Grade.BAD, "share", str(path), f"{path} is not {what}", f"run: mount {path}")
