"""Consumer custody on the consumer: a key that root makes and keeps, its CSR, the chain that comes back, boot, loss."""

import json
import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certfan import pki
from certfan.agent import boot, config
from certfan.agent.own_keys import KEPT, MOST_KEYS, OwnKeys, Wanted
from certfan.agent.privileged import Privileged
from certfan.core import deployment
from certfan.core.agent_steps import AgentFacts, Asked, Assignment, SendCsr, Staged
from certfan.core.model import Custody, KeyType
from certfan.errors import InstallFailed
from certfan.protocol import manifest
from tests.unit.apply_parts import MAIL, NOW, WWW, Machine, in_child, killed_at, spoil
from tests.unit.planner_parts import NOW as PLANNED
from tests.unit.test_apply import boots

pytestmark = pytest.mark.long

ASKED = Asked(1, (WWW, "example.org"), "ecdsa-p256")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def keys(machine: Machine, certificate: str = WWW) -> list[Path]:
    return sorted((machine.root / "etc/keys" / certificate).glob("*.pem"))


def wanted(number: int = 1, **changes: Any) -> Wanted:
    return replace(Wanted(WWW, number, KeyType.ECDSA_P256, (WWW,)), **changes)


def signed(machine: Machine, number: int = 1, *, like: str = "", named: str = WWW) -> dict[str, bytes]:
    """Do what daemon and authority do with the CSR of a number: return the bundle, without a key in it."""
    made = OwnKeys(machine.root / "etc").csr(wanted(number, like=like, certificate=named))
    return bundle_for(machine, number, pki.read_server_csr(made.encode()), named=named)


def bundle_for(
    machine: Machine, number: int, csr: pki.ServerRequest, *, named: str = WWW
) -> dict[str, bytes]:
    public = serialization.load_der_public_key(csr.key.spki)
    issuer = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, public, x509.random_serial_number())  # type: ignore[arg-type]
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=90))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(named)]), critical=True)
    cert = builder.sign(issuer, pki.keys.hashes.SHA256())
    chain = pki.load_chain(cert.public_bytes(serialization.Encoding.PEM))
    return bundle_for_chain(machine, number, chain, named=named)


def bundle_for_chain(
    machine: Machine, number: int, chain: pki.Chain, *, named: str = WWW
) -> dict[str, bytes]:
    return manifest.pack(
        chain,
        None,
        fleet="home",
        consumer="web1",
        certificate=named,
        generation=number,
        custody=Custody.CONSUMER,
        signer_key_pem=machine.signer.key_pem,
        signer_cert_pem=machine.signer.cert_pem,
    )


async def asks_csr(machine: Machine, asked: Asked = ASKED) -> str:
    async with machine.serving():
        return await Privileged(machine.root / "run/apply.sock").csr(WWW, asked)


# The key, and its CSR


async def test_root_makes_a_key_and_tells_its_csr_alone(machine: Machine) -> None:
    """Born 0600 in a closed folder, the same for the same number; whoever asks sees nothing but the CSR."""
    first, again = await asks_csr(machine), await asks_csr(machine)
    other = await asks_csr(machine, replace(ASKED, generation=2, key_type="rsa-2048"))
    said = [pki.read_server_csr(csr.encode()) for csr in (first, again, other)]
    one, two = keys(machine)

    assert said[0].key == said[1].key != said[2].key
    assert ("example.org", WWW) == said[0].names
    assert ["ecdsa-p256", "rsa-2048"] == [said[0].key.key_type, said[2].key.key_type]
    assert [0o600, 0o600, 0o700] == [path.stat().st_mode & 0o777 for path in (one, two, one.parent)]
    assert [f"1.{said[0].key.spki_hash}.pem", f"2.{said[2].key.spki_hash}.pem"] == [one.name, two.name]
    assert not [p for p in (machine.root / "state").rglob("*") if p.is_file()]


async def test_a_key_is_used_again_when_it_is_named_and_is_here(machine: Machine) -> None:
    """Named but lost, or of another type, it is a new one, and the same at the next try."""
    first = pki.read_server_csr((await asks_csr(machine)).encode()).key
    found = []
    for number, key, kind in (
        (2, first.spki_hash, "ecdsa-p256"),
        (3, "0" * 64, "ecdsa-p256"),
        (4, first.spki_hash, "rsa-2048"),
    ):
        asked = Asked(number, (WWW,), kind, key)
        twice = [pki.read_server_csr((await asks_csr(machine, asked)).encode()).key for _ in "12"]
        assert twice[0] == twice[1]
        found.append(twice[0] == first)

    assert [True, False, False] == found


