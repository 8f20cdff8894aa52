"""An account at an authority over real HTTPS: found, bound to a customer, given other contacts and another key."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from acme import jws
from aiohttp import web
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from josepy import jwk

from certfan import pki
from certfan.core.model import Authority
from certfan.daemon.authority import AcmeAuthority, make_account_key
from certfan.errors import AuthorityMalformed, AuthorityRefused, ConfigInvalid, ConfigTooOpen, PairMismatch
from tests.unit.odd_authority import TOKEN, OddAuthority, problem

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
KEY = make_account_key()
MAC_KEY = b"\xfb\xef\xbe" + bytes(range(29))  # its base64url holds `-` and `_`
MAC_TEXT = base64.urlsafe_b64encode(MAC_KEY).rstrip(b"=")

Open = Callable[..., AcmeAuthority]


@pytest.fixture
async def at(ca: OddAuthority) -> AsyncIterator[Open]:
    opened = []

    def connect(*, account: str | None = None, **spec: Any) -> AcmeAuthority:
        authority = Authority("lab", f"{ca.url}/dir", ca_file=str(ca.ca_file), **spec)
        uri = account and ca.url + account
        opened.append(AcmeAuthority(authority, account_key_pem=KEY, account_uri=uri, clock=lambda: NOW))
        return opened[-1]

    yield connect
    for one in opened:
        await one.close()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "mac.key"
    path.touch(mode=0o600)
    path.write_bytes(MAC_TEXT + b"\n")
    return path


def public(key_pem: bytes) -> jwk.JWK:
    return jwk.JWKEC(key=load_pem_private_key(key_pem, None)).public_key()


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def test_an_account_is_found_by_its_key_alone_and_used_from_then_on(ca: OddAuthority, at: Open) -> None:
    """Nothing is agreed to and nothing made: onlyReturnExisting (RFC 8555 section 7.3.1)."""
    acme = at()

    found = await acme.find_account()
    await acme.order(f"{ca.url}/order/1")

    assert found == acme.account_uri == f"{ca.url}/account/1"
    assert ca.payload("/newAccount") == {"onlyReturnExisting": True}
    assert ca.seen[-1][2]["kid"] == found


async def test_a_key_without_an_account_has_none(ca: OddAuthority, at: Open) -> None:
    """That is an answer; any other refusal is still one."""
    acme = at()

    ca.twist = lambda _m, path: problem("accountDoesNotExist") if path == "/newAccount" else None
    assert await acme.find_account() is None
    assert acme.account_uri is None

    ca.twist = lambda _m, path: problem("unauthorized", 403) if path == "/newAccount" else None
    with pytest.raises(AuthorityRefused, match="refused to find an account: unauthorized"):
        await acme.find_account()


async def test_an_account_is_bound_to_a_customer_by_a_mac_over_its_public_key(
    ca: OddAuthority, at: Open, key_file: Path
) -> None:
    """RFC 8555 section 7.3.4: HS256, the customer's key identifier, the URL, no nonce, our JWK as the payload."""
    await at(eab_kid="kid-7", eab_key_file=str(key_file)).register()

    bound = ca.payload("/newAccount")["externalAccountBinding"]
    signed = f"{bound['protected']}.{bound['payload']}".encode()
    assert hmac.digest(MAC_KEY, signed, hashlib.sha256) == decoded(bound["signature"])
    assert json.loads(decoded(bound["protected"])) == {
        "alg": "HS256",
        "kid": "kid-7",
        "url": f"{ca.url}/newAccount",
    }
    assert json.loads(decoded(bound["payload"])) == public(KEY).to_json()


async def test_an_authority_for_customers_only_is_told_before_anything_is_sent(
    ca: OddAuthority, at: Open
) -> None:
    """The hint names what to set; with an unbound account of old nothing needs setting."""
    ca.meta = {"externalAccountRequired": True}
    acme = at()

    with pytest.raises(AuthorityRefused, match="external account binding") as caught:
        await acme.register()

    assert ca.paths() == []
    assert caught.value.type == "urn:ietf:params:acme:error:externalAccountRequired"
    assert caught.value.hint == "set eab_kid and eab_key_file of authority lab"
    assert await acme.find_account() == f"{ca.url}/account/1"


@pytest.mark.parametrize(
    "text", [b"", b"not base64url!" * 3, b"+/+/" * 8, b"abc", b"A" * 33, MAC_TEXT + b"\n" + MAC_TEXT]
)
async def test_a_mac_key_that_is_none_is_a_config_error_that_does_not_repeat_it(
    ca: OddAuthority, at: Open, key_file: Path, text: bytes
) -> None:
    """Empty, garbage, plain base64, too short, cut, two: told by the path of the key, never by what is in it."""
    key_file.write_bytes(text)

    with pytest.raises(ConfigInvalid, match=r"^authority.lab.eab_key_file: .*mac.key holds no ") as caught:
        await at(eab_kid="kid-7", eab_key_file=str(key_file)).register()

    told = caught.value.text + caught.value.hint
    assert not text or text.decode() not in told
    assert caught.value.__cause__ is None
    assert ca.paths() == []


