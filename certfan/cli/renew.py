"""`certfan renew` and `rollback`: ask for the next generation, and follow it until it is served everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from certfan.cli.completion import names
from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.cli.saying import progress, say, utc_now
from certfan.errors import ActionRefused, StillWaiting

_BETWEEN_LOOKS = 0.5  # seconds


def wait_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--wait` and `--timeout`."""
    wait = click.option(
        "--wait", is_flag=True, help="Tell how far it has come, until every endpoint proves it."
    )
    timeout = click.option(
        "--timeout",
        default=600.0,
        show_default=True,
        type=click.FloatRange(min=0),
        help="With --wait: after so many seconds give up waiting (exit code 75); it goes on without us.",
    )
    return wait(timeout(command))


@click.command()
@config_option
@json_option
@wait_options
@click.argument("name", shell_complete=names("certificates"))
def renew(config: Path, name: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Get a new generation of certificate NAME now.

    A wait after a failed order is lifted once; the authority's limits are not.
    """
    from certfan.cli.control import call

    before = _certificate(config, name) if wait else None
    answer = call(config, "POST", "/api/v1/renew", {"certificate": name})
    told = f"asked for a new generation of {name}; follow it with: certfan events --follow"
    _tell_outcome(config, answer, told, before, timeout, as_json)


@click.command()
@config_option
@json_option
@wait_options
@click.argument("name", shell_complete=names("certificates"))
@click.option(
    "--to", type=click.IntRange(min=1), help="Which generation; default: the newest earlier usable one."
)
def rollback(config: Path, name: str, to: int | None, wait: bool, timeout: float, as_json: bool) -> None:
    """Serve an older pair of certificate NAME again.

    It becomes the next generation: numbers only grow, and consumers install it as they do any other.
    """
    from certfan.cli.control import call

    body = {"certificate": name} if to is None else {"certificate": name, "to": to}
    before = _certificate(config, name) if wait else None
    answer = call(config, "POST", "/api/v1/rollback", body)
    told = f"the pair of {name}@{answer['to']} (serial {answer['serial']}) becomes the next generation"
    _tell_outcome(config, answer, f"{told}; a later one: certfan renew {name}", before, timeout, as_json)


def _certificate(config: Path, name: str) -> Any:
    from certfan.cli.control import call

    return call(config, "GET", f"/api/v1/certificates/{quote(name, safe='')}")


def _tell_outcome(config: Path, answer: Any, told: str, before: Any, timeout: float, as_json: bool) -> None:
    """Say what was asked for, or with what was there `before` wait until what follows it is served."""
    if before is None:
        say(answer, told, as_json)
        return
    with progress() as tell:
        served = _follow(config, before, timeout, tell)
    done = f"{before['name']}@{served['generation']} is served and proven by every endpoint"
    say({**answer, "generation": served["generation"]}, done, as_json)


def _follow(config: Path, before: Any, timeout: float, tell: Callable[[str], None]) -> Any:
    """Return the certificate as soon as a newer generation is served everywhere.

    Raises:
        ActionRefused: an order failed since.
        StillWaiting: it takes longer.
    """
    from certfan.cli.lines.progress import is_served, stage

    number, name = before["generation"] or 0, before["name"]
    said, ends = "", time.monotonic() + timeout
    while True:
        one = _certificate(config, name)
        line = stage(one, number, utc_now())
        if line != said:
            said = line
            tell(line)
        if is_served(one, number):
            return one
        if (one["generation"] or 0) <= number and one["failures"] > before["failures"] and one["problem"]:
            raise ActionRefused(one["problem"]["detail"], subject=name, hint=one["problem"]["hint"])
        if time.monotonic() >= ends:
            raise StillWaiting(line, subject=name, hint=f"run: certfan why {name}")
        time.sleep(_BETWEEN_LOOKS)
