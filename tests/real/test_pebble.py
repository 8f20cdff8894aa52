"""Pebble and its DNS server on loopback, without root."""

from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.pebble import LoopbackDns, Pebble, free_port

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
