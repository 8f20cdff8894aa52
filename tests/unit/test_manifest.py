"""Bundles: what opens, and that nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme

from certfan import pki
from certfan.core.model import Custody
from certfan.errors import BundleInvalid, PairMismatch, SealInvalid, SignatureInvalid
from certfan.protocol.manifest import (
    MANIFEST,
    SIGNATURE,
    FileFact,
    files_of,
    open_bundle,
    pack,
    parse,
    seal,
    seal_key,
)

FILES = files_of(Custody.SHARE)
NOW = datetime.now(UTC).replace(microsecond=0)
CA = pki.InternalCA.create("home", NOW)
SIGNER = CA.issue_signer(NOW)
BOUND = {"fleet": "home", "consumer": "web1", "certificate": "www.example.org", "generation": 7}


def make_pair() -> pki.Pair:
    issued = trustme.CA().create_child_ca().issue_cert("www.example.org", "example.org")
    return pki.load_pair(
        issued.private_key_pem.bytes(), b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    )


PAIR = make_pair()


def packed(pair: pki.Pair = PAIR, signer: pki.Issued = SIGNER, **other: Any) -> dict[str, bytes]:
    return pack(
        pair,
        pair.key_pem,
        **(BOUND | other),
        custody=Custody.SHARE,
        signer_key_pem=signer.key_pem,
        signer_cert_pem=signer.cert_pem,
    )


GOOD = packed()


def opened(files: dict[str, bytes], **other: Any) -> Any:
    return open_bundle(files, **({"ca_pem": CA.cert_pem, "now": NOW} | BOUND | other))


def resigned(files: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    """Change the manifest and sign it again: what a daemon with a bug would send."""
    document = json.loads(files[MANIFEST])
    change(document)
    manifest = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return files | {MANIFEST: manifest, SIGNATURE: seal(manifest, SIGNER.key_pem, SIGNER.cert_pem)}


def test_a_bundle_opens_to_what_was_packed() -> None:
    """All six files come back, with the manifest's facts and a pair that matches."""
    bundle = opened(GOOD)

    assert set(bundle.files) == {*FILES, MANIFEST, SIGNATURE}
    assert bundle.pair() == PAIR
    assert bundle.manifest.identifiers == ("example.org", "www.example.org")
    assert bundle.manifest.fingerprint == PAIR.leaf.fingerprint
    assert bundle.manifest.files["cert.pem"] == FileFact.of(PAIR.cert_pem)


def test_packing_twice_gives_the_same_bytes() -> None:
    """A bundle that is complete on the share can be adopted by comparing bytes."""
    assert packed() == GOOD


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_no_byte_of_manifest_or_signature_can_be_altered(name: str) -> None:
    """Every single byte, each altered at either end: the bundle is refused."""
    accepted = []
    for place in range(len(GOOD[name])):
        for flip in (0x01, 0x80):
            altered = bytearray(GOOD[name])
            altered[place] ^= flip
            try:
                opened(GOOD | {name: bytes(altered)})
            except (SignatureInvalid, BundleInvalid):
                continue
            accepted.append((place, flip))

    assert accepted == []


@pytest.mark.parametrize("name", FILES)
def test_no_file_can_be_altered_cut_or_extended(name: str) -> None:
    """Size and hash of each file are signed."""
    data = GOOD[name]
    for altered in (data + b"\n", data[:-1], b"", data.replace(b"A", b"B", 1)):
        if altered != data:
            with pytest.raises(BundleInvalid, match=name):
                opened(GOOD | {name: altered})


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_manifest_and_signature_cannot_be_cut_or_extended(name: str) -> None:
    """`manifest.sig` holds the signature, the certificate, and nothing else."""
    for altered in (b"", GOOD[name][:-1], GOOD[name][:64], GOOD[name] + b"\0"):
        with pytest.raises((SignatureInvalid, BundleInvalid)):
            opened(GOOD | {name: altered})


@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
def test_a_missing_file_is_named(name: str) -> None:
    """An incomplete bundle says what it lacks."""
    with pytest.raises(BundleInvalid, match=f"lacks {name}"):
        opened({key: data for key, data in GOOD.items() if key != name})


def test_a_surplus_file_is_refused() -> None:
    """What is not signed is not installed, whatever its name."""
    with pytest.raises(BundleInvalid, match="file too many"):
        opened(GOOD | {"../../etc/passwd": b"x"})


