"""Private keys, certificate signing requests and bare signatures."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.utils import CryptographyDeprecationWarning

from certfan.errors import PairMismatch, RequestInvalid, SignatureInvalid

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

# What cryptography raises for bytes that are not what they should be; some of it only when a field is read.
UNPARSABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,  # what a later release will raise, where warnings are errors
)
_CURVES = {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384"}


def make_key(kind: str = "ecdsa-p256") -> bytes:
    """Return a new private key of a kind (`ecdsa-p256`, `ecdsa-p384`, `rsa-<bits>`, `ed25519`) as PKCS#8 PEM."""
    return _as_pem(_new_key(kind))


def _new_key(kind: str) -> PrivateKey:
    match kind:
        case "ecdsa-p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ecdsa-p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "rsa-2048" | "rsa-3072" | "rsa-4096":
            return rsa.generate_private_key(65537, int(kind.removeprefix("rsa-")))
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            raise ValueError(f"unknown kind of key: {kind}")


def _as_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def normal_key(key_pem: bytes) -> bytes:
    """Return a private key that another program wrote, in the one form of `make_key`; raises PairMismatch."""
    return _as_pem(load_key(key_pem))


def load_key(key_pem: bytes) -> PrivateKey:
    """Parse a private key.

    Raises:
        PairMismatch: it is garbage, empty, truncated, encrypted, or of a kind that no pair of ours has.
    """
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except UNPARSABLE as error:
        # The library's text may quote what it read; ours never does.
        raise PairMismatch("private key does not parse") from error
    if not isinstance(key, PrivateKey):
        raise PairMismatch(f"private key is of an unknown kind: {type(key).__name__}")
    return key


def kind_of(public: CertificatePublicKeyTypes) -> str:
    """Name a public key as `make_key` does; kinds that it does not make get a name too (`ecdsa-secp521r1`)."""
    match public:
        case ec.EllipticCurvePublicKey():
            return _CURVES.get(public.curve.name, f"ecdsa-{public.curve.name}")
        case rsa.RSAPublicKey():
            return f"rsa-{public.key_size}"
        case _:
            return type(public).__name__.removesuffix("PublicKey").lower().lstrip("_")


def key_type(key_pem: bytes) -> str:
    """Name a private key as `make_key` does; raises PairMismatch."""
    return kind_of(load_key(key_pem).public_key())


def public_bytes(public: CertificatePublicKeyTypes) -> bytes:
    """Return the SubjectPublicKeyInfo as DER."""
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_key_hash(key_pem: bytes) -> str:
    """Return the SHA-256 of a private key's SubjectPublicKeyInfo, hex; raises PairMismatch."""
    return hashlib.sha256(public_bytes(load_key(key_pem).public_key())).hexdigest()


def general_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    """Turn A-labels and IP addresses, in their order, into a subject alternative name."""
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


