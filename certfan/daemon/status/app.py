"""One aiohttp application for two doors: the read-only status listener, and the control socket with `actions`.

Promises: no key material in any answer; a request whose Host is a name nobody configured gets nothing (DNS
rebinding); every problem is an application/problem+json (RFC 9457) with `code` and `hint`.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import web

from certfan.daemon.listeners import Listener, serve
from certfan.daemon.status.access import Tokens, guard
from certfan.daemon.status.api.answers import answer_bytes
from certfan.daemon.status.api.reading import API, ROUTES
from certfan.daemon.status.checks import Checks, checked, no_checks
from certfan.daemon.status.control import authorities as authority_control
from certfan.daemon.status.control import share as share_control
from certfan.daemon.status.control.actions import Actions, control_routes
from certfan.daemon.status.control.plan import plan_routes
from certfan.daemon.status.model import Page
from certfan.daemon.status.page.routes import page_routes
from certfan.daemon.status.pages import Pages
from certfan.daemon.status.problems import as_problem, refuse_strange_host
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.store.facts import Event

MAX_BODY = 1 << 14
_STOP_PATIENCE = 1.0  # seconds for answers under way when we stop

Events = Callable[[int, int, str], Awaitable[Sequence[Event]]]
Story = Callable[[str, Sequence[str], int], Awaitable[Sequence[Event]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """What the application asks when it is asked.

    `events(after, limit, subject)` ascends; with `after` negative it returns the last `limit`, with a subject only
    what concerns it. `story` returns the newest about a certificate and its identifiers.
    """

    things: Callable[[], Awaitable[StateOfThings]]
    events: Events
    story: Story
    alive: Checks = no_checks
    ready: Checks = no_checks
    pages: Pages | None = None  # of the same things, when others show them too
    tokens: Tokens = tuple  # hashes of those that let in from elsewhere
    hosts: Collection[str] = field(default_factory=frozenset)  # names beside literal addresses and localhost


def make_app(
    doors: Doors,
    actions: Actions | None = None,
    authorities: authority_control.Actions | None = None,
    shares: share_control.Actions | None = None,
    *,
    others: Iterable[web.RouteDef] = (),
) -> web.Application:
    """Return the application; with `actions` it has the writing routes too, for the control socket only.

    `others` are more routes of the control socket.
    """
    routes = _Routes(doors)
    app = web.Application(
        middlewares=[as_problem, refuse_strange_host(doors.hosts), guard(doors.tokens)],
        client_max_size=MAX_BODY,
    )
    app.add_routes(
        [
            web.get("/livez", routes.livez),
            web.get("/readyz", routes.readyz),
            web.get("/metrics", routes.metrics),
            web.get("/openapi.json", routes.openapi),
            *(web.get(API + one.path, partial(one.handle, routes)) for one in ROUTES),
        ]
    )
    app.add_routes(page_routes(routes))
    if actions is not None:
        app.add_routes(control_routes(actions))
        app.add_routes(plan_routes(doors.things))
    if authorities is not None:
        app.add_routes(authority_control.authority_routes(authorities))
    if shares is not None:
        app.add_routes(share_control.share_routes(shares))
    app.add_routes(others)
    app.on_response_prepare.append(_harden)
    return app


async def start(
    app: web.Application, listeners: Sequence[Listener], tls: ssl.SSLContext | None = None
) -> web.AppRunner:
    """Serve on every listener or on none, over TLS where others than this machine come in.

    `await runner.cleanup()` ends it within about a second.

    Raises:
        OSError: naming the listener that cannot be bound.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_PATIENCE)
    await runner.setup()
    try:
        await serve(runner, tuple(listeners), tls)
    except BaseException:
        await runner.cleanup()
        raise
    return runner


class _Routes:
    """The reading routes that are no dataclass, and what the others ask."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._pages = doors.pages or Pages(doors.things)

    async def things(self) -> StateOfThings:
        return await self._doors.things()

    async def events(self, after: int, limit: int, subject: str) -> Sequence[Event]:
        return await self._doors.events(after, limit, subject)

    async def story(self, certificate: str, identifiers: Sequence[str], limit: int) -> Sequence[Event]:
        return await self._doors.story(certificate, identifiers, limit)

    async def page(self) -> Page:
        return await self._pages.page()

    async def encoded(self, key: Hashable, make: Callable[[Page], Any]) -> bytes:
        return await self._pages.encoded(key, make)

    async def livez(self, request: web.Request) -> web.Response:
        return checked(request, self._doors.alive())

    async def readyz(self, request: web.Request) -> web.Response:
        return checked(request, self._doors.ready())

    async def metrics(self, request: web.Request) -> web.Response:
        return answer_bytes(
            request, await self._pages.exposition(), "text/plain; version=0.0.4; charset=utf-8"
        )

    async def openapi(self, request: web.Request) -> web.Response:
        from certfan.daemon.status.api.openapi import description

        return answer_bytes(request, json.dumps(description()).encode(), "application/json")


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "certfan"
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
