"""The self-check on real loopback sockets: what it asks, what it follows, and what it says of what it got."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import dns.asyncresolver
import dns.name
import dns.rcode
import pytest
from aiohttp import web

from certfan import __version__
from certfan.core.model import Identifier
from certfan.core.path import Failure
from certfan.daemon.challenges import names
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.challenges.pathcheck import MOST_CHECKS, PathChecker
from certfan.daemon.listeners import Listener
from tests.lab.pebble import free_port
from tests.unit.tiny_dns import serving

NAME = Identifier("www.example.org")
FOLDER = "/.well-known/acme-challenge/"
FOREIGN = "127.0.0.2"  # where the foreign server listens; the responder is at 127.0.0.1 and ::1


class Place:
    """One port of several addresses: our responder, and a foreign server whose answer each test chooses."""

    def __init__(self) -> None:
        self.port = free_port()
        self.probes: dict[str, str] = {}
        self.tokens: list[str] = []
        self.seen: list[web.BaseRequest] = []
        self.zone: dict[str, tuple[str, ...] | Failure] = {NAME.value: (FOREIGN,)}
        self.looked_up: list[str] = []
        self.answer: Callable[[web.BaseRequest], web.StreamResponse] = lambda _: web.Response(status=404)
        self.responder = Responder(self._token, lambda *_: None, probes=self.probes)
        self.checker = self.make_checker()

    def make_checker(self, patience: float = 5.0) -> PathChecker:
        return PathChecker(self.probes, resolve=self._look_up, http_port=self.port, patience=patience)

    def _token(self, token: str) -> None:
        self.tokens.append(token)

    async def _look_up(self, host: str) -> tuple[str, ...] | Failure:
        self.looked_up.append(host)
        return self.zone.get(host, Failure.NXDOMAIN)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(request)
        return self.answer(request)

    def redirects(self, location: str, status: int = 301) -> None:
        self.answer = lambda _: web.Response(status=status, headers={"Location": location})

    async def detail(self, identifier: Identifier = NAME) -> str:
        """What the problem says after the first hop's URL."""
        problem = await self.checker.check(identifier)
        assert problem is not None
        url = f"http://{identifier}:{self.port}{FOLDER}<probe>"
        return problem.detail.removeprefix(f"{identifier}: ").removeprefix(f"{url} at {FOREIGN} ")


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    runner = web.ServerRunner(web.Server(place.serve))
    await runner.setup()
    await web.TCPSite(runner, FOREIGN, place.port).start()
    await place.responder.start([Listener("127.0.0.1", place.port), Listener("::1", place.port)])
    yield place
    await place.responder.stop()
    await runner.cleanup()


