"""The routes of `certfan ca`, on the control socket only."""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from certfan.daemon.status.control.actions import caller
from certfan.daemon.status.model import as_json


class Actions(Protocol):
    """Who looks after the internal CA."""

    async def begin(self, *, uid: int) -> Any:
        """Have it followed by another one; return how it stands. Raises ActionRefused."""

    async def view(self) -> Any:
        """Return how it stands."""


def ca_routes(actions: Actions) -> list[web.RouteDef]:
    """Return the routes."""

    async def show(request: web.Request) -> web.Response:
        caller(request)
        return web.json_response(as_json(await actions.view()))

    async def rotate(request: web.Request) -> web.Response:
        return web.json_response(as_json(await actions.begin(uid=caller(request))))

    return [web.get("/api/v1/ca", show, allow_head=False), web.post("/api/v1/ca/rotate", rotate)]
