"""One aiohttp application for two doors: the read-only status listener, and the control socket with `actions`.

Promises: no key material in any answer; a request whose Host is a name nobody configured gets nothing (DNS
rebinding); every problem is an application/problem+json (RFC 9457) with `code` and `hint`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from certfan import log, toml
from certfan.daemon.listeners import Listener, serve
from certfan.daemon.status import authority_control, share_control
from certfan.daemon.status.control import Actions, control_routes
from certfan.daemon.status.model import CertificateView, Page, StateOfThings, as_json
from certfan.daemon.status.plan_control import plan_routes
from certfan.daemon.status.problems import as_problem, refuse_strange_host
from certfan.daemon.status.view import view
from certfan.daemon.store.facts import Event
from certfan.errors import UnknownName

MAX_BODY = 1 << 14
MAX_EVENTS = 1000
_STOP_PATIENCE = 1.0  # seconds for answers under way when we stop

Checks = Callable[[], Mapping[str, str | None]]
Events = Callable[[int, int], Awaitable[Sequence[Event]]]
Story = Callable[[str, Sequence[str], int], Awaitable[Sequence[Event]]]


def _no_checks() -> Mapping[str, str | None]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """What the application asks when it is asked.

    `alive` and `ready` name checks; None is well, a text says what is wrong. `events(after, limit)` ascends;
    with `after` negative it returns the last `limit`. `story` returns those about a certificate and its identifiers.
    """

    things: Callable[[], Awaitable[StateOfThings]]
    events: Events
    story: Story
    alive: Checks = _no_checks
    ready: Checks = _no_checks
    hosts: Collection[str] = field(default_factory=frozenset)  # names beside literal addresses and localhost


def make_app(
    doors: Doors,
    actions: Actions | None = None,
    authorities: authority_control.Actions | None = None,
    shares: share_control.Actions | None = None,
) -> web.Application:
    """Return the application; with `actions` it has the writing routes too, for the control socket only."""
    routes = _Routes(doors)
    app = web.Application(
        middlewares=[as_problem, refuse_strange_host(doors.hosts)], client_max_size=MAX_BODY
    )
    app.add_routes(
        [
            web.get("/livez", routes.livez),
            web.get("/readyz", routes.readyz),
            web.get("/metrics", routes.metrics),
            web.get("/api/v1/status", routes.status),
            web.get("/api/v1/events", routes.events),
            web.get("/api/v1/certificates/{name}", routes.certificate),
            web.get("/api/v1/certificates/{name}/events", routes.story),
        ]
    )
    if actions is not None:
        app.add_routes(control_routes(actions))
        app.add_routes(plan_routes(doors.things))
    if authorities is not None:
        app.add_routes(authority_control.authority_routes(authorities))
    if shares is not None:
        app.add_routes(share_control.share_routes(shares))
    app.on_response_prepare.append(_harden)
    return app


async def start(app: web.Application, listeners: Sequence[Listener]) -> web.AppRunner:
    """Serve on every listener or on none; `await runner.cleanup()` ends it within about a second.

    Raises:
        OSError: naming the listener that cannot be bound.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_PATIENCE)
    await runner.setup()
    try:
        await serve(runner, tuple(listeners))
    except BaseException:
        await runner.cleanup()
        raise
    return runner


class _Routes:
    """The reading routes."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    async def livez(self, request: web.Request) -> web.Response:
        return _checked(request, self._doors.alive())

    async def readyz(self, request: web.Request) -> web.Response:
        return _checked(request, self._doors.ready())

    async def status(self, _: web.Request) -> web.Response:
        return _json(await self._page())

    async def metrics(self, _: web.Request) -> web.Response:
        from certfan.daemon.status import metrics  # its library need not be there before somebody scrapes

        body = metrics.exposition(await self._page())
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def certificate(self, request: web.Request) -> web.Response:
        return _json(await self._certificate(request.match_info["name"]))

    async def story(self, request: web.Request) -> web.Response:
        certificate = await self._certificate(request.match_info["name"])
        limit = min(max(_number(request, "limit", 100), 1), MAX_EVENTS)
        found = await self._doors.story(certificate.name, certificate.identifiers, limit)
        return _json({"events": tuple(found)})

    async def _certificate(self, name: str) -> CertificateView:
        page = await self._page()
        for certificate in page.certificates:
            if certificate.name == name:
                return certificate
        guess = toml.did_you_mean(name, [c.name for c in page.certificates])
        raise UnknownName(
            f"no certificate {name[:100]!r}{guess}", subject=name[:100], hint="run: certfan status"
        )

    async def events(self, request: web.Request) -> web.Response:
        after = _number(request, "after", -1)
        limit = min(max(_number(request, "limit", 100), 1), MAX_EVENTS)
        found = await self._doors.events(after, limit)
        return _json({"events": tuple(found)})

    async def _page(self) -> Page:
        return view(await self._doors.things())


def _checked(request: web.Request, checks: Mapping[str, str | None]) -> web.Response:
    failed = [name for name, problem in checks.items() if problem is not None]
    if "verbose" in request.query:
        lines = [f"{name}: {problem or 'ok'}" for name, problem in checks.items()]
    else:
        lines = [f"failed: {name}" for name in failed]
    lines.append("failed" if failed else "ok")
    return web.Response(text="\n".join(lines) + "\n", status=503 if failed else 200)


def _number(request: web.Request, key: str, default: int) -> int:
    text = request.query.get(key, "")
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise web.HTTPBadRequest(text=f"{key} must be a number")
    return int(text)


def _json(value: Any) -> web.Response:
    return web.json_response(log.redact(as_json(value)))


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "certfan"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