async def test_a_mac_key_that_is_not_there_is_a_config_error(at: Open, tmp_path: Path) -> None:
    """Named by its key path, with the path of the file where there is one."""
    with pytest.raises(ConfigInvalid, match=r"^authority.lab.eab_key_file: .*none.key cannot be read: No "):
        await at(eab_kid="kid-7", eab_key_file=str(tmp_path / "none.key")).register()
    with pytest.raises(ConfigInvalid, match=r"^authority.lab.eab_key_file: is missing beside eab_kid"):
        await at(eab_kid="kid-7").register()


@pytest.mark.parametrize("mode", [0o640, 0o604])
async def test_a_mac_key_that_others_can_read_is_refused(
    ca: OddAuthority, at: Open, key_file: Path, mode: int
) -> None:
    """Whoever reads it can make accounts on our bill."""
    key_file.chmod(mode)

    with pytest.raises(ConfigTooOpen, match="holds a secret that others can read"):
        await at(eab_kid="kid-7", eab_key_file=str(key_file)).register()

    assert ca.paths() == []


@pytest.mark.parametrize("contact", [("mailto:a@example.org", "mailto:b@example.org"), ()])
async def test_an_account_gets_the_contacts_of_the_config(
    ca: OddAuthority, at: Open, contact: tuple[str, ...]
) -> None:
    """All of them and no others; none at all is said too (RFC 8555 section 7.3.2)."""
    await at(account="/account/1", contact=contact).update_contacts()

    assert ca.paths() == ["/account/1"]
    assert ca.payload("/account/1") == {"contact": list(contact)}


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_a_new_key_is_asked_for_by_both_keys_and_signs_from_then_on(
    ca: OddAuthority, at: Open, kind: str
) -> None:
    """RFC 8555 section 7.3.5: the inner JWS by the new key without a nonce, the outer one by the account."""
    acme = at(account="/account/1")
    new = pki.make_key(kind)

    await acme.change_key(new)
    changed, found, last = len(ca.raw) - 2, ca.seen[-1], len(ca.raw)
    inner = jws.JWS.from_json(ca.payload("/keyChange"))
    protected = json.loads(inner.signature.protected)
    await acme.order(f"{ca.url}/order/1")

    new_public = jwk.JWK.load(new).public_key()
    assert inner.verify(new_public)
    assert json.loads(inner.payload) == {"account": f"{ca.url}/account/1", "oldKey": public(KEY).to_json()}
    assert protected["url"] == f"{ca.url}/keyChange"
    assert protected["jwk"] == new_public.to_json()
    assert "nonce" not in protected
    outer = ca.seen[changed][2]
    assert (outer["kid"], outer["alg"]) == (f"{ca.url}/account/1", "ES256")
    assert jws.JWS.from_json(await ca.raw[changed].json()).verify(public(KEY))
    assert (found[1], found[2]["jwk"]) == ("/newAccount", new_public.to_json())
    assert jws.JWS.from_json(await ca.raw[last].json()).verify(new_public)
    assert acme.key_authorization(TOKEN) == f"{TOKEN}.{thumbprint(new_public)}"


def thumbprint(key: jwk.JWK) -> str:
    return base64.urlsafe_b64encode(key.thumbprint()).rstrip(b"=").decode()


async def test_a_new_key_that_is_refused_changes_nothing(ca: OddAuthority, at: Open) -> None:
    """The former one goes on signing."""
    acme = at(account="/account/1")
    ca.twist = lambda _m, path: problem("malformed", 409) if path == "/keyChange" else None

    with pytest.raises(AuthorityRefused, match="refused a change of the account's key"):
        await acme.change_key(pki.make_key())
    await acme.order(f"{ca.url}/order/1")

    assert jws.JWS.from_json(await ca.raw[-1].json()).verify(public(KEY))


@pytest.mark.parametrize("location", ["/account/2", None])
async def test_a_new_key_is_believed_only_when_it_opens_the_account(
    ca: OddAuthority, at: Open, location: str | None
) -> None:
    """Pebble answers 200 to a key that another account has; believing it would lock us out of ours."""
    acme = at(account="/account/1")

    def found() -> web.Response:
        if location is None:
            return problem("accountDoesNotExist")
        return web.json_response({"status": "valid"}, headers={"Location": ca.url + location})

    ca.twist = lambda _m, path: found() if path == "/newAccount" else None

    with pytest.raises(AuthorityRefused, match=r"account/2, not of|refused to find the account by its new"):
        await acme.change_key(pki.make_key())
    await acme.order(f"{ca.url}/order/1")

    assert jws.JWS.from_json(await ca.raw[-1].json()).verify(public(KEY))


async def test_a_new_key_that_no_authority_takes_is_never_sent(ca: OddAuthority, at: Open) -> None:
    """Nor is one sent to an authority that changes none."""
    acme = at(account="/account/1")

    with pytest.raises(PairMismatch):
        await acme.change_key(pki.make_key("ed25519"))
    ca.names.discard("keyChange")
    with pytest.raises(AuthorityMalformed, match="the directory has no keyChange"):
        await acme.change_key(pki.make_key())

    assert ca.paths() == []


async def test_before_registering_there_is_no_account_to_change(at: Open) -> None:
    """Contacts and keys belong to an account: asking without one is a bug."""
    acme = at()

    for wrong in (acme.update_contacts(), acme.change_key(pki.make_key())):
        with pytest.raises(RuntimeError, match="register"):
            await wrong
