"""The authority's edge against a real HTTPS server: what a good authority is asked, and what its answers become."""

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from certfan import __version__, pki
from certfan.core.issuance import AuthorizationStatus, ChallengeStatus, OrderStatus
from certfan.core.model import Authority, Identifier
from certfan.daemon.authority import AcmeAuthority, make_account_key
from certfan.errors import AuthorityRefused, PairMismatch, RequestInvalid
from tests.unit.odd_authority import TOKEN, OddAuthority, problem

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
KEY = make_account_key()
CSR = pki.make_csr(pki.make_key(), ["a.example", "*.a.example", "192.0.2.7", "2001:db8::1"])


@pytest.fixture
async def acme(ca: OddAuthority) -> AsyncIterator[AcmeAuthority]:
    authority = opened(ca)
    yield authority
    await authority.close()


def opened(ca: OddAuthority, *, account: str | None = "/account/1", **spec: str) -> AcmeAuthority:
    authority = Authority(
        "lab", f"{ca.url}/dir", contact=("mailto:a@example.org",), ca_file=str(ca.ca_file), **spec
    )
    uri = account and ca.url + account
    return AcmeAuthority(authority, account_key_pem=KEY, account_uri=uri, clock=lambda: NOW)


async def test_registering_twice_gives_the_same_account_and_names_the_key_instead_of_an_account(
    ca: OddAuthority,
) -> None:
    """NewAccount carries the public key, the contact and the agreement; repeating it is harmless."""
    acme = opened(ca, account=None)

    uris = [await acme.register(), await acme.register()]
    await acme.close()

    protected = ca.seen[-1][2]
    assert uris == [f"{ca.url}/account/1"] * 2
    assert ("jwk" in protected, "kid" in protected) == (True, False)
    assert ca.payload("/newAccount") == {"contact": ["mailto:a@example.org"], "termsOfServiceAgreed": True}


