r"""The manifest of a bundle: what binds its files to one fleet, consumer, certificate and generation.

`manifest.sig` is 64 bytes of Ed25519 over `b"certfan manifest v1\0"` and the exact bytes of `manifest.json`,
followed by the signer's certificate as DER, and nothing else. Nothing is parsed before it verifies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeVar

from certfan import pki
from certfan.core.model import CERTIFICATE_NAME, CONSUMER_NAME, Custody
from certfan.errors import BundleInvalid, ChainInvalid, SealInvalid, SignatureInvalid

PUBLIC_FILES = ("cert.pem", "chain.pem", "fullchain.pem")
# What carries the private key: itself, itself sealed to the consumer (pki.sealing), or nothing.
KEY_FILES: Mapping[Custody, tuple[str, ...]] = MappingProxyType(
    {Custody.SHARE: ("privkey.pem",), Custody.SEALED: ("privkey.hpke",), Custody.CONSUMER: ()}
)
KEY_FILE_NAMES = tuple(name for names in KEY_FILES.values() for name in names)
MANIFEST = "manifest.json"
SEALED_KEY, *_ = KEY_FILES[Custody.SEALED]
SIGNATURE = "manifest.sig"
ALWAYS_THERE = (*PUBLIC_FILES, MANIFEST, SIGNATURE)
MAX_FILE = 1 << 20  # bytes; a chain is a few thousand

_DOMAIN = b"certfan manifest v1\0"
_SEAL_DOMAIN = b"certfan sealed key v1"
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
    files: Mapping[str, bytes] = field(repr=False)  # all of them
    chain: pki.Chain

    def pair(self, sealing_key_pem: bytes | None = None) -> pki.Pair:
        """Return key and chain, matched; a sealed key is opened with the consumer's own sealing key (PEM).

        Raises:
            SealInvalid: it does not open, or there is no sealing key.
            PairMismatch: what was sealed is another key.
            BundleInvalid: the bundle carries no key.
        """
        return pki.load_pair(self._key(sealing_key_pem), self.chain.fullchain_pem)

    def _key(self, sealing_key_pem: bytes | None) -> bytes:
        subject = f"{self.manifest.certificate}@{self.manifest.generation}"
        match self.manifest.custody:
            case Custody.SHARE:
                return self.files["privkey.pem"]
            case Custody.SEALED if sealing_key_pem is not None:
                info = _seal_info(
                    self.manifest.fleet,
                    self.manifest.consumer,
                    self.manifest.certificate,
                    self.manifest.generation,
                )
                return pki.unseal(self.files["privkey.hpke"], sealing_key_pem, info=info)
            case Custody.SEALED:
                raise SealInvalid(
                    f"key of {subject} is sealed, and this machine has no sealing key",
                    subject=subject,
                    hint=f"enrol it again: certfan consumer add {self.manifest.consumer}",
                )
            case _:
                raise BundleInvalid(f"bundle {subject} carries no private key", subject=subject)


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


def files_of(custody: Custody) -> tuple[str, ...]:
    """Return the names of what a manifest vouches for."""
    return (*KEY_FILES[custody], *PUBLIC_FILES)


def bundle_of(files: Mapping[str, bytes]) -> str:
    """Return what tells bundles of one generation apart: 8 hex digits of the sealed key's SHA-256, "" where none is.

    Sealing throws dice, so another sealing, to whatever key, is another bundle.
    """
    sealed = files.get(SEALED_KEY)
    return hashlib.sha256(sealed).hexdigest()[:8] if sealed is not None else ""


def seal_key(
    key_pem: bytes, public: bytes, *, fleet: str, consumer: str, certificate: str, generation: int
) -> bytes:
    """Return what `privkey.hpke` holds: the key sealed to a consumer's sealing key, for this generation alone.

    Raises:
        SealInvalid: `public` is no sealing key.
    """
    return pki.seal(key_pem, public, info=_seal_info(fleet, consumer, certificate, generation))


def _seal_info(fleet: str, consumer: str, certificate: str, generation: int) -> bytes:
    # None of the names can hold a NUL.
    return b"\0".join([_SEAL_DOMAIN, *(str(x).encode() for x in (fleet, consumer, certificate, generation))])


def pack(
    chain: pki.Chain | pki.Pair,
    key: bytes | None,
    *,
    fleet: str,
    consumer: str,
    certificate: str,
    generation: int,
    custody: Custody,
    signer_key_pem: bytes,
    signer_cert_pem: bytes,
) -> dict[str, bytes]:
    """Return all files of a bundle; `key` is what the custody's key file holds, None where there is none.

    The same input gives the same bytes (Ed25519 throws no dice).
    """
    files = {name: key for name in KEY_FILES[custody] if key is not None}
    files |= dict(zip(PUBLIC_FILES, (chain.cert_pem, chain.chain_pem, chain.fullchain_pem), strict=True))
    manifest = Manifest(
        fleet,
        consumer,
        certificate=certificate,
        generation=generation,
        custody=custody,
        identifiers=chain.leaf.names,
        fingerprint=chain.leaf.fingerprint,
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
    """Verify a bundle down to the last byte: signature first, then what it is for, then each file, and a bare key.

    A sealed key is matched where it is opened: `Bundle.pair`.

    Raises:
        SignatureInvalid: not signed by a signer of this fleet's CA.
        BundleInvalid: a file is missing, surplus or altered, or the bundle is for something else.
        PairMismatch: the key does not belong to the certificate.
    """
    subject = f"{certificate}@{generation}"
    if missing := sorted({MANIFEST, SIGNATURE} - set(files)):
        raise BundleInvalid(f"bundle {subject} lacks {', '.join(missing)}", subject=subject)
    _check_signature(files[MANIFEST], files[SIGNATURE], ca_pem, fleet, now)
    manifest = parse(files[MANIFEST])
    found = (manifest.fleet, manifest.consumer, manifest.certificate, manifest.generation)
    if found != (fleet, consumer, certificate, generation):
        raise BundleInvalid(
            f"bundle is {manifest.certificate}@{manifest.generation} for {manifest.consumer}"
            f" of fleet {manifest.fleet}, not {subject} for {consumer} of fleet {fleet}",
            subject=subject,
        )
    _check_set(files, (*files_of(manifest.custody), MANIFEST, SIGNATURE), subject)
    _check_files(manifest, files, subject)
    bundle = Bundle(manifest, dict(files), _check_chain(manifest, files, subject))
    if manifest.custody is Custody.SHARE:
        bundle.pair()
    return bundle


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
    _check_set(manifest.files, files_of(manifest.custody), subject)
    for name, fact in manifest.files.items():
        if FileFact.of(files[name]) != fact:
            raise BundleInvalid(
                f"file {name} of bundle {subject} is not what the manifest says", subject=subject
            )


def _check_chain(manifest: Manifest, files: Mapping[str, bytes], subject: str) -> pki.Chain:
    try:
        chain = pki.load_chain(files["fullchain.pem"])
    except ChainInvalid as error:
        raise BundleInvalid(f"bundle {subject}: {error}", subject=subject) from error
    written = (files["cert.pem"], files["chain.pem"], files["fullchain.pem"])
    if written != (chain.cert_pem, chain.chain_pem, chain.fullchain_pem):
        raise BundleInvalid(f"files of bundle {subject} do not hold the same chain", subject=subject)
    if (chain.leaf.fingerprint, chain.leaf.names) != (manifest.fingerprint, manifest.identifiers):
        raise BundleInvalid(f"bundle {subject} holds another leaf than its manifest says", subject=subject)
    return chain
