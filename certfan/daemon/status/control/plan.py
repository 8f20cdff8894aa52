"""The route of `certfan plan`, on the control socket only: the daemon's own plan, or that of another config."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from certfan.core.model import Desired
from certfan.daemon.config.wire import from_wire
from certfan.daemon.status.control.actions import caller, long_body
from certfan.daemon.status.model import as_json
from certfan.daemon.status.planned import planned
from certfan.daemon.status.things import StateOfThings
from certfan.errors import MessageInvalid

MOST_BYTES = 1 << 24  # a config of some ten thousand certificates


def plan_routes(things: Callable[[], Awaitable[StateOfThings]]) -> list[web.RouteDef]:
    """Return the route; nothing is done by it."""

    async def handle(request: web.Request) -> web.Response:
        caller(request)
        other = await _other_config(request)
        return web.json_response(as_json(planned(await things(), other)))

    return [web.post("/api/v1/plan", handle)]


async def _other_config(request: web.Request) -> Desired | None:
    body = await long_body(request, MOST_BYTES)
    try:
        told = json.loads(body) if body else None
    except (ValueError, RecursionError) as error:
        raise MessageInvalid("the body must be JSON") from error
    return None if told is None else from_wire(told)