async def test_a_known_account_is_used_without_looking_it_up(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """At a later start the account's URL from the store is enough."""
    await acme.order(f"{ca.url}/order/1")

    assert ca.paths() == ["/order/1"]
    assert ca.seen[-1][2]["kid"] == f"{ca.url}/account/1"


async def test_an_account_that_is_no_longer_valid_is_refused(ca: OddAuthority) -> None:
    """A deactivated account cannot order; saying so at once beats a failure later."""
    acme = opened(ca, account=None)
    from aiohttp import web

    ca.twist = lambda _m, path: (
        web.json_response({"status": "deactivated"}, headers={"Location": f"{ca.url}/account/1"})
        if path == "/newAccount"
        else None
    )

    with pytest.raises(AuthorityRefused, match="is deactivated"):
        await acme.register()
    await acme.close()


async def test_a_new_order_names_what_the_request_names_and_asks_for_no_authorization(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """DNS names, wildcards and IP addresses come from the CSR; the order's URL is returned before anything else."""
    order = await acme.new_order(CSR, profile="classic", replaces="aki.serial")

    assert ca.payload("/newOrder") == {
        "identifiers": [
            {"type": "dns", "value": "a.example"},
            {"type": "dns", "value": "*.a.example"},
            {"type": "ip", "value": "192.0.2.7"},
            {"type": "ip", "value": "2001:db8::1"},
        ],
        "profile": "classic",
        "replaces": "aki.serial",
    }
    assert (order.url, order.status) == (f"{ca.url}/order/1", OrderStatus.PENDING)
    assert order.authorizations == (f"{ca.url}/authz/1",)
    assert order.expires == datetime(2026, 12, 1, tzinfo=UTC)
    assert ca.paths() == ["/newOrder"]


async def test_an_order_without_profile_and_predecessor_says_nothing_of_them(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """Authorities that know neither must not see the fields."""
    await acme.new_order(CSR)

    assert set(ca.payload("/newOrder")) == {"identifiers"}


async def test_the_profile_of_the_authority_is_used_when_the_order_names_none(ca: OddAuthority) -> None:
    """The config may set a profile once for all certificates of an authority."""
    acme = opened(ca, profile="classic")

    await acme.new_order(CSR)
    await acme.close()

    assert ca.payload("/newOrder")["profile"] == "classic"


async def test_a_profile_that_is_not_advertised_is_refused_before_anything_is_ordered(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """The error offers those that are."""
    with pytest.raises(AuthorityRefused) as caught:
        await acme.new_order(CSR, profile="gold")

    assert ca.paths() == []
    assert caught.value.type.endswith(":invalidProfile")
    assert caught.value.hint == "choose a profile of: classic"
    assert await acme.profiles() == {"classic"}


async def test_a_request_without_names_is_refused_here(acme: AcmeAuthority) -> None:
    """An order of nothing is a bug of ours, never sent."""
    with pytest.raises(RequestInvalid):
        await acme.new_order(pki.make_csr(pki.make_key(), []))


@pytest.mark.parametrize("status", [s.value for s in AuthorizationStatus])
async def test_an_authorization_may_have_any_status_of_the_rfc(
    ca: OddAuthority, acme: AcmeAuthority, status: str
) -> None:
    """`expired` raises in the acme library; here it is a fact like any other."""
    ca.authorization = {"status": status, "wildcard": True}

    seen = await acme.authorization(f"{ca.url}/authz/1")

    assert (seen.status, seen.wildcard) == (status, True)
    assert seen.identifier == Identifier("a.example")
    assert [(c.kind, c.token, c.status) for c in seen.challenges] == [
        ("http-01", TOKEN, ChallengeStatus.PENDING)
    ]


async def test_challenges_of_unknown_kinds_without_a_token_are_left_out(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """A new kind of challenge must not hide those that we know."""
    known = ca._authorization()["challenges"][0]
    ca.authorization = {"challenges": [{"type": "dns-persist-01", "url": "x", "status": "pending"}, known]}

    seen = await acme.authorization(f"{ca.url}/authz/1")

    assert [c.kind for c in seen.challenges] == ["http-01"]


async def test_a_failed_challenge_carries_its_problem_and_a_hint(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """What the validator saw is what the operator needs."""
    failed = ca._authorization()["challenges"][0] | {
        "status": "invalid",
        "error": {"type": "urn:ietf:params:acme:error:connection", "detail": "timeout\n\x1b[31m"},
    }
    ca.authorization = {"status": "invalid", "challenges": [failed]}

    found = (await acme.authorization(f"{ca.url}/authz/1")).challenges[0].problem

    assert found is not None
    assert (found.code, found.detail) == ("challenge.failed", "connection: timeout [31m")
    assert "/.well-known/acme-challenge/" in found.hint


async def test_a_challenge_is_answered_with_an_empty_object(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """RFC 8555 section 7.5.1: `{}`, while a look is an empty payload."""
    seen = await acme.answer(f"{ca.url}/chall/1")

    assert ca.payload("/chall/1") == {}
    assert (seen.url, seen.token) == (f"{ca.url}/chall/1", TOKEN)


async def test_finalize_sends_the_request_as_it_is_and_shows_the_order(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """The CSR's bytes are those that were made; the order keeps its URL."""
    ca.order = {"status": "valid", "certificate": f"{ca.url}/cert/1"}
    ca.headers = {"Retry-After": "3"}

    order = await acme.finalize(f"{ca.url}/finalize/1", CSR, order_url=f"{ca.url}/order/1")

    text = ca.payload("/finalize/1")["csr"]
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == CSR
    assert (order.url, order.certificate) == (f"{ca.url}/order/1", f"{ca.url}/cert/1")
    assert order.retry_after == timedelta(seconds=3)


async def test_an_order_that_failed_carries_its_problem(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """Also subproblems, each with its name."""
    ca.order = {
        "status": "invalid",
        "error": {
            "type": "urn:ietf:params:acme:error:compound",
            "subproblems": [
                {
                    "type": "urn:ietf:params:acme:error:caa",
                    "detail": "forbidden",
                    "identifier": {"type": "dns", "value": "a.example"},
                }
            ],
        },
    }

    order = await acme.order(f"{ca.url}/order/1")

    assert order.problem is not None
    assert order.problem.detail == "compound; a.example caa: forbidden"
    assert "CAA" in order.problem.hint


async def test_the_certificate_is_the_chain_as_it_came(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """PEM, leaf first, and asked for as such."""
    chain = await acme.certificate(f"{ca.url}/cert/1")

    assert chain == ca.chain
    assert ca.raw[-1].headers["Accept"] == "application/pem-certificate-chain"


async def test_a_key_authorization_is_token_and_thumbprint(acme: AcmeAuthority) -> None:
    """RFC 8555 section 8.1; a token that is none is refused."""
    token, _, thumbprint = acme.key_authorization(TOKEN).partition(".")

    assert (token, len(thumbprint)) == (TOKEN, 43)
    with pytest.raises(ValueError, match="token"):
        acme.key_authorization("../etc/passwd")


async def test_requests_say_who_we_are_and_share_one_connection(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """One TLS handshake serves exchange after exchange; nothing is decoded that could swell."""
    for _ in range(5):
        await acme.order(f"{ca.url}/order/1")

    assert ca.connections == 1
    assert ca.raw[-1].headers["User-Agent"] == f"certfan/{__version__}"
    assert ca.raw[-1].headers["Accept-Encoding"] == "identity"


async def test_the_authoritys_clock_is_known_after_the_first_answer(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """The Date header, as aware UTC."""
    before = acme.server_date
    ca.headers = {"Date": "Fri, 20 Nov 2026 12:00:00 GMT"}

    await acme.order(f"{ca.url}/order/1")

    assert (before, acme.server_date) == (None, NOW)


def test_an_account_key_must_be_one_that_authorities_take() -> None:
    """Garbage and Ed25519 are refused when the object is made, not when the first order fails."""
    spec = Authority("lab", "https://ca.example/dir")

    for bad in (b"garbage", pki.make_key("ed25519")):
        with pytest.raises(PairMismatch):
            AcmeAuthority(spec, account_key_pem=bad, account_uri=None, clock=lambda: NOW)


async def test_an_exchange_before_registering_is_a_bug(ca: OddAuthority) -> None:
    """No account, no order: the caller forgot a step."""
    acme = opened(ca, account=None)

    with pytest.raises(RuntimeError, match="register"):
        await acme.order(f"{ca.url}/order/1")
    await acme.close()


async def test_terms_that_changed_show_where_to_agree(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """The URL comes from the problem's instance."""
    ca.twist = lambda _m, path: (
        problem("userActionRequired", 403, instance="https://ca.example/terms")
        if path == "/newOrder"
        else None
    )

    with pytest.raises(AuthorityRefused) as caught:
        await acme.new_order(CSR)

    assert caught.value.hint == "open https://ca.example/terms"
