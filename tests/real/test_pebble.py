"""Pebble and its DNS server on loopback, without root."""

from pathlib import Path

import josepy
import pytest
from acme import client, messages
from acme.crypto_util import make_csr
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.lab import machine
from tests.lab.pebble import BLOCKED, LoopbackDns, Pebble, free_port

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(machine.pebble_program() is None, reason="pebble is not installed"),
]


def test_pebble_serves_its_directory_on_loopback_behind_its_own_ca(tmp_path: Path) -> None:
    """A client with only the listener CA as its anchor reaches the directory, and the root is handed out."""
    pebble = Pebble(tmp_path, "127.0.0.1:1", http_port=free_port())
    pebble.start()
    try:
        directory = machine.run(["curl", "-sS", "--cacert", str(pebble.ca_file), pebble.directory_url]).stdout
        root = pebble.root_pem()
    finally:
        pebble.stop()

    assert "newOrder" in directory
    assert root.startswith("-----BEGIN CERTIFICATE-----")


@pytest.mark.skipif(not LoopbackDns.available(), reason="pebble-challtestsrv is not installed")
def test_the_loopback_dns_answers_every_name_with_one_address_until_told_otherwise(tmp_path: Path) -> None:
    """Any name has the default A and no AAAA; a told name has what was told."""
    dns = LoopbackDns(tmp_path)
    dns.start()
    host, port = dns.server.split(":")
    dig = ["dig", "+short", "-p", port, f"@{host}"]
    try:
        dns.tell("/add-a", {"host": "told.example.test.", "addresses": ["127.0.0.9"]})
        answers = [
            machine.run([*dig, *words]).stdout
            for words in (["a.test", "A"], ["a.test", "AAAA"], ["told.example.test", "A"])
        ]
    finally:
        dns.stop()

    assert answers == ["127.0.0.1\n", "", "127.0.0.9\n"]


def _order(pebble: Pebble, *names: str) -> messages.OrderResource:
    key = josepy.JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
    network = client.ClientNetwork(key, alg=josepy.ES256, verify_ssl=str(pebble.ca_file))
    try:
        acme = client.ClientV2(client.ClientV2.get_directory(pebble.directory_url, network), network)
        acme.new_account(messages.NewRegistration.from_data(terms_of_service_agreed=True))
        pair = ec.generate_private_key(ec.SECP256R1())
        pem = pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return acme.new_order(make_csr(pem, domains=list(names)), profile="shortlived")
    finally:
        network.session.close()


def test_an_order_for_the_apex_is_taken_and_one_for_a_blocked_name_refused(tmp_path: Path) -> None:
    """Pebble offers authorizations for example.test and its names, and rejects what is on the blocklist."""
    pebble = Pebble(tmp_path, "127.0.0.1:1", http_port=free_port(), nonce_reject=0)
    pebble.start()
    try:
        taken = _order(pebble, "example.test", "www.example.test")
        with pytest.raises(messages.Error) as refused:
            _order(pebble, f"www.{BLOCKED}")
    finally:
        pebble.stop()

    assert {part.body.identifier.value for part in taken.authorizations} == {
        "example.test",
        "www.example.test",
    }
    assert refused.value.code == "rejectedIdentifier"
