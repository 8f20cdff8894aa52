"""What an authority says of a certificate once it is issued: other chains, when to renew, revoked; over real HTTPS."""

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme
from acme import jws
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from josepy import jwk

from certfan import pki
from certfan.core.model import Authority
from certfan.core.renewal import Window
from certfan.daemon.authority import AcmeAuthority, make_account_key
from certfan.errors import AuthorityMalformed, AuthorityRefused, AuthorityUnreachable
from tests.unit.odd_authority import OddAuthority, problem

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
KEY = make_account_key()
CERT_ID = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
WINDOW = {"start": "2026-12-01T02:00:00+02:00", "end": "2026-12-02T00:00:00.123456789Z"}
DER = pki.read_leaf(trustme.CA().issue_cert("a.example").cert_chain_pems[0].bytes()).der


@pytest.fixture
async def acme(ca: OddAuthority) -> AsyncIterator[AcmeAuthority]:
    authority = connected(ca, account=f"{ca.url}/account/1")
    yield authority
    await authority.close()


def connected(ca: OddAuthority, *, account: str | None = None, **spec: Any) -> AcmeAuthority:
    found = Authority("lab", f"{ca.url}/dir", ca_file=str(ca.ca_file), **spec)
    return AcmeAuthority(found, account_key_pem=KEY, account_uri=account, clock=lambda: NOW)


