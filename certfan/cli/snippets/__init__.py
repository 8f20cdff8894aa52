"""`certfan snippet ...`: what a web server needs to let challenges through, redirect the rest, and say HSTS.

The texts lie beside this file. `@responder@` stands for where the daemon answers challenges, `@hsts@` for what is promised
to browsers, and `#: NAME` begins a part where one server wants the text in several places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from certfan.cli.options import config_option
from certfan.errors import CertfanError

_YEAR = 31_536_000  # seconds
_FILES = {"apache": "apache.conf", "nginx": "nginx.conf", "haproxy": "haproxy.cfg", "caddy": "Caddyfile"}
_RESPONDER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?):[0-9]{1,5}")
_HINT = "give --responder ADDRESS:PORT, where [http01] in certfan.toml listens"


def parts(server: str, responder: str, hsts: str) -> Mapping[str, str]:
    """Return the text for a server's config by part; the only part of some is named ""."""
    text = (Path(__file__).parent / _FILES[server]).read_text()
    text = text.replace("@responder@", responder).replace("@hsts@", hsts)
    named = re.split(r"^#: (\w+)\n", text, flags=re.MULTILINE)
    if len(named) == 1:
        return {"": text}
    return {name: part.rstrip() + "\n" for name, part in zip(named[1::2], named[2::2], strict=True)}


def _address(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _RESPONDER.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not ADDRESS:PORT, NAME:PORT or [IPv6]:PORT")
    return value


def _configured(config: Path) -> str:
    """Return the first address that challenges are answered at, by the config.

    Raises:
        CertfanError: there is no config here, or other machines cannot ask where it says.
    """
    if not config.exists():
        raise CertfanError(
            f"{config}: not here, so it does not say where challenges are answered", hint=_HINT
        )
    from certfan.daemon.config.loading import load

    for listener in load(config).http01:
        if listener.host and listener.host not in {"0.0.0.0", "::"}:  # noqa: S104 - told apart, not bound
            return str(listener)
    raise CertfanError(
        f"{config}: [http01] listens at no one address that a web server could ask", hint=_HINT
    )


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what every server's text takes."""
    for option in (
        click.option("--subdomains/--no-subdomains", default=True, help="Whether HSTS is for them too."),
        click.option("--hsts", default=_YEAR, show_default=True, type=click.IntRange(0), help="Seconds."),
        click.option("--responder", metavar="ADDRESS:PORT", callback=_address, help="Default: the config's."),
        config_option,
    ):
        command = option(command)
    return command


def _part_option(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--part", type=click.Choice(names), help="This part only, for a file of its own.")


def _say(
    server: str, config: Path, responder: str | None, *, hsts: int, subdomains: bool, part: str | None = None
) -> None:
    promise = f"max-age={hsts}" + ("; includeSubDomains" if subdomains else "")
    found = parts(server, responder or _configured(config), promise)
    click.echo(found[part] if part else "\n".join(found.values()), nl=False)


@click.group()
def snippet() -> None:
    """Print what a web server's config needs: challenges go to the daemon, the rest is redirected to https."""


@snippet.command()
@_options
def apache(**given: Any) -> None:
    """Macros for Apache 2.4: le_proxy, le_sslredir, le_hsts."""
    _say("apache", **given)


@snippet.command()
@_part_option("le_proxy", "le_sslredir", "le_hsts")
@_options
def nginx(**given: Any) -> None:
    """Files to include for nginx: le_proxy, le_sslredir, le_hsts."""
    _say("nginx", **given)


@snippet.command()
@_part_option("le_proxy", "le_sslredir", "le_hsts", "backend")
@_options
def haproxy(**given: Any) -> None:
    """Lines for the frontends of HAProxy, and a backend."""
    _say("haproxy", **given)


@snippet.command()
@_options
def caddy(**given: Any) -> None:
    """Snippets to import for Caddy 2: le_proxy, le_sslredir, le_hsts."""
    _say("caddy", **given)
