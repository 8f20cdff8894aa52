"""The client of the daemon's control socket. Heavy imports happen at the first call."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from certfan import errors
from certfan.errors import CertfanError, ConfigInvalid, ControlDenied, ControlError, DaemonNotRunning

DEFAULT_SOCKET = "/run/certfan/control.sock"
PATIENCE = 30  # seconds
_T = TypeVar("_T")


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


def receive(config: Path, method: str, path: str) -> Iterator[bytes]:
    """Do something whose answer is a file, and yield that piece by piece.

    Raises:
        DaemonNotRunning, ControlDenied, CertfanError: as `call`; also midway, when the rest does not come.
    """
    yield from _steps(_pieces(socket_path(config), method, path))


def follow(config: Path, method: str, path: str) -> Iterator[dict[str, Any]]:
    """Do something long, and yield each line that the daemon tells about it; the last one is the outcome.

    Raises:
        DaemonNotRunning, ControlDenied, CertfanError: as `call`.
    """
    for line in _steps(_lines(socket_path(config), method, path)):
        if "error" in line:
            raise _refusal(line["error"])
        yield line


def _steps(answers: AsyncGenerator[_T, None]) -> Iterator[_T]:
    import asyncio

    with asyncio.Runner() as runner:
        try:
            while (answer := runner.run(anext(answers, None))) is not None:
                yield answer
        finally:
            runner.run(answers.aclose())


async def _pieces(socket: str, method: str, path: str) -> AsyncGenerator[bytes, None]:
    async with _asked(socket, method, path, None, total=None) as response:
        if response.status >= 400:
            raise _refusal(await response.json(content_type=None))
        async for piece in response.content.iter_chunked(1 << 18):
            yield piece


async def _lines(socket: str, method: str, path: str) -> AsyncGenerator[dict[str, Any], None]:
    async with _asked(socket, method, path, None, total=None) as response:
        if response.status >= 400:
            raise _refusal(await response.json(content_type=None))
        async for line in response.content:
            yield json.loads(line)


async def _call(socket: str, method: str, path: str, body: Any, patience: float) -> Any:
    async with _asked(socket, method, path, body, total=patience) as response:
        answer = await response.json(content_type=None)
    if response.status >= 400:
        raise _refusal(answer)
    return answer


@contextlib.asynccontextmanager
async def _asked(
    socket: str, method: str, path: str, body: Any, *, total: float | None
) -> AsyncIterator[Any]:
    import aiohttp

    connector = aiohttp.UnixConnector(path=socket)
    timeout = aiohttp.ClientTimeout(total=total, sock_read=PATIENCE if total is None else None)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://localhost{path}", json=body) as response,
        ):
            yield response
    except PermissionError as error:
        raise _denied(socket) from error
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        if isinstance(getattr(error, "os_error", None), PermissionError):
            raise _denied(socket) from error
        raise DaemonNotRunning(
            f"the daemon does not answer on {socket}", subject=socket, hint="run: systemctl status certfan"
        ) from error


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
