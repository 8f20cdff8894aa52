"""`certfan notify`: whether who is to hear of problems would."""

from __future__ import annotations

from pathlib import Path

import click

from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.errors import NotifyFailed

_PATIENCE = 700.0  # seconds: a program may take ten minutes


@click.group()
def notify() -> None:
    """Who is told of problems."""


@notify.command("test")
@config_option
@json_option
@click.argument("channel", required=False)
def test_(config: Path, channel: str | None, as_json: bool) -> None:
    """Send a test over CHANNEL of [notify], or over all of them."""
    from certfan.cli.control import call
    from certfan.cli.lines.columns import clean
    from certfan.cli.saying import say

    answer = call(config, "POST", "/api/v1/notify/test", {"channel": channel}, patience=_PATIENCE)
    lines = [f"{one['channel']}: {clean(one['problem'] or 'ok')}" for one in answer["channels"]]
    say(answer, "\n".join(lines), as_json)
    if failed := [one["channel"] for one in answer["channels"] if one["problem"]]:
        raise NotifyFailed(f"{', '.join(failed)} could not tell", hint="look at [notify] in certfan.toml")