@pytest.mark.parametrize(
    "other",
    [{"consumer": "mail1"}, {"certificate": "mail.example.org"}, {"generation": 8}, {"generation": 6}],
)
def test_a_bundle_for_something_else_is_refused(other: dict[str, Any]) -> None:
    """A validly signed bundle of another consumer, certificate or generation stays what it is."""
    with pytest.raises(BundleInvalid, match="bundle is"):
        opened(packed(**other))


def test_a_bundle_of_another_fleet_is_refused() -> None:
    """By its manifest when our own signer says so, by its signer when not."""
    away = pki.InternalCA.create("away", NOW, key_pem=CA.key_pem).issue_signer(NOW)

    with pytest.raises(BundleInvalid, match="fleet away"):
        opened(packed(fleet="away"))
    with pytest.raises(SignatureInvalid, match="not signed by the pinned CA"):
        opened(packed(signer=away))
    with pytest.raises(SignatureInvalid, match="not one of fleet away"):
        opened(GOOD, fleet="away")


def test_a_consumer_cannot_sign() -> None:
    """A consumer's own Ed25519 key and certificate, of the right CA, sign nothing."""
    key_pem = pki.make_key("ed25519")
    cert_pem, leaf = CA.issue_consumer(pki.make_csr(key_pem, []), "web1", NOW)

    with pytest.raises(SignatureInvalid, match="another purpose"):
        opened(packed(signer=pki.Issued(key_pem, cert_pem, leaf=leaf)))


def test_a_signer_of_another_ca_cannot_sign() -> None:
    """The pinned CA decides, not the name."""
    with pytest.raises(SignatureInvalid, match="not signed by the pinned CA"):
        opened(packed(signer=pki.InternalCA.create("home", NOW).issue_signer(NOW)))


def test_a_signers_certificate_does_not_lend_itself_to_another_key() -> None:
    """The certificate in manifest.sig must be that of the key that signed."""
    other = pki.Issued(pki.make_key("ed25519"), SIGNER.cert_pem, leaf=SIGNER.leaf)

    with pytest.raises(SignatureInvalid, match="does not verify"):
        opened(packed(signer=other))


def test_an_expired_signer_is_refused() -> None:
    """A signature counts while its signer does."""
    with pytest.raises(SignatureInvalid, match="not valid at"):
        opened(GOOD, now=NOW + timedelta(days=731))


def test_nothing_is_parsed_before_it_verifies() -> None:
    """A manifest that is not JSON at all is a signature problem, not a parser's."""
    with pytest.raises(SignatureInvalid):
        opened(GOOD | {MANIFEST: b"{" * 100_000})


def test_a_signed_pair_that_does_not_match_is_refused() -> None:
    """Signed or not: a key of another certificate is never installed."""
    mixed = replace(PAIR, key_pem=make_pair().key_pem)

    with pytest.raises(PairMismatch):
        opened(packed(mixed))


def test_files_that_contradict_each_other_are_refused() -> None:
    """cert.pem of one certificate beside the fullchain.pem of another is no bundle."""
    with pytest.raises(BundleInvalid, match="same chain"):
        opened(packed(replace(PAIR, cert_pem=make_pair().cert_pem)))


def test_a_manifest_that_names_another_leaf_is_refused() -> None:
    """Fingerprint and identifiers are those of the leaf in the bundle."""
    for other in (
        replace(PAIR, leaf=replace(PAIR.leaf, fingerprint="00" * 32)),
        replace(PAIR, leaf=replace(PAIR.leaf, names=("bank.example",))),
    ):
        with pytest.raises(BundleInvalid, match="another leaf"):
            opened(packed(other))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(surplus=1),
        lambda d: d.update(version=2),
        lambda d: d.update(generation=7.0),
        lambda d: d.update(generation=True),
        lambda d: d.update(generation="7"),
        lambda d: d.update(custody="none"),
        lambda d: d.update(certificate="../../etc"),
        lambda d: d.update(consumer="a/b"),
        lambda d: d.update(identifiers=["www.example.org", "example.org"]),
        lambda d: d.update(files=[]),
        lambda d: d["files"].pop("chain.pem"),
        lambda d: d["files"].update({"hook.sh": {"size": 0, "sha256": ""}}),
        lambda d: d["files"]["cert.pem"].update(mode=0o777),
        lambda d: d.pop("fleet"),
    ],
)
def test_a_signed_manifest_of_another_shape_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    """A daemon with a bug, or a newer one, is refused in our own words."""
    with pytest.raises(BundleInvalid):
        opened(resigned(GOOD, change))


