"""Consumer custody at the daemon, rule by rule: what is asked of whom, which CSR is taken, what is ordered with it."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import AttributeOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from certfan import pki
from certfan.core.custody import SigningRequest, fits, lost_since
from certfan.core.model import Certificate, Custody, Desired, Generation, Identifier, KeyType, Reason
from certfan.core.plan import AskCsr, Issue, Observed, Publish, plan
from certfan.core.rollback import choose
from certfan.core.standing import CSR, standing
from certfan.daemon.issuing import signing
from certfan.errors import NotAllowed, RequestInvalid
from tests.unit.daemon_parts import Daemon, certificate_of, running_daemon
from tests.unit.planner_parts import DAY, NOW, WEB1, WWW, make_certificate, make_desired, make_generation

PLACE = (WWW, WEB1)
OWN = replace(make_certificate(), custody=Custody.CONSUMER)
DESIRED = make_desired(OWN)
NAME = certificate_of("web1")


def asked(**changes: object) -> SigningRequest:
    fields = {
        "generation": 1,
        "identifiers": frozenset({Identifier(WWW)}),
        "key_type": KeyType.ECDSA_P256,
        "asked_at": NOW,
    }
    return SigningRequest(WWW, WEB1, **fields | changes)  # type: ignore[arg-type]


def steps(observed: Observed, desired: Desired = DESIRED, now: datetime = NOW) -> list[object]:
    return [s for s in plan(desired, observed, now).steps if isinstance(s, AskCsr | Issue | Publish)]


# What is asked for


def test_the_holder_is_asked_first_and_ordered_is_what_it_sent() -> None:
    """Until its CSR is here the status says for whom the order waits; then it is ordered, with nothing in between."""
    nothing, waits = Observed(), Observed(signing_requests={WWW: asked()})
    here = Observed(signing_requests={WWW: asked(csr=b"der")})
    waiting = standing(OWN, DESIRED, waits, NOW)

    assert [AskCsr(*PLACE, Reason.MISSING)] == steps(nothing)
    assert [] == steps(waits)
    assert waiting is not None and waiting.holding is not None
    assert (CSR, "waits for the CSR of web1") == (waiting.holding.code, waiting.holding.why)
    assert [Issue(WWW, Reason.MISSING, "ca")] == steps(here)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 3},
        {"identifiers": frozenset({Identifier("other.example")})},
        {"key_type": KeyType.RSA_2048},
    ],
)
def test_what_was_asked_for_otherwise_is_asked_for_anew(change: dict[str, object]) -> None:
    """A number that was used, other names or another type of key: what came for it is of no use."""
    generations = (make_generation(3),) if "generation" in change else ()

    assert not fits(asked(csr=b"der", **change), OWN, generations)
    assert not fits(replace(asked(csr=b"der"), consumer="web2"), OWN, ())
    assert fits(asked(csr=b"der"), OWN, ())


@pytest.mark.parametrize(("before", "now"), [("", Custody.CONSUMER), (WEB1, Custody.SHARE)])
def test_a_key_goes_nowhere_else_when_the_custody_changes(before: str, now: Custody) -> None:
    """Another holder means another key: the old generation is published no more, and replaced at once."""
    certificate = replace(OWN, custody=now)
    old = replace(make_generation(4), holder=before)
    observed = Observed(generations={WWW: (old,)}, offered={PLACE: 4})
    first = AskCsr(*PLACE, Reason.CUSTODY_CHANGED) if now is Custody.CONSUMER else None
    wanted = first or Issue(WWW, Reason.CUSTODY_CHANGED, "ca")

    assert [wanted] == steps(observed, make_desired(certificate))


def test_a_lost_key_is_replaced_at_once_but_not_twice_a_day() -> None:
    """A consumer that loses every key must not wear the authority out."""
    first = replace(make_generation(1, issued_at=NOW - 2 * DAY), holder=WEB1)
    second = replace(make_generation(2, issued_at=NOW), holder=WEB1)
    third = replace(make_generation(3, issued_at=NOW + timedelta(hours=1)), holder=WEB1)
    lost = Observed(generations={WWW: (first, second)}, lost_keys={WWW: NOW}, offered={PLACE: 2})

    assert AskCsr(*PLACE, Reason.KEY_LOST) in steps(lost)
    assert NOW + DAY == lost_since((first, second, third), NOW)
    assert third.issued_at == lost_since((first, second, replace(third, copy_of=1)), NOW)
    assert lost_since((make_generation(1),), NOW) is None


def test_a_roll_back_goes_no_further_than_keys_are_kept() -> None:
    """What the consumer may have removed, and what another holder's key belongs to, is not gone back to."""
    known = [replace(make_generation(n), holder=WEB1, key=f"{n}") for n in range(1, 9)]
    known[6] = replace(known[6], holder="")
    chosen = choose(OWN, known, None, revoked=(), now=NOW)
    old, foreign = (choose(OWN, known, n, revoked=(), now=NOW) for n in (2, 7))

    assert known[5] == chosen
    assert "web1 keeps its newest 5 keys only" in str(old)
    assert "its key is the daemon's, and is to be that of web1 alone" in str(foreign)


