"""The routes of `certfan share`, on the control socket only: long work, told line by line while it goes on (NDJSON).

`{"done": 3, "of": 40, "at": "web1: www.example.org@7"}` now and then, at the end the outcome, or `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from aiohttp import web

from certfan.core.share_audit import Difference
from certfan.daemon.status.control import caller
from certfan.errors import CertfanError

_BETWEEN_LINES = 0.5  # seconds

Progress = Callable[[int, int, str], Awaitable[None]]
Outcome = tuple[int, Sequence[Difference]]


class Actions(Protocol):
    """What the control socket can have done with the share; `uid` is who asked. A leaf of the error tree refuses."""

    async def verify(self, progress: Progress, *, uid: int) -> Outcome:
        """Compare it with what the daemon knows. Raises ShareError."""

    async def rebuild(self, progress: Progress, *, uid: int) -> Outcome:
        """Publish again what is missing. Raises ShareError."""


def share_routes(actions: Actions) -> list[web.RouteDef]:
    """Return the routes of the given actions."""
    return [
        web.post("/api/v1/share/verify", _told_by_line(actions.verify)),
        web.post("/api/v1/share/rebuild", _told_by_line(actions.rebuild)),
    ]


def _told_by_line(
    act: Callable[..., Awaitable[Outcome]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        uid = caller(request)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        lines = _Lines(response)
        await response.prepare(request)
        try:
            count, found = await act(lines.progress, uid=uid)
        except CertfanError as error:
            told = {"code": error.code, "detail": error.text, "hint": error.hint}
            await lines.write({"error": told})
        else:
            differences = [{"place": d.place, "detail": d.detail, "hint": d.hint} for d in found]
            await lines.write({"generations": count, "differences": differences})
        await response.write_eof()
        return response

    return handle


class _Lines:
    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response
        self._next = 0.0

    async def progress(self, done: int, of: int, at: str) -> None:
        """Tell how far it has come, not too often. Raises ConnectionResetError when nobody listens any more."""
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + _BETWEEN_LINES
            await self.write({"done": done, "of": of, "at": at})

    async def write(self, line: Any) -> None:
        await self._response.write(json.dumps(line).encode() + b"\n")
