"""The authority that tests make misbehave: it verifies like a real one, and each fault is seen as what it says."""

import asyncio
import json
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import josepy
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from certfan import pki
from certfan.core.issuance import AuthorizationStatus, OrderSeen, OrderStatus
from certfan.errors import (
    AuthorityError,
    AuthorityMalformed,
    AuthorityRefused,
    AuthorityUnreachable,
    CertfanError,
    ChainInvalid,
    PairMismatch,
)
from tests.lab.authorities import FaultyServer, Rig, now
from tests.lab.faulty import FaultyAuthority, faults
from tests.lab.faulty.answers import problem
from tests.lab.faulty.faults import Afterwards, Drip, Hang, Instead, Misissue, Reset, Spoil, Stuck, Turn
from tests.lab.faulty.validation import Validator

A, B = "a.example.test", "b.example.test"
CSR = pki.make_csr(pki.make_key(), [A])
SOON = 0.3  # seconds in which an answer that comes would have come


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """The authority on this loop, a responder where it validates, and an account."""
    rig = Rig(FaultyServer(tmp_path))
    async with rig.up():
        await rig.acme.register()
        yield rig


@pytest.fixture
def ca(rig: Rig) -> FaultyAuthority:
    assert isinstance(rig.server, FaultyServer)
    return rig.server.authority


# What it verifies


class Signer:
    """Signs requests by another library, rightly unless told otherwise."""

    def __init__(self, ca: FaultyAuthority) -> None:
        self.ca, self.key = ca, josepy.JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(ca.ca_file)))
        )

    async def nonce(self) -> str:
        async with self.session.head(f"{self.ca.origin}/new-nonce") as answer:
            return answer.headers["Replay-Nonce"]

    async def post(
        self, path: str, payload: Any, *, sign: josepy.JWKEC | None = None, media: str = "application/jose+json",
        **protected: Any,
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        url = self.ca.origin + path
        fields = {
            "alg": "ES256",
            "nonce": protected.get("nonce") or await self.nonce(),
            "url": url,
        } | protected
        if "kid" not in fields and "jwk" not in fields:
            fields["jwk"] = self.key.public_key().fields_to_partial_json() | {"kty": "EC"}
        head = josepy.b64encode(json.dumps(fields).encode()).decode()
        body = josepy.b64encode(json.dumps(payload).encode()).decode()
        signature = josepy.ES256.sign((sign or self.key).key, f"{head}.{body}".encode())
        text = json.dumps(
            {"protected": head, "payload": body, "signature": josepy.b64encode(signature).decode()}
        )
        async with self.session.post(url, data=text, headers={"Content-Type": media}) as answer:
            return answer.status, await answer.json(content_type=None)


@pytest.fixture
async def signer(ca: FaultyAuthority) -> AsyncIterator[Signer]:
    signer = Signer(ca)
    yield signer
    await signer.session.close()


STRANGER = josepy.JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
AGREED = {"termsOfServiceAgreed": True}


@pytest.mark.parametrize(
    ("path", "wrong", "kind"),
    [
        ("/new-account", {"nonce": "bm90IG9uZSBvZiBvdXJz"}, "badNonce"),
        ("/new-account", {"sign": STRANGER}, "malformed"),
        ("/new-account", {"url": "https://127.0.0.1/new-account"}, "unauthorized"),
        ("/new-account", {"alg": "none"}, "badSignatureAlgorithm"),
        ("/new-account", {"media": "application/json"}, "malformed"),
        ("/new-account", {"kid": "https://127.0.0.1/account/1"}, "malformed"),
        ("/new-account", {"jwk": {"kty": "oct", "k": "AAAA"}}, "badPublicKey"),
        ("/new-order", {}, "malformed"),
        ("/new-order", {"kid": "https://127.0.0.1/account/999"}, "accountDoesNotExist"),
    ],
)
async def test_a_request_that_is_not_signed_as_it_must_be_is_refused(
    signer: Signer, ca: FaultyAuthority, path: str, wrong: dict[str, Any], kind: str
) -> None:
    """Each part of RFC 8555 section 6; rightly signed the same is taken."""
    before = len(ca.records.accounts)

    status, document = await signer.post(path, AGREED, **wrong)
    right, _ = await signer.post("/new-account", AGREED)

    assert document["type"] == f"urn:ietf:params:acme:error:{kind}"
    assert 400 <= status < 500
    assert (right, len(ca.records.accounts)) == (201, before + 1)


async def test_a_nonce_is_good_once(signer: Signer) -> None:
    """Whoever repeats a request is told badNonce."""
    nonce = await signer.nonce()

    first, _ = await signer.post("/new-account", AGREED, nonce=nonce)
    again, document = await signer.post("/new-account", AGREED, nonce=nonce)

    assert (first, again) == (201, 400)
    assert document["type"].endswith(":badNonce")


async def test_what_belongs_to_another_account_is_not_shown(rig: Rig) -> None:
    """Orders, authorizations and certificates."""
    order = await rig.acme.new_order(CSR)
    async with rig.other(pki.make_key()) as stranger:
        await stranger.register()

        for look in (stranger.order(order.url), stranger.authorization(order.authorizations[0])):
            with pytest.raises(AuthorityRefused, match="unauthorized"):
                await look


# How it validates


@pytest.fixture
async def vhost() -> AsyncIterator[tuple[int, dict[str, Callable[[], web.Response]]]]:
    """A web server: answers by path."""
    answers: dict[str, Callable[[], web.Response]] = {}

    async def serve(request: web.BaseRequest) -> web.Response:
        make = answers.get(f"{request.host} {request.path}")
        return make() if make else web.Response(status=404)

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1], answers
    await runner.cleanup()


