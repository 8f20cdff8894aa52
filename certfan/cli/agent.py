"""`certfan agent ...`: what runs on a consumer."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from certfan.cli.failing import json_option
from certfan.cli.options import agent_config_option


@click.group()
def agent() -> None:
    """The agent of this consumer."""


@agent.command()
@agent_config_option
@click.pass_context
def run(ctx: click.Context, config: Path) -> None:
    """Fetch, verify, probe and report until SIGTERM."""
    from certfan.agent.main import run

    ctx.exit(run(config))


@agent.command()
@agent_config_option
@json_option
@click.argument("line", required=False)
def enrol(config: Path, line: str | None, as_json: bool) -> None:
    """Make this machine the consumer that LINE names; `-` reads it from stdin."""
    from certfan.agent.main import enrol
    from certfan.cli.saying import say

    trust = enrol(config, _line(line))
    answer = {"consumer": trust.consumer, "fleet": trust.fleet}
    say(answer, f"this machine is consumer {trust.consumer} of {trust.fleet}", as_json)


def _line(line: str | None) -> str:
    """Take the line from the argument, stdin or a prompt; the whole of what `consumer add` printed will do."""
    if line == "-":
        line = sys.stdin.readline()
    elif line is None:
        line = click.prompt("Enrolment line", hide_input=True, err=True)
    return line.strip().removeprefix("certfan agent enrol").strip()


@agent.command()
@agent_config_option
def apply(config: Path) -> None:
    """Be the privileged half, on the socket that systemd hands over."""
    from certfan.agent.apply import run

    run(config)


@agent.command()
@agent_config_option
def boot(config: Path) -> None:
    """Lay the last proven pairs, or placeholders, before the services start."""
    from certfan.agent.boot import run

    run(config)


@agent.command()
@agent_config_option
@json_option
def check(config: Path, as_json: bool) -> None:
    """Read agent.toml and look for what it names; tell every problem, or what would be probed."""
    from certfan.agent.check import check
    from certfan.cli.saying import say

    found = check(config)
    good = f"{config}: good: {', '.join(found.services) or 'no service'}"
    answer = {"services": found.services, "endpoints": found.endpoints}
    say(answer, "\n".join((good, *found.lines)), as_json)
