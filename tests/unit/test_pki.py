"""Keys, chains, pairs and the internal CA, on real certificates."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from certfan import pki
from certfan.errors import ChainInvalid, PairMismatch, RequestInvalid, SignatureInvalid
from certfan.pki import chains

NOW = datetime.now(UTC).replace(microsecond=0)
AUTHORITY = trustme.CA().create_child_ca()


def issue(*names: str, not_after: datetime | None = None) -> tuple[bytes, bytes]:
    issued = AUTHORITY.issue_cert(*names, not_after=not_after)
    return (
        issued.private_key_pem.bytes(),
        b"".join(blob.bytes() for blob in issued.cert_chain_pems),
    )


KEY, CHAIN = issue("www.example.org", "mail.example.org", "192.0.2.1")


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048", "ed25519"])
def test_a_key_signs_its_own_request(kind: str) -> None:
    """A request made with a key names that kind of key and verifies."""
    key_pem = pki.make_key(kind)
    request = pki.read_csr(pki.make_csr(key_pem, ["a.example.org"]))

    assert (request.key_type, request.spki_hash) == (kind, pki.public_key_hash(key_pem))


@pytest.mark.parametrize("kind", ["ecdsa-p256", "rsa-2048"])
def test_a_request_says_the_same_when_it_is_made_as_when_it_is_read(kind: str) -> None:
    """Its names, sorted, and its key, be that new or not; nothing has to be parsed again to know them."""
    names = ["www.example.org", "a.example.org", "192.0.2.1"]
    key_pem, made = pki.make_key_and_csr(kind, names)
    again = pki.make_server_csr(key_pem, names)

    assert pki.read_server_csr(made.der) == made
    assert pki.read_server_csr(again.der) == again
    assert made.key == again.key


def test_a_request_carries_exactly_the_names_asked_for() -> None:
    """DNS names and addresses go into the SAN in their order, and the subject stays empty."""
    csr = x509.load_der_x509_csr(
        pki.make_csr(pki.make_key(), ["b.example.org", "*.a.example.org", "2001:db8::1"])
    )
    san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert san.get_values_for_type(x509.DNSName) == ["b.example.org", "*.a.example.org"]
    assert san.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("2001:db8::1")]
    assert len(csr.subject) == 0


@pytest.mark.parametrize("broken", [b"", b"garbage", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_a_broken_request_is_refused(broken: bytes) -> None:
    """Garbage, nothing and a cut request are ours to name, not the library's."""
    with pytest.raises(RequestInvalid):
        pki.read_csr(broken)


def test_a_request_signed_by_another_key_is_refused() -> None:
    """A request whose signature does not fit proves nothing about its key."""
    csr = bytearray(pki.make_csr(pki.make_key("ed25519"), []))
    csr[-1] ^= 1

    with pytest.raises(RequestInvalid, match="not signed by its own key"):
        pki.read_csr(bytes(csr))


def test_a_leaf_says_what_the_certificate_says() -> None:
    """Names are sorted, instants aware, and the same leaf is read from PEM and DER."""
    leaf = pki.read_leaf(CHAIN)
    certificate = x509.load_pem_x509_certificates(CHAIN)[0]

    assert leaf.names == ("192.0.2.1", "mail.example.org", "www.example.org")
    assert leaf.serial == format(certificate.serial_number, "x")
    assert leaf.not_after == certificate.not_valid_after_utc
    assert leaf == pki.read_leaf(leaf.der)
    assert not leaf.placeholder


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\n",
        b"garbage",
        CHAIN[:-200],
        CHAIN[:400],
        CHAIN + b"more",
        b"more" + CHAIN,
        CHAIN.replace(b"MII", b"MIA", 1),
    ],
    ids=["empty", "blank", "garbage", "second cut", "first cut", "tail", "head", "bad DER"],
)
def test_a_broken_chain_is_refused(broken: bytes) -> None:
    """No prefix, suffix or cut of a chain loads."""
    with pytest.raises(ChainInvalid):
        pki.load_pair(KEY, broken)


@pytest.mark.parametrize("cut", range(1, len(CHAIN) - 1, 37))
def test_a_truncated_chain_is_never_taken_for_a_shorter_one(cut: int) -> None:
    """Wherever the file ends, it is refused, except between two whole certificates."""
    whole = CHAIN[:cut].rstrip().endswith(b"-----END CERTIFICATE-----")
    if whole:
        assert pki.read_leaf(CHAIN[:cut]) == pki.read_leaf(CHAIN)
        return
    with pytest.raises(ChainInvalid):
        pki.load_pair(KEY, CHAIN[:cut])