TOKEN_PATH = "/.well-known/acme-challenge/TOKEN"


async def test_redirects_are_followed_by_name_and_not_for_ever(vhost: Any) -> None:
    """The name in a redirect is looked up as the first one was."""
    port, answers = vhost
    validator = Validator("192.0.2.1", port, {A: "127.0.0.1", B: "127.0.0.1"})
    moved = {"Location": f"http://{B}/other"}
    answers[f"{A} {TOKEN_PATH}"] = lambda: web.Response(status=302, headers=moved)
    answers[f"{B} /other"] = lambda: web.Response(text="TOKEN.thumbprint\n")
    answers[f"{B} {TOKEN_PATH}"] = lambda: web.Response(status=302, headers={"Location": TOKEN_PATH})

    good = await validator.http01(A, "TOKEN", "TOKEN.thumbprint", 3)
    loop = await validator.http01(B, "TOKEN", "TOKEN.thumbprint", 1)

    assert good is None
    assert loop is not None
    assert "too many redirects" in loop["detail"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda: web.Response(text="TOKEN.somebody"), "incorrectResponse"),
        (lambda: web.Response(text="TOKEN.thumbprint" + 200 * "x"), "incorrectResponse"),
        (lambda: web.Response(status=404), "unauthorized"),
        (lambda: web.Response(status=301, headers={"Location": "https://b.example.test/"}), "connection"),
    ],
    ids=["another", "too long", "not found", "https"],
)
async def test_a_wrong_answer_at_the_vhost_is_named(vhost: Any, answer: Any, kind: str) -> None:
    """By the type that authorities use."""
    port, answers = vhost
    answers[f"{A} {TOKEN_PATH}"] = answer

    wrong = await Validator("127.0.0.1", port).http01(A, "TOKEN", "TOKEN.thumbprint", 2)

    assert wrong is not None
    assert wrong["type"].endswith(f":{kind}")


# What can go wrong on the wire


