"""The faulty authority's own keys: one intermediate under two roots, certificates for real requests, wrong ones too."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.lab.faulty.answers import refused
from tests.lab.faulty.faults import Misissue, html
from tests.lab.faulty.records import Issued, Name, Order, now
from tests.lab.faulty.signing import encoded, spki

ROOTS = ("Faulty Root X1", "Faulty Root X2")
BACKDATED = timedelta(hours=1)
DAY = timedelta(days=1)


class Issuer:
    """A root, an alternate root, and one intermediate that both have signed."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._foreign = ec.generate_private_key(ec.SECP256R1())
        made = [_root(name, self._key) for name in ROOTS]
        self.roots_pem = [_pem(root) for root, _ in made]
        self._intermediates_pem = [_pem(intermediate) for _, intermediate in made]
        self._intermediate = made[0][1]

    def issue(
        self, order: Order, csr: x509.CertificateSigningRequest, url: str, validity: timedelta,
        wrong: Misissue | None = None,
    ) -> Issued:  # fmt: skip
        """Issue for a request that was checked; `wrong` says how the result is not what was ordered."""
        key = csr.public_key() if wrong is not Misissue.OTHER_KEY else self._foreign.public_key()
        identifiers = [("dns", "other.example")] if wrong is Misissue.OTHER_NAMES else order.identifiers
        signer = self._foreign if wrong is Misissue.FOREIGN_ISSUER else self._key
        first = now() - BACKDATED
        if wrong is Misissue.EXPIRED:
            first -= validity
        elif wrong is Misissue.NOT_YET_VALID:
            first += DAY
        leaf = self._leaf(key, identifiers, signer, (first, first + validity))
        chains = [_pem(leaf) + above for above in self._intermediates_pem]
        number = leaf.serial_number
        return Issued(
            url=url,
            serial=format(number, "x"),
            cert_id=cert_id(leaf),
            key_hash=hashlib.sha256(spki(key)).hexdigest(),
            names=tuple(value for _, value in identifiers),
            account=order.account,
            order=order.url,
            certificate=leaf,
            chains=[_spoilt(chain, leaf, wrong) for chain in chains],
        )

    def _leaf(
        self, key: CertificatePublicKeyTypes, identifiers: Sequence[Name], signer: ec.EllipticCurvePrivateKey,
        dates: tuple[datetime, datetime],
    ) -> x509.Certificate:  # fmt: skip
        names = [
            x509.DNSName(value) if kind == "dns" else x509.IPAddress(ipaddress.ip_address(value))
            for kind, value in identifiers
        ]
        builder = (
            _builder(key, dates)
            .subject_name(x509.Name([]))
            .issuer_name(self._intermediate.subject)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_issued_by(self._key.public_key()), critical=False)
        )
        return builder.sign(signer, hashes.SHA256())


def load_request(der: bytes, names: Sequence[str]) -> x509.CertificateSigningRequest:
    """Return a request that is fit for an order; raises Refused with badCSR."""
    try:
        csr = x509.load_der_x509_csr(der)
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = csr.public_key()
        if not csr.is_signature_valid:
            raise InvalidSignature("its signature does not verify")
    except (ValueError, InvalidSignature, x509.ExtensionNotFound) as why:
        raise refused("badCSR", detail=f"no request: {why}") from None
    asked = [*san.get_values_for_type(x509.DNSName), *map(str, san.get_values_for_type(x509.IPAddress))]
    if sorted(asked) != sorted(names):
        raise refused("badCSR", detail="the names of the request are not those of the order")
    small = isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048
    if small or not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise refused("badPublicKey", detail="the key of the request is too small, or of an unknown kind")
    return csr


def cert_id(leaf: x509.Certificate) -> str:
    """Return what RFC 9773 section 4.1 names a certificate by."""
    keyid = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    number = leaf.serial_number
    # DER's INTEGER is signed, so a serial with its highest bit set has a leading 00.
    return f"{encoded(keyid or b'')}.{encoded(number.to_bytes(number.bit_length() // 8 + 1))}"


def _root(name: str, key: ec.EllipticCurvePrivateKey) -> tuple[x509.Certificate, x509.Certificate]:
    """Return a root and the intermediate of `key` as that root signs it."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    dates = (now() - DAY, now() + 3650 * DAY)
    subject = _named(name)
    root = (
        _builder(root_key.public_key(), dates)
        .subject_name(subject)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    intermediate = (
        _builder(key.public_key(), dates)
        .subject_name(_named("Faulty Intermediate F1"))
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_issued_by(root_key.public_key()), critical=False)
    )
    return root.sign(root_key, hashes.SHA256()), intermediate.sign(root_key, hashes.SHA256())


def _builder(key: CertificatePublicKeyTypes, dates: tuple[datetime, datetime]) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(dates[0])
        .not_valid_after(dates[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _issued_by(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _spoilt(chain: bytes, leaf: x509.Certificate, wrong: Misissue | None) -> bytes:
    match wrong:
        case Misissue.TRUNCATED:
            return chain[:-200]
        case Misissue.LEAF_ONLY:
            return _pem(leaf)
        case Misissue.HTML:
            return html().body
        case _:
            return chain
