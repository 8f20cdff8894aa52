"""Who may read the status from where: everybody on this machine, from elsewhere who shows a token or a certificate.

Of a token only its hash is ever known here. What must never come in: a log line with a header in it.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Callable, Collection
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from certfan import log
from certfan.daemon.config.loading import TlsFiles
from certfan.daemon.config.tokens import hash_of
from certfan.daemon.status.problems import refusal
from certfan.errors import ConfigInvalid

_log = log.get("status")
# A program shows its token as a bearer's; a browser can only ask for a name and a password (RFC 7617), which then is it.
_CHALLENGES = [
    ("WWW-Authenticate", 'Bearer realm="certfan"'),
    ("WWW-Authenticate", 'Basic realm="certfan: the password is the token", charset="UTF-8"'),
]
Tokens = Callable[[], Collection[str]]


def guard(tokens: Tokens) -> Middleware:
    """Let pass what comes over loopback or a unix socket, with a client's certificate that verified, or with a token."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_local(request) or _has_certificate(request) or _has_token(request, tokens()):
            return await handler(request)
        _log.info("status.refused", peer=request.remote or "", path=request.path[:100])
        refused = refusal(
            401, "http.401", "a token is needed, or a client's certificate", "run: certfan token NAME"
        )
        refused.headers.extend(_CHALLENGES)
        return refused

    return check


def _is_local(request: web.Request) -> bool:
    sock: socket.socket | None = request.get_extra_info("socket")
    if sock is None:
        return False
    if sock.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def _has_certificate(request: web.Request) -> bool:
    # Without a CA for clients none is asked for; what does not verify by it has ended the handshake.
    return bool(request.get_extra_info("peercert"))


def _has_token(request: web.Request, hashes: Collection[str]) -> bool:
    shown = hash_of(_shown(request.headers.get("Authorization", "")))
    # Every one is compared, in the same time whatever is shown.
    equal = [hmac.compare_digest(shown, one) for one in hashes]
    return any(equal)


def _shown(header: str) -> str:
    """Return the token of an Authorization, "" when it has none; the hash of nothing is nobody's."""
    scheme, _, value = header.partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip()
        case "basic":
            try:
                return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
            except ValueError:
                return ""
        case _:
            return ""


def tls_context(files: TlsFiles, *, or_token: bool) -> ssl.SSLContext:
    """Return the context of the listener; with `or_token` a client may come without certificate.

    Raises:
        ConfigInvalid: a file cannot be read, or is not what it should be.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL if or_token else ssl.CERT_REQUIRED
        _load(files.client_ca, lambda: context.load_verify_locations(files.client_ca))
    reload_pair(context, files)
    return context


def reload_pair(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Let new connections see the pair as it now is on disk.

    Raises:
        ConfigInvalid: a file cannot be read, or is not what it should be; the pair before stays.
    """
    # With a password that is empty, a key that needs one fails instead of asking the terminal.
    _load(files.certificate, lambda: context.load_cert_chain(files.certificate, files.key, password=""))


class StatusTls:
    """The TLS of the status listener; `context` is None when the config has none.

    Raises (when made):
        ConfigInvalid: a file cannot be used.
    """

    def __init__(self, files: TlsFiles | None, *, or_token: bool) -> None:
        self._files = files
        self.context = tls_context(files, or_token=or_token) if files else None

    def reload(self) -> None:
        """Show the pair as it now is on disk; one that cannot be used is logged, and the one before stays."""
        if self._files is not None and self.context is not None:
            try:
                reload_pair(self.context, self._files)
            except ConfigInvalid as error:
                _log.error("status.tls_unusable", problem=error.text, hint=error.hint)


def _load(file: Path, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        problem = f"status.tls: {file} cannot be used: {reason}"
        raise ConfigInvalid(
            (problem,), subject=str(file), hint=f"run: openssl x509 -in {file} -noout"
        ) from error
