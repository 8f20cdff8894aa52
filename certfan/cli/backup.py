"""`certfan backup` and `certfan restore`: all that the daemon knows, as one private file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from certfan import files
from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.cli.saying import say, utc_now
from certfan.errors import ActionRefused, ControlDenied, DaemonNotRunning


@click.command()
@config_option
@json_option
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
def backup(config: Path, file: Path, as_json: bool) -> None:
    """Write all that the daemon knows to FILE; root only.

    Database, keys, accounts and the internal CA. The daemon goes on meanwhile; one that does not run is not needed. FILE is new, readable by you alone, and read again
    before it gets its name. `-` writes to stdout, for a program that encrypts it:

        certfan backup - | age -r RECIPIENT > certfan.tar.age
    """
    from certfan.daemon.backup import verify

    if str(file) == "-":
        if sys.stdout.isatty():
            raise click.UsageError("a backup is not for a terminal; give a FILE, or pipe it")
        for piece in _archive(config):
            sys.stdout.buffer.write(piece)
        return
    if file.exists():
        raise ActionRefused(f"{file} exists", subject=str(file), hint="give the name of a new file")
    partial = file.with_name(f".{file.name}.partial")
    try:
        with files.open_private(partial) as out:
            for piece in _archive(config):
                out.write(piece)
            out.seek(0)
            about = verify(out)
            os.fsync(out.fileno())
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
    size = file.stat().st_size
    told = (
        f"{file}: {about.files} files of fleet {about.fleet}, {size >> 10} KiB; whoever has it has every key"
    )
    say({"file": str(file), "bytes": size, **_told(about)}, told, as_json)


def _archive(config: Path) -> Iterator[bytes]:
    """Yield an archive: the running daemon's, or that of its folder, which is locked as the daemon would."""
    from certfan.cli.control import receive

    pieces = receive(config, "POST", "/api/v1/backup")
    try:
        first = next(pieces, b"")
    except DaemonNotRunning:
        yield from _without_daemon(config)
        return
    yield first
    yield from pieces


def _without_daemon(config: Path) -> Iterator[bytes]:
    from certfan.daemon.backup import LOCK, archived
    from certfan.daemon.config.loading import load

    found = load(config)
    with (
        files.locked(found.state / LOCK),
        archived(found.state, found.fleet, utc_now()) as (source, _),
    ):
        while piece := source.read(1 << 18):
            yield piece


@click.command()
@config_option
@json_option
@click.option("--user", default="certfan", show_default=True, help="Whom the daemon runs as.")
@click.argument("file", type=click.File("rb"))
def restore(config: Path, user: str, file: BinaryIO, as_json: bool) -> None:
    """Make a backup FILE the daemon's state; root only.

    The daemon must not run, and its state folder must be empty or not there: nothing is overwritten. All of it is there, or
    none. What happened since the backup is found out when the daemon starts; what you revoked since, revoke again.
    """
    from certfan.cli.users import ids_of
    from certfan.daemon.config.loading import load
    from certfan.daemon.restoring import restore

    owner = ids_of(user)
    if os.geteuid() not in {0, owner[0]}:
        raise ControlDenied("only root can give files to another user", hint="run: sudo certfan restore FILE")
    found = load(config)
    about = restore(file, found.state, fleet=found.fleet, owner=owner if os.geteuid() == 0 else None)
    told = f"{found.state} is as it was at {about.made_at:%Y-%m-%d %H:%M} UTC ({about.files} files of fleet {about.fleet})"
    todo = "start the daemon: systemctl start certfan; what you revoked since then, revoke again"
    say({"state": str(found.state), **_told(about)}, f"{told}; {todo}", as_json)


def _told(about: Any) -> dict[str, Any]:
    return {
        "fleet": about.fleet,
        "files": about.files,
        "version": about.version,
        "made_at": about.made_at.isoformat().replace("+00:00", "Z"),
    }