GOOD = {"certificate": WWW, "request": 1, "key_type": "ecdsa-p256", "identifiers": [WWW], "key": ""}
ODD = {
    "no names": GOOD | {"identifiers": []},
    "names that are none": GOOD | {"identifiers": ["../../etc"]},
    "a name that is a list": GOOD | {"identifiers": [[WWW]]},
    "too many names": GOOD | {"identifiers": [f"n{n}.example" for n in range(101)]},
    "another certificate": GOOD | {"certificate": "../x"},
    "number 0": GOOD | {"request": 0},
    "a number that is true": GOOD | {"request": True},
    "a huge number": GOOD | {"request": 10**13},
    "an unknown type": GOOD | {"key_type": "ed25519"},
    "a type that is a list": GOOD | {"key_type": ["ecdsa-p256"]},
    "a key that is none": GOOD | {"key": "abc"},
    "a field more": GOOD | {"path": "/etc/shadow"},
    "a field less": {name: value for name, value in GOOD.items() if name != "key"},
    "another order": dict(reversed(GOOD.items())),
}


@pytest.mark.parametrize("fault", ODD)
async def test_an_odd_request_makes_no_key(machine: Machine, fault: str) -> None:
    """Strict to the last field; nothing is written."""
    async with machine.serving():
        answer = await machine.says(json.dumps(ODD[fault]).encode() + b"\n")

    assert "channel.message_invalid" == answer["problem"]["code"]
    assert "" == answer["csr"]
    assert [] == keys(machine)


def test_nobody_fills_the_disk_with_keys(machine: Machine) -> None:
    """Beyond a number of keys there are no more, and those that are there stay."""
    stock = OwnKeys(machine.root / "etc")
    for number in range(1, MOST_KEYS + 1):
        stock.csr(wanted(number))

    with pytest.raises(InstallFailed, match="too many keys"):
        stock.csr(wanted(MOST_KEYS + 1))
    assert stock.csr(wanted(MOST_KEYS))


@pytest.mark.parametrize("point", range(1, 4))
def test_a_csr_that_was_told_has_its_key_whatever_is_cut_off(machine: Machine, point: int) -> None:
    """Killed right before any change of a name: the same request makes the key, and a CSR that came out has it."""
    told = machine.root / "told"

    def work() -> None:
        killed_at(point)
        told.write_text(OwnKeys(machine.root / "etc").csr(wanted()))
        os.replace(told, machine.root / "heard")

    ended = in_child(work)
    heard = told if told.exists() else machine.root / "heard"
    again = pki.read_server_csr(OwnKeys(machine.root / "etc").csr(wanted()).encode()).key

    assert ended in {0, -signal.SIGKILL}
    assert 1 == len(keys(machine))
    if heard.exists():
        assert pki.read_server_csr(heard.read_bytes()).key == again


# The chain that comes back


async def test_a_chain_without_a_key_is_joined_with_the_key_made_here(machine: Machine) -> None:
    """In every form that a service wants; below the agent's folder there is never a key."""
    machine.service("web")
    machine.keystore("tomcat")
    machine.stage(WWW, 1, signed(machine))
    answer = await machine.asks((WWW, 1))

    assert (None, {WWW: 1}) == (answer["problem"], answer["installed"])
    assert machine.live() == machine.staged_fingerprint(WWW, 1)
    assert not [
        p for p in (machine.root / "state").rglob("*") if p.is_file() and b"PRIVATE" in p.read_bytes()
    ]


async def test_gone_back_to_an_old_pair_is_found_by_its_key(machine: Machine) -> None:
    """The daemon gives the old chain a new number; the key was made for another one."""
    machine.service("web")
    for number in (1, 2):
        machine.stage(WWW, number, signed(machine, number))
        await machine.asks((WWW, number))
    first = pki.load_chain((machine.root / "state/bundles" / WWW / "1/fullchain.pem").read_bytes())
    copy = bundle_for_chain(machine, 3, first)
    machine.stage(WWW, 3, copy)
    answer = await machine.asks((WWW, 3))

    assert {WWW: 3} == answer["installed"]
    assert machine.live() == first.leaf.fingerprint