async def test_an_answer_in_place_of_another_is_seen_as_often_as_was_told(
    rig: Rig, ca: FaultyAuthority
) -> None:
    """After the exchanges that were to go well; nothing was processed."""
    fault = ca.faults.add("newOrder", faults.rate_limited(90), times=2, skip=1)

    outcomes = [await outcome(rig.acme.new_order(CSR)) for _ in range(4)]

    assert [isinstance(one, OrderSeen) for one in outcomes] == [True, False, False, True]
    limited = outcomes[1]
    assert isinstance(limited, AuthorityRefused)
    assert limited.status == 429
    assert limited.not_before is not None
    assert timedelta(seconds=80) < limited.not_before - now() < timedelta(seconds=91)
    assert (fault.hits, len(ca.records.orders)) == (2, 2)


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        (faults.paused("https://example.org/unpause", A), AuthorityRefused, "https://example.org/unpause"),
        (faults.unavailable(120), AuthorityMalformed, "503"),
        (Instead(problem("serverInternal", 500)), AuthorityRefused, "serverInternal"),
        (Instead(faults.html()), AuthorityMalformed, "JSON"),
        (Instead(faults.too_long()), AuthorityMalformed, "longer than"),
        (Instead(faults.redirect("https://evil.example/")), AuthorityMalformed, "redirects"),
        (faults.rejected(A), AuthorityRefused, f"{A} rejectedIdentifier"),
        (Instead(problem("accountDoesNotExist")), AuthorityRefused, "accountDoesNotExist"),
        (Reset(), AuthorityUnreachable, "no answer"),
        (Reset(processed=True), AuthorityUnreachable, "no answer"),
        (Afterwards(lambda answer: replace(answer, body=b"{")), AuthorityMalformed, "JSON"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_each_fault_of_the_wire_is_seen_as_what_it_is(
    rig: Rig, ca: FaultyAuthority, what: Any, error: type[AuthorityError], says: str
) -> None:
    """At the name that was told of, while another name is ordered."""
    ca.faults.add("newOrder", what, name=A)

    with pytest.raises(error) as caught:
        await rig.acme.new_order(CSR)
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), [B]))

    assert says in caught.value.text
    assert order.status is OrderStatus.PENDING


async def test_urls_of_another_origin_are_refused(rig: Rig, ca: FaultyAuthority) -> None:
    """Wherever an order may carry one."""
    ca.faults.add("newOrder", faults.foreign(ca.origin))

    with pytest.raises(AuthorityMalformed, match=r"evil\.example"):
        await rig.acme.new_order(CSR)


@pytest.mark.parametrize(("processed", "orders"), [(False, 0), (True, 1)])
@pytest.mark.parametrize("what", [Hang, Reset])
async def test_a_lost_answer_is_one_of_a_request_that_was_heard_or_not(
    rig: Rig, ca: FaultyAuthority, what: Any, processed: bool, orders: int
) -> None:
    """What an order cost is what the records hold."""
    ca.faults.add("newOrder", what(processed=processed))

    with pytest.raises((TimeoutError, AuthorityUnreachable)):
        async with asyncio.timeout(SOON):
            await rig.acme.new_order(CSR)

    assert len(ca.records.orders) == orders


async def test_a_name_that_is_never_answered_keeps_no_other_from_its_certificate(
    rig: Rig, ca: FaultyAuthority
) -> None:
    """Whatever is asked about it."""
    order = await rig.acme.new_order(CSR)
    ca.faults.add(None, Hang(), name=A)

    for silent in (rig.acme.new_order(CSR), rig.acme.authorization(order.authorizations[0])):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await silent
    pair = await rig.issue(B)

    assert pair.leaf.names == (B,)


async def test_an_answer_that_drips_is_whole_at_last(rig: Rig, ca: FaultyAuthority) -> None:
    """Only slow."""
    ca.faults.add("newOrder", Drip(pause=0.0001))

    order = await rig.acme.new_order(CSR)

    assert order.status is OrderStatus.PENDING


async def test_so_many_nonces_are_refused_as_was_told(rig: Rig, ca: FaultyAuthority) -> None:
    """One exchange takes one more request for each."""
    before = ca.counts["newOrder"]
    ca.reject_nonces(4)

    await rig.acme.new_order(CSR)

    assert ca.counts["newOrder"] - before == 5


