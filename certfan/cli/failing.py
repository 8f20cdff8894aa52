"""How the command line fails: one place that turns the error tree into text, hint and exit code."""

from __future__ import annotations

import json
from typing import Any

import click

from certfan.errors import CertfanError, ConfigInvalid, DaemonNotInstalled

_JSON = "certfan.json"


class Group(click.Group):
    """A group whose commands may raise any leaf of the error tree."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a leaf becomes lines on stderr and its own exit code."""
        try:
            return super().invoke(ctx)
        except CertfanError as error:
            refused, code = error, error.exit_code
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "certfan":
                raise
            refused, code = _not_installed(error), DaemonNotInstalled.exit_code
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise  # click's own
            refused, code = CertfanError(_text(error)), _exit_code(error)
        click.echo(_as_json(refused) if ctx.meta.get(_JSON) else as_text(refused), err=True)
        return ctx.exit(code)


def _not_installed(error: ModuleNotFoundError) -> DaemonNotInstalled:
    return DaemonNotInstalled(
        f"this needs the daemon's part, which is not installed here: no module {error.name}",
        hint="apt install certfan-daemon, or: pip install 'certfan[daemon]'",
    )


def _exit_code(error: OSError) -> int:
    return 77 if isinstance(error, PermissionError) else 1


def _text(error: OSError) -> str:
    text = error.strerror or str(error)
    text = text[:1].lower() + text[1:]
    return f"{error.filename}: {text}" if error.filename else text


def json_option(command: Any) -> Any:
    """Give a command `--json`: its answer as JSON on stdout, its error as JSON on stderr."""
    return click.option(
        "--json", "as_json", is_flag=True, callback=_remember, help="Raw form, for programs."
    )(command)


def _remember(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value


def as_text(error: CertfanError) -> str:
    """Return an error as lines: each problem, then what to try."""
    texts = error.problems if isinstance(error, ConfigInvalid) else (error.text,)
    return "\n".join((*(f"certfan: error: {text}" for text in texts), *hint_lines(error)))


def hint_lines(error: CertfanError) -> list[str]:
    """Return what to try, if anything is known."""
    return [f"try: {error.hint.removeprefix('run: ')}"] if error.hint else []


def _as_json(error: CertfanError) -> str:
    told: dict[str, Any] = {"code": error.code, "detail": error.text, "hint": error.hint}
    if isinstance(error, ConfigInvalid):
        told["problems"] = error.problems
    return json.dumps({"error": told})
