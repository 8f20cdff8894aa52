"""`certfan consumer ...`: who may have what."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from certfan.cli.completion import names
from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.cli.saying import in_colour, say


@click.group()
def consumer() -> None:
    """VMs with an agent."""


@consumer.command()
@config_option
@json_option
@click.argument("name", shell_complete=names("consumers"))
def add(config: Path, name: str, as_json: bool) -> None:
    """Print the line that enrols consumer NAME; it is good once, for 15 minutes."""
    from certfan.cli.control import call

    answer = call(config, "POST", "/api/v1/consumers", {"name": name})
    say(answer, f"certfan agent enrol {answer['line']}", as_json)


@consumer.command("list")
@config_option
@json_option
def list_(config: Path, as_json: bool) -> None:
    """Every consumer, and when it was last heard."""
    from certfan.cli.control import call
    from certfan.cli.lines.page import consumer_lines

    page = call(config, "GET", "/api/v1/status")
    now = datetime.fromisoformat(page["now"])
    lines = consumer_lines(page["consumers"], now, colour=in_colour())
    say(page["consumers"], "\n".join(lines), as_json)


@consumer.command()
@config_option
@json_option
@click.option(
    "--last", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many events to show."
)
@click.argument("name", shell_complete=names("consumers"))
def show(config: Path, name: str, last: int, as_json: bool) -> None:
    """Consumer NAME: when it was heard, what each of its endpoints serves, and what happened to it lately."""
    from urllib.parse import quote

    from certfan.cli.control import call
    from certfan.cli.lines.page import consumer_page

    found = call(config, "GET", f"/api/v1/consumers/{quote(name, safe='')}")
    page = call(config, "GET", "/api/v1/status")
    events = call(config, "GET", f"/api/v1/events?subject={quote(name, safe='')}&limit={last}")["events"]
    rows = [r for one in page["certificates"] for r in one["endpoints"] if r["consumer"] == name]
    now = datetime.fromisoformat(page["now"])
    lines = consumer_page(found, rows, events, now, colour=in_colour())
    say({"consumer": found, "endpoints": rows, "events": events}, "\n".join(lines), as_json)


@consumer.command()
@config_option
@json_option
@click.argument("name", shell_complete=names("consumers"))
def revoke(config: Path, name: str, as_json: bool) -> None:
    """End every identity of consumer NAME, and its live sessions."""
    from urllib.parse import quote

    from certfan.cli.control import call

    answer = call(config, "DELETE", f"/api/v1/consumers/{quote(name, safe='')}")
    say(answer, f"{name} has no identity any more; enrol it again with: certfan consumer add {name}", as_json)
