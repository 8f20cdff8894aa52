"""The command line: click commands that import a wing only inside the one command that needs it."""

from __future__ import annotations

from pathlib import Path

import click

from certfan import __version__
from certfan.cli import (
    agent,
    authorities,
    backup,
    ca,
    check,
    completion,
    consumer,
    doctor,
    importing,
    init,
    notify,
    renew,
    share,
    snippets,
    status,
    token,
    why,
)
from certfan.cli.completion import names
from certfan.cli.failing import Group, json_option
from certfan.cli.options import config_option
from certfan.cli.saying import say
from certfan.errors import ConfigError


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="certfan")
def main() -> None:
    """One daemon gets every certificate; every endpoint provably serves it by its deadline."""


@main.command()
@config_option
@click.pass_context
def daemon(ctx: click.Context, config: Path) -> None:
    """Run the daemon until SIGTERM."""
    from certfan.daemon.main import run

    ctx.exit(run(config))


@main.command()
@config_option
@json_option
@click.option("--consumer", "is_consumer", is_flag=True, help="NAME is a consumer: end its identities too.")
@click.argument("name", shell_complete=names("orphans"))
def forget(config: Path, name: str, is_consumer: bool, as_json: bool) -> None:
    """Remove what is left of NAME, which left the config.

    On every consumer's list, on the share, in the state folder, and every fact; the journal stays.
    """
    from certfan.cli.control import call

    answer = call(config, "POST", "/api/v1/forget", {"consumer" if is_consumer else "certificate": name})
    say(answer, f"{name} is being forgotten; follow it with: certfan events --follow", as_json)


@main.command()
@config_option
@json_option
@click.pass_context
def reload(ctx: click.Context, config: Path, as_json: bool) -> None:
    """Have the config read now.

    Saved changes are noticed without it. Answers when it is in force, or exits with 78 and every problem when the one before stays so.
    """
    from certfan.cli.control import call

    problems = call(config, "POST", "/api/v1/reload")["problems"]
    refused = [problem for problem in problems if problem["code"] != "config.needs_restart"]
    told = "\n".join(problem["detail"] for problem in problems) or "the config in force is what is written"
    say({"problems": problems, "in_force": not refused}, told, as_json)
    if refused:
        ctx.exit(ConfigError.exit_code)


for _command in (
    check.check,
    init.init,
    completion.completion,
    why.why,
    why.plan,
    doctor.doctor,
    ca.ca,
    backup.backup,
    backup.restore,
    renew.renew,
    renew.rollback,
    authorities.revoke,
    authorities.account,
    status.status,
    token.token,
    notify.notify,
    status.events,
    consumer.consumer,
    share.share,
    snippets.snippet,
    importing.import_,
    agent.agent,
):
    main.add_command(_command)