def signing_hash(key: PrivateKey) -> hashes.SHA256 | None:
    """Return what X.509 signatures of `key` hash with; Ed25519 does it by itself."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def make_csr(key_pem: bytes, names: Sequence[str]) -> bytes:
    """Return a request (DER) with an empty subject; without names it has no extension at all.

    Raises:
        PairMismatch: the key does not parse.
    """
    return _csr_by(load_key(key_pem), names)


def _csr_by(key: PrivateKey, names: Sequence[str]) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(general_names(names), critical=True)
    return builder.sign(key, signing_hash(key)).public_bytes(serialization.Encoding.DER)


def make_csr_pem(key_pem: bytes, names: Sequence[str] = ()) -> str:
    """Return a request as PEM; without names it proves to hold the key and nothing else; raises PairMismatch."""
    return csr_pem(make_csr(key_pem, names)).decode("ascii")


def csr_pem(der: bytes) -> bytes:
    """Return a request that was read as PEM."""
    return x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Request:
    """What a certificate signing request proves: its sender holds the key of `spki` (DER)."""

    spki: bytes
    spki_hash: str
    key_type: str


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """A request that asks for names and nothing else; `names` are sorted, lower-case A-labels and IP addresses."""

    der: bytes = field(repr=False)
    names: tuple[str, ...]
    key: Request


def make_server_csr(key_pem: bytes, names: Sequence[str]) -> ServerRequest:
    """Return a request of a key for A-labels and IP addresses, as `read_server_csr` would read it.

    Raises:
        PairMismatch: the key does not parse.
    """
    return _asked_by(load_key(key_pem), names)


def make_key_and_csr(kind: str, names: Sequence[str]) -> tuple[bytes, ServerRequest]:
    """Return a new private key as `make_key`, and its request as `make_server_csr`."""
    key = _new_key(kind)
    return _as_pem(key), _asked_by(key, names)


def _asked_by(key: PrivateKey, names: Sequence[str]) -> ServerRequest:
    return ServerRequest(_csr_by(key, names), tuple(sorted(names)), _request_of(key.public_key()))


def read_csr(pem_or_der: bytes) -> Request:
    """Parse a request and check that its own key signed it.

    Raises:
        RequestInvalid: it is garbage, empty, truncated, or signed by another key.
    """
    return _read_csr(pem_or_der)[1]


def read_server_csr(pem_or_der: bytes) -> ServerRequest:
    """Parse a request as `make_csr` writes it: an empty subject, names, and no word more.

    Raises:
        RequestInvalid: as `read_csr`, or it asks for anything else, or its key or hash is a weak one.
    """
    csr, key = _read_csr(pem_or_der)
    try:
        extensions = [*csr.extensions]
        attributes = [*csr.attributes]
        is_weak = not isinstance(csr.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)
        san = next((e.value for e in extensions if isinstance(e.value, x509.SubjectAlternativeName)), None)
        names = sorted(_name(one) for one in san or ())
        der = csr.public_bytes(serialization.Encoding.DER)
    except UNPARSABLE as error:
        raise RequestInvalid("certificate signing request does not parse") from error
    if san is None or len(extensions) != 1 or len(attributes) != 1 or len(csr.subject) != 0:
        raise RequestInvalid("certificate signing request asks for something else than names")
    if "" in names or len(set(names)) != len(names):
        raise RequestInvalid("certificate signing request holds a name that is none, or one twice")
    public = csr.public_key()
    if is_weak or (isinstance(public, rsa.RSAPublicKey) and public.public_numbers().e != 65537):
        raise RequestInvalid("certificate signing request has a weak key or hash")
    return ServerRequest(der, tuple(names), key)


def _name(general: x509.GeneralName) -> str:
    """Return a name as the config writes it, "" for a kind that no config holds."""
    match general:
        case x509.DNSName():
            return general.value.lower()
        case x509.IPAddress() if not hasattr(general.value, "netmask"):
            return str(general.value)
        case _:
            return ""


def _read_csr(pem_or_der: bytes) -> tuple[x509.CertificateSigningRequest, Request]:
    try:
        if pem_or_der.lstrip().startswith(b"-----BEGIN"):
            csr = x509.load_pem_x509_csr(pem_or_der)
        else:
            csr = x509.load_der_x509_csr(pem_or_der)
        public = csr.public_key()
        valid = csr.is_signature_valid
    except UNPARSABLE as error:
        raise RequestInvalid("certificate signing request does not parse") from error
    if not valid:
        raise RequestInvalid("certificate signing request is not signed by its own key")
    return csr, _request_of(public)


def _request_of(public: CertificatePublicKeyTypes) -> Request:
    spki = public_bytes(public)
    return Request(spki, hashlib.sha256(spki).hexdigest(), kind_of(public))


def sign(key_pem: bytes, data: bytes) -> bytes:
    """Return the 64 bytes of an Ed25519 signature over `data`; raises PairMismatch for any other key."""
    key = load_key(key_pem)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise PairMismatch("signing key is not an Ed25519 key")
    return key.sign(data)


def verify(public: ed25519.Ed25519PublicKey, signature: bytes, data: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        SignatureInvalid: it is not this key's signature over exactly `data`.
    """
    try:
        public.verify(signature, data)
    except InvalidSignature as error:
        raise SignatureInvalid("signature does not verify") from error
