"""`certfan status` and `certfan events`: they look and change nothing."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from certfan.cli.failing import json_option
from certfan.cli.options import config_option

_BETWEEN_LOOKS = 2.0  # seconds
_BETWEEN_EVENTS = 1.0  # seconds


def say(answer: Any, text: str, as_json: bool) -> None:
    """Print an answer in the form that was asked for."""
    click.echo(json.dumps(answer) if as_json else text)


def utc_now() -> datetime:
    """Return the wall clock, aware UTC."""
    return datetime.now(UTC)


def in_colour() -> bool:
    """Whether stdout is a terminal whose owner does not mind colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@click.command()
@config_option
@json_option
@click.option("--watch", is_flag=True, help="Look again every two seconds.")
def status(config: Path, as_json: bool, watch: bool) -> None:
    """What needs you first; then every certificate, consumer and endpoint."""
    from certfan.cli import show
    from certfan.cli.control import call

    while True:
        page = call(config, "GET", "/api/v1/status")
        text = json.dumps(page) if as_json else "\n".join(show.page_lines(page, colour=in_colour()))
        if watch and sys.stdout.isatty():
            click.clear()
        click.echo(text)
        if not watch:
            return
        time.sleep(_BETWEEN_LOOKS)


@click.command()
@config_option
@json_option
@click.option("--follow", is_flag=True, help="Go on with what happens next.")
@click.option(
    "--last", default=50, show_default=True, type=click.IntRange(1, 1000), help="How many to begin with."
)
def events(config: Path, as_json: bool, follow: bool, last: int) -> None:
    """The journal: what happened, one line each."""
    from certfan.cli import show
    from certfan.cli.control import call

    found = call(config, "GET", f"/api/v1/events?limit={last}")["events"]
    after = 0
    while True:
        for event in found:
            after = event["id"]
            click.echo(json.dumps(event) if as_json else show.event_line(event))
        if not follow:
            return
        time.sleep(_BETWEEN_EVENTS)
        found = call(config, "GET", f"/api/v1/events?after={after}&limit=1000")["events"]
