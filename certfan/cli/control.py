"""The client of the daemon's control socket. Heavy imports happen at the first call."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

from certfan import errors
from certfan.errors import CertfanError, ConfigInvalid, ControlDenied, ControlError, DaemonNotRunning

DEFAULT_SOCKET = "/run/certfan/control.sock"
PATIENCE = 30  # seconds


def socket_path(config: Path) -> str:
    """Return the control socket that a config names; who may not read the config gets the default."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(tomllib.loads(config.read_text())["control"]["socket"])
    return DEFAULT_SOCKET


def call(config: Path, method: str, path: str, body: Any = None, *, patience: float = PATIENCE) -> Any:
    """Do one exchange with the running daemon and return the JSON of its answer.

    Raises:
        DaemonNotRunning: nobody listens, or it stopped while it answered.
        ControlDenied: the socket is not for this user.
        CertfanError: what the daemon refused with, as the same leaf that it raised.
    """
    import asyncio

    return asyncio.run(_call(socket_path(config), method, path, body, patience))


async def _call(socket: str, method: str, path: str, body: Any, patience: float) -> Any:
    import aiohttp

    connector = aiohttp.UnixConnector(path=socket)
    timeout = aiohttp.ClientTimeout(total=patience)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://localhost{path}", json=body) as response,
        ):
            answer = await response.json(content_type=None)
    except PermissionError as error:
        raise _denied(socket) from error
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        if isinstance(getattr(error, "os_error", None), PermissionError):
            raise _denied(socket) from error
        raise DaemonNotRunning(
            f"the daemon does not answer on {socket}", subject=socket, hint="run: systemctl status certfan"
        ) from error
    if response.status >= 400:
        raise _refusal(answer)
    return answer


def _denied(socket: str) -> ControlDenied:
    return ControlDenied(
        f"you may not use {socket}",
        subject=socket,
        hint="run it with sudo, or join the socket's group (certfan-admin)",
    )


def _refusal(answer: Any) -> CertfanError:
    if not isinstance(answer, dict):
        return ControlError("the daemon refused without saying why")
    text, hint = str(answer.get("detail", "refused")), str(answer.get("hint", ""))
    if answer.get("problems"):
        return ConfigInvalid(tuple(map(str, answer["problems"])), hint=hint)
    return _leaf(str(answer.get("code", "")))(text, hint=hint)


def _leaf(code: str) -> type[CertfanError]:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, CertfanError) and kind.code == code:
            return kind if kind is not ConfigInvalid else ControlError
    return ControlError