async def test_a_lost_key_is_told_of_its_own_certificate_alone(machine: Machine) -> None:
    """Alone it is said to be lost; in a group, where nobody could tell whose, it is a bundle that is no good."""
    machine.service("web")
    machine.stage(WWW, 1, signed(machine))
    machine.stage(MAIL, 1)
    keys(machine)[0].unlink()
    group, alone, other = [
        await machine.asks(*pairs) for pairs in (((MAIL, 1), (WWW, 1)), ((WWW, 1),), ((MAIL, 1),))
    ]

    assert ["share.bundle_invalid", "pki.key_lost"] == [a["problem"]["code"] for a in (group, alone)]
    assert "a new one is made" in alone["problem"]["hint"]
    assert {MAIL: 1} == other["installed"]


async def test_what_was_laid_with_its_key_outlives_the_keys_loss(machine: Machine) -> None:
    """The installed copy has the key too: gone back to, it is live again."""
    machine.service("web")
    machine.stage(WWW, 1, signed(machine))
    await machine.asks((WWW, 1))
    keys(machine)[0].unlink()

    assert {WWW: 1} == (await machine.asks((WWW, 1)))["installed"]


async def test_in_place_a_chain_without_a_key_is_a_copy(machine: Machine) -> None:
    """What lies on the share has no key that a service could read."""
    machine.service("web")
    machine.in_place()
    packed = signed(machine)
    machine.stage(WWW, 1, packed)
    machine.publish(WWW, 1, packed)
    answer = await machine.asks((WWW, 1))

    assert {WWW: 1} == answer["installed"]
    assert "../generations" in str((machine.root / "etc/live" / WWW).readlink())
    assert machine.live() == machine.staged_fingerprint(WWW, 1)


@pytest.mark.parametrize("harm", ["nothing", "key cut short", "folder lost"])
def test_boot_joins_chain_and_key_without_the_share(machine: Machine, harm: str) -> None:
    """Whatever the power cut did to the installed copy; without the key there is a placeholder."""
    machine.service("web")
    machine.stage(WWW, 4, signed(machine, 4))
    machine.outcomes(g4=("proven", 1))
    first = boots(machine)
    installed = machine.root / "etc/generations" / WWW / "4"
    spoil(installed, harm)
    healed, live = boots(machine), machine.live()
    for path in (*installed.parent.glob("*/*"), *keys(machine)):
        path.unlink()
    nothing = boot.lay_all(config.load(machine.path), lambda: NOW, deadline=10**9)

    assert [{WWW: 4}, {WWW: 4}, {WWW: 0}] == [first, healed, nothing]
    assert live == machine.staged_fingerprint(WWW, 4)


async def test_keys_go_last_and_never_one_in_use(machine: Machine) -> None:
    """The newest stay, and so does what is live however old it is."""
    machine.service("web")
    stock = OwnKeys(machine.root / "etc")
    machine.stage(WWW, 1, signed(machine, 1))
    await machine.asks((WWW, 1))
    for number in range(2, KEPT + 4):
        stock.csr(wanted(number))
    await machine.asks((WWW, 1))
    left = {int(path.name.partition(".")[0]) for path in keys(machine)}

    assert {1, *range(4, KEPT + 4)} == left


# What the agent plans


def test_a_csr_is_sent_for_a_new_number_and_again_while_it_is_asked_for() -> None:
    """Not under a number that is here: then the daemon is behind, and hears of it by the report."""
    staged = Staged("f", PLANNED + timedelta(days=9), staged_at=PLANNED)
    facts = AgentFacts(
        assignments={WWW: Assignment(WWW, 0, request=replace(ASKED, generation=5))}, live={WWW: 0}
    )
    wait = {(WWW, 5): PLANNED + timedelta(seconds=9)}
    known = {(WWW, 5): staged}

    def sent(one: AgentFacts) -> list[SendCsr]:
        return [step for step in deployment.plan(one, PLANNED).steps if isinstance(step, SendCsr)]

    assert [SendCsr(WWW, replace(ASKED, generation=5))] == sent(facts)
    assert [] == sent(replace(facts, csr_not_before=wait)) == sent(replace(facts, staged=known))
    assert [] == sent(replace(facts, live={WWW: 7}))
    assert deployment.plan(replace(facts, csr_not_before=wait), PLANNED).wake_at == wait[WWW, 5]
