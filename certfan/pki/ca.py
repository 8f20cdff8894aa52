"""certfan's own CA: who may speak on the channel and who signs manifests. Never what a service serves."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from certfan.errors import ChainInvalid, PairMismatch, RequestInvalid, SignatureInvalid
from certfan.pki.chains import Leaf, is_issued_by, leaf_of, may_issue, read_chain
from certfan.pki.keys import (
    UNPARSABLE,
    PublicKey,
    load_key,
    make_key,
    public_bytes,
    read_csr,
    signing_hash,
)

# A DNS label that leaves room in a common name of 64 characters (X.520).
FLEET_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_CONSUMER_URI = re.compile(
    rf"certfan://(?P<fleet>{FLEET_NAME.pattern})/consumer/(?P<consumer>{_LABEL.pattern})"
)

CA_LIFETIME = timedelta(days=20 * 365)
SERVER_LIFETIME = timedelta(days=365)
CONSUMER_LIFETIME = timedelta(days=365)
# Re-made at half-life, so a bundle keeps verifying for at least a year: longer than any public certificate lives.
SIGNER_LIFETIME = timedelta(days=2 * 365)
_BACKDATED = timedelta(days=1)  # a consumer's clock may be behind ours


def daemon_name(fleet: str) -> str:
    """Return the DNS name that agents verify, whatever address they dial."""
    return f"daemon.{fleet}.certfan.internal"


@dataclass(frozen=True, slots=True)
class Issued:
    """A key that was made here and its certificate."""

    key_pem: bytes = field(repr=False)
    cert_pem: bytes
    leaf: Leaf = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class InternalCA:
    """The key and certificate of a fleet's CA; `fleet` comes from its common name."""

    key_pem: bytes = field(repr=False)
    cert_pem: bytes
    fleet: str = field(init=False)
    _certificate: x509.Certificate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the two belong together and are a CA of ours; raises PairMismatch, ChainInvalid."""
        chain = read_chain(self.cert_pem)
        certificate = chain[0]
        if public_bytes(load_key(self.key_pem).public_key()) != public_bytes(certificate.public_key()):
            raise PairMismatch("private key does not belong to the certificate of the internal CA")
        object.__setattr__(self, "_certificate", certificate)
        object.__setattr__(self, "fleet", fleet_of(self.cert_pem))

    @classmethod
    def create(cls, fleet: str, now: datetime, *, key_pem: bytes | None = None) -> InternalCA:
        """Make a new CA: P-256, 20 years, may sign end entities only.

        With the key of an earlier one, whatever pinned that still trusts what this one signs.
        """
        if not FLEET_NAME.fullmatch(fleet):
            raise ValueError(f"not the name of a fleet: {fleet}")
        key_pem = key_pem or make_key()
        key = load_key(key_pem)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"certfan {fleet}")])
        builder = (
            _builder(key.public_key(), now, CA_LIFETIME, critical_usage=_usage(ca=True))
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        )
        return cls(key_pem, builder.sign(key, signing_hash(key)).public_bytes(Encoding.PEM))

    def issue_server(self, now: datetime) -> Issued:
        """Make the daemon's pair for the channel: serverAuth only, one DNS name."""
        san = x509.DNSName(daemon_name(self.fleet))
        return self._make(make_key(), san, ExtendedKeyUsageOID.SERVER_AUTH, now, SERVER_LIFETIME)

    def issue_signer(self, now: datetime) -> Issued:
        """Make the pair that signs manifests: Ed25519, codeSigning only."""
        san = x509.UniformResourceIdentifier(f"certfan://{self.fleet}/signer")
        return self._make(make_key("ed25519"), san, ExtendedKeyUsageOID.CODE_SIGNING, now, SIGNER_LIFETIME)

    def issue_consumer(self, csr: bytes, consumer: str, now: datetime) -> tuple[bytes, Leaf]:
        """Return a consumer's certificate (PEM) for the key of a request; nothing else of the request counts.

        Raises:
            RequestInvalid: the request does not verify, or its key is neither P-256 nor Ed25519.
        """
        if not _LABEL.fullmatch(consumer):
            raise ValueError(f"not the name of a consumer: {consumer}")
        public = load_der_public_key(read_csr(csr).spki)
        p256 = isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
        if not p256 and not isinstance(public, ed25519.Ed25519PublicKey):
            raise RequestInvalid("key of a consumer must be P-256 or Ed25519")
        assert isinstance(public, PublicKey)
        san = x509.UniformResourceIdentifier(f"certfan://{self.fleet}/consumer/{consumer}")
        certificate = self._sign(public, san, ExtendedKeyUsageOID.CLIENT_AUTH, now, CONSUMER_LIFETIME)
        return certificate.public_bytes(Encoding.PEM), leaf_of(certificate)

    def _make(
        self,
        key_pem: bytes,
        san: x509.GeneralName,
        purpose: ObjectIdentifier,
        now: datetime,
        lifetime: timedelta,
    ) -> Issued:
        certificate = self._sign(load_key(key_pem).public_key(), san, purpose, now, lifetime)
        return Issued(key_pem, certificate.public_bytes(Encoding.PEM), leaf=leaf_of(certificate))

    def _sign(
        self,
        public: PublicKey,
        san: x509.GeneralName,
        purpose: ObjectIdentifier,
        now: datetime,
        lifetime: timedelta,
    ) -> x509.Certificate:
        key = load_key(self.key_pem)
        issuer = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            _builder(public, now, lifetime, critical_usage=_usage(ca=False))
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
            # Critical because the subject is empty (RFC 5280 section 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName([san]), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False
            )
        )
        return builder.sign(key, signing_hash(key))


