"""A real daemon orders every kind of certificate there is, from a real Pebble whose faults are on and from the faulty authority."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from certfan import pki
from certfan.core.model import KeyType
from tests.lab import machine
from tests.lab.authorities import EXTERNAL
from tests.real.daemon_place import Daemon, Place, authority, certificate, toml

pytestmark = pytest.mark.real

SLEEPY = {"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "1"}


@pytest.mark.parametrize("rejected", [5, 15, 50])
def test_every_order_succeeds_at_a_pebble_with_its_faults_on(daemons: Place, rejected: int) -> None:
    """Nonces rejected, authorizations reused, validations that sleep, Retry-After obeyed: none is ordered twice."""
    names = [f"n{number}.r{rejected}.example.test" for number in range(12)]
    pebble = daemons.pebble(
        nonce_reject=rejected, retry_after=1, alternate_roots=1, env={**SLEEPY, "PEBBLE_AUTHZREUSE": "50"}
    )
    with daemons.running(authority("pebble", pebble), *map(certificate, names)) as daemon:
        serials = {daemon.issued(name, timeout=60).leaf.serial for name in names}

        assert len(names) == len(serials)
        assert len(names) == len(daemon.events("order.created"))
        assert [] == daemon.events("step.failed")


def test_a_certificate_of_every_key_type_is_issued(daemons: Place) -> None:
    """P-256, P-384 and RSA of three sizes, the consumer's pair being of the type that its certificate asks for."""
    pebble = daemons.pebble()
    wanted = [certificate(f"{kind}.example.test", key_type=str(kind)) for kind in KeyType]
    with daemons.running(authority("pebble", pebble), *wanted) as daemon:
        kinds = {kind: kind_of(daemon.issued(f"{kind}.example.test")) for kind in map(str, KeyType)}

    expected = {"ecdsa-p256": "secp256r1", "ecdsa-p384": "secp384r1", "rsa-2048": "2048", "rsa-3072": "3072", "rsa-4096": "4096"}  # fmt: skip
    assert expected == kinds


def kind_of(pair: pki.Pair) -> str:
    match x509.load_pem_x509_certificate(pair.cert_pem).public_key():
        case ec.EllipticCurvePublicKey() as key:
            return key.curve.name
        case rsa.RSAPublicKey() as key:
            return str(key.key_size)
    raise AssertionError


def test_a_hundred_names_an_idna_name_and_addresses_are_certified(daemons: Place) -> None:
    """A name outside of ASCII is ordered as its A-label; an address is proven at itself, over IPv4 and IPv6."""
    pebble = daemons.pebble()
    hundred = [f"n{number}.hundred.test" for number in range(100)]
    wanted = [
        certificate(*hundred, name="hundred"),
        certificate("bücher.example.test", "www.Straße.test", name="idna"),
        certificate("127.0.0.1", "::1", name="addresses", profile="shortlived"),
    ]
    with daemons.running(authority("pebble", pebble), *wanted) as daemon:
        names = {
            name: daemon.issued(name, timeout=90).leaf.names for name in ("hundred", "idna", "addresses")
        }

    assert tuple(sorted(hundred)) == names["hundred"]
    assert ("www.xn--strae-oqa.test", "xn--bcher-kva.example.test") == names["idna"]
    assert ("127.0.0.1", "::1") == names["addresses"]


def test_an_address_needs_a_profile_that_certifies_it(daemons: Place) -> None:
    """What the authority says of it is in the status; with the right profile the next try is good."""
    ca = daemons.faulty()
    with daemons.running(authority("ca", ca), certificate("127.0.0.1", profile="default")) as daemon:
        problem = daemon.failure("127.0.0.1")
        daemon.edit('profile = "default"', 'profile = "shortlived"')
        names = daemon.issued("127.0.0.1").leaf.names

    assert "authority.refused" == problem["code"]
    assert "the profile allows no IP addresses" in problem["detail"]
    assert ("127.0.0.1",) == names


def test_a_profile_that_is_not_advertised_is_never_ordered(daemons: Place) -> None:
    """The directory is asked first; the status names the profiles that there are."""
    ca = daemons.faulty()
    with daemons.running(authority("ca", ca), certificate("a.test", profile="longlived")) as daemon:
        problem = daemon.failure("a.test")
        ordered = ca.counts["newOrder"]
        daemon.edit('profile = "longlived"', 'profile = "shortlived"')
        daemon.issued("a.test")

    assert "longlived" in problem["detail"]
    assert "shortlived" in problem["detail"] + problem["hint"]
    assert 0 == ordered
    assert ["shortlived"] == [order.profile for order in ca.records.orders.values()]


def test_an_account_is_bound_to_the_one_outside_of_acme(daemons: Place, tmp_path: Path) -> None:
    """Pebble takes no other; without a binding, or with a wrong key, the status says what to set."""
    pebble = daemons.pebble(eab_keys=dict([EXTERNAL]))
    key = tmp_path / "eab.key"
    key.touch(0o600)
    key.write_text("A" * 64)
    bound = authority("pebble", pebble, eab_kid=EXTERNAL[0], eab_key_file=str(key))
    with daemons.running(authority("pebble", pebble), certificate("a.test")) as daemon:
        unbound = daemon.failure("a.test")
        daemon.edit(authority("pebble", pebble), bound)
        daemon.wait(lambda: "verif" in problem_of(daemon, "a.test"), "the wrong key to be refused")
        key.write_text(EXTERNAL[1])
        daemon.renew("a.test")
        daemon.issued("a.test")

        assert "external account binding" in unbound["detail"]
        assert "set eab_kid and eab_key_file of authority pebble" == unbound["hint"]
        assert EXTERNAL[1] not in daemon.log.read_text()


