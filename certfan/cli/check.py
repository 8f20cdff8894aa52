"""`certfan check`: is the config good, and would an order succeed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from certfan.cli.failing import hint_lines, json_option
from certfan.cli.options import config_option
from certfan.errors import CertfanError, ControlDenied, DaemonNotRunning

TRIAL_PATIENCE = 180  # seconds; the daemon itself gives up before


@click.command()
@config_option
@json_option
@click.option(
    "--order", is_flag=True, help="Have the running daemon order each NAME once at a staging authority."
)
@click.option(
    "--authority", help="Where --order tries; default: the `staging` of each certificate's authority."
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.pass_context
def check(
    ctx: click.Context,
    config: Path,
    as_json: bool,
    order: bool,
    authority: str | None,
    names: tuple[str, ...],
) -> None:
    """Tell every problem of the config, or what it asks for.

    With --order, try each certificate NAME (default: every one) afterwards; nothing of these orders is kept.
    """
    from certfan.daemon.config.loading import load

    if not order and (names or authority):
        raise click.UsageError("NAME and --authority belong to --order")
    desired = load(config).desired
    if not as_json:
        click.echo(
            f"{config}: good: {_count(len(desired.certificates), 'certificate')}, "
            f"{_count(len(desired.consumers), 'consumer')}, {_count(len(desired.authorities), 'authority', 'authorities')}"
        )
    told: dict[str, Any] = {
        "certificates": {
            name: [str(i) for i in one.identifiers] for name, one in sorted(desired.certificates.items())
        },
        "consumers": sorted(desired.consumers),
    }
    if order:
        wanted = dict.fromkeys(names) or sorted(desired.certificates)
        told["trials"] = [_trial(config, name, authority, as_json) for name in wanted]
    if as_json:
        click.echo(json.dumps(told))
    if not all(one["ok"] for one in told.get("trials", ())):
        ctx.exit(1)


def _trial(config: Path, name: str, authority: str | None, as_json: bool) -> dict[str, Any]:
    """Have one certificate tried; a line says how it went as soon as it is known."""
    from certfan.cli.control import call

    body = {"certificate": name, "authority": authority}
    began = time.monotonic()
    try:
        answer = call(config, "POST", "/api/v1/trial", body, patience=TRIAL_PATIENCE)
    except (DaemonNotRunning, ControlDenied):
        raise  # it would be the same of every one
    except CertfanError as error:
        seconds = round(time.monotonic() - began, 1)
        if not as_json:
            click.echo("\n".join((f"{name}: {error.text} ({seconds} s)", *hint_lines(error))))
        problem = {"code": error.code, "detail": error.text, "hint": error.hint}
        return {"certificate": name, "ok": False, "seconds": seconds, "problem": problem}
    seconds = round(time.monotonic() - began, 1)
    if not as_json:
        click.echo(f"{name}: ok at {answer['authority']} ({seconds} s)")
    return {"certificate": name, "ok": True, "seconds": seconds, **answer}


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
