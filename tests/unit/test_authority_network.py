"""The nonce pool, the shape of an answer, and what we rely on of the acme library's private side."""

import hashlib
import inspect
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from acme.client import ClientNetwork
from acme.jws import JWS
from acme.messages import NewRegistration
from josepy.interfaces import JSONDeSerializable
from multidict import CIMultiDict, CIMultiDictProxy

from certfan import pki
from certfan.core.model import KeyType
from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.bodies import Body, signer_of
from certfan.daemon.authority.network import MOST_NONCES, LoopNetwork, NoncePool

NOW = datetime(2026, 11, 20, tzinfo=UTC)


FINGERPRINTS = {
    # of acme 5.9.0
    "_post_once": "1d5d01996c41",
    "_wrap_in_jws": "d504a21fc885",
    "_get_nonce": "be46a21a978d",
    "_add_nonce": "13dd89db26cb",
    "_check_response": "afaf0aad7b44",
    "_send_request": "80a50650b5d4",
    "post": "efa35c789c57",
    "__init__": "c062d4e5c1de",
    "head": "e2460a8de480",
}


def test_the_private_members_of_the_library_are_those_that_we_know() -> None:
    """Changed code here means: read it, mend LoopNetwork, then write down its new fingerprint."""
    found = {
        name: hashlib.sha256(inspect.getsource(getattr(ClientNetwork, name)).encode()).hexdigest()[:12]
        for name in FINGERPRINTS
    }

    assert found == FINGERPRINTS


def test_no_private_member_of_ours_hides_one_of_the_library_by_accident() -> None:
    """A new private name upstream must not collide with ours."""
    theirs = {name for name in dir(ClientNetwork) if name.startswith("_") and not name.startswith("__")}
    ours = {name for name in vars(LoopNetwork) if name.startswith("_") and not name.startswith("__")}

    assert ours & theirs == {"_send_request", "_add_nonce", "_get_nonce", "_check_response", "_wrap_in_jws"}


@pytest.mark.parametrize("account_uri", ["https://ca.example/account/1", None])
@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
@pytest.mark.parametrize("body", [None, Body({}), NewRegistration(only_return_existing=True)])
@pytest.mark.parametrize("url", ["https://ca.example/order", 'https://ca.example/"\\'])
def test_what_we_sign_is_what_the_library_would_sign(
    url: str, body: JSONDeSerializable | None, kind: str, account_uri: str | None
) -> None:
    """It verifies, and says the same under the signature: key or account, nonce, URL, algorithm and body."""
    signer = signer_of(pki.make_key(KeyType(kind)))
    network = LoopNetwork(signer.key, signer.alg, None, NoncePool(), account_uri)  # type: ignore[arg-type]
    nonce: Any = b"nonce"  # which the library decodes for itself

    ours = JWS.json_loads(network._wrap_in_jws(body, "bm9uY2U", url))
    theirs = JWS.json_loads(ClientNetwork._wrap_in_jws(network, body, nonce, url))  # type: ignore[arg-type]

    assert ours.verify(signer.key.public_key())
    assert ours.signature.combined == theirs.signature.combined
    assert json.loads(ours.payload or b"0") == json.loads(theirs.payload or b"0")


def test_the_newest_nonce_is_taken_first_and_only_once() -> None:
    """The refusal's own nonce is what the next try needs."""
    pool = NoncePool()
    for text in ("AAAA", "BBBB", "CCCC"):
        pool.keep(text, 0.0)

    assert [pool.take(1.0) for _ in range(4)] == ["CCCC", "BBBB", "AAAA", None]


def test_nonces_age() -> None:
    """After ten idle minutes none is tried; after a refusal none that idled for half a minute."""
    pool = NoncePool()
    pool.keep("AAAA", 0.0)
    pool.keep("BBBB", 590.0)
    pool.doubt(610.0)

    assert [pool.take(611.0), pool.take(611.0)] == ["BBBB", None]
    pool.keep("AAAA", 611.0)
    pool.doubt(650.0)
    assert pool.take(650.0) is None


@pytest.mark.parametrize("text", ["", "=", "A", "AAA=", "AA A", "AAB", "AB", "ä", "A" * 5, "AAAA\n"])
def test_a_nonce_that_would_not_be_sent_back_as_it_came_is_ignored(text: str) -> None:
    """Whoever decodes a nonce and encodes it again must get the same one."""
    pool = NoncePool()

    pool.keep(text, 0.0)

    assert pool.take(0.0) is None


def test_the_pool_is_bounded() -> None:
    """The oldest go first."""
    pool = NoncePool()
    for number in range(2 * MOST_NONCES):
        pool.keep(f"{number:04}", 0.0)

    taken = [pool.take(0.0) for _ in range(MOST_NONCES + 1)]
    assert taken[-1] is None
    assert None not in taken[:-1]


def answer(headers: list[tuple[str, str]]) -> Answer:
    return Answer(200, CIMultiDictProxy(CIMultiDict(headers)), b"", "https://ca.example/", NOW)


def test_every_link_of_an_answer_is_found_by_its_relation() -> None:
    """In one Link header or in several; quotes, commas and other parameters are read."""
    several = (
        '<https://ca.example/dir>;rel="index", <https://ca.example/a,b>; title="x, y"; rel="alternate up"'
    )
    found = answer([("Link", several), ("link", "<https://ca.example/2>;rel=alternate")])

    assert found.links("alternate") == ("https://ca.example/a,b", "https://ca.example/2")
    assert found.links("index") == ("https://ca.example/dir",)
    assert answer([]).links("index") == ()
