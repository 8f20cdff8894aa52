"""The page's routes: reading only, and strict about what a browser may do with what it gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from certfan import toml
from certfan.daemon.status.api import resources
from certfan.daemon.status.api.reading import Source
from certfan.daemon.status.model import CertificateView, ConsumerView, Page
from certfan.daemon.status.page import story
from certfan.daemon.status.page.matrix import Choice, matrix, most_urgent_first
from certfan.daemon.status.page.overview import calm, figures, resets, together
from certfan.daemon.status.page.rendering import assets, render
from certfan.daemon.status.page.timeline import timeline
from certfan.daemon.status.page.words import TONE_OF_STATE
from certfan.daemon.status.pages import LARGE
from certfan.daemon.store.facts import Event

MOST_TOLD = 100
NEWEST = 12
MOST_KEPT = 16
MOST_ROWS = 200  # of one certificate, or one consumer
_T = TypeVar("_T")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}


def page_routes(source: Source) -> list[web.RouteDef]:
    """Return the routes of the page, of its certificates and consumers, and of the files that they need."""
    routes = _Page(source)
    return [
        web.get("/", routes.overview),
        web.get("/certificates/{name}", routes.certificate),
        web.get("/consumers/{name}", routes.consumer),
        web.get("/static/{name}", _static),
    ]


class _Page:
    def __init__(self, source: Source) -> None:
        self._source = source
        # A large farm's page is kept for a while, so what was made of it is good for as long.
        self._page: Page | None = None
        self._texts: dict[Choice, str] = {}
        self._shared: Mapping[str, Any] = {}

    async def overview(self, request: web.Request) -> web.Response:
        page, choice = await self._source.page(), Choice.of(request.query)
        if page is not self._page:
            self._page, self._texts, self._shared = page, {}, {}
        text = self._texts.get(choice)
        if text is None:
            newest = await self._source.events(-1, NEWEST, "")
            shared = self._shared or await _beside(page, partial(shared_by_all, page))
            text = await _beside(page, partial(overview_html, page, choice, newest, shared))
            if page is self._page:
                self._shared = shared
                if len(self._texts) < MOST_KEPT:
                    self._texts[choice] = text
        return _response(text)

    async def certificate(self, request: web.Request) -> web.Response:
        page, name = await self._source.page(), request.match_info["name"]
        found = next((one for one in page.certificates if one.name == name), None)
        if found is None:
            return _unknown(request, page, "certificate", [one.name for one in page.certificates])
        made = resources.generations(await self._source.things(), name)
        told = await self._source.story(name, found.identifiers, MOST_TOLD)
        generations = [make() for _, make in made][::-1]
        choice = Choice.of(request.query)
        return _response(
            await _beside(page, partial(_certificate_html, page, choice, found, generations, told))
        )

    async def consumer(self, request: web.Request) -> web.Response:
        page, name = await self._source.page(), request.match_info["name"]
        found = next((one for one in page.consumers if one.name == name), None)
        if found is None:
            return _unknown(request, page, "consumer", [one.name for one in page.consumers])
        told = await self._source.events(-1, MOST_TOLD, name)
        return _response(
            await _beside(page, partial(_consumer_html, page, Choice.of(request.query), found, told))
        )


async def _beside(page: Page, make: Callable[[], _T]) -> _T:
    """Make something of a large farm beside the loop, where challenges are answered."""
    return make() if page.summary.endpoints <= LARGE else await asyncio.to_thread(make)


def _certificate_html(
    page: Page,
    choice: Choice,
    certificate: CertificateView,
    generations: Sequence[resources.GenerationView],
    events: Sequence[Event],
) -> str:
    return _html(
        "certificate.html",
        page,
        choice,
        certificate=certificate,
        rows=story.not_well_first(certificate.endpoints)[:MOST_ROWS],
        problems=together(story.problems_of_certificate(certificate, page.problems)),
        generations=generations,
        events=story.newest_first(events),
    )


def _consumer_html(page: Page, choice: Choice, consumer: ConsumerView, events: Sequence[Event]) -> str:
    name = consumer.name
    rows = story.rows_at(name, page)
    return _html(
        "consumer.html",
        page,
        choice,
        consumer=consumer,
        rows=rows[:MOST_ROWS],
        endpoints=len(rows),
        resets=[one for one in page.resets if name in one.consumers],
        problems=together([p for p in page.problems if story.is_about_consumer(p.subject, name)]),
        events=story.newest_first(events),
    )


def _unknown(request: web.Request, page: Page, kind: str, known: Sequence[str]) -> web.Response:
    name = request.match_info["name"][:100]
    guess = toml.did_you_mean(name, list(known))
    text = _html("unknown.html", page, Choice.of(request.query), kind=kind, name=name, guess=guess)
    return _response(text, 404)


def shared_by_all(page: Page) -> Mapping[str, Any]:
    """Return what every choice of what to see has in common."""
    return {
        "ordered": most_urgent_first(page.certificates),
        "timeline": timeline(page),
        "figures": figures(page),
        "calm": calm(page),
        "resets": resets(page),
        "heard": {one.name: one.heard for one in page.consumers},
    }


def overview_html(page: Page, choice: Choice, events: Sequence[Event], shared: Mapping[str, Any]) -> str:
    """Return the first page; `events` ascend."""
    shown = matrix(page, choice, shared["ordered"])
    return _html("overview.html", page, choice, matrix=shown, events=story.newest_first(events), **shared)


def _html(template: str, page: Page, choice: Choice, **values: Any) -> str:
    return render(
        template,
        now=page.now,
        page=page,
        choice=choice,
        tone_of_state=TONE_OF_STATE,
        place=story.places(page),
        needs=together(page.problems),
        **values,
    )


def _response(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", headers=_HEADERS)


async def _static(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    found = next((one for one in assets().values() if one.name == name), None)
    if found is None:
        raise web.HTTPNotFound
    return web.Response(
        body=found.body, content_type=found.content_type, charset="utf-8", headers=_FOR_EVER | _HEADERS
    )
