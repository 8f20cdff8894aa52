"""`certfan status` and `certfan events`: they look and change nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from certfan.cli.failing import as_text, json_option
from certfan.cli.options import config_option
from certfan.cli.saying import in_colour, say
from certfan.errors import DaemonNotRunning

_BETWEEN_LOOKS = 1.0  # seconds
_BETWEEN_EVENTS = 1.0  # seconds


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
    from certfan.cli.control import call
    from certfan.cli.lines.page import page_lines

    if watch:
        with contextlib.suppress(KeyboardInterrupt), _unwrapped():
            _watch(config, as_json)
        return
    page = call(config, "GET", "/api/v1/status")
    say(page, "\n".join(page_lines(page, colour=in_colour())), as_json)


def _watch(config: Path, as_json: bool) -> None:
    """Show the page again and again; a daemon that restarts meanwhile is waited for."""
    from certfan.cli.control import call
    from certfan.cli.lines.page import page_lines

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
    from certfan.cli.control import call
    from certfan.cli.lines.page import event_line

    found = call(config, "GET", f"/api/v1/events?limit={last}")["events"]
    after = 0
    while True:
        for event in found:
            after = event["id"]
            click.echo(json.dumps(event) if as_json else event_line(event))
        if not follow:
            return
        time.sleep(_BETWEEN_EVENTS)
        found = call(config, "GET", f"/api/v1/events?after={after}&limit=1000")["events"]
