"""Private keys on their way to one consumer, sealed with HPKE (RFC 9180): X25519, HKDF-SHA256, AES-128-GCM.

Base mode: whoever knows the public key can seal, so who sealed is for a signature to say. Public keys are the 32
bytes of RFC 7748, private keys PKCS#8 PEM.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke, serialization
from cryptography.hazmat.primitives.asymmetric import x25519

from certfan.errors import SealInvalid
from certfan.pki.keys import UNPARSABLE

SEALING_KEY_SIZE = 32  # bytes of a public key
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)


def make_sealing_key() -> bytes:
    """Return a new private key (PEM) that things can be sealed to."""
    return x25519.X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def sealing_public(key_pem: bytes) -> bytes:
    """Return the public key (32 bytes) of a private one; raises SealInvalid."""
    return _private(key_pem).public_key().public_bytes_raw()


def sealing_id(public: bytes) -> str:
    """Return what tells one public key from another in a folder's name: 8 hex digits."""
    return hashlib.sha256(public).hexdigest()[:8]


def seal(plain: bytes, public: bytes, *, info: bytes) -> bytes:
    """Seal to a public key; `info` must be the same at opening. No two results are alike.

    Raises:
        SealInvalid: it is no public key.
    """
    try:
        return _SUITE.encrypt(plain, x25519.X25519PublicKey.from_public_bytes(public), info)
    except UNPARSABLE as error:
        raise SealInvalid("sealing key is none") from error


def unseal(sealed: bytes, key_pem: bytes, *, info: bytes) -> bytes:
    """Open what was sealed to a private key's public one.

    Raises:
        SealInvalid: it was sealed to another key, for something else, or altered; or the key does not parse.
    """
    try:
        return _SUITE.decrypt(sealed, _private(key_pem), info)
    except (InvalidTag, *UNPARSABLE) as error:
        raise SealInvalid("sealed key does not open with this machine's sealing key") from error


def _private(key_pem: bytes) -> x25519.X25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except UNPARSABLE as error:
        raise SealInvalid("sealing key does not parse") from error
    if not isinstance(key, x25519.X25519PrivateKey):
        raise SealInvalid("sealing key is no X25519 key")
    return key