@contextlib.asynccontextmanager
async def raw_server(
    port: int, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]
) -> AsyncIterator[str]:
    """Serve bytes at an address of its own, which it gives; a connection ends with its task."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await serve(reader, writer)

    async with await asyncio.start_server(served, "127.0.0.3", port):
        yield "127.0.0.3"


async def test_our_own_answer_over_both_families_is_good(place: Place) -> None:
    """And the probe ends with the check: nobody else ever gets its answer."""
    place.zone[NAME.value] = ("127.0.0.1", "::1")

    assert await place.checker.check(NAME) is None
    assert place.probes == {}
    assert place.tokens == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_an_identifier_that_is_an_address_is_dialled_without_a_look_up(
    place: Place, address: str
) -> None:
    """RFC 8738: IPv6 in brackets."""
    assert await place.checker.check(Identifier(address)) is None
    assert place.looked_up == []


async def test_the_request_is_a_plain_get_for_the_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the address that was looked up; no proxy of the environment is asked."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{place.port}")

    await place.checker.check(NAME)

    (request,) = place.seen
    assert (request.method, request.host) == ("GET", f"{NAME}:{place.port}")
    assert request.headers["User-Agent"] == f"certfan/{__version__} self-check"
    assert request.headers["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie", "Proxy-Authorization"} & set(request.headers)


async def test_a_probe_is_no_token_and_never_the_same(place: Place) -> None:
    """RFC 8555 section 8.3: a token has characters of the base64url alphabet alone."""
    await place.checker.check(NAME)
    await place.checker.check(NAME)

    one, other = (request.raw_path.removeprefix(FOLDER) for request in place.seen)
    assert "~" in one
    assert one != other


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda: web.Response(status=404), "answers 404: "),
        (lambda: web.Response(status=401), "answers 401: authentication"),
        (lambda: web.Response(status=403), "answers 403: authentication"),
        (lambda: web.Response(status=502), "answers 502: it forwards"),
        (lambda: web.Response(status=503), "answers 503: it forwards"),
        (lambda: web.Response(status=500), "answers 500, "),
        (lambda: web.Response(text="<html>"), "answers 200 with 6 bytes that are not ours"),
        (lambda: web.Response(text="x" * 128), "answers 200 with 128 bytes that are not ours"),
        (lambda: web.Response(text="x" * 129), "answers 200 with more than 128 bytes"),
        (
            lambda: web.Response(body=b"no gzip", headers={"Content-Encoding": "gzip"}),
            "answers 200 with 7 bytes",
        ),
    ],
)
async def test_what_a_foreign_server_answers_is_told(
    place: Place, answer: Callable[[], web.Response], text: str
) -> None:
    """By status and length; nothing of a body is decoded."""
    place.answer = lambda _: answer()

    assert (await place.detail()).startswith(text)


@pytest.mark.parametrize(("space", "is_good"), [("\n", True), ("\n" * 70, False), (".", False)])
async def test_white_space_after_our_answer_is_ignored_as_far_as_a_ca_reads(
    place: Place, space: str, is_good: bool
) -> None:
    """RFC 8555 section 8.3."""
    place.answer = lambda request: web.Response(text=place.probes[request.raw_path] + space)

    assert (await place.checker.check(NAME) is None) == is_good


async def test_a_page_that_shows_what_it_was_asked_for_is_not_ours(place: Place) -> None:
    """The answer holds a secret of its own."""
    place.answer = lambda request: web.Response(text=request.raw_path.removeprefix(FOLDER))

    assert "not ours" in await place.detail()


async def test_one_family_that_is_broken_is_named(place: Place) -> None:
    """The other one answers, and a CA may ask either."""
    place.zone[NAME.value] = ("127.0.0.9", "::1")

    assert (await place.detail()).startswith("answers over IPv6 but not over IPv4 127.0.0.9: http://")


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("", "redirects to what is no URL"),
        ("?", "redirects to http://www.example.org:PORT/.well-known/acme-challenge/<probe>, where"),
        (
            "https://www.example.org:8443/",
            "redirects to https://www.example.org:8443/; a CA follows to ports",
        ),
        ("gopher://a.test/", "redirects to gopher://a.test/; a CA follows http"),
        ("http://me:secret@a.test:PORT/", "redirects to http://a.test:PORT/ with a user"),
        ("http://127.1:PORT/", "redirects to what is no URL"),
        ("http://2130706433:PORT/", "redirects to what is no URL"),
        ("http://[::1", "redirects to what is no URL"),
        ("http://a.test.well-known:PORT/", "redirects to http://a.test.well-known:PORT/: a slash"),
        ("http://127.0.0.1:PORT/", "hop 2, http://127.0.0.1:PORT/ at 127.0.0.1 is where a redirect leads"),
        ("http://[0:0::1]:PORT/x", "hop 2, http://[::1]:PORT/x at ::1 is where a redirect leads"),
        ("//inside.test:PORT/", "hop 2, http://inside.test:PORT/ at 127.0.0.1 is where a redirect leads"),
        ("//nowhere.test:PORT/#a", "hop 2, http://nowhere.test:PORT/ has no address: nowhere.test does not"),
    ],
)
async def test_a_redirect_that_no_ca_follows_is_told_and_not_followed(
    place: Place, location: str, text: str
) -> None:
    """Nothing is dialled for it."""
    place.zone["inside.test"] = ("127.0.0.1",)
    place.redirects(location.replace("PORT", str(place.port)))

    assert (await place.detail()).startswith(text.replace("PORT", str(place.port)))
    assert len(place.seen) == 1


async def test_a_host_is_looked_up_once_for_all_addresses(place: Place) -> None:
    """So what was judged is what is dialled, whatever the DNS says a moment later."""
    place.zone |= {NAME.value: (FOREIGN, FOREIGN), "inside.test": ("::1",)}
    place.redirects(f"http://inside.test:{place.port}/")
    await place.checker.check(NAME)

    assert place.looked_up.count("inside.test") == 1


async def test_a_server_that_never_answers_is_told_when_time_is_up(place: Place) -> None:
    """And the connection is gone."""
    gone = asyncio.Event()

    async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()

    place.checker = place.make_checker(patience=0.2)
    async with raw_server(place.port, never) as address:
        place.zone[NAME.value] = (address,)
        assert f"at {address} takes the connection and does not answer in time" in await place.detail()
        await asyncio.wait_for(gone.wait(), 5)


@pytest.mark.parametrize("said", [b"", b"220 mail.example.org ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_what_is_no_http_is_told(place: Place, said: bytes) -> None:
    """Not one byte of it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()

    async with raw_server(place.port, talk) as address:
        place.zone[NAME.value] = (address,)
        detail = await place.detail()

    assert detail.endswith("ends the connection or answers with what is no HTTP")


