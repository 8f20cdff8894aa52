"""The nonce pool, what is signed, and the shape of an answer."""

from datetime import UTC, datetime

import pytest
from acme.jws import JWS
from multidict import CIMultiDict

from certfan import pki
from certfan.core.model import KeyType
from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.bodies import signer_of
from certfan.daemon.authority.network import MOST_NONCES, Network, NoncePool

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize("account_uri", ["https://ca.example/account/1", None])
@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
@pytest.mark.parametrize("payload", [b"", b"{}", b'{"onlyReturnExisting": true}'])
@pytest.mark.parametrize("url", ["https://ca.example/order", 'https://ca.example/"\\u0022'])
def test_what_we_sign_is_what_the_library_would_sign(
    payload: bytes, kind: str, account_uri: str | None, url: str
) -> None:
    """It verifies, and says the same under the signature: key or account, nonce, URL, algorithm and body."""
    signer = signer_of(pki.make_key(KeyType(kind)))
    network = Network(signer, None, NoncePool(), account_uri)  # type: ignore[arg-type]

    ours = JWS.json_loads(network.signed(payload, b"bm9uY2U", url))
    theirs = JWS.sign(payload, signer.key, signer.alg, b"nonce", url, account_uri)

    assert ours.verify(signer.key.public_key())
    assert ours.signature.combined == theirs.signature.combined
    assert ours.payload == theirs.payload


def test_the_newest_nonce_is_taken_first_and_only_once() -> None:
    """The refusal's own nonce is what the next try needs."""
    pool = NoncePool()
    for text in ("AAAA", "BBBB", "CCCC"):
        pool.keep(text, 0.0)

    assert [pool.take(1.0) for _ in range(4)] == [b"CCCC", b"BBBB", b"AAAA", None]


def test_nonces_age() -> None:
    """After ten idle minutes none is tried; after a refusal none that idled for half a minute."""
    pool = NoncePool()
    pool.keep("AAAA", 0.0)
    pool.keep("BBBB", 590.0)
    pool.doubt(610.0)

    assert [pool.take(611.0), pool.take(611.0)] == [b"BBBB", None]
    pool.keep("AAAA", 611.0)
    pool.doubt(650.0)
    assert pool.take(650.0) is None


@pytest.mark.parametrize("text", ["", "=", "A", "AAA=", "AA A", "AAB", "ä", "A" * 5])
def test_a_nonce_that_would_not_be_sent_back_as_it_came_is_ignored(text: str) -> None:
    """Only canonical base64url survives decoding and encoding."""
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


def answer(**headers: str) -> Answer:
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return Answer(200, named, b"", "https://ca.example/", NOW)


def test_every_link_of_an_answer_is_found_by_its_relation() -> None:
    """The transport joins several Link headers into one; quotes, commas and other parameters are read."""
    joined = (
        '<https://ca.example/dir>;rel="index", <https://ca.example/a,b>; title="x, y"; rel="alternate up"'
    )
    found = answer(Link=joined + ", <https://ca.example/2>;rel=alternate")

    assert found.links("alternate") == ("https://ca.example/a,b", "https://ca.example/2")
    assert found.links("index") == ("https://ca.example/dir",)
    assert answer().links("index") == ()
