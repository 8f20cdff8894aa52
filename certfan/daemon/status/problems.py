"""What is refused, and how: problem documents (RFC 9457) and the check of the Host header."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from certfan.errors import (
    ActionRefused,
    CertfanError,
    ConfigError,
    ConfigInvalid,
    MessageInvalid,
    NotAllowed,
    Retry,
    UnknownName,
)

_STATUS: tuple[tuple[type[CertfanError], int], ...] = (
    (UnknownName, 404),
    (ActionRefused, 409),
    (MessageInvalid, 400),
    (NotAllowed, 403),
    (ConfigError, 422),
)


@web.middleware
async def as_problem(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn a leaf of the error tree, and aiohttp's own refusals, into a problem document."""
    try:
        return await handler(request)
    except CertfanError as error:
        return problem_document(error)
    except web.HTTPException as error:
        detail = error.text if error.status == 400 and error.text else error.reason
        refused = _document(
            error.status, f"http.{error.status}", detail.removeprefix(f"{error.status}: "), ""
        )
        if "Allow" in error.headers:
            refused.headers["Allow"] = error.headers["Allow"]
        return refused


def problem_document(error: CertfanError) -> web.Response:
    """Return an error as a response; 503 when waiting may help, 409 when it cannot."""
    fallback = 409 if error.retry is Retry.NEVER else 503
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), fallback)
    problems = list(error.problems) if isinstance(error, ConfigInvalid) else None
    return _document(status, error.code, error.text, error.hint, problems)


def _document(
    status: int, code: str, detail: str, hint: str, problems: list[str] | None = None
) -> web.Response:
    body = {"type": "about:blank", "status": status, "code": code, "detail": detail, "hint": hint}
    if problems is not None:
        body["problems"] = problems
    return web.json_response(body, status=status, content_type="application/problem+json")


def refuse_strange_host(hosts: Collection[str]) -> Middleware:
    """Let literal addresses, localhost and the given names pass.

    A page in an admin's browser can make its own name resolve to 127.0.0.1, but it cannot change the Host.
    """
    known = {host.lower() for host in hosts} | {"localhost"}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_known(request.headers.get("Host", ""), known):
            return _document(421, "http.421", "this Host is not served here", "use the configured address")
        return await handler(request)

    return check


def _is_known(header: str, known: Collection[str]) -> bool:
    host, colon, port = header.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()):
        host = header
    try:
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return host.lower() in known
    return True