# What a CSR may say


def built(
    *,
    names: tuple[str, ...] = (NAME,),
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    change: Callable[
        [x509.CertificateSigningRequestBuilder], x509.CertificateSigningRequestBuilder
    ] = lambda b: b,
    digest: hashes.HashAlgorithm | None = None,
    subject: x509.Name | None = None,
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    if names:
        san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(san, critical=True)
    made = change(builder).sign(
        key or ec.generate_private_key(ec.SECP256R1()),
        digest or hashes.SHA256(),  # type: ignore[arg-type]
    )
    return made.public_bytes(serialization.Encoding.PEM)


COMMON = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
HOSTILE = {
    "a word more": built(
        change=lambda b: b.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    ),
    "must staple": built(
        change=lambda b: b.add_extension(
            x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False
        )
    ),
    "a password": built(change=lambda b: b.add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"secret")),
    "a subject": built(subject=COMMON),
    "no names": built(names=()),
    "a name twice": built(names=(NAME, NAME)),
    "other names": built(names=("other.example",)),
    "a name too many": built(names=(NAME, "other.example")),
    "another curve": built(key=ec.generate_private_key(ec.SECP384R1())),
    "another kind of key": built(key=rsa.generate_private_key(65537, 2048)),
    "a weak exponent": built(key=rsa.generate_private_key(3, 2048)),
    "a weak hash": built(digest=hashes.SHA224()),
    "garbage": b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    "nothing": b"",
    "cut short": built()[:-60],
}


GOOD = x509.load_pem_x509_csr(built()).public_bytes(serialization.Encoding.DER)


@given(place=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_no_byte_of_what_a_csr_says_can_be_changed(place: int, byte: int) -> None:
    """Whatever is made of one, it is refused, by nothing else than a refusal, or says the same (around the signature)."""
    changed = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]
    good = pki.read_server_csr(GOOD)
    with contextlib.suppress(RequestInvalid):
        found = pki.read_server_csr(changed)
        assert (good.names, good.key) == (found.names, found.key)


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_noise_is_no_csr(noise: bytes) -> None:
    """Neither bare nor in the frame of one."""
    for framed in (noise, b"-----BEGIN CERTIFICATE REQUEST-----\n" + noise):
        with pytest.raises(RequestInvalid):
            pki.read_server_csr(framed)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running_daemon(tmp_path / "daemon") as running:
        for consumer in ("web1", "web2"):
            name = certificate_of(consumer)
            own = replace(running.desired.certificates[name], custody=Custody.CONSUMER)
            running.desired = replace(
                running.desired, certificates={**running.desired.certificates, name: own}
            )
            await running.store.add_consumer(consumer, running.now)
            await running.store.offer([(name, consumer, 0)], running.now)
        await wish(running)
        yield running


async def wish(daemon: Daemon, consumer: str = "web1", floor: int = 0) -> SigningRequest:
    """Do what the plan wishes for, and return what is written down."""
    step = AskCsr(certificate_of(consumer), consumer, Reason.MISSING)
    await signing.ask(step, daemon.desired, daemon.store, daemon._state, floor=floor, now=daemon.now)
    return (await daemon.store.facts()).signing_requests[certificate_of(consumer)]


async def wanted_of(daemon: Daemon, consumer: str = "web1") -> tuple[str, object]:
    found = (await daemon.board.assignments([consumer]))[consumer]
    (one,) = found.assignments
    return found.revision, one.request


