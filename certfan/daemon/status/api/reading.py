"""The reading routes: which there are, what each may be asked, and what it answers. The API's description is made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import nsmallest
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from aiohttp import web

from certfan import toml
from certfan.core.model import Deployment
from certfan.daemon.status.api import resources
from certfan.daemon.status.api.answers import answer
from certfan.daemon.status.api.resources import (
    Authorities,
    Certificates,
    Consumers,
    Deployments,
    Events,
    EventView,
    Generations,
    GenerationView,
    Items,
    Ledger,
    Proofs,
    Runs,
    Story,
)
from certfan.daemon.status.authorities import authority_views
from certfan.daemon.status.certificates import certificate_view
from certfan.daemon.status.model import AuthorityView, CertificateView, ConsumerView, Page, RunView
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import consumer_view, run_views
from certfan.daemon.store.facts import Event
from certfan.errors import MessageInvalid, UnknownName

API = "/api/v1"
MOST = 1000  # items of one answer
_T = TypeVar("_T")


class Source(Protocol):
    """What the reading routes ask."""

    async def things(self) -> StateOfThings:
        """Return the state of things now."""

    async def page(self) -> Page:
        """Return the page as it is now, or was a moment ago."""

    async def encoded(self, key: Hashable, make: Callable[[Page], Any]) -> bytes:
        """Return the JSON of something that is made of the page alone."""

    async def events(self, after: int, limit: int, subject: str) -> Sequence[Event]:
        """Return events after an id, ascending; with `after` negative the last of them."""

    async def story(self, certificate: str, identifiers: Sequence[str], limit: int) -> Sequence[Event]:
        """Return the newest events about a certificate and its identifiers, ascending."""


@dataclass(frozen=True, slots=True)
class Query:
    """One parameter of a route's query: a number between `least` and `most`, or without `least` text of such a length."""

    name: str
    about: str
    least: int | None = None
    most: int = 300
    default: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One thing to read. `read(source, arguments)` gets the path's words and the query's, or defaults."""

    path: str
    about: str
    answers: type
    read: Callable[[Source, Mapping[str, Any]], Awaitable[Any]]
    query: tuple[Query, ...] = field(default=(), kw_only=True)

    @property
    def name(self) -> str:
        """What it is called in the API's description."""
        return self.read.__name__.removeprefix("_")

    async def handle(self, source: Source, request: web.Request) -> web.Response:
        """Answer one request.

        Raises:
            MessageInvalid: the query is not as described.
            UnknownName: there is no such thing.
        """
        found = await self.read(source, {**request.match_info, **self._asked(request)})
        return answer(request, found)

    def _asked(self, request: web.Request) -> dict[str, Any]:
        known = {one.name: one for one in self.query}
        for name in request.query:
            if name not in known:
                raise MessageInvalid(f"unknown parameter {name[:50]!r}{toml.did_you_mean(name, known)}")
            if len(request.query.getall(name)) > 1:
                raise MessageInvalid(f"parameter {name} is there twice")
        return {name: _value(one, request.query.get(name)) for name, one in known.items()}


def _value(query: Query, text: str | None) -> Any:
    if query.least is None:
        if text is not None and not 0 < len(text) <= query.most:
            raise MessageInvalid(f"{query.name} must be 1 to {query.most} characters")
        return text or ""
    if text is None:
        return query.default
    if not text.isascii() or not text.isdecimal() or not query.least <= int(text[:18]) <= query.most:
        raise MessageInvalid(f"{query.name} must be a number, {query.least} to {query.most}")
    return int(text)


LIMIT = Query("limit", "how many at most", 1, MOST, 100)
AFTER = Query("after", "the `next` of the answer before")
CERTIFICATE = Query("certificate", "only those of this certificate")
CONSUMER = Query("consumer", "only those of this consumer")


async def _status(source: Source, _: Mapping[str, Any]) -> bytes:
    return await source.encoded("status", lambda page: page)


