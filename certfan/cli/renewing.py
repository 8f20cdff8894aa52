"""`certfan renew`: ask for a new generation, and follow it until it is served everywhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from certfan.cli import looking
from certfan.cli.completing import names
from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.errors import ActionRefused, StillWaiting

_BETWEEN_LOOKS = 0.5  # seconds


@click.command()
@config_option
@json_option
@click.option("--wait", is_flag=True, help="Tell how far it has come, until every endpoint proves it.")
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="With --wait: after so many seconds give up waiting (exit code 75); it goes on without us.",
)
@click.argument("name", shell_complete=names("certificates"))
def renew(config: Path, name: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Get a new generation of certificate NAME now.

    A wait after a failed order is lifted once; the authority's limits are not.
    """
    from certfan.cli.control import call

    path = f"/api/v1/certificates/{quote(name, safe='')}"
    before = call(config, "GET", path) if wait else None
    answer = call(config, "POST", "/api/v1/renew", {"certificate": name})
    if before is None:
        told = f"asked for a new generation of {name}; follow it with: certfan events --follow"
        looking.say(answer, told, as_json)
        return
    served = _follow(config, path, before, timeout)
    told = f"{name}@{served['generation']} is served and proven by every endpoint"
    looking.say({"certificate": name, "generation": served["generation"]}, told, as_json)


def _follow(config: Path, path: str, before: Any, timeout: float) -> Any:
    """Return the certificate as soon as a newer generation is served everywhere.

    Raises:
        ActionRefused: an order failed since.
        StillWaiting: it takes longer.
    """
    from certfan.cli.control import call
    from certfan.cli.progress import is_served, stage

    number, name = before["generation"] or 0, before["name"]
    said, ends = "", time.monotonic() + timeout
    while True:
        one = call(config, "GET", path)
        line = stage(one, number, looking.utc_now())
        if line != said:
            said = line
            _tell(line)
        if is_served(one, number):
            return one
        if (one["generation"] or 0) <= number and one["failures"] > before["failures"] and one["problem"]:
            raise ActionRefused(one["problem"]["detail"], subject=name, hint=one["problem"]["hint"])
        if time.monotonic() >= ends:
            raise StillWaiting(line, subject=name, hint=f"run: certfan why {name}")
        time.sleep(_BETWEEN_LOOKS)


def _tell(line: str) -> None:
    """Say how far it has come: in place on a terminal, a line each elsewhere; never on stdout."""
    ends = "\x1b[K\r" if sys.stderr.isatty() else "\n"
    click.echo(line + ends, nl=False, err=True)
