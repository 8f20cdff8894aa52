"""`certfan import`: take over what another ACME program has. It reads there; the daemon adopts, as only it may."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from certfan.cli import conf_files
from certfan.cli.failing import json_option
from certfan.cli.lines import imports
from certfan.cli.options import config_option
from certfan.cli.saying import say

KINDS = ("certbot", "dehydrated")


@click.command("import")
@config_option
@json_option
@click.option("--from", "kind", type=click.Choice(KINDS), help="Whose folder it is; default: seen by itself.")
@click.option(
    "--consumer",
    "consumers",
    multiple=True,
    help="Who is to have the certificates (again for more); default: the only one.",
)
@click.option(
    "--at",
    "places",
    multiple=True,
    metavar="ADDRESS:PORT",
    help="Where it is served now; default: port 443 of all addresses of each name.",
)
@click.option("--replace-account", is_flag=True, help="Even where certfan has an account of its own already.")
@click.option("--stdout", "to_stdout", is_flag=True, help="Print the config's lines instead of writing them.")
@click.option("--yes", is_flag=True, help="Do it; without this, only say what would be done.")
@click.option("--undo", is_flag=True, help="Take an import back: its config's file, and all that it adopted.")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.pass_context
def import_(
    ctx: click.Context,
    config: Path,
    folder: Path | None,
    kind: str | None,
    consumers: tuple[str, ...],
    places: tuple[str, ...],
    replace_account: bool,
    to_stdout: bool,
    yes: bool,
    undo: bool,
    as_json: bool,
) -> None:
    """Take over the certificates, keys and accounts of certbot or dehydrated in FOLDER; root only.

    Nothing is ordered, and nothing below FOLDER is changed. Run it without --yes first; twice is once.
    """
    from certfan.takeover import reading

    if undo:
        if folder is None and kind is None:
            raise click.UsageError("say what to take back: --from certbot or --from dehydrated")
        say(*conf_files.undo(config, kind or reading.kind_of(folder or Path()), yes), as_json)
        return
    if folder is None:
        raise click.UsageError("FOLDER is missing, as /etc/letsencrypt")
    take = _prepare(config, reading.read(folder, kind), consumers, replace_account)
    told = take.told(_places(places))
    if yes:
        take.carry_out(told, to_stdout)
    if as_json or not to_stdout:
        say(told, "\n".join(imports.lines(told)), as_json)
    else:
        click.echo(told["config"]["text"], nl=False)
    if told["failed"]:
        ctx.exit(1)


def _prepare(config: Path, tree: Any, consumers: Sequence[str], replace_account: bool) -> Any:
    """Hold the tree against the config; return the import that comes of it."""
    from certfan import tls
    from certfan.cli.import_steps import Take
    from certfan.daemon.config.checks import why_not_asked
    from certfan.daemon.config.loading import load
    from certfan.takeover import planning

    loaded = load(config)
    plan = planning.make(
        tree,
        loaded.desired,
        why_not=why_not_asked,
        roots=lambda one: tls.roots_pem(one.roots_file, authority=one.name),
        now=datetime.now(UTC),
    )
    wanted = tuple(consumers) or tuple(loaded.desired.consumers)
    unknown = sorted(set(wanted) - loaded.desired.consumers.keys())
    if unknown:
        raise click.UsageError(f"there is no consumer {unknown[0]} in {config}")
    if not consumers and len(wanted) != 1 and not all(one.in_config for one in plan.adoptions):
        said = f"one of {', '.join(sorted(wanted))}" if wanted else f"and first add it to {config}"
        raise click.UsageError(f"say who is to have the certificates: --consumer NAME, {said}")
    return Take(config, loaded.desired, str(loaded.http01[0]), plan, wanted, replace_account)


def _places(texts: Sequence[str]) -> list[tuple[str, int]]:
    from certfan.takeover.serving import place_of

    try:
        return [place_of(text) for text in texts]
    except ValueError as error:
        raise click.UsageError(f"--at {error}") from error
