"""`certfan consumer ...` and `certfan share ...`: who may have what, and where it lies."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from certfan.cli import looking
from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.errors import ControlDenied, UnknownName


@click.group()
def consumer() -> None:
    """VMs with an agent."""


@consumer.command()
@config_option
@json_option
@click.argument("name")
def add(config: Path, name: str, as_json: bool) -> None:
    """Print the line that enrols consumer NAME; it is good once, for 15 minutes."""
    from certfan.cli.control import call

    answer = call(config, "POST", "/api/v1/consumers", {"name": name})
    looking.say(answer, f"certfan agent enrol {answer['line']}", as_json)


@consumer.command("list")
@config_option
@json_option
def list_(config: Path, as_json: bool) -> None:
    """Every consumer, and when it was last heard."""
    from certfan.cli import show
    from certfan.cli.control import call

    page = call(config, "GET", "/api/v1/status")
    now = datetime.fromisoformat(page["now"])
    lines = show.consumer_lines(page["consumers"], now, colour=looking.in_colour())
    looking.say(page["consumers"], "\n".join(lines), as_json)


@consumer.command()
@config_option
@json_option
@click.argument("name")
def revoke(config: Path, name: str, as_json: bool) -> None:
    """End every identity of consumer NAME, and its live sessions."""
    from urllib.parse import quote

    from certfan.cli.control import call

    answer = call(config, "DELETE", f"/api/v1/consumers/{quote(name, safe='')}")
    looking.say(
        answer, f"{name} has no identity any more; enrol it again with: certfan consumer add {name}", as_json
    )


@click.group()
def share() -> None:
    """The volume that carries generations."""


@share.command()
@config_option
@json_option
@click.option("--user", default="certfan", show_default=True, help="Whom the daemon runs as.")
def setup(config: Path, user: str, as_json: bool) -> None:
    """Make the share's sentinel and each consumer's closed folder. As root, or as the daemon's user; repeatable."""
    import asyncio

    from certfan.daemon.config import load
    from certfan.daemon.share_setup import set_up_share

    uid = _uid(user)
    if os.geteuid() not in {0, uid}:
        raise ControlDenied(
            "only root can give folders to another user", hint="run: sudo certfan share setup"
        )
    found = load(config)
    work = set_up_share(
        found.share.path,
        found.desired.consumers.values(),
        uid=uid,
        lock=_setup_lock(found.state),
        share_id=found.share.id,
        require_mount=found.share.require_mount,
    )
    answer: dict[str, Any] = {"share": asyncio.run(work), "consumers": sorted(found.desired.consumers)}
    looking.say(answer, f"{found.share.path} is share {answer['share']}", as_json)


def _setup_lock(state: Path) -> Path:
    """Return a local file that is not the daemon's own lock: both may work at once."""
    if os.geteuid() == 0:
        return Path("/run/certfan-share-setup.lock")
    from certfan import files

    return files.private_folder(state) / "share-setup.lock"


def _uid(user: str) -> int:
    import pwd

    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UnknownName(f"there is no user {user}", subject=user, hint="run: systemd-sysusers") from None