def issued_at(leaf: Leaf) -> datetime:
    """Return when a certificate of an internal CA was issued, to the second."""
    return leaf.not_before + _BACKDATED


def verify_signer(cert_der: bytes, *, ca_pem: bytes, fleet: str, now: datetime) -> ed25519.Ed25519PublicKey:
    """Return the key that may sign this fleet's manifests, if the certificate shown says so.

    `ca_pem` is the pinned CA, or two while one is being rotated.

    Raises:
        SignatureInvalid: not signed by the CA, not a signer's certificate, another fleet's, or not valid now.
    """
    try:
        anchors = read_chain(ca_pem)
        certificate = x509.load_der_x509_certificate(cert_der)
        if not any(may_issue(anchor) and is_issued_by(certificate, anchor) for anchor in anchors):
            raise SignatureInvalid("certificate of the signer is not signed by the pinned CA")
        if not cert_der.endswith(b"\0" + certificate.signature):
            # The count of unused bits is not signed, and the library lets it be 1 (seen with 50.0).
            raise SignatureInvalid("certificate of the signer is not in its canonical form")
        _check_signer(certificate, fleet, now)
        public = certificate.public_key()
    except (ChainInvalid, x509.ExtensionNotFound, *UNPARSABLE) as error:
        raise SignatureInvalid("certificate of the signer, or the pinned CA, does not parse") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise SignatureInvalid("key of the signer is not an Ed25519 key")
    return public


def _check_signer(certificate: x509.Certificate, fleet: str, now: datetime) -> None:
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if list(purposes) != [ExtendedKeyUsageOID.CODE_SIGNING]:
        raise SignatureInvalid("certificate of the signer is for another purpose")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if list(names) != [x509.UniformResourceIdentifier(f"certfan://{fleet}/signer")]:
        raise SignatureInvalid(f"certificate of the signer is not one of fleet {fleet}", subject=fleet)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise SignatureInvalid(
            f"certificate of the signer is not valid at {now:%Y-%m-%dT%H:%M:%SZ}",
            subject=fleet,
            hint="compare the clocks of this machine and the daemon's",
        )


def fleet_of(ca_pem: bytes) -> str:
    """Return the fleet whose CA a certificate says it is; who it came from is the caller's to know.

    Raises:
        ChainInvalid: it is not the one certificate of an internal CA.
    """
    chain = read_chain(ca_pem)
    try:
        names = chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        word, _, fleet = str(names[0].value).partition(" ") if len(names) == 1 else ("", "", "")
    except UNPARSABLE as error:
        raise ChainInvalid("certificate of the internal CA does not parse") from error
    if len(chain) != 1 or word != "certfan" or not FLEET_NAME.fullmatch(fleet) or not may_issue(chain[0]):
        raise ChainInvalid("certificate is not that of an internal CA")
    return fleet


def consumer_of(cert_der: bytes) -> tuple[str, str, str]:
    """Return fleet, consumer and serial that a consumer's certificate names; TLS has verified it already.

    Raises:
        ChainInvalid: it is another kind of certificate.
    """
    certificate = read_chain(cert_der)[0]
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, *UNPARSABLE) as error:
        raise ChainInvalid("certificate is not a consumer's") from error
    found = _CONSUMER_URI.fullmatch(str(names[0].value)) if len(names) == 1 else None
    if not found or list(purposes) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise ChainInvalid("certificate is not a consumer's")
    return found["fleet"], found["consumer"], format(certificate.serial_number, "x")


def certified_key_hash(cert_der: bytes) -> str:
    """Return the SHA-256 of a certificate's SubjectPublicKeyInfo, hex; raises ChainInvalid."""
    return hashlib.sha256(public_bytes(read_chain(cert_der)[0].public_key())).hexdigest()


def _builder(
    public: PublicKey, now: datetime, lifetime: timedelta, *, critical_usage: x509.KeyUsage
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(critical_usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