async def _certificates(source: Source, asked: Mapping[str, Any]) -> bytes:
    return await source.encoded((*asked.values(),), lambda page: _certificates_of(page, asked))


def _certificates_of(page: Page, asked: Mapping[str, Any]) -> Certificates:
    found, more = _paged(((one.name, partial(_itself, one)) for one in page.certificates), asked)
    return Certificates(certificates=found, next=more)


def _itself(one: CertificateView) -> CertificateView:
    return one


async def _certificate(source: Source, asked: Mapping[str, Any]) -> CertificateView:
    things = await source.things()
    return certificate_view(_named("certificate", asked["name"], things.desired.certificates), things)


async def _story(source: Source, asked: Mapping[str, Any]) -> Story:
    things = await source.things()
    certificate = _named("certificate", asked["name"], things.desired.certificates)
    identifiers = tuple(map(str, certificate.identifiers))
    found = await source.story(certificate.name, identifiers, asked["limit"])
    return Story(events=tuple(map(resources.event, found)))


async def _generations(source: Source, asked: Mapping[str, Any]) -> Generations:
    items = resources.generations(await source.things(), asked["certificate"])
    found, more = _paged(items, asked)
    return Generations(generations=found, next=more)


async def _generation(source: Source, asked: Mapping[str, Any]) -> GenerationView:
    things, name = await source.things(), asked["certificate"]
    _named("certificate", name, things.facts.generations)
    made = dict(resources.generations(things, name)).get(resources.generation_key(name, _numbered(asked)))
    if made is None:
        raise UnknownName(
            f"no generation {name}@{_numbered(asked)}", subject=name, hint=f"run: certfan why {name}"
        )
    return made()


async def _consumers(source: Source, asked: Mapping[str, Any]) -> Consumers:
    things = await source.things()
    found, more = _paged(
        ((name, partial(consumer_view, name, things)) for name in things.desired.consumers), asked
    )
    return Consumers(consumers=found, next=more)


async def _consumer(source: Source, asked: Mapping[str, Any]) -> ConsumerView:
    things = await source.things()
    return consumer_view(_named("consumer", asked["name"], things.desired.consumers).name, things)


async def _deployments(source: Source, asked: Mapping[str, Any]) -> Deployments:
    items = resources.deployments(await source.things(), asked["certificate"], asked["consumer"])
    found, more = _paged(items, asked)
    return Deployments(deployments=found, next=more)


async def _deployment(source: Source, asked: Mapping[str, Any]) -> Deployment:
    pair, number = (asked["certificate"], asked["consumer"]), _numbered(asked)
    made = dict(resources.deployments(await source.things(), *pair)).get(
        resources.deployment_key(*pair, number)
    )
    if made is None:
        name = f"{pair[0][:100]}@{number} on {pair[1][:100]}"
        raise UnknownName(f"no deployment of {name}", hint="run: certfan status")
    return made()


async def _proofs(source: Source, asked: Mapping[str, Any]) -> Proofs:
    items = resources.proofs(await source.things(), asked["certificate"], asked["consumer"])
    found, more = _paged(items, asked)
    return Proofs(proofs=found, next=more)


async def _authorities(source: Source, _: Mapping[str, Any]) -> Authorities:
    return Authorities(authorities=authority_views(await source.things()))


async def _authority(source: Source, asked: Mapping[str, Any]) -> AuthorityView:
    views = {one.name: one for one in authority_views(await source.things())}
    return _named("authority", asked["name"], views)


async def _ledger(source: Source, asked: Mapping[str, Any]) -> Ledger:
    things = await source.things()
    return resources.ledger(things, _named("authority", asked["name"], things.desired.authorities).name)


async def _runs(source: Source, _: Mapping[str, Any]) -> Runs:
    return Runs(runs=run_views(await source.things()))


async def _run(source: Source, asked: Mapping[str, Any]) -> RunView:
    number = _numbered(asked)
    for one in run_views(await source.things()):
        if one.number == number:
            return one
    raise UnknownName(f"no run {number} among the newest", hint="run: certfan status")


