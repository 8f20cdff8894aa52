"""JSON Web Signatures as a server verifies them (RFC 8555 section 6.2), by `cryptography` alone.

It shares no code with the client's library, so that the two cannot be wrong together.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.lab.faulty.answers import refused

ALGORITHMS = ("ES256", "ES384", "EdDSA", "RS256")
_CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
_HASHES = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384()}
_REQUIRED = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n"), "OKP": ("crv", "kty", "x")}

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Jws:
    """A flattened JWS, taken apart and not verified yet."""

    protected: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The payload as a JSON object; raises Refused."""
        try:
            found = json.loads(self.payload)
        except ValueError:
            raise refused("malformed", detail="the payload is not JSON") from None
        if not isinstance(found, dict):
            raise refused("malformed", detail="the payload is no object")
        return found

    def verify(self, jwk: dict[str, Any]) -> None:
        """Raise Refused unless the key of `jwk` signed it."""
        if self.protected.get("alg") not in ALGORITHMS:
            raise refused("badSignatureAlgorithm", detail="unknown alg", algorithms=list(ALGORITHMS))
        try:
            _verify(self.protected["alg"], public_key(jwk), self.signature, self.signed)
        except InvalidSignature:
            raise refused("malformed", detail="the signature does not verify") from None

    def verify_mac(self, key: bytes) -> None:
        """Raise Refused unless the HMAC key of an external account signed it (section 7.3.4)."""
        right = hmac.digest(key, self.signed, "sha256")
        if self.protected.get("alg") != "HS256" or not hmac.compare_digest(right, self.signature):
            raise refused("unauthorized", 403, "the external account binding does not verify")


def read(body: bytes | dict[str, Any]) -> Jws:
    """Take a JWS apart; raises Refused."""
    try:
        parts = json.loads(body) if isinstance(body, bytes) else body
        if set(parts) != {"protected", "payload", "signature"}:
            raise ValueError("it is not the flattened serialization")
        protected = json.loads(decoded(parts["protected"]))
        signed = f"{parts['protected']}.{parts['payload']}".encode()
        return Jws(dict(protected), decoded(parts["payload"]), signed, decoded(parts["signature"]))
    except (ValueError, TypeError, KeyError) as why:
        raise refused("malformed", detail=f"no JWS: {why}") from None


def public_key(jwk: dict[str, Any]) -> PublicKey:
    """Return the key of a JWK; raises Refused."""
    try:
        match jwk["kty"]:
            case "EC":
                x, y = (int.from_bytes(decoded(jwk[name])) for name in "xy")
                return ec.EllipticCurvePublicNumbers(x, y, _CURVES[jwk["crv"]]).public_key()
            case "RSA":
                e, n = (int.from_bytes(decoded(jwk[name])) for name in "en")
                return rsa.RSAPublicNumbers(e, n).public_key()
            case "OKP" if jwk["crv"] == "Ed25519":
                return ed25519.Ed25519PublicKey.from_public_bytes(decoded(jwk["x"]))
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm) as why:
        raise refused("badPublicKey", detail=f"the key does not parse: {why}") from None
    raise refused("badPublicKey", detail="a key of an unknown kind")


def spki(key: CertificatePublicKeyTypes) -> bytes:
    """Return the SubjectPublicKeyInfo of a public key, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def thumbprint(jwk: dict[str, Any]) -> str:
    """Return the thumbprint of RFC 7638, base64url."""
    canonical = json.dumps({name: jwk[name] for name in _REQUIRED[jwk["kty"]]}, separators=(",", ":"))
    return encoded(hashlib.sha256(canonical.encode()).digest())


def encoded(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decoded(text: str) -> bytes:
    """Undo `encoded`; ValueError unless it is canonical."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encoded(data) != text:
        raise ValueError("not canonical base64url")
    return data


def _verify(alg: str, key: PublicKey, signature: bytes, signed: bytes) -> None:
    match key:
        case ec.EllipticCurvePublicKey() if alg in _HASHES and len(signature) == key.key_size // 4:
            half = len(signature) // 2
            r, s = int.from_bytes(signature[:half]), int.from_bytes(signature[half:])
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(_HASHES[alg]))
        case rsa.RSAPublicKey() if alg == "RS256":
            key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PublicKey() if alg == "EdDSA":
            key.verify(signature, signed)
        case _:
            raise InvalidSignature