async def test_a_wrong_clock_shows_in_every_date(rig: Rig, ca: FaultyAuthority) -> None:
    """And nowhere else."""
    ca.behaviour.date_offset = timedelta(days=30)

    await rig.acme.new_order(CSR)

    assert rig.acme.server_date is not None
    assert timedelta(days=29) < rig.acme.server_date - datetime.now(UTC) < timedelta(days=31)


async def test_each_exchange_is_heard_of_thrice_in_its_order(rig: Rig, ca: FaultyAuthority) -> None:
    """Received, processed, answered; the state shows which it is."""
    heard: list[tuple[int, str, str, int]] = []
    ca.on_exchange = lambda number, kind, phase: heard.append((number, kind, phase, len(ca.records.orders)))

    await rig.acme.new_order(CSR)

    number = len(ca.records.exchanges)
    phases = [("received", 0), ("processed", 1), ("answered", 1)]
    assert heard == [(number, "newOrder", phase, orders) for phase, orders in phases]


# What can become of orders


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (Misissue.TRUNCATED, AuthorityMalformed, "truncated"),
        (Misissue.HTML, AuthorityMalformed, "no PEM"),
        (Misissue.OTHER_KEY, PairMismatch, "does not belong"),
        (Misissue.OTHER_NAMES, ChainInvalid, "other.example, not a.example.test"),
        (Misissue.EXPIRED, ChainInvalid, "is valid from"),
        (Misissue.NOT_YET_VALID, ChainInvalid, "is valid from"),
        (Misissue.FOREIGN_ISSUER, ChainInvalid, "not signed by the next"),
        (Misissue.LEAF_ONLY, ChainInvalid, "ends in none of the roots"),
    ],
)
async def test_a_wrong_chain_is_refused_for_what_is_wrong_with_it(
    rig: Rig, ca: FaultyAuthority, wrong: Misissue, error: type[CertfanError], says: str
) -> None:
    """By the edge, by matching it with its key, or by verifying it."""
    ca.faults.add("finalize", wrong, name=A)

    with pytest.raises(error, match=says):
        await issued(rig, A)
    good = await issued(rig, B)

    assert good.names == (B,)


async def issued(rig: Rig, name: str) -> pki.Leaf:
    pair = await rig.issue(name)
    roots = await rig.server.roots_pem()
    return pki.verify_chain(pair.fullchain_pem, names=[name], now=now(), roots_pem=roots)


async def test_a_finalized_order_is_processing_for_ever(rig: Rig, ca: FaultyAuthority) -> None:
    """Nothing is issued."""
    ca.faults.add("finalize", Stuck())
    order = await ready(rig)

    await rig.acme.finalize(order.finalize, CSR, order_url=order.url)
    seen = [(await rig.acme.order(order.url)).status for _ in range(5)]

    assert set(seen) == {OrderStatus.PROCESSING}
    assert not ca.records.certificates


async def test_a_finalized_order_turns_invalid_and_says_why(rig: Rig, ca: FaultyAuthority) -> None:
    """In the order's own error."""
    ca.faults.add("finalize", Spoil("caa", "CAA forbids it"))
    order = await ready(rig)

    await rig.acme.finalize(order.finalize, CSR, order_url=order.url)
    seen = [await rig.acme.order(order.url) for _ in range(2)][-1]

    assert seen.status is OrderStatus.INVALID
    assert seen.problem is not None
    assert "CAA forbids it" in seen.problem.detail


@pytest.mark.parametrize("kind", ["badCSR", "invalidProfile", "orderNotReady"])
async def test_a_refused_finalize_leaves_the_order_ready(rig: Rig, ca: FaultyAuthority, kind: str) -> None:
    """And the next one is taken."""
    ca.faults.add("finalize", Instead(problem(kind)), times=1)
    order = await ready(rig)

    refused = await outcome(rig.acme.finalize(order.finalize, CSR, order_url=order.url))
    after = await rig.acme.order(order.url)
    again = await rig.acme.finalize(order.finalize, CSR, order_url=order.url)

    assert isinstance(refused, AuthorityRefused)
    assert refused.type.endswith(f":{kind}")
    assert (after.status, again.status) == (OrderStatus.READY, OrderStatus.PROCESSING)