def named(subject: str, issuer: str) -> bytes:
    """One certificate with these common names."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (issuer, subject)]
    builder = x509.CertificateBuilder(*names, public_key=key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=9))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def chain(top: str, issuer: str) -> bytes:
    """A leaf and what it is issued by."""
    return named("leaf", top) + named(top, issuer)


CHAINS = {
    "/cert/1": chain("R10", "Root One"),
    "/cert/2": chain("R10", "Root Two"),
    "/cert/3": chain("Root Three", "Root Four"),
}


def offering(ca: OddAuthority, *alternates: str) -> None:
    """Let `/cert/1` name other chains beside it, each in a Link header of its own."""

    def twist(_method: str, path: str) -> web.Response | None:
        if path not in CHAINS:
            return None
        response = web.Response(body=CHAINS[path], content_type="application/pem-certificate-chain")
        response.headers.add("Link", f'<{ca.url}/dir>;rel="index"')
        for url in alternates:
            response.headers.add("Link", f'<{url}>;rel="alternate"')
        return response

    ca.twist = twist


# Chains


@pytest.mark.parametrize(
    ("issuer", "expected", "asked"),
    [
        (None, "/cert/1", 1),
        ("Root One", "/cert/1", 1),
        ("R10", "/cert/1", 1),
        ("Root Two", "/cert/2", 2),
        ("Root Three", "/cert/3", 3),
        ("Root Four", "/cert/3", 3),
        ("root two", "/cert/1", 3),
        ("leaf", "/cert/1", 3),
    ],
)
async def test_the_chain_that_ends_in_the_issuer_asked_for_is_chosen(
    ca: OddAuthority, acme: AcmeAuthority, issuer: str | None, expected: str, asked: int
) -> None:
    """Its top has that name or is issued by it; else the first one offered. No more is fetched than needed."""
    offering(ca, f"{ca.url}/cert/2", f"{ca.url}/cert/3")

    found = await acme.certificate(f"{ca.url}/cert/1", issuer=issuer)

    assert found == CHAINS[expected]
    assert len(ca.paths()) == asked


async def test_an_alternate_that_is_no_chain_keeps_nobody_from_the_others(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """A foreign host is never asked; HTML and a refusal count for nothing."""
    offering(ca, "https://evil.example/cert", f"{ca.url}/html", f"{ca.url}/gone", f"{ca.url}/cert/3")
    chains = ca.twist

    def twist(method: str, path: str) -> web.Response | None:
        if path == "/html":
            return web.Response(text="<html>", content_type="text/html")
        return problem("malformed", 404) if path == "/gone" else chains(method, path)

    ca.twist = twist

    assert await acme.certificate(f"{ca.url}/cert/1", issuer="Root Four") == CHAINS["/cert/3"]
    assert await acme.certificate(f"{ca.url}/cert/1", issuer="Nobody") == CHAINS["/cert/1"]


async def test_no_more_than_ten_alternates_are_looked_at(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """However many are offered."""
    offering(ca, *[f"{ca.url}/cert/2"] * 30)

    await acme.certificate(f"{ca.url}/cert/1", issuer="Nobody")

    assert len(ca.paths()) == 11


async def test_a_first_chain_that_is_none_is_malformed_whatever_is_beside_it(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """It is what the authority issued."""
    offering(ca, f"{ca.url}/cert/2")
    chains = ca.twist
    ca.twist = lambda m, path: web.Response(text="<html>") if path == "/cert/1" else chains(m, path)

    with pytest.raises(AuthorityMalformed, match="/cert/1: no PEM"):
        await acme.certificate(f"{ca.url}/cert/1", issuer="Root Two")


# When to renew


async def test_a_window_is_what_the_authority_suggests(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """A plain GET of directory and certID (RFC 9773 section 4.1), in UTC, with its reason and when to ask again."""
    ca.window = {"suggestedWindow": WINDOW, "explanationURL": "https://ca.example/why"}
    ca.headers = {"Retry-After": "21600"}

    found = await acme.renewal_info(CERT_ID)

    assert ca.paths("GET") == ["/dir", f"/renewalInfo/{CERT_ID}"]
    assert ca.paths() == []
    assert found == Window(
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2026, 12, 2, 0, 0, 0, 123456, tzinfo=UTC),
        explanation_url="https://ca.example/why",
        retry_after=timedelta(hours=6),
    )
    assert found.start.utcoffset() == timedelta(0)


async def test_a_window_needs_no_account(ca: OddAuthority) -> None:
    """Nothing is signed, so nobody has to be registered."""
    ca.window = {"suggestedWindow": WINDOW}
    acme = connected(ca)

    assert await acme.renewal_info(CERT_ID) is not None
    await acme.close()


async def test_an_authority_without_renewal_information_says_none(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """Its directory has none, so nothing is asked."""
    ca.names.discard("renewalInfo")

    assert await acme.renewal_info(CERT_ID) is None
    assert ca.paths("GET") == ["/dir"]


@pytest.mark.parametrize(
    "url",
    [
        "http://ca.example/",
        "javascript:x",
        "https://ca.example/" + "x" * 200,
        "https://ä.example/",
        "https:// x",
        7,
    ],
)
async def test_an_explanation_that_cannot_be_shown_is_left_out(
    ca: OddAuthority, acme: AcmeAuthority, url: object
) -> None:
    """The window is good all the same."""
    ca.window = {"suggestedWindow": WINDOW, "explanationURL": url}

    found = await acme.renewal_info(CERT_ID)

    assert found is not None
    assert found.explanation_url == ""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "the renewal information has no suggestedWindow"),
        ({"suggestedWindow": "soon"}, "suggestedWindow of the renewal information is wrong: 'soon'"),
        (
            {"suggestedWindow": {"end": WINDOW["end"]}},
            "suggestedWindow of the renewal information has no start",
        ),
        (
            {"suggestedWindow": WINDOW | {"end": None}},
            "end of suggestedWindow of the renewal .* is wrong: None",
        ),
        (
            {"suggestedWindow": WINDOW | {"end": "2026-12-02"}},
            "end of suggestedWindow .* is wrong: '2026-12-02'",
        ),
        ({"suggestedWindow": WINDOW | {"start": 7}}, "start of suggestedWindow .* is wrong: 7"),
        ({"suggestedWindow": WINDOW | {"start": "0001-01-01T00:00:00+14:00"}}, "start of .* is wrong"),
    ],
)
async def test_a_window_that_is_none_is_malformed(
    ca: OddAuthority, acme: AcmeAuthority, body: dict[str, Any], reason: str
) -> None:
    """Each with the exact reason."""
    ca.window = body

    with pytest.raises(AuthorityMalformed, match=reason):
        await acme.renewal_info(CERT_ID)


async def test_a_window_that_is_refused_is_a_refusal(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """With its Retry-After, like any other."""
    ca.twist = lambda m, path: (
        problem("malformed", 404, headers={"Retry-After": "60"}) if "/renewalInfo/" in path else None
    )

    with pytest.raises(AuthorityRefused, match="refused renewal information: malformed") as caught:
        await acme.renewal_info(CERT_ID)

    assert caught.value.not_before == NOW + timedelta(seconds=60)


@pytest.mark.parametrize("cert_id", ["", "a", "../x.y", "a.b/c", "a.b=", "a.b\n"])
async def test_a_cert_id_that_is_none_is_never_asked(
    ca: OddAuthority, acme: AcmeAuthority, cert_id: str
) -> None:
    """It becomes part of a URL."""
    with pytest.raises(ValueError, match="cert_id"):
        await acme.renewal_info(cert_id)

    assert ca.seen == []


async def test_renewal_information_of_a_foreign_host_is_malformed(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """Unless the config says that the host is the authority's."""
    other = OddAuthority(ca.ca_file.parent)
    other.ca = ca.ca
    ca.ca.cert_pem.write_to_path(ca.ca_file)
    await other.start()
    other.window = {"suggestedWindow": WINDOW}
    names = {n: f"{ca.url}/{n}" for n in ("newNonce", "newAccount", "newOrder")}
    names["renewalInfo"] = f"{other.url}/renewalInfo/"
    ca.twist = lambda _m, path: web.json_response(names) if path == "/dir" else None
    allowed = connected(ca, origins=(other.url,))

    with pytest.raises(
        AuthorityMalformed, match="renewalInfo of the directory is of another origin"
    ) as caught:
        await acme.renewal_info(CERT_ID)
    asked = list(other.seen)
    found = await allowed.renewal_info(CERT_ID)
    await allowed.close()
    await other.stop()

    assert caught.value.hint == (
        "if that host is its own too, add https://HOST[:PORT] to origins of authority lab"
    )
    assert asked == []
    assert found is not None
    assert other.paths("GET") == [f"/renewalInfo/{CERT_ID}"]


