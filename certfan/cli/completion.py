"""`certfan completion`: what a shell needs to complete commands, options and names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion of SHELL: bash, zsh or fish.

    \b
        certfan completion bash > /etc/bash_completion.d/certfan
        certfan completion zsh  > /usr/local/share/zsh/site-functions/_certfan
        certfan completion fish > ~/.config/fish/completions/certfan.fish

    Names of certificates and consumers are asked of the running daemon; where it does not answer, none are offered.
    """  # noqa: D301 - click wants the character itself
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    command = ctx.find_root().command
    # Not `source()`: bash's would start a bash only to warn of an old one.
    made = kind(command, {}, "certfan", "_CERTFAN_COMPLETE")
    click.echo(made.source_template % made.source_vars())


def names(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what completes an argument with names of the daemon's page: `certificates`, `consumers`, `authorities`."""

    def complete(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
        from certfan.cli.control import call
        from certfan.errors import CertfanError

        config = ctx.params.get("config") or Path("/etc/certfan/certfan.toml")
        try:
            page: Any = call(config, "GET", "/api/v1/status", patience=2)
        except CertfanError:
            return []
        return [one["name"] for one in page[kind] if one["name"].startswith(begun)]

    return complete
