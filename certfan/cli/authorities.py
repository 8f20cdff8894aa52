"""`certfan revoke` and `certfan account ...`: what the certificate authorities are asked beside orders."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from certfan.cli.completion import names
from certfan.cli.failing import json_option
from certfan.cli.options import config_option
from certfan.cli.saying import say
from certfan.errors import ActionRefused

MOST_BYTES = 1 << 14  # of a key, or an export
# core.model's RevocationReason: for these words alone every help would pay for all nouns of the core.
REASONS = ("unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation")


@click.command()
@config_option
@json_option
@click.option("--generation", type=click.IntRange(min=1), help="Which one; default: the newest.")
@click.option(
    "--reason",
    type=click.Choice(REASONS),
    default=REASONS[0],
    show_default=True,
    help="What the authority is told (RFC 5280); keyCompromise takes every generation with that key along.",
)
@click.option("--now", "at_once", is_flag=True, help="Before its successor is served everywhere.")
@click.argument("name", shell_complete=names("certificates"))
def revoke(
    config: Path, name: str, generation: int | None, reason: str, at_once: bool, as_json: bool
) -> None:
    """Have a generation of certificate NAME revoked.

    By default once every endpoint proves a successor with another key, so that nobody is ever served a revoked leaf.
    """
    from certfan.cli.control import call

    body: dict[str, Any] = {"certificate": name, "reason": reason, "now": at_once}
    if generation is not None:
        body["generation"] = generation
    answer = call(config, "POST", "/api/v1/revoke", body)
    told = ", ".join(f"{name}@{one['generation']} (serial {one['serial']})" for one in answer["revoking"])
    when = "now" if at_once else "once every endpoint proves a successor with another key"
    say(answer, f"{told}: revoked {when}; follow it with: certfan status", as_json)


@click.group()
def account() -> None:
    """Our account at a certificate authority."""


@account.command()
@config_option
@json_option
@click.argument("authority", shell_complete=names("authorities"))
def show(config: Path, authority: str, as_json: bool) -> None:
    """The account at AUTHORITY, and what of the limits there is used."""
    from certfan.cli.control import call

    answer = call(config, "GET", _path(authority))
    say(answer, "\n".join(_lines(answer)), as_json)


@account.command()
@config_option
@json_option
@click.argument("authority", shell_complete=names("authorities"))
def rollover(config: Path, authority: str, as_json: bool) -> None:
    """Give the account at AUTHORITY a new key, as soon as no order is under way there."""
    from certfan.cli.control import call

    answer = call(config, "POST", f"{_path(authority)}/rollover")
    told = f"the account at {authority} gets a new key; follow it with: certfan events --follow"
    say(answer, told, as_json)


@account.command()
@config_option
@click.argument("authority", shell_complete=names("authorities"))
def export(config: Path, authority: str) -> None:
    """Print the account at AUTHORITY with its private key, as JSON; root only."""
    from certfan.cli.control import call

    answer = call(config, "GET", f"{_path(authority)}/key")
    if sys.stdout.isatty():
        click.echo(
            "certfan: warning: whoever has read this key can act as you at the authority;"
            f" better: certfan account export {authority} | age -p > account.age",
            err=True,
        )
    click.echo(json.dumps(answer))


@account.command("import")
@config_option
@json_option
@click.argument("authority", shell_complete=names("authorities"))
@click.argument("file", type=click.File("rb"), default="-")
def import_(config: Path, authority: str, file: Any, as_json: bool) -> None:
    """Use another account at AUTHORITY from now on: FILE (default: stdin) is an export, or its key as PEM; root only."""
    from certfan.cli.control import call

    answer = call(config, "PUT", _path(authority), _account(authority, file.read(MOST_BYTES)))
    say(answer, f"the account at {authority} is now {answer['uri']}", as_json)


def _account(authority: str, read: bytes) -> dict[str, str | None]:
    """Return what to send of an export or a bare key. What was read stands in no error."""
    text = read.decode(errors="replace")
    if not text.lstrip().startswith("{"):
        return {"key": text, "directory": None}
    try:
        match json.loads(text):
            case {"key": str(key), "directory": str(directory)}:
                return {"key": key, "directory": directory}
    except ValueError:
        pass
    raise ActionRefused(
        "that is no exported account",
        subject=authority,
        hint="give what `certfan account export` prints, or an unencrypted PEM key",
    )


def _path(authority: str) -> str:
    return f"/api/v1/accounts/{quote(authority, safe='')}"


def _lines(answer: dict[str, Any]) -> list[str]:
    from certfan.cli.lines.authorities import limit_text
    from certfan.cli.lines.columns import clean, span

    def told(key: str, value: str) -> str:
        return f"{key + ':':<11}{clean(value)}"

    lines = [told("authority", answer["authority"]), told("directory", answer["directory"])]
    if answer["uri"] is None:
        lines.append(told("account", "none yet; it is made with the first order"))
    else:
        since = datetime.fromisoformat(answer["since"])
        lines += [
            told("account", f"{answer['uri']}, since {since:%Y-%m-%d %H:%M} UTC"),
            told("key", f"SHA-256 {answer['thumbprint']}"),
        ]
    lines.append(told("contact", ", ".join(answer["contact"]) or "none"))
    for one in answer["limits"]:
        frees_at = datetime.fromisoformat(one["frees_at"])
        window = span(timedelta(seconds=one["window"]))
        lines.append(
            told(
                "used",
                f"{limit_text(one)} in {window}, less from {frees_at:%Y-%m-%d %H:%M} UTC",
            )
        )
    return lines