async def test_a_body_without_end_is_left_after_what_a_ca_reads(place: Place) -> None:
    """No patience is spent on it, and no memory."""

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()

    async with raw_server(place.port, flood) as address:
        place.zone[NAME.value] = (address,)
        async with asyncio.timeout(4):
            assert "more than 128 bytes" in await place.detail()


async def test_an_address_that_takes_no_connection_is_told(place: Place) -> None:
    """A full backlog drops our SYN, as a firewall does."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.3", place.port))
        full.listen(0)
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.3", place.port))
        place.zone[NAME.value] = ("127.0.0.3",)
        place.checker = place.make_checker(patience=0.4)

        assert (await place.detail()).endswith("does not take the connection in time")


async def test_a_check_that_is_cancelled_leaves_no_probe_behind(place: Place) -> None:
    """However it ends, its token is nobody's."""
    asked = asyncio.Event()

    async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()

    async with raw_server(place.port, never) as address:
        place.zone[NAME.value] = (address,)
        task = asyncio.create_task(place.checker.check(NAME))
        await asyncio.wait_for(asked.wait(), 5)
        live = len(place.probes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert (live, place.probes) == (1, {})


async def test_no_more_than_sixteen_checks_run_at_once(place: Place) -> None:
    """The rest wait their turn, and all are told."""
    release, most = asyncio.Event(), 0

    async def look_up(_: str) -> Failure:
        nonlocal most
        most = max(most, len(place.probes))
        if most == MOST_CHECKS:  # whoever may begin beside them begins before that is carried out
            asyncio.get_running_loop().call_soon(release.set)
        await release.wait()
        return Failure.NXDOMAIN

    checker = PathChecker(place.probes, resolve=look_up)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        tasks = [group.create_task(checker.check(Identifier(f"n{n}.test"))) for n in range(40)]

    assert most == MOST_CHECKS
    assert all(task.result() for task in tasks)


async def test_a_look_up_that_never_ends_is_told_when_time_is_up(place: Place) -> None:
    """A resolver of the system may have any patience."""

    async def look_up(_: str) -> Failure:
        await asyncio.Event().wait()
        raise AssertionError

    place.checker = PathChecker(place.probes, resolve=look_up, http_port=place.port, patience=0.1)

    assert "no resolver answered" in await place.detail()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("both.test", ("192.0.2.1", "192.0.2.2", "2001:db8::1")),
        ("four.test", ("192.0.2.1",)),
        ("six.test", ("2001:db8::1",)),
        ("bare.test", Failure.NO_ADDRESS),
        ("nowhere.test", Failure.NXDOMAIN),
        ("bogus.test", Failure.SERVFAIL),
        ("refused.test", Failure.DNS_FAILED),
        ("silent.test", Failure.DNS_TIMEOUT),
        ("x" * 64 + ".test", Failure.DNS_FAILED),
    ],
)
async def test_a_look_up_says_every_address_or_why_there_is_none(
    host: str, expected: tuple[str, ...] | Failure
) -> None:
    """A and AAAA are asked apart, once each, and no search list is tried."""
    both = {"A": ["192.0.2.1", "192.0.2.2"], "AAAA": ["2001:db8::1"]}
    zone = {"both.test": both, "four.test": {"A": ["192.0.2.1"]}, "six.test": {"AAAA": ["2001:db8::1"]}}
    rcodes = {"bogus.test": dns.rcode.SERVFAIL, "refused.test": dns.rcode.REFUSED}
    async with serving({**zone, **rcodes, "bare.test": {}, "silent.test": None}) as (server, port):
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port, resolver.lifetime = ["127.0.0.1"], port, 0.5
        resolver.search, resolver.use_search_by_default = [dns.name.from_text("example.")], True

        found = await names.ask(resolver, host)

    assert found == expected
    if expected is not Failure.DNS_TIMEOUT and len(host) < 64:
        assert sorted(server.asked) == [(host, "A"), (host, "AAAA")]


async def test_the_systems_resolvers_are_read_anew_at_every_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolv.conf that DHCP has just rewritten counts; one that names nobody is told."""
    async with serving({"a.test": {"A": ["192.0.2.1"]}}) as (_, port):
        made = functools.partial(dns.asyncresolver.Resolver, configure=False)

        def configured() -> dns.asyncresolver.Resolver:
            resolver = made()
            resolver.nameservers, resolver.port = ["127.0.0.1"], port
            return resolver

        monkeypatch.setattr(dns.asyncresolver, "Resolver", configured)
        found = await names.ask_system("a.test")

    assert found == ("192.0.2.1",)
