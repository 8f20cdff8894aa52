"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/certfan/certfan.toml"),
    show_default=True,
    envvar="CERTFAN_CONFIG",
    help="The daemon's config.",
)
agent_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/certfan/agent.toml"),
    show_default=True,
    envvar="CERTFAN_AGENT_CONFIG",
    help="The agent's config.",
)
