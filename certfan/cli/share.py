"""`certfan share ...`: the volume that carries generations; set up, compared with what we know, made anew."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.cli.saying import progress, say
from certfan.cli.users import ids_of
from certfan.errors import ControlDenied


@click.group()
def share() -> None:
    """The volume that carries generations."""


@share.command()
@config_option
@json_option
@click.option("--user", default="certfan", show_default=True, help="Whom the daemon runs as.")
@click.option("--lines", "only_lines", is_flag=True, help="Only print what to type; needs no share yet.")
@click.pass_context
def setup(ctx: click.Context, config: Path, user: str, only_lines: bool, as_json: bool) -> None:
    """Make the share's sentinel and each consumer's closed folder; print what the volume and fstab need.

    As root, or as the daemon's user; repeatable.
    """
    from certfan.daemon.config.loading import load
    from certfan.daemon.share.setup import advice

    found = load(config)
    if only_lines:
        told = advice(found)
        say(told, "\n".join(_line_texts(told)), as_json)
        return
    answer = _set_up(found, user)
    text = [
        f"{found.share.path} is share {answer['share']}",
        *_check_lines(answer["checks"]),
        *_line_texts(answer),
    ]
    say(answer, "\n".join(text), as_json)
    if any(check["problem"] and not check["todo"] for check in answer["checks"]):
        ctx.exit(1)


@share.command()
@config_option
@json_option
@click.pass_context
def verify(ctx: click.Context, config: Path, as_json: bool) -> None:
    """Compare the share with what the daemon knows, down to every signature; exit code 1 when anything differs."""
    _tell(ctx, config, "verify", "{} generations were read, all is as it should be", as_json)


@share.command()
@config_option
@json_option
@click.pass_context
def rebuild(ctx: click.Context, config: Path, as_json: bool) -> None:
    """Publish again, from the daemon's own state, what a lost volume took along; first run: certfan share setup."""
    _tell(ctx, config, "rebuild", "{} generations are on the share", as_json)


def _tell(ctx: click.Context, config: Path, what: str, well: str, as_json: bool) -> None:
    from certfan.cli.control import follow

    answer: dict[str, Any] = {}
    with progress() as tell:
        for answer in follow(config, "POST", f"/api/v1/share/{what}"):
            if "done" in answer and sys.stderr.isatty():
                tell(f"{answer['done']} of {answer['of']}  {answer['at']}")
    found = answer["differences"]
    lines = [f"{d['place']} {d['detail']}{'; ' if d['hint'] else ''}{d['hint']}" for d in found]
    say(answer, "\n".join(lines) or well.format(answer["generations"]), as_json)
    if found:
        ctx.exit(1)


def _set_up(found: Any, user: str) -> dict[str, Any]:
    import asyncio
    from dataclasses import asdict

    from certfan.daemon.share.setup import advice, set_up_share, volume_checks

    uid, _ = ids_of(user)
    if os.geteuid() not in {0, uid}:
        raise ControlDenied(
            "only root can give folders to another user", hint="run: sudo certfan share setup"
        )
    work = set_up_share(
        found.share.path,
        found.desired.consumers.values(),
        uid=uid,
        lock=_setup_lock(found.state, found.share.path),
        share_id=found.share.id,
        require_mount=found.share.require_mount,
    )
    made = asyncio.run(work)
    checks = (*made.checks, *volume_checks(found, made.mount))
    return {
        "share": made.share,
        "consumers": sorted(found.desired.consumers),
        "checks": [asdict(check) for check in checks],
        **advice(found, made.mount),
    }


def _check_lines(checks: Iterable[Any]) -> Iterator[str]:
    for check in checks:
        word = ("to do" if check["todo"] else "WRONG") if check["problem"] else "ok"
        yield f"{word:<7} {check['what']}{': ' if check['problem'] else ''}{check['problem']}"


def _line_texts(told: Any) -> Iterator[str]:
    if told["create"]:
        yield from ("", "A new volume, the host's brick first:", f"  {told['create']}")
    yield from ("", "Once, on a machine of the volume:", *(f"  {line}" for line in told["commands"]))
    for consumer, line in told["fstab"].items():
        yield from ("", f"/etc/fstab {f'on {consumer}' if consumer else 'here'}:", f"  {line}")
    yield from ("", told["custody"])


def _setup_lock(state: Path, share: Path) -> Path:
    """Return a local file for this share that is not the daemon's own lock: both may work at once."""
    if os.geteuid() == 0:
        return Path(f"/run/certfan-share-setup-{zlib.crc32(os.fsencode(share)):08x}.lock")
    from certfan import files

    return files.private_folder(state) / "share-setup.lock"