# Given up


async def test_a_revocation_is_signed_by_the_account(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """RFC 8555 section 7.6: the DER as base64url, and the reason."""
    await acme.revoke(DER, 4)

    text = ca.payload("/revokeCert")["certificate"]
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == DER
    assert ca.payload("/revokeCert")["reason"] == 4
    assert ca.seen[-1][2]["kid"] == f"{ca.url}/account/1"


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_a_revocation_may_be_signed_by_the_certificates_own_key(ca: OddAuthority, kind: str) -> None:
    """For whom has lost the account: no account is named, and none is needed."""
    acme = connected(ca)
    key = pki.make_key(kind)

    await acme.revoke(DER, 1, key_pem=key)
    await acme.close()

    public = jwk.JWK.load(key).public_key()
    assert ca.seen[-1][2]["jwk"] == public.to_json()
    assert "kid" not in ca.seen[-1][2]
    assert jws.JWS.from_json(await ca.raw[-1].json()).verify(public)


async def test_revoking_twice_is_no_error_and_any_other_refusal_is(
    ca: OddAuthority, acme: AcmeAuthority
) -> None:
    """A lost answer costs nothing."""
    ca.twist = lambda _m, path: problem("alreadyRevoked") if path == "/revokeCert" else None
    await acme.revoke(DER, 4)

    ca.twist = lambda _m, path: problem("badRevocationReason") if path == "/revokeCert" else None
    with pytest.raises(AuthorityRefused, match="refused a revocation: badRevocationReason"):
        await acme.revoke(DER, 99)


async def test_an_authorization_is_given_up(ca: OddAuthority, acme: AcmeAuthority) -> None:
    """RFC 8555 section 7.5.2."""
    await acme.deactivate(f"{ca.url}/authz/1")

    assert ca.payload("/authz/1") == {"status": "deactivated"}


async def test_an_allowed_origin_is_one_by_scheme_host_and_port(ca: OddAuthority) -> None:
    """Nothing near it is; the URL of an order may be there as well."""
    acme = connected(ca, account=f"{ca.url}/account/1", origins=("https://other.example:8443",))

    for near in (
        "https://other.example/o",
        "https://a.other.example:8443/o",
        "https://other.example:8443@x/o",
    ):
        with pytest.raises(AuthorityMalformed, match="another origin"):
            await acme.order(near)
    with pytest.raises(AuthorityMalformed, match="is not https"):
        await acme.order("http://other.example:8443/o")
    with pytest.raises(AuthorityUnreachable):
        await acme.order("https://other.example:8443/o")
    await acme.close()
