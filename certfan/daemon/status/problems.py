"""What is refused, and how: problem documents (RFC 9457) and the check of the Host header."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from certfan.daemon.status.wire import encode
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
        refused = refusal(error.status, f"http.{error.status}", detail.removeprefix(f"{error.status}: "))
        if "Allow" in error.headers:
            refused.headers["Allow"] = error.headers["Allow"]
        return refused


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemDocument:
    """A problem (RFC 9457): `code` is stable, `hint` the next command to try, `problems` all of a config's."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str
    problems: tuple[str, ...] = ()


def problem_document(error: CertfanError) -> web.Response:
    """Return an error as a response; 503 when waiting may help, 409 when it cannot."""
    fallback = 409 if error.retry is Retry.NEVER else 503
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), fallback)
    problems = error.problems if isinstance(error, ConfigInvalid) else ()
    return refusal(status, error.code, error.text, error.hint, problems)


def refusal(
    status: int, code: str, detail: str, hint: str = "", problems: tuple[str, ...] = ()
) -> web.Response:
    """Return a problem as a response."""
    document = ProblemDocument(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        hint=hint,
        problems=problems,
    )
    headers = {"Content-Type": "application/problem+json"}
    return web.Response(body=encode(document), status=status, headers=headers)


def refuse_strange_host(hosts: Collection[str]) -> Middleware:
    """Let literal addresses, localhost and the given names pass.

    A page in an admin's browser can make its own name resolve to 127.0.0.1, but it cannot change the Host.
    """
    known = {host.lower() for host in hosts} | {"localhost"}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_known(request.headers.get("Host", ""), known):
            return refusal(421, "http.421", "this Host is not served here", "use the configured address")
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
