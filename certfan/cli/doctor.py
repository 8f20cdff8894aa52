"""`certfan doctor`: everything is looked at, and each finding comes with the command that mends it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from certfan.cli.failing import json_option
from certfan.cli.lines.columns import Json, clean
from certfan.cli.options import config_option
from certfan.cli.saying import in_colour, progress, say
from certfan.errors import ControlDenied, DaemonNotRunning

_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


@click.command()
@config_option
@json_option
@click.option("--all", "all_", is_flag=True, help="Tell also what is well.")
@click.pass_context
def doctor(ctx: click.Context, config: Path, as_json: bool, all_: bool) -> None:
    """Look at everything that a certificate needs.

    Config, clock, disk, permissions, share, authorities, CAA records, the path of every vhost, and the agents. Each finding comes with the command that mends it. What only the daemon can see is looked at by the daemon; without
    it the rest is looked at all the same. Nothing is changed, and nothing is ordered. Exit code 1 when something is bad.
    """
    found: list[dict[str, Any]] = []
    with progress() as tell:
        for finding in _findings(config):
            found.append(finding)
            if not as_json and (all_ or finding["grade"] != "ok"):
                click.echo("\n".join(finding_lines(finding, colour=in_colour())))
            elif sys.stderr.isatty():
                tell(f"{len(found)} looked at")
    counts = {grade: sum(one["grade"] == grade for one in found) for grade in _COLOURS}
    told = f"{counts['ok']} well, {counts['warn']} to watch, {counts['bad']} bad"
    say({"findings": found, **counts}, told, as_json)
    if counts["bad"]:
        ctx.exit(1)


def _findings(config: Path) -> Iterator[dict[str, Any]]:
    from certfan.cli.control import follow
    from certfan.daemon.offline import examine

    daemons = follow(config, "POST", "/api/v1/doctor")
    try:
        first = next(daemons, None)
    except (DaemonNotRunning, ControlDenied) as error:
        yield from map(as_told, examine(config, runs=False))
        detail = f"{error.text}; what only it can see was not looked at"
        yield {"grade": "bad", "area": "daemon", "subject": "daemon", "detail": detail, "hint": error.hint}
        return
    yield from map(as_told, examine(config, runs=True))
    if first is not None:
        yield first
    yield from daemons


def as_told(finding: Any) -> dict[str, Any]:
    """Return a finding of this process as the daemon tells its own."""
    return {
        "grade": finding.grade.value,
        "area": finding.area,
        "subject": finding.subject,
        "detail": finding.detail,
        "hint": finding.hint,
    }


def finding_lines(one: Json, *, colour: bool = False) -> list[str]:
    """Return a finding as a line, and what mends it as another."""
    grade = one["grade"].ljust(5)
    told = click.style(grade, fg=_COLOURS.get(one["grade"])) if colour else grade
    lines = [f"{told} {one['area']:<12} {clean(one['detail'])}"]
    return [*lines, f"{'':<19}try: {clean(one['hint']).removeprefix('run: ')}"] if one["hint"] else lines
