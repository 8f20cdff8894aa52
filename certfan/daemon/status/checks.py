"""/livez and /readyz: named checks, as text for people, and as a status for machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from certfan import toml
from certfan.errors import MessageInvalid, UnknownName

Checks = Callable[[], Mapping[str, str | None]]  # None is well, a text says what is wrong


def no_checks() -> Mapping[str, str | None]:
    """Check nothing."""
    return {}


def checked(request: web.Request, checks: Mapping[str, str | None]) -> web.Response:
    """Return 200 or 503 by the checks; `?verbose` tells each of them, `?exclude=NAME` lets one not count.

    Raises:
        MessageInvalid: there is no such parameter.
        UnknownName: there is no such check.
    """
    if strange := request.query.keys() - {"verbose", "exclude"}:
        raise MessageInvalid(f"unknown parameter {min(strange)[:50]!r}; there are verbose and exclude")
    left_out = request.query.getall("exclude", [])
    for name in left_out:
        if name not in checks:
            raise UnknownName(f"there is no check {name[:50]!r}{toml.did_you_mean(name, checks)}")
    failed = [name for name, problem in checks.items() if problem is not None and name not in left_out]
    if "verbose" in request.query:
        lines = [
            f"{name}: {'excluded' if name in left_out else problem or 'ok'}"
            for name, problem in checks.items()
        ]
    else:
        lines = [f"failed: {name}" for name in failed]
    lines.append("failed" if failed else "ok")
    return web.Response(text="\n".join(lines) + "\n", status=503 if failed else 200)