async def _events(source: Source, asked: Mapping[str, Any]) -> Events:
    after = -1 if asked["after"] is None else asked["after"]
    found = tuple(map(resources.event, await source.events(after, asked["limit"], asked["subject"])))
    return Events(events=found, next=found[-1].id if found else max(after, 0))


async def _event(source: Source, asked: Mapping[str, Any]) -> EventView:
    number = _numbered(asked)
    for one in await source.events(number - 1, 1, ""):
        if one.id == number:
            return resources.event(one)
    raise UnknownName(f"no event {number}", hint="run: certfan events")


def _paged(items: Items[_T] | Iterable[tuple[str, Callable[[], _T]]], asked: Mapping[str, Any]) -> Any:
    """Return as many as were asked for of what comes after the cursor, and the cursor of what follows."""
    after, limit = asked["after"], asked["limit"]
    found = nsmallest(limit + 1, (one for one in items if one[0] > after), key=itemgetter(0))
    return tuple(make() for _, make in found[:limit]), found[limit - 1][0] if len(found) > limit else None


def _named(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    if name in known:
        return known[name]
    name = name[:100]
    guess = toml.did_you_mean(name, known)
    raise UnknownName(f"no {kind} {name!r}{guess}", subject=name, hint="run: certfan status")


def _numbered(asked: Mapping[str, Any]) -> int:
    """Return the number in the path; what is none names nothing that we have."""
    text: str = asked["number"]
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise UnknownName(f"{text[:50]!r} is no number", hint="run: certfan status")
    return int(text)


ROUTES = (
    Route(
        "/status",
        "Everything at once: what needs somebody, every certificate with its endpoints, authorities, consumers, runs.",
        Page,
        _status,
    ),
    Route(
        "/certificates",
        "Certificates of the config, with every endpoint.",
        Certificates,
        _certificates,
        query=(AFTER, LIMIT),
    ),
    Route("/certificates/{name}", "One certificate.", CertificateView, _certificate),
    Route("/certificates/{name}/events", "What happened to one certificate.", Story, _story, query=(LIMIT,)),
    Route(
        "/generations",
        "Generations, orphaned ones too.",
        Generations,
        _generations,
        query=(CERTIFICATE, AFTER, LIMIT),
    ),
    Route("/generations/{certificate}/{number}", "One generation.", GenerationView, _generation),
    Route("/consumers", "Consumers of the config.", Consumers, _consumers, query=(AFTER, LIMIT)),
    Route("/consumers/{name}", "One consumer.", ConsumerView, _consumer),
    Route(
        "/deployments",
        "How far generations have come on consumers.",
        Deployments,
        _deployments,
        query=(CERTIFICATE, CONSUMER, AFTER, LIMIT),
    ),
    Route(
        "/deployments/{certificate}/{consumer}/{number}",
        "One generation on one consumer.",
        Deployment,
        _deployment,
    ),
    Route(
        "/proofs",
        "What was last seen at endpoints.",
        Proofs,
        _proofs,
        query=(CERTIFICATE, CONSUMER, AFTER, LIMIT),
    ),
    Route("/authorities", "Authorities of the config.", Authorities, _authorities),
    Route("/authorities/{name}", "One authority.", AuthorityView, _authority),
    Route("/authorities/{name}/ledger", "What was spent of an authority's limits.", Ledger, _ledger),
    Route("/runs", "The newest runs of the daemon's process.", Runs, _runs),
    Route("/runs/{number}", "One run.", RunView, _run),
    Route(
        "/events",
        "The journal: what comes after an id, or without `after` the newest.",
        Events,
        _events,
        query=(
            Query("after", "the `next` of the answer before, or the id of an event", 0, 10**15),
            Query("limit", "how many at most", 1, MOST, 100),
            Query("subject", "only what concerns this certificate, consumer, or other subject"),
        ),
    ),
    Route("/events/{number}", "One line of the journal.", EventView, _event),
)
