"""The route of `certfan notify test`, on the control socket only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from certfan.daemon.status.control.actions import caller, members
from certfan.errors import MessageInvalid

Test = Callable[[str | None], Awaitable[Mapping[str, str | None]]]


def notify_routes(test: Test) -> list[web.RouteDef]:
    """Return the route; `test` sends over one channel or all, and tells what went wrong with each."""

    async def handle(request: web.Request) -> web.Response:
        caller(request)
        match await members(request):
            case {"channel": str() | None as name, **rest} if not rest:
                outcome = await test(name)
            case _:
                raise MessageInvalid('the body must be of the form {"channel": "..."}')
        told = [{"channel": one, "problem": problem} for one, problem in outcome.items()]
        return web.json_response({"channels": told})

    return [web.post("/api/v1/notify/test", handle)]