@pytest.mark.parametrize("fault", HOSTILE)
async def test_a_csr_that_asks_for_anything_else_is_refused_and_told(daemon: Daemon, fault: str) -> None:
    """Nothing of it is kept; the status says why until a good one comes, and the journal once."""
    for _ in range(2):
        with pytest.raises(RequestInvalid):
            await daemon.board.take_csr("web1", NAME, 1, HOSTILE[fault])
    facts = await daemon.store.facts()
    kept = facts.signing_requests[NAME]
    told = [event for event in await daemon.store.events() if event.name == "csr.refused"]
    await daemon.board.take_csr("web1", NAME, 1, built())
    after = (await daemon.store.facts()).signing_requests[NAME]

    assert (None, 1) == (kept.csr, len(told))
    assert kept.problem is not None and kept.problem.hint
    assert after.csr is not None and after.problem is None


async def test_a_csr_is_taken_once_and_may_come_again(daemon: Daemon) -> None:
    """It is asked for no more once it is here, the same one is taken for what it is, and another one is refused."""
    first, asked_for = await wanted_of(daemon)
    good = built()
    await daemon.board.take_csr("web1", NAME, 1, good)
    await daemon.board.take_csr("web1", NAME, 1, good)
    second, nothing = await wanted_of(daemon)
    with pytest.raises(NotAllowed):
        await daemon.board.take_csr("web1", NAME, 1, built())
    taken = await daemon.happened("csr.taken")

    assert asked_for is not None and nothing is None
    assert first != second
    assert 1 == len(taken)


async def test_nobody_sends_for_another_or_without_being_asked(daemon: Daemon) -> None:
    """Neither another consumer, nor for a certificate whose keys the daemon makes, nor under another number."""
    for consumer, name, number in (("web2", NAME, 1), ("web3", certificate_of("web3"), 1), ("web1", NAME, 2)):
        with pytest.raises(NotAllowed):
            await daemon.board.take_csr(consumer, name, number, built(names=(name,)))


async def test_a_key_in_use_elsewhere_is_refused(daemon: Daemon) -> None:
    """Neither that of another certificate, nor one that another consumer has just sent, nor its identity's."""
    key = ec.generate_private_key(ec.SECP256R1())
    other = certificate_of("web2")
    await wish(daemon, "web2")
    await daemon.board.take_csr("web2", other, 1, built(names=(other,), key=key))
    with pytest.raises(RequestInvalid, match="in use elsewhere"):
        await daemon.board.take_csr("web1", NAME, 1, built(key=key))
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    known = pki.public_key_hash(pem)
    await daemon.store.drop_csr(other, 1)
    generation = await _issued(daemon, other, known)

    with pytest.raises(RequestInvalid, match="in use elsewhere"):
        await daemon.board.take_csr("web1", NAME, 1, built(key=key))
    assert known == generation.key


async def _issued(daemon: Daemon, name: str, key: str) -> Generation:
    made = replace(make_generation(1, name=name, names=(name,), issued_at=daemon.now), key=key, holder="web2")
    await daemon.store.record_generation(made)
    return made


async def test_asked_anew_it_gets_another_number_and_the_old_answer_is_refused(daemon: Daemon) -> None:
    """An answer to what was asked before, with the old names, is not mistaken for one to this."""
    late = built()
    certificates = dict(daemon.desired.certificates)
    changed: Certificate = replace(
        certificates[NAME], identifiers=(Identifier(NAME), Identifier("new.example"))
    )
    daemon.desired = replace(daemon.desired, certificates={**certificates, NAME: changed})
    _, before = await wanted_of(daemon)
    anew = await wish(daemon)

    assert before is None  # what no longer fits is asked of nobody
    assert 2 == anew.generation
    with pytest.raises(NotAllowed):
        await daemon.board.take_csr("web1", NAME, 1, late)


async def test_what_was_asked_outlives_a_restart(daemon: Daemon) -> None:
    """Number, key type and a CSR that came are on disk before anybody hears of them."""
    await daemon.board.take_csr("web1", NAME, 1, built())
    before = (await daemon.store.facts()).signing_requests
    await daemon.restart()

    assert before == (await daemon.store.facts()).signing_requests