@pytest.mark.parametrize("status", ["invalid", "expired", "deactivated", "revoked"])
async def test_an_authorization_turns_and_its_order_with_it(
    rig: Rig, ca: FaultyAuthority, status: str
) -> None:
    """At the next look."""
    order = await rig.acme.new_order(CSR)
    ca.faults.add("authorization", Turn(status), name=A, times=1)

    authorization = await rig.acme.authorization(order.authorizations[0])

    assert authorization.status is AuthorizationStatus(status)
    assert (await rig.acme.order(order.url)).status is OrderStatus.INVALID


@pytest.mark.parametrize("status", ["invalid", "expired"])
async def test_an_order_turns(rig: Rig, ca: FaultyAuthority, status: str) -> None:
    """An expired one is invalid, and its instant has passed."""
    order = await ready(rig)
    ca.faults.add("order", Turn(status))

    seen = await rig.acme.order(order.url)

    assert seen.status is OrderStatus.INVALID
    assert seen.expires is not None
    assert (seen.expires < now()) is (status == "expired")


async def test_a_challenge_is_never_tried_or_fails_without_being_tried(rig: Rig, ca: FaultyAuthority) -> None:
    """No token is fetched."""
    ca.faults.add("challenge", Stuck(), name=A)
    ca.faults.add("challenge", Spoil("dns", "SERVFAIL"), name=B)
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), [A, B]))

    statuses = {}
    for url in order.authorizations:
        await rig.acme.answer((await rig.challenge(url)).url)
        seen = await rig.acme.authorization(url)
        statuses[seen.identifier.value] = seen.status

    assert statuses == {A: AuthorizationStatus.PENDING, B: AuthorizationStatus.INVALID}
    assert not rig.places


async def test_a_live_order_and_a_valid_authorization_are_given_again(rig: Rig, ca: FaultyAuthority) -> None:
    """As Boulder does; a finished order is not."""
    ca.behaviour.reuse_orders = ca.behaviour.reuse_authorizations = True
    first = await rig.acme.new_order(CSR)
    again = await rig.acme.new_order(CSR)
    await rig.ready(again)
    third = await rig.acme.new_order(CSR)
    await rig.acme.finalize(third.finalize, CSR, order_url=third.url)

    fresh = await rig.acme.new_order(CSR)

    assert first.url == again.url == third.url != fresh.url
    assert [third.status, fresh.status] == [OrderStatus.READY, OrderStatus.READY]
    assert fresh.authorizations == first.authorizations


async def test_pollers_are_told_how_long_to_wait(rig: Rig, ca: FaultyAuthority) -> None:
    """By pending authorizations and processing orders."""
    ca.behaviour.retry_after = 7
    order = await rig.acme.new_order(CSR)
    authorization = await rig.acme.authorization(order.authorizations[0])
    await rig.ready(order)
    processing = await rig.acme.finalize(order.finalize, CSR, order_url=order.url)

    assert {order.retry_after, authorization.retry_after, processing.retry_after} == {
        None,
        timedelta(seconds=7),
    }
    assert order.retry_after is None


# Where it runs


def test_it_runs_in_a_thread_and_keeps_port_and_records_over_a_restart(tmp_path: Path) -> None:
    """So that synchronous tests and other processes can use it."""
    authority = FaultyAuthority(tmp_path)
    tls = ssl.create_default_context(cafile=str(authority.ca_file))
    for _ in range(2):
        with authority.running(), urllib.request.urlopen(authority.directory_url, context=tls) as answer:
            assert "newOrder" in json.load(answer)
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(authority.directory_url, context=tls)

    assert authority.counts == {"directory": 2}


async def ready(rig: Rig) -> OrderSeen:
    order = await rig.acme.new_order(CSR)
    await rig.ready(order)
    return await rig.acme.order(order.url)


async def outcome(exchange: Any) -> Any:
    try:
        return await exchange
    except AuthorityError as error:
        return error