@pytest.mark.parametrize(
    "key", [b"", b"garbage", KEY[:-60], pki.make_key()], ids=["empty", "garbage", "cut", "other"]
)
def test_a_key_that_does_not_belong_is_refused(key: bytes) -> None:
    """A server would die on such a pair; we say so first."""
    with pytest.raises(PairMismatch):
        pki.load_pair(key, CHAIN)


def test_a_pair_splits_into_the_four_files() -> None:
    """Leaf and chain together are the full chain, byte for byte."""
    pair = pki.load_pair(KEY, CHAIN.replace(b"\n", b"\r\n"))

    assert pair.cert_pem + pair.chain_pem == pair.fullchain_pem
    assert pair.cert_pem.count(b"BEGIN") == 1
    assert b"PRIVATE" not in repr(pair).encode()


def test_a_chain_verifies_up_to_its_root() -> None:
    """The names asked for, in any case and order, valid now, anchored."""
    leaf = pki.verify_chain(
        CHAIN, names=["WWW.example.org", "192.0.2.1", "mail.example.org"], now=NOW, roots_pem=chain_root()
    )

    assert leaf == pki.read_leaf(CHAIN)


def chain_root() -> bytes:
    """The last certificate of trustme's chain is signed by its root; the intermediate serves as an anchor."""
    return AUTHORITY.cert_pem.bytes()


@pytest.mark.parametrize(
    "names", [["www.example.org"], [], ["www.example.org", "mail.example.org", "192.0.2.1", "x.org"]]
)
def test_other_names_than_asked_for_are_refused(names: list[str]) -> None:
    """One name less or more is another certificate."""
    with pytest.raises(ChainInvalid, match="certificate is for"):
        pki.verify_chain(CHAIN, names=names, now=NOW, roots_pem=None)


@pytest.mark.parametrize("then", [NOW - timedelta(days=36500), datetime(9000, 1, 1, tzinfo=UTC)])
def test_a_chain_outside_its_dates_is_refused(then: datetime) -> None:
    """Not yet and not any more are both no."""
    with pytest.raises(ChainInvalid, match="is valid from"):
        pki.verify_chain(CHAIN, names=pki.read_leaf(CHAIN).names, now=then, roots_pem=None)


def test_a_chain_in_the_wrong_order_is_refused() -> None:
    """Each certificate must be signed by the next one."""
    first, *others = [
        c + b"-----END CERTIFICATE-----\n" for c in CHAIN.split(b"-----END CERTIFICATE-----\n")[:-1]
    ]
    stranger = trustme.CA().cert_pem.bytes()

    assert others
    with pytest.raises(ChainInvalid, match="not signed by the next"):
        pki.verify_chain(first + stranger, names=pki.read_leaf(CHAIN).names, now=NOW, roots_pem=None)


def test_a_leaf_is_no_issuer() -> None:
    """A chain in which an end entity has signed is refused, however well the signature verifies."""
    _, cert_pem = pki.make_placeholder(["a.example.org"], NOW)

    with pytest.raises(ChainInvalid, match="not signed by the next"):
        pki.verify_chain(cert_pem + cert_pem, names=["a.example.org"], now=NOW, roots_pem=None)


def test_a_chain_of_another_root_is_refused() -> None:
    """Only the pinned roots count."""
    with pytest.raises(ChainInvalid, match="none of the roots"):
        pki.verify_chain(
            CHAIN, names=pki.read_leaf(CHAIN).names, now=NOW, roots_pem=trustme.CA().cert_pem.bytes()
        )


def test_a_chain_is_anchored_by_one_root_of_many_that_are_read_once() -> None:
    """A hundred strangers beside it, one of them of the same name, text between them; nothing is parsed again."""
    root = trustme.CA()
    issued = root.issue_cert("a.example.org")
    twin = trustme.CA().cert_pem.bytes()
    strangers = b"# a comment\n".join(trustme.CA().cert_pem.bytes() for _ in range(20))
    roots = b"# roots of this machine\n" + twin + strangers + root.cert_pem.bytes()
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    before = chains._by_subject.cache_info()

    for _ in range(3):
        pki.verify_chain(chain, names=["a.example.org"], now=NOW, roots_pem=bytes(bytearray(roots)))

    after = chains._by_subject.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