@pytest.mark.parametrize(
    "spelling",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b'"generation":7', b'"generation": 7'),
        lambda data: data.replace(b'"generation":7', b'"generation":1,"generation":7'),
        lambda data: data.replace(b"home", rb"\u0068ome"),
        lambda data: b"[" * 100_000,
        lambda data: b"null",
        lambda data: b"",
        lambda data: b"\xff",
    ],
)
def test_a_manifest_has_one_spelling(spelling: Callable[[bytes], bytes]) -> None:
    """Two readers of the same bytes never see two manifests."""
    with pytest.raises(BundleInvalid):
        parse(spelling(GOOD[MANIFEST]))


def test_a_manifest_survives_its_own_spelling() -> None:
    """What is parsed encodes to the same bytes."""
    assert parse(GOOD[MANIFEST]).encode() == GOOD[MANIFEST]


# Sealed keys

SEALING = pki.make_sealing_key()


def sealed_bundle(**bound: Any) -> dict[str, bytes]:
    """A bundle whose key only the holder of SEALING can read; `bound` says for what it was sealed instead."""
    return holding(seal_key(PAIR.key_pem, pki.sealing_public(SEALING), **(BOUND | bound)))


def holding(sealed: bytes) -> dict[str, bytes]:
    """A signed bundle around whatever is in the sealed key's place."""
    return pack(
        PAIR,
        sealed,
        **BOUND,
        custody=Custody.SEALED,
        signer_key_pem=SIGNER.key_pem,
        signer_cert_pem=SIGNER.cert_pem,
    )


def test_a_sealed_bundle_holds_no_key_in_the_clear_and_opens_on_its_machine() -> None:
    """Verified by anybody, read by one."""
    files = sealed_bundle()
    bundle = opened(files)

    assert {*files_of(Custody.SEALED), MANIFEST, SIGNATURE} == set(files)
    assert all(b"PRIVATE KEY" not in data for data in files.values())
    assert PAIR == bundle.pair(SEALING)


def test_no_two_sealings_are_alike() -> None:
    """Which is why one is made, and kept, for share and channel."""
    assert sealed_bundle()["privkey.hpke"] != sealed_bundle()["privkey.hpke"]


@pytest.mark.parametrize(
    "bound", [{"fleet": "other"}, {"consumer": "web2"}, {"certificate": "other"}, {"generation": 8}]
)
def test_what_was_sealed_for_something_else_does_not_open(bound: dict[str, object]) -> None:
    """Not even when the manifest around it is signed: fleet, consumer, certificate and generation are sealed in."""
    bundle = opened(sealed_bundle(**bound))
    with pytest.raises(SealInvalid, match="does not open"):
        bundle.pair(SEALING)


@pytest.mark.parametrize("key", [pki.make_sealing_key(), PAIR.key_pem, b"garbage"])
def test_no_other_key_opens_it(key: bytes) -> None:
    """Another machine's, one of another kind, and what is none."""
    bundle = opened(sealed_bundle())
    with pytest.raises(SealInvalid):
        bundle.pair(key)


def test_a_machine_without_a_sealing_key_is_told_to_enrol() -> None:
    """It was enrolled by a release that knew none."""
    bundle = opened(sealed_bundle())
    with pytest.raises(SealInvalid, match="has no sealing key") as caught:
        bundle.pair()

    assert "enrol it again: certfan consumer add web1" == caught.value.hint


def test_every_byte_of_a_sealed_key_counts() -> None:
    """One that was altered and signed again by nobody but us could never have been; it does not open either."""
    sealed = seal_key(PAIR.key_pem, pki.sealing_public(SEALING), **BOUND)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(SealInvalid):
            opened(holding(bytes(altered))).pair(SEALING)


def test_another_key_that_was_sealed_does_not_pass_for_the_pairs() -> None:
    """Sealing says nothing about whether key and certificate match."""
    other = seal_key(pki.make_key(), pki.sealing_public(SEALING), **BOUND)
    with pytest.raises(PairMismatch):
        opened(holding(other)).pair(SEALING)


@pytest.mark.parametrize("surplus", ["privkey.pem", "privkey.hpke"])
def test_a_key_file_that_the_custody_does_not_have_is_one_too_many(surplus: str) -> None:
    """Neither a bare key beside a sealed one, nor the other way round."""
    custody = Custody.SEALED if surplus == "privkey.pem" else Custody.SHARE
    files = sealed_bundle() if custody is Custody.SEALED else GOOD
    with pytest.raises(BundleInvalid, match="a file too many"):
        opened(files | {surplus: b"x"})
