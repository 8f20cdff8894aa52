"""The route of `certfan backup`, on the control socket only, for root: the archive goes out as it is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO, TypeAlias

from aiohttp import web

from certfan.daemon.journal import Journal
from certfan.daemon.status.control.actions import caller
from certfan.errors import NotAllowed, StoreFailed

CONTENT_TYPE = "application/x-tar"
_CHUNK = 1 << 18
Archived: TypeAlias = Callable[[], AbstractContextManager[tuple[BinaryIO, int]]]


def backup_routes(archived: Archived, journal: Journal) -> list[web.RouteDef]:
    """Return the route; `archived` is called in a thread, and makes the archive."""

    async def handle(request: web.Request) -> web.StreamResponse:
        uid = caller(request)
        if uid != 0:
            raise NotAllowed(
                "only root may take a backup: every private key is in it",
                hint="run: sudo certfan backup FILE",
            )
        with contextlib.ExitStack() as stack:
            try:
                source, count = await asyncio.to_thread(stack.enter_context, archived())
            except OSError as error:
                raise StoreFailed(f"no backup can be made: {error}", hint="run: df -h") from error
            response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
            await response.prepare(request)
            while chunk := await asyncio.to_thread(source.read, _CHUNK):
                await response.write(chunk)
            await journal.note("backup.taken", "state", uid=uid, files=count)
            await response.write_eof()
        return response

    return [web.post("/api/v1/backup", handle)]