def test_what_was_found_of_an_intermediate_holds_for_its_own_root_and_while_it_is_valid() -> None:
    """A root of the same name and another key anchors nothing after the right one did, and dates are judged each time."""
    root, twin = (trustme.CA(organization_name="Example", organization_unit_name="Root") for _ in range(2))
    late = datetime(4000, 1, 1, tzinfo=UTC)
    issued = root.create_child_ca().issue_cert("a.example.org", not_after=late)
    chain = pki.load_chain(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    chain.verify(now=NOW, roots_pem=root.cert_pem.bytes())

    with pytest.raises(ChainInvalid, match="none of the roots"):
        chain.verify(now=NOW, roots_pem=twin.cert_pem.bytes())
    with pytest.raises(ChainInvalid, match=f"{chain.certificates[1].serial_number:x} is valid from"):
        chain.verify(now=late, roots_pem=root.cert_pem.bytes())


def test_a_root_that_the_library_will_not_read_keeps_nobody_from_the_others() -> None:
    """Systems trust roots with a serial of 0; alone it is no root at all."""
    broken = chain_root().replace(b"MII", b"MIA", 1)

    pki.verify_chain(CHAIN, names=pki.read_leaf(CHAIN).names, now=NOW, roots_pem=broken + chain_root())
    with pytest.raises(ChainInvalid, match="none of the roots parses"):
        pki.verify_chain(CHAIN, names=pki.read_leaf(CHAIN).names, now=NOW, roots_pem=broken)


@pytest.mark.parametrize("roots", [b"", b"garbage", chain_root()[:-40], chain_root() + KEY])
def test_roots_that_are_no_certificates_anchor_nothing(roots: bytes) -> None:
    """Cut, empty, or with a key among them: the file is not what the admin meant."""
    with pytest.raises(ChainInvalid, match="root"):
        pki.verify_chain(CHAIN, names=pki.read_leaf(CHAIN).names, now=NOW, roots_pem=roots)


# RFC 9773, appendix A: its serial has the highest bit set.
RFC_9773 = b"""-----BEGIN CERTIFICATE-----
MIIBQzCB66ADAgECAgUAh2VDITAKBggqhkjOPQQDAjAVMRMwEQYDVQQDEwpFeGFt
cGxlIENBMCIYDzAwMDEwMTAxMDAwMDAwWhgPMDAwMTAxMDEwMDAwMDBaMBYxFDAS
BgNVBAMTC2V4YW1wbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEeBZu
7cbpAYNXZLbbh8rNIzuOoqOOtmxA1v7cRm//AwyMwWxyHz4zfwmBhcSrf47NUAFf
qzLQ2PPQxdTXREYEnKMjMCEwHwYDVR0jBBgwFoAUaYhba4dGQEHhs3uEe6CuLN4B
yNQwCgYIKoZIzj0EAwIDRwAwRAIge09+S5TZAlw5tgtiVvuERV6cT4mfutXIlwTb
+FYN/8oCIClDsqBklhB9KAelFiYt9+6FDj3z4KGVelYM5MdsO3pK
-----END CERTIFICATE-----
"""


def test_the_renewal_id_of_the_rfcs_own_certificate() -> None:
    """A leading 00 of the serial's DER belongs to it; nothing is padded."""
    assert pki.renewal_id(RFC_9773) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


def test_a_renewal_id_is_that_of_the_leaf_and_needs_the_key_that_signed_it() -> None:
    """The chain behind it counts for nothing; a self-signed placeholder has none."""
    _, placeholder = pki.make_placeholder(["a.example.org"], NOW)

    assert pki.renewal_id(RFC_9773 + CHAIN) == pki.renewal_id(RFC_9773)
    assert pki.renewal_id(placeholder) is None
    with pytest.raises(ChainInvalid):
        pki.renewal_id(b"garbage")


def test_a_placeholder_is_a_loadable_pair_that_says_what_it_is() -> None:
    """It loads like any pair, lives 30 days, and nobody takes it for a generation."""
    pair = pki.load_pair(*pki.make_placeholder(["a.example.org", "2001:db8::1"], NOW))

    assert pair.leaf.placeholder
    assert pair.leaf.names == ("2001:db8::1", "a.example.org")
    assert pair.leaf.not_after == NOW + timedelta(days=30)


CA = pki.InternalCA.create("home", NOW)


def purposes(cert_pem: bytes) -> list[x509.ObjectIdentifier]:
    certificate = x509.load_pem_x509_certificate(cert_pem)
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_each_certificate_of_the_internal_ca_has_one_purpose() -> None:
    """Consumer, daemon and signer cannot stand in for each other."""
    consumer, _ = CA.issue_consumer(pki.make_csr(pki.make_key(), []), "web1", NOW)

    assert purposes(consumer) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert purposes(CA.issue_server(NOW).cert_pem) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert purposes(CA.issue_signer(NOW).cert_pem) == [ExtendedKeyUsageOID.CODE_SIGNING]


def test_a_consumer_certificate_names_the_consumer_and_no_host() -> None:
    """The identity is a URI; a request's own names count for nothing; backdated a day, valid a year."""
    cert_pem, leaf = CA.issue_consumer(pki.make_csr(pki.make_key(), ["bank.example"]), "web1", NOW)

    assert pki.consumer_of(leaf.der) == ("home", "web1", leaf.serial)
    assert leaf.names == ()
    assert (leaf.not_before, leaf.not_after) == (NOW - timedelta(days=1), NOW + timedelta(days=365))
    pki.verify_chain(cert_pem, names=(), now=NOW, roots_pem=CA.cert_pem)


@pytest.mark.parametrize("kind", ["rsa-2048", "ecdsa-p384"])
def test_a_consumer_with_another_kind_of_key_is_refused(kind: str) -> None:
    """P-256 or Ed25519 and nothing else."""
    with pytest.raises(RequestInvalid, match="P-256 or Ed25519"):
        CA.issue_consumer(pki.make_csr(pki.make_key(kind), []), "web1", NOW)


@pytest.mark.parametrize("which", ["server", "signer", "ca"])
def test_no_other_certificate_passes_for_a_consumer(which: str) -> None:
    """Only what says it is a consumer's is one."""
    shown = {
        "server": CA.issue_server(NOW).cert_pem,
        "signer": CA.issue_signer(NOW).cert_pem,
        "ca": CA.cert_pem,
    }

    with pytest.raises(ChainInvalid):
        pki.consumer_of(pki.read_leaf(shown[which]).der)


def test_the_ca_signs_end_entities_only() -> None:
    """Path length 0, critical, 20 years, and the fleet in its name."""
    certificate = x509.load_pem_x509_certificate(CA.cert_pem)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)

    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert certificate.subject.rfc4514_string() == "CN=certfan home"
    assert pki.fleet_of(CA.cert_pem) == "home"


