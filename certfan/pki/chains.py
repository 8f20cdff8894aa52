"""Certificates that are served: leaves, pairs, chains, placeholders."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certfan.errors import ChainInvalid, PairMismatch
from certfan.pki.keys import (
    UNPARSABLE,
    general_names,
    kind_of,
    load_key,
    make_key,
    normal_key,
    public_bytes,
    public_key_hash,
    signing_hash,
)

PLACEHOLDER_ORGANIZATION = "certfan placeholder"
PLACEHOLDER_LIFETIME = timedelta(days=30)

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
# RFC 8555 section 9.1: certificates and nothing else. The library would skip a block that was cut short.
_CHAIN = re.compile(rb"\s*(?:" + _BLOCK.pattern + rb"(?:\s+|\Z))+")


@dataclass(frozen=True, slots=True)
class Leaf:
    """What one end-entity certificate says; `names` are sorted, lower-case A-labels and IP addresses."""

    der: bytes = field(repr=False)
    fingerprint: str
    serial: str = field(kw_only=True)  # lower-case hex, no leading zeros
    names: tuple[str, ...] = field(kw_only=True)
    not_before: datetime = field(kw_only=True)
    not_after: datetime = field(kw_only=True)
    key_type: str = field(kw_only=True)
    issuer: str = field(kw_only=True)  # RFC 4514
    placeholder: bool = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Chain:
    """A leaf and what signed it, as PEM in one normal form; `chain_pem` may be empty."""

    cert_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    fullchain_pem: bytes = field(kw_only=True, repr=False)
    leaf: Leaf = field(kw_only=True)
    certificates: tuple[x509.Certificate, ...] = field(kw_only=True, repr=False)

    @property
    def key_hash(self) -> str:
        """The SHA-256 of the leaf's SubjectPublicKeyInfo, hex."""
        return hashlib.sha256(public_bytes(self.certificates[0].public_key())).hexdigest()

    def verify(self, *, now: datetime, roots_pem: bytes | None) -> None:
        """Check it as `verify_chain` does, its names apart; raises ChainInvalid."""
        _verify(self.certificates, now, roots_pem)


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and the chain that belongs to it, as PEM in one normal form; `chain_pem` may be empty."""

    key_pem: bytes = field(repr=False)
    cert_pem: bytes = field(repr=False)
    chain_pem: bytes = field(kw_only=True, repr=False)
    fullchain_pem: bytes = field(kw_only=True, repr=False)
    leaf: Leaf = field(kw_only=True)


@lru_cache(maxsize=16)  # a new chain is judged in three places, each of which reads it for itself
def read_chain(pem_or_der: bytes) -> tuple[x509.Certificate, ...]:
    """Parse one DER certificate or a PEM chain, leaf first.

    Raises:
        ChainInvalid: it is empty, truncated, garbage, or holds anything but certificates.
    """
    try:
        if not pem_or_der.lstrip().startswith(b"-----BEGIN"):
            return (x509.load_der_x509_certificate(pem_or_der),)
        if not _CHAIN.fullmatch(pem_or_der):
            raise ChainInvalid("chain is truncated or holds something else than certificates")
        return tuple(_parsed(block) for block in _BLOCK.findall(pem_or_der))
    except UNPARSABLE as error:
        raise ChainInvalid("certificate does not parse" if pem_or_der else "certificate is empty") from error


@lru_cache(maxsize=64)  # the chains of an authority end alike
def _parsed(block: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(block)


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names and IP addresses of a certificate, sorted; the common name counts for nothing."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    names = [name.lower() for name in san.get_values_for_type(x509.DNSName)]
    names += [str(address) for address in san.get_values_for_type(x509.IPAddress)]
    return tuple(sorted(names))


def leaf_of(certificate: x509.Certificate) -> Leaf:
    """Read every field now, so that none can raise later.

    Raises:
        ChainInvalid: a field does not parse.
    """
    try:
        der = certificate.public_bytes(Encoding.DER)
        organization = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return Leaf(
            der,
            hashlib.sha256(der).hexdigest(),
            serial=format(certificate.serial_number, "x"),
            names=names_of(certificate),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            key_type=kind_of(certificate.public_key()),
            issuer=certificate.issuer.rfc4514_string(),
            placeholder=[o.value for o in organization] == [PLACEHOLDER_ORGANIZATION]
            and certificate.issuer == certificate.subject,
        )
    except UNPARSABLE as error:
        raise ChainInvalid("a field of the certificate does not parse") from error


def read_leaf(pem_or_der: bytes) -> Leaf:
    """Read the first certificate of a chain, or the only one.

    Raises:
        ChainInvalid: see `read_chain`; the whole input is judged, not only its first certificate.
    """
    return leaf_of(read_chain(pem_or_der)[0])


def renewal_id(cert_pem: bytes) -> str | None:
    """Return what an authority calls a certificate when asked about its renewal (certID, RFC 9773 section 4.1).

    That of the first of a chain; None when it does not say which key has signed it.

    Raises:
        ChainInvalid: it does not parse.
    """
    certificate = read_chain(cert_pem)[0]
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return None
    except UNPARSABLE as error:
        raise ChainInvalid("a field of the certificate does not parse") from error
    if not found.key_identifier:
        return None
    serial = certificate.serial_number
    # The bytes of the DER: a leading 00 where the highest bit of a positive number is set.
    der = serial.to_bytes(serial.bit_length() // 8 + 1, signed=True)
    return f"{_base64url(found.key_identifier)}.{_base64url(der)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def top_names(chain_pem: bytes) -> frozenset[str]:
    """Return the common names of the last certificate of a chain and of its issuer.

    Raises:
        ChainInvalid: see `read_chain`.
    """
    top = read_chain(chain_pem)[-1]
    try:
        found = [*_common_names(top.subject), *_common_names(top.issuer)]
    except UNPARSABLE as error:
        raise ChainInvalid("a field of the certificate does not parse") from error
    return frozenset(str(name.value) for name in found)


def _common_names(name: x509.Name) -> list[x509.NameAttribute[str | bytes]]:
    return name.get_attributes_for_oid(NameOID.COMMON_NAME)


def load_chain(fullchain_pem: bytes) -> Chain:
    """Load a chain the way a server would.

    Raises:
        ChainInvalid: it is empty, truncated or garbage.
    """
    chain = read_chain(fullchain_pem)
    cert, *rest = (certificate.public_bytes(Encoding.PEM) for certificate in chain)
    above = b"".join(rest)
    return Chain(cert, above, fullchain_pem=cert + above, leaf=leaf_of(chain[0]), certificates=chain)


def load_pair(key_pem: bytes, fullchain_pem: bytes) -> Pair:
    """Load a key and its chain the way a server would, and match them.

    Raises:
        PairMismatch: the key does not parse, or the leaf is for another key.
        ChainInvalid: the chain is empty, truncated or garbage.
    """
    chain = load_chain(fullchain_pem)
    if public_key_hash(key_pem) != chain.key_hash:
        serial = chain.leaf.serial
        raise PairMismatch(f"private key does not belong to certificate {serial}", subject=serial)
    return Pair(
        key_pem,
        chain.cert_pem,
        chain_pem=chain.chain_pem,
        fullchain_pem=chain.fullchain_pem,
        leaf=chain.leaf,
    )


def load_foreign_pair(
    key_pem: bytes, fullchain_pem: bytes, *, now: datetime, roots_pem: bytes | None
) -> Pair:
    """Load a pair that another program got: in our form, and good for the names that it has.

    Raises:
        PairMismatch: the key does not parse, or the leaf is for another key.
        ChainInvalid: the chain is garbage, no name is in it, or `verify_chain` refuses it.
    """
    pair = load_pair(normal_key(key_pem), fullchain_pem)
    if not pair.leaf.names:
        raise ChainInvalid(f"certificate {pair.leaf.serial} is for no name", subject=pair.leaf.serial)
    verify_chain(pair.fullchain_pem, names=pair.leaf.names, now=now, roots_pem=roots_pem)
    return pair


def verify_chain(
    fullchain_pem: bytes, *, names: Collection[str], now: datetime, roots_pem: bytes | None
) -> Leaf:
    """Check that a chain is what was asked for: its names exactly, valid now, each signed by the next.

    With `roots_pem`, some certificate of the chain must be one of the roots or be signed by one; cheap to repeat
    with the same roots, however many.

    Raises:
        ChainInvalid: and says which of these does not hold.
    """
    chain = read_chain(fullchain_pem)
    leaf = leaf_of(chain[0])
    wanted = tuple(sorted(name.lower() for name in names))
    if leaf.names != wanted:
        raise ChainInvalid(
            f"certificate is for {', '.join(leaf.names) or 'no name'}, not {', '.join(wanted)}"
        )
    _verify(chain, now, roots_pem)
    return leaf


def _verify(chain: Sequence[x509.Certificate], now: datetime, roots_pem: bytes | None) -> None:
    for certificate in chain:
        _check_dates(certificate, now)
    for certificate, issuer in pairwise(chain):
        if not may_issue(issuer) or not is_issued_by(certificate, issuer):
            raise ChainInvalid(
                f"certificate {certificate.serial_number:x} is not signed by the next of its chain"
            )
    if roots_pem is not None:
        _check_anchor(chain, _by_subject(roots_pem))


def _check_dates(certificate: x509.Certificate, now: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise ChainInvalid(
            f"certificate {certificate.serial_number:x} is valid from {first:%Y-%m-%dT%H:%M:%SZ}"
            f" to {last:%Y-%m-%dT%H:%M:%SZ}, not at {now:%Y-%m-%dT%H:%M:%SZ}"
        )


def _check_anchor(
    chain: Sequence[x509.Certificate], roots: Mapping[x509.Name, Sequence[x509.Certificate]]
) -> None:
    for certificate in chain:
        if certificate in roots.get(certificate.subject, ()):
            return
        if any(_is_issued_by_root(certificate, root) for root in roots.get(certificate.issuer, ())):
            return
    raise ChainInvalid(f"chain of certificate {chain[0].serial_number:x} ends in none of the roots")


@lru_cache(maxsize=64)
def _is_issued_by_root(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    # A signature takes longer than all that is read of a chain. Kept by the exact bytes of both certificates; when they
    # are valid, and which root is trusted, is judged anew for every chain.
    return is_issued_by(certificate, root)


@lru_cache(maxsize=8)
def _by_subject(roots_pem: bytes) -> Mapping[x509.Name, Sequence[x509.Certificate]]:
    # A system has about 140 roots: parsed once a process for the same bytes, and only one or two are tried.
    found: dict[x509.Name, list[x509.Certificate]] = {}
    blocks = _BLOCK.findall(roots_pem) if b"-----BEGIN" in roots_pem else [roots_pem]
    if len(blocks) != max(roots_pem.count(b"-----BEGIN"), 1):
        raise ChainInvalid("roots are truncated or hold something else than certificates")
    for block in blocks:
        with warnings.catch_warnings():
            # Systems trust one or two roots that the library will not read for long (a serial of 0): left out.
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            with contextlib.suppress(ChainInvalid, *UNPARSABLE):
                root = read_chain(block)[0]
                found.setdefault(root.subject, []).append(root)
    if not found:
        raise ChainInvalid("none of the roots parses")
    return found


def may_issue(certificate: x509.Certificate) -> bool:
    """Say whether a certificate is a CA's."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *UNPARSABLE):
        return False


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether `issuer` is named as, and really is, the signer of `certificate`."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNPARSABLE):
        return False
    return True


def make_placeholder(names: Sequence[str], now: datetime) -> tuple[bytes, bytes]:
    """Return a self-signed pair (key PEM, certificate PEM) that lets a service start: 30 days, its own key."""
    key_pem = make_key()
    key = load_key(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, PLACEHOLDER_ORGANIZATION)])
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # consumers' clocks differ
        .not_valid_after(now + PLACEHOLDER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    if names:
        builder = builder.add_extension(general_names(names), critical=False)
    return key_pem, builder.sign(key, signing_hash(key)).public_bytes(Encoding.PEM)
