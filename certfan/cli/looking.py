"""`certfan status` and `certfan events`: they look and change nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from certfan.cli.failing import as_text, json_option
from certfan.cli.options import config_option
from certfan.errors import DaemonNotRunning

_BETWEEN_LOOKS = 1.0  # seconds
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


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield how to say how far something has come: in place on a terminal, a line each elsewhere; never on stdout.

    What was said last makes way for what comes after.
    """
    in_place = sys.stderr.isatty()

    def tell(line: str) -> None:
        click.echo(f"{line}\x1b[K\r" if in_place else f"{line}\n", nl=False, err=True)

    try:
        yield tell
    finally:
        if in_place:
            click.echo("\x1b[K", nl=False, err=True)


@click.command()
@config_option
@json_option
@click.option(
    "--watch",
    is_flag=True,
    help="Look again every second, with the progress of orders and fan-outs; Ctrl-C ends it.",
)
def status(config: Path, as_json: bool, watch: bool) -> None:
    """What needs you; then every endpoint.

    The summary and each problem with what to try, then certificates, authorities and endpoints.
    """
    from certfan.cli import show
    from certfan.cli.control import call

    if watch:
        with contextlib.suppress(KeyboardInterrupt), _unwrapped():
            _watch(config, as_json)
        return
    page = call(config, "GET", "/api/v1/status")
    say(page, "\n".join(show.page_lines(page, colour=in_colour())), as_json)


def _watch(config: Path, as_json: bool) -> None:
    """Show the page again and again; a daemon that restarts meanwhile is waited for."""
    from certfan.cli.control import call
    from certfan.cli.show import page_lines

    while True:
        try:
            page = call(config, "GET", "/api/v1/status")
        except DaemonNotRunning as error:
            if as_json:
                raise
            lines = as_text(error).splitlines()
        else:
            lines = page_lines(page, colour=in_colour(), progress=True)
        if as_json:
            click.echo(json.dumps(page))
        else:
            _show(lines)
        time.sleep(_BETWEEN_LOOKS)


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Have a terminal cut lines that are too long, so that a page is as high as it has lines."""
    if not sys.stdout.isatty():
        yield
        return
    click.echo("\x1b[?7l", nl=False)
    try:
        yield
    finally:
        click.echo("\x1b[?7h", nl=False)


def _show(lines: Sequence[str]) -> None:
    """Show a page in place of the one before, as much as the terminal has room for; elsewhere one after the other."""
    if not sys.stdout.isatty():
        click.echo("\n".join((*lines, "")))
        return
    room = shutil.get_terminal_size().lines - 1
    shown = [*lines[: room - 1], f"... {len(lines) - room + 1} more lines"] if len(lines) > room else lines
    # Not cleared first, which would flicker: each line is overwritten, and what is left below goes.
    click.echo("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J", nl=False)


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
