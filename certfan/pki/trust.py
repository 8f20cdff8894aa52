"""Which internal CAs a machine believes: one, or the one before and its successor while they change places."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certfan.errors import ChainInvalid, SignatureInvalid
from certfan.pki.ca import InternalCA, fleet_of
from certfan.pki.chains import is_issued_by, read_chain
from certfan.pki.keys import load_key

_DOMAIN = b"certfan trust v1\0"
MOST_ANCHORS = 2


def anchors(ca_pem: bytes) -> tuple[bytes, ...]:
    """Return each internal CA (PEM) that is pinned, the newest last.

    Raises:
        ChainInvalid: they are none, too many, or not of one fleet.
    """
    found = tuple(one.public_bytes(Encoding.PEM) for one in read_chain(ca_pem))
    if len(found) > MOST_ANCHORS or len({fleet_of(one) for one in found}) != 1:
        raise ChainInvalid("that is not one fleet's internal CA, or two of them")
    return found


def is_of(cert: bytes, ca_pem: bytes) -> bool:
    """Say whether a certificate (PEM or DER) was issued by an internal CA; its dates do not matter."""
    return is_issued_by(read_chain(cert)[0], read_chain(ca_pem)[0])


def sign_trust(ca: InternalCA, body: bytes) -> bytes:
    """Return a CA's own signature over what its machines are to believe (ECDSA, SHA-256)."""
    key = load_key(ca.key_pem)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.sign(_DOMAIN + body, ec.ECDSA(hashes.SHA256()))


def verify_trust(body: bytes, signature: bytes, *, ca_pem: bytes) -> None:
    """Check that a CA which is pinned has signed it.

    Raises:
        SignatureInvalid: none has.
    """
    if not any(_has_signed(one, body, signature) for one in read_chain(ca_pem)):
        raise SignatureInvalid("what is to be believed is not signed by a CA that is pinned here")


def _has_signed(anchor: x509.Certificate, body: bytes, signature: bytes) -> bool:
    public = anchor.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return False
    try:
        public.verify(signature, _DOMAIN + body, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
