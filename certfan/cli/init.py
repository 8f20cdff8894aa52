"""`certfan init`: a first certfan.toml, and what of this machine is not ready for it yet."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from certfan.cli.failing import json_option
from certfan.cli.first_config import AUTHORITIES, Answers, first_config
from certfan.cli.options import config_option
from certfan.cli.saying import in_colour, say
from certfan.errors import ActionRefused, ConfigInvalid


@click.command()
@config_option
@json_option
@click.option("--fleet", help="A short word for all your machines together.")
@click.option(
    "--address",
    help="This machine's own address on the internal side: where vhosts proxy challenges to, and agents dial.",
)
@click.option("--share", type=click.Path(), help="Where the share is, or will be, mounted.")
@click.option("--mount/--no-mount", default=True, help="Whether the share is a mount. [default: it is]")
@click.option(
    "--authority",
    help=f"Where certificates come from: {', '.join(AUTHORITIES)}, or the URL of a directory (RFC 8555).",
)
@click.option("--contact", help="An e-mail address for the authority; none by default.")
@click.option(
    "--consumer", "consumers", multiple=True, help="A VM that gets certificates; NAME or NAME=ADDRESS."
)
@click.option(
    "--names", multiple=True, help="Names of one certificate, with commas; repeat it for more certificates."
)
@click.option(
    "--yes", is_flag=True, help="Ask nothing; whoever says it has read the authority's terms of service."
)
def init(
    config: Path, as_json: bool, yes: bool, consumers: Sequence[str], names: Sequence[str], **given: Any
) -> None:
    """Write a first certfan.toml.

    With a comment for each setting; then this machine is looked at for what it lacks for it. What no option says is asked for; with --yes the default is taken. A config that is there is never overwritten.
    """
    if config.exists():
        raise ActionRefused(
            f"{config} exists", subject=str(config), hint=f"run: certfan check --config {config}"
        )
    answers = _answers(given, consumers, names, _default if yes else _ask)
    if not yes and not click.confirm(f"Have you read the terms of service of {answers.authority}?", err=True):
        raise ActionRefused(
            "an authority issues nothing to who does not agree to its terms", subject=answers.authority
        )
    _write(config, first_config(answers))
    findings = [] if as_json else ["", *_findings(config)]
    todo = ["", "Then:", *(f"  {line}" for line in _next(config, answers))]
    told = "\n".join((f"{config} is written, and good", *findings, *todo))
    say({"config": str(config), "next": _next(config, answers)}, told, as_json)


_Get = Callable[[str, str], str]


def _ask(text: str, default: str) -> str:
    return str(click.prompt(text, default=default, err=True))


def _default(_: str, default: str) -> str:
    return default


def _answers(given: dict[str, Any], consumers: Sequence[str], names: Sequence[str], get: _Get) -> Answers:
    def of(key: str, text: str, default: str) -> str:
        return given[key] if given[key] is not None else get(text, default)

    consumers = consumers or get("VMs that get certificates (NAME or NAME=ADDRESS, with spaces)", "").split()
    names = names or get("Names of a first certificate (with commas; empty for none yet)", "").split()
    return Answers(
        fleet=of("fleet", "A short word for all your machines together", "home"),
        address=of("address", "This machine's address on the internal side", _own_address()),
        share=of("share", "Where the share is mounted", "/srv/le"),
        mount=bool(given["mount"]),
        authority=of("authority", f"Authority ({', '.join(AUTHORITIES)}, or a URL)", "letsencrypt"),
        contact=of("contact", "E-mail address for the authority (may be empty)", ""),
        consumers=tuple(consumers),
        certificates=tuple(tuple(n for n in one.split(",") if n) for one in names),
    )


def _own_address() -> str:
    """Return the address that this machine would speak from; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


def _write(config: Path, text: str) -> None:
    """Put a config in its place once the daemon's own reading has found it good.

    Raises:
        ConfigInvalid: what was answered makes no good config; nothing is written.
    """
    from certfan import files
    from certfan.daemon.config.loading import load

    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / config.name
        trial.write_text(text)
        try:
            load(trial)
        except ConfigInvalid as error:
            problems = tuple(one.removeprefix(f"{trial}: ") for one in error.problems)
            raise ConfigInvalid(problems, hint="run: certfan init --help") from error
    config.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    files.create(config, text.encode(), mode=0o644)
    files.sync_folder(config.parent)


def _findings(config: Path) -> list[str]:
    from certfan.cli.doctor import as_told, finding_lines
    from certfan.daemon.offline import examine

    colour = in_colour()
    found = (as_told(one) for one in examine(config, runs=False))
    return [line for one in found if one["grade"] != "ok" for line in finding_lines(one, colour=colour)]


def _next(config: Path, answers: Answers) -> list[str]:
    where = "" if str(config) == "/etc/certfan/certfan.toml" else f" --config {config}"
    return [
        f"certfan share setup{where}",
        "systemctl enable --now certfan",
        *(f"certfan consumer add {one.partition('=')[0]}{where}" for one in answers.consumers),
        "certfan snippet apache",
        f"certfan doctor{where}",
    ]
