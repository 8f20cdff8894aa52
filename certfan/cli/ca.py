"""`certfan ca ...`: the internal CA, by which daemon and agents know each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from certfan.cli.failing import json_option
from certfan.cli.lines.columns import Json, clean
from certfan.cli.options import config_option
from certfan.cli.saying import say


@click.group()
def ca() -> None:
    """The internal CA, by which daemon and agents know each other; no service ever shows it."""


@ca.command()
@config_option
@json_option
def show(config: Path, as_json: bool) -> None:
    """How it stands, and which consumers have not followed a rotation yet."""
    from certfan.cli.control import call

    answer = call(config, "GET", "/api/v1/ca")
    say(answer, "\n".join(ca_lines(answer)), as_json)


@ca.command()
@config_option
@json_option
def rotate(config: Path, as_json: bool) -> None:
    """Have it followed by a new one, without a hand on any consumer.

    Both are believed until every consumer has an identity of the new one; then the share is signed anew, and the old one is
    believed by nobody any more. A consumer that is off holds that up until it is back, or revoked. Take a backup afterwards:
    one from before knows the old CA only.
    """
    from certfan.cli.control import call

    answer = call(config, "POST", "/api/v1/ca/rotate")
    lines = [*ca_lines(answer), "follow it with: certfan ca show"]
    say(answer, "\n".join(lines), as_json)


_PHASES = {
    "settled": "settled: it is the only one",
    "overlap": "rotating: the new one is pinned beside it, and consumers get identities of that",
    "dropping": "rotating: it is the new one, and the one before is being dropped",
}


def ca_lines(told: Json) -> Iterator[str]:
    """Return what is said of the internal CA."""
    yield f"fleet:       {clean(told['fleet'])}"
    yield f"fingerprint: SHA-256 {told['fingerprint']}, until {told['not_after'][:10]}"
    yield f"phase:       {_PHASES.get(told['phase'], told['phase'])}"
    if told["waits_for"]:
        yield f"waits for:   {clean(', '.join(told['waits_for']))}"
        yield "             each follows by itself; one that will not come back: certfan consumer revoke NAME"
    if told["problem"]:
        yield f"problem:     {clean(told['problem'])}"
