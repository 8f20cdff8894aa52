"""Long work on the control socket, told line by line while it goes on (NDJSON).

`{"done": 3, "of": 40, "at": "web1: www.example.org@7"}` now and then, at the end the outcome, or `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from aiohttp import web

from certfan.daemon.status.control.actions import caller
from certfan.errors import CertfanError

_BETWEEN_LINES = 0.5  # seconds

Progress: TypeAlias = Callable[[int, int, str], Awaitable[None]]


class Lines:
    """Whom the work is told to."""

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
        """Tell one line."""
        await self._response.write(json.dumps(line).encode() + b"\n")


Tell: TypeAlias = Callable[[Lines, int], Awaitable[None]]  # the caller's uid


def told_by_line(tell: Tell) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return a handler of work that tells its own outcome; a leaf of the error tree is told for it."""

    async def handle(request: web.Request) -> web.StreamResponse:
        uid = caller(request)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        lines = Lines(response)
        await response.prepare(request)
        try:
            await tell(lines, uid)
        except CertfanError as error:
            told = {"code": error.code, "detail": error.text, "hint": error.hint}
            await lines.write({"error": told})
        await response.write_eof()
        return response

    return handle
