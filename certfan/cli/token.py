"""`certfan token`: lets somebody read the status from another machine."""

from __future__ import annotations

import re

import click

from certfan.cli.failing import json_option


@click.command()
@json_option
@click.argument("name")
def token(name: str, as_json: bool) -> None:
    """Make a token for NAME, which reads the status from another machine; take its line out to revoke it."""
    from certfan.cli.saying import say
    from certfan.daemon.config.tokens import hash_of, make_token

    if not re.fullmatch("[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", name):
        raise click.UsageError(f"{name!r} cannot be a token's name: 1 to 63 of a-z 0-9 -")
    made = make_token()
    lines = [
        f"the token, shown only now: {made}",
        "its line in certfan.toml, which holds at once when it is saved:",
        "  [status.tokens]",
        f'  {name} = "{hash_of(made)}"',
    ]
    say({"name": name, "token": made, "hash": hash_of(made)}, "\n".join(lines), as_json)