def test_a_ca_whose_key_is_another_does_not_load() -> None:
    """Two files that do not belong together are noticed when they are opened."""
    with pytest.raises(PairMismatch):
        pki.InternalCA(pki.make_key(), CA.cert_pem)


@pytest.mark.parametrize("which", ["server", "consumer", "other fleet", "other ca", "ca", "garbage", "empty"])
def test_only_a_signer_of_this_fleet_may_sign(which: str) -> None:
    """Every other certificate, and none at all, is refused as a signer."""
    consumer, _ = CA.issue_consumer(pki.make_csr(pki.make_key("ed25519"), []), "web1", NOW)
    shown = {
        "server": pki.read_leaf(CA.issue_server(NOW).cert_pem).der,
        "consumer": pki.read_leaf(consumer).der,
        "other fleet": pki.InternalCA.create("away", NOW, key_pem=CA.key_pem).issue_signer(NOW).leaf.der,
        "other ca": pki.InternalCA.create("home", NOW).issue_signer(NOW).leaf.der,
        "ca": pki.read_leaf(CA.cert_pem).der,
        "garbage": b"garbage",
        "empty": b"",
    }

    with pytest.raises(SignatureInvalid):
        pki.verify_signer(shown[which], ca_pem=CA.cert_pem, fleet="home", now=NOW)


def test_a_signer_counts_between_its_dates_and_under_either_ca_of_a_rotation() -> None:
    """Two pinned CAs overlap while one is being rotated."""
    signer = CA.issue_signer(NOW)
    both = pki.InternalCA.create("home", NOW).cert_pem + CA.cert_pem

    pki.verify_signer(signer.leaf.der, ca_pem=both, fleet="home", now=NOW)
    with pytest.raises(SignatureInvalid, match="not valid at"):
        pki.verify_signer(signer.leaf.der, ca_pem=both, fleet="home", now=NOW + timedelta(days=800))
