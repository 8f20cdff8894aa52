r"""The manifest of a bundle: what binds four files to one fleet, consumer, certificate and generation.

`manifest.sig` is 64 bytes of Ed25519 over `b"certfan manifest v1\0"` and the exact bytes of `manifest.json`,
followed by the signer's certificate as DER, and nothing else. Nothing is parsed before it verifies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from certfan import pki
from certfan.core.model import CERTIFICATE_NAME, CONSUMER_NAME, Custody
from certfan.errors import BundleInvalid, ChainInvalid, SignatureInvalid

FILES = ("privkey.pem", "cert.pem", "chain.pem", "fullchain.pem")
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
MAX_FILE = 1 << 20  # bytes; a chain is a few thousand

_DOMAIN = b"certfan manifest v1\0"
_SIGNATURE_SIZE = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileFact:
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileFact:
        """Measure a file."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is and for whom."""

    fleet: str
    consumer: str
    certificate: str = field(kw_only=True)
    generation: int = field(kw_only=True)
    custody: Custody = field(kw_only=True)
    identifiers: tuple[str, ...] = field(kw_only=True)  # sorted
    fingerprint: str = field(kw_only=True)
    files: Mapping[str, FileFact] = field(kw_only=True)

    def encode(self) -> bytes:
        """Return the one spelling of this manifest: JSON, ASCII, keys sorted, no spaces, one newline."""
        document = asdict(self) | {"version": 1}
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was verified: everything in it may be installed."""

    manifest: Manifest
    files: Mapping[str, bytes] = field(repr=False)  # all six
    pair: pki.Pair


def parse(data: bytes) -> Manifest:
    """Read a manifest; only its one spelling is accepted.

    Raises:
        BundleInvalid: it is anything else. Says nothing about who wrote it: see `open_bundle`.
    """
    try:
        manifest = _from(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleInvalid("manifest.json does not parse") from error
    if manifest.encode() != data:
        raise BundleInvalid("manifest.json is not in its canonical form")
    return manifest


def _from(document: dict[str, Any]) -> Manifest:
    manifest = Manifest(
        _is(document["fleet"], str),
        _is(document["consumer"], str),
        certificate=_is(document["certificate"], str),
        generation=_is(document["generation"], int),
        custody=Custody(document["custody"]),
        identifiers=tuple(_is(name, str) for name in _is(document["identifiers"], list)),
        fingerprint=_is(document["fingerprint"], str),
        files={
            name: FileFact(_is(fact["size"], int), _is(fact["sha256"], str))
            for name, fact in document["files"].items()
        },
    )
    if not CERTIFICATE_NAME.fullmatch(manifest.certificate) or not CONSUMER_NAME.fullmatch(manifest.consumer):
        raise ValueError("not a name")
    if manifest.generation < 1 or manifest.identifiers != tuple(sorted(manifest.identifiers)):
        raise ValueError("not a generation, or identifiers out of order")
    return manifest


def _is(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}")
    return value


def seal(manifest: bytes, signer_key_pem: bytes, signer_cert_pem: bytes) -> bytes:
    """Return the contents of `manifest.sig`."""
    return pki.sign(signer_key_pem, _DOMAIN + manifest) + pki.read_leaf(signer_cert_pem).der


def pack(
    pair: pki.Pair,
    *,
    fleet: str,
    consumer: str,
    certificate: str,
    generation: int,
    custody: Custody,
    signer_key_pem: bytes,
    signer_cert_pem: bytes,
) -> dict[str, bytes]:
    """Return all six files of a bundle. The same input gives the same bytes (Ed25519 throws no dice)."""
    files = dict(zip(FILES, (pair.key_pem, pair.cert_pem, pair.chain_pem, pair.fullchain_pem), strict=True))
    manifest = Manifest(
        fleet,
        consumer,
        certificate=certificate,
        generation=generation,
        custody=custody,
        identifiers=pair.leaf.names,
        fingerprint=pair.leaf.fingerprint,
        files={name: FileFact.of(data) for name, data in files.items()},
    ).encode()
    return files | {MANIFEST: manifest, SIGNATURE: seal(manifest, signer_key_pem, signer_cert_pem)}


def open_bundle(
    files: Mapping[str, bytes],
    *,
    ca_pem: bytes,
    fleet: str,
    consumer: str,
    certificate: str,
    generation: int,
    now: datetime,
) -> Bundle:
    """Verify a bundle down to the last byte: signature first, then what it is for, then each file and the pair.

    Raises:
        SignatureInvalid: not signed by a signer of this fleet's CA.
        BundleInvalid: a file is missing, surplus or altered, or the bundle is for something else.
        PairMismatch: the key does not belong to the certificate.
    """
    subject = f"{certificate}@{generation}"
    _check_set(files, (*FILES, MANIFEST, SIGNATURE), subject)
    _check_signature(files[MANIFEST], files[SIGNATURE], ca_pem, fleet, now)
    manifest = parse(files[MANIFEST])
    found = (manifest.fleet, manifest.consumer, manifest.certificate, manifest.generation)
    if found != (fleet, consumer, certificate, generation):
        raise BundleInvalid(
            f"bundle is {manifest.certificate}@{manifest.generation} for {manifest.consumer}"
            f" of fleet {manifest.fleet}, not {subject} for {consumer} of fleet {fleet}",
            subject=subject,
        )
    _check_files(manifest, files, subject)
    return Bundle(manifest, dict(files), _check_pair(manifest, files, subject))


def _check_set(found: Mapping[str, Any], wanted: tuple[str, ...], subject: str) -> None:
    if missing := sorted(set(wanted) - set(found)):
        raise BundleInvalid(f"bundle {subject} lacks {', '.join(missing)}", subject=subject)
    if surplus := sorted(set(found) - set(wanted)):
        raise BundleInvalid(f"bundle {subject} has a file too many: {surplus[0]!r}", subject=subject)


def _check_signature(manifest: bytes, signature: bytes, ca_pem: bytes, fleet: str, now: datetime) -> None:
    if len(signature) <= _SIGNATURE_SIZE:
        raise SignatureInvalid("manifest.sig is truncated")
    signer = pki.verify_signer(signature[_SIGNATURE_SIZE:], ca_pem=ca_pem, fleet=fleet, now=now)
    pki.verify(signer, signature[:_SIGNATURE_SIZE], _DOMAIN + manifest)


def _check_files(manifest: Manifest, files: Mapping[str, bytes], subject: str) -> None:
    _check_set(manifest.files, FILES, subject)
    for name, fact in manifest.files.items():
        if FileFact.of(files[name]) != fact:
            raise BundleInvalid(
                f"file {name} of bundle {subject} is not what the manifest says", subject=subject
            )


def _check_pair(manifest: Manifest, files: Mapping[str, bytes], subject: str) -> pki.Pair:
    try:
        pair = pki.load_pair(files["privkey.pem"], files["fullchain.pem"])
    except ChainInvalid as error:
        raise BundleInvalid(f"bundle {subject}: {error}", subject=subject) from error
    written = (files["cert.pem"], files["chain.pem"], files["fullchain.pem"])
    if written != (pair.cert_pem, pair.chain_pem, pair.fullchain_pem):
        raise BundleInvalid(f"files of bundle {subject} do not hold the same chain", subject=subject)
    if (pair.leaf.fingerprint, pair.leaf.names) != (manifest.fingerprint, manifest.identifiers):
        raise BundleInvalid(f"bundle {subject} holds another leaf than its manifest says", subject=subject)
    return pair