def problem_of(daemon: Daemon, name: str) -> str:
    problem = daemon.certificate(name)["problem"]
    return "" if problem is None else problem["detail"]


def test_the_account_has_the_contacts_of_the_config(daemons: Place) -> None:
    """Registered with the first ones, and told of the new ones before the next order."""
    ca = daemons.faulty()
    with daemons.running(authority("ca", ca, contact=["mailto:old@a.test"]), certificate("a.test")) as daemon:
        daemon.issued("a.test")
        (account,) = ca.records.accounts.values()
        first = account.contact
        daemon.edit("mailto:old@a.test", "mailto:new@a.test")
        daemon.write("b", certificate("b.test"))
        daemon.issued("b.test")

        assert ["mailto:old@a.test"] == first
        assert ["mailto:new@a.test"] == account.contact
        assert 1 == len(ca.records.accounts)
        assert 1 == len(daemon.events("account.updated", subject="ca"))


def test_the_preferred_chain_is_taken_where_it_is_offered(daemons: Place) -> None:
    """By the common name of its root, among all that a Pebble with alternate roots offers; else the first one."""
    pebble = daemons.pebble(alternate_roots=2)
    roots = [x509.load_pem_x509_certificate(pebble.root_pem(number).encode()) for number in range(3)]
    names = [root.subject.rfc4514_string().removeprefix("CN=") for root in roots]
    wanted = [*names, "No Such Root"]
    fragments = [authority(f"p{n}", pebble, preferred_chain=one) for n, one in enumerate(wanted)]
    fragments += [certificate(f"c{n}.test", authority=f"p{n}") for n in range(len(wanted))]
    with daemons.running(*fragments) as daemon:
        chains = [pki.read_chain(daemon.issued(f"c{n}.test").fullchain_pem) for n in range(len(wanted))]

    assert [*(root.subject for root in roots), roots[0].subject] == [chain[-1].issuer for chain in chains]


def test_names_that_no_order_could_get_are_told_before_one_is_sent(daemons: Place) -> None:
    """A wildcard needs dns-01; Let's Encrypt is known to certify addresses under one profile only. The rest stays in force."""
    ca = daemons.faulty()
    known = toml(
        "[authority.letsencrypt]",
        directory="https://acme-v02.api.letsencrypt.org/directory",
        agree_to_terms=True,
        profile="classic",
    )
    with daemons.running(authority("ca", ca), known, certificate("a.test", authority="ca")) as daemon:
        daemon.write("wild", certificate("*.a.test", authority="ca"))
        wild = config_problem(daemon)
        daemon.write("wild", "")
        daemon.write("address", certificate("192.0.2.1", authority="letsencrypt"))
        address = config_problem(daemon, unlike=wild)
        daemon.issued("a.test")
        with pytest.raises(machine.CommandFailed) as told:
            daemon.certfan("check")

    assert "wild.toml: certificate[0].names[0]: *.a.test: a wildcard needs a dns-01 challenge" in wild
    assert "192.0.2.1: only the profile shortlived of this authority certifies IP addresses" in address
    assert address in told.value.printed
    assert 78 == told.value.code


def config_problem(daemon: Daemon, unlike: str = "") -> str:
    """Wait for a problem of the config, and return its text."""

    def seen() -> list[str]:
        problems = daemon.get("/api/v1/status")["problems"]
        told = [one["detail"] for one in problems if one["code"] == "config.invalid"]
        return [one for one in told if one != unlike]

    daemon.wait(seen, "a problem of the config")
    return seen()[0]


def test_a_change_of_names_or_key_type_is_ordered_at_once(daemons: Place) -> None:
    """Each by one order, and what comes of it has the new names and the new type."""
    ca = daemons.faulty()
    with daemons.running(authority("ca", ca), certificate("a.test", name="a")) as daemon:
        daemon.issued("a")
        daemon.edit('["a.test"]', '["a.test", "b.test"]')
        renamed = daemon.issued("a", 2)
        daemon.edit('name = "a"', 'name = "a"\nkey_type = "rsa-2048"')
        retyped = daemon.issued("a", 3)

        assert ("a.test", "b.test") == renamed.leaf.names == retyped.leaf.names
        assert ["secp256r1", "2048"] == [kind_of(renamed), kind_of(retyped)]
        assert 3 == len(ca.records.orders)


def test_a_key_is_reused_until_it_is_of_age(daemons: Place) -> None:
    """The same one over renewals, and a new one with the first order after `reuse_key`, whatever restarts lie between."""
    ca = daemons.faulty()
    fragments = [authority("ca", ca), certificate("a.test", reuse_key="12h"), certificate("b.test")]
    daemon = daemons.fresh(*fragments)
    with daemon.started(ahead=timedelta(0)):
        keys = [key_hash(daemon.issued("a.test")), key_hash(daemon.issued("b.test"))]
        for name in ("a.test", "b.test"):
            daemon.renew(name)
            keys.append(key_hash(daemon.issued(name, 2)))
        daemon.restart(ahead=timedelta(hours=13))
        for number in (3, 4):
            daemon.renew("a.test")
            keys.append(key_hash(daemon.issued("a.test", number)))

    first, other, again, another, aged, kept = keys
    assert first == again
    assert 4 == len({first, other, another, aged})
    assert aged == kept


def key_hash(pair: pki.Pair) -> str:
    return pki.public_key_hash(pair.key_pem)
