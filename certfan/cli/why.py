"""`certfan why` and `certfan plan`: why it is as it is, and what will be done about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from certfan.cli.completion import names
from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.cli.saying import in_colour, say, utc_now


@click.command()
@config_option
@json_option
@click.option(
    "--last", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many events to show."
)
@click.argument("name", shell_complete=names("certificates"))
def why(config: Path, name: str, last: int, as_json: bool) -> None:
    """Why certificate NAME is as it is, and how to force it.

    Its state and reason, what it waits for and until when, the next try, what each endpoint serves and its deadline,
    and what happened lately.
    """
    from certfan.cli.control import call
    from certfan.cli.lines.why import why_lines

    path = f"/api/v1/certificates/{quote(name, safe='')}"
    certificate = call(config, "GET", path)
    events = call(config, "GET", f"{path}/events?limit={last}")["events"]
    answer = {"certificate": certificate, "events": events}
    lines = why_lines(certificate, events, utc_now(), colour=in_colour())
    say(answer, "\n".join(lines), as_json)


@click.command()
@config_option
@json_option
@click.option(
    "--with",
    "changed",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Plan as if this certfan.toml (and the conf.d beside it) were in force; nothing is done.",
)
def plan(config: Path, changed: Path | None, as_json: bool) -> None:
    """What the daemon is about to do, and why.

    What is ordered, published and reloaded. It is the running daemon's own plan. With --with FILE it tells what that config would change before you save it
    as yours.
    """
    from certfan.cli.control import call
    from certfan.cli.lines.plan import plan_lines

    body = _asked_for(changed) if changed else None
    answer = call(config, "POST", "/api/v1/plan", body)
    say(answer, "\n".join(plan_lines(answer, colour=in_colour())), as_json)


def _asked_for(changed: Path) -> Any:
    """Read another config; what it asks for goes to the daemon as values, so that it need not read the file."""
    from certfan.daemon.config.loading import load
    from certfan.daemon.config.wire import as_wire

    return as_wire(load(changed).desired)
