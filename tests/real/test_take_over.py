"""Trees that certbot and dehydrated themselves have made are taken over by a real daemon, and renewed by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from certfan import pki
from tests.lab.foreign import Certbot, accounts_made, dehydrated, print_of, tls_server
from tests.real.daemon_place import CONSUMER, Daemon, Place, authority

pytestmark = pytest.mark.real


def taken(daemon: Daemon, folder: Path, *words: str) -> dict[str, Any]:
    return dict(json.loads(daemon.certfan("import", str(folder), "--json", *words)))


def leaf_of(folder: Path) -> pki.Leaf:
    return pki.load_chain((folder / "fullchain.pem").read_bytes()).leaf


def test_what_certbot_has_is_taken_over_and_renewed_with_its_account(daemons: Place, tmp_path: Path) -> None:
    """ECDSA and RSA, standalone and webroot, two authorities: nothing is ordered, and no account is made for a renewal."""
    pebble, staging = daemons.pebble(), daemons.pebble()
    certbot = Certbot(tmp_path, daemons.responder)
    certbot.standalone(pebble, "a.test", "www.a.test")
    certbot.webroot(pebble, "r.test", key="rsa")
    certbot.register(staging)
    live = certbot.folder / "live"
    before = print_of(certbot.folder)
    places = [authority("pebble", pebble), authority("staging", staging)]
    with daemons.running(*places, top='default_authority = "pebble"') as daemon:
        with tls_server(live / "a.test", tmp_path / "s_server.log") as port:
            planned = taken(daemon, certbot.folder, "--at", f"127.0.0.1:{port}")
        untouched = daemon.events("generation.adopted", "account.adopted")
        done = taken(daemon, certbot.folder, "--yes")
        again = taken(daemon, certbot.folder, "--yes")
        pairs = {name: daemon.issued(name) for name in ("a.test", "r.test")}
        ordered = daemon.events("order.created")
        daemon.renew("a.test")
        renewed = daemon.issued("a.test", generation=2)
        removed = daemon.certfan("import", "--undo", "--from", "certbot", "--yes")
        daemon.wait(
            lambda: daemon.events("certificate.forgotten", subject="r.test"), "r.test to be forgotten"
        )
        left = daemon.get("/api/v1/status")["certificates"]

    assert {"a.test": {"same"}, "r.test": {"other"}} == {
        one["name"]: {seen["served"] for seen in one["served"]} for one in planned["certificates"]
    }
    assert [] == list(untouched)
    assert [] == done["failed"] == again["failed"]
    assert [("a.test", 1), ("r.test", 1)] == [
        (one["name"], one["generation"]) for one in again["certificates"]
    ]
    assert {name: leaf_of(live / name).serial for name in pairs} == {
        n: p.leaf.serial for n, p in pairs.items()
    }
    assert [] == list(ordered)
    assert renewed.leaf.serial != pairs["a.test"].leaf.serial
    assert (1, 1) == (accounts_made(pebble), accounts_made(staging))
    assert before == print_of(certbot.folder)
    assert "a.test" in removed
    assert [] == list(left)


def test_what_dehydrated_has_is_taken_over_and_renewed_with_its_account(
    daemons: Place, tmp_path: Path
) -> None:
    """P-384 as is its default, RSA of one certificate's own config; the written file asks for exactly these."""
    pebble = daemons.pebble()
    domains = "d.test www.d.test\nr.d.test > rsa\n"
    folder = dehydrated(
        tmp_path, daemons.responder, pebble, domains, rsa={"KEY_ALGO": "rsa", "KEYSIZE": "2048"}
    )
    before = print_of(folder)
    with daemons.running(authority("pebble", pebble)) as daemon:
        done = taken(daemon, folder, "--yes", "--consumer", CONSUMER)
        pairs = {name: daemon.issued(name) for name in ("d.test", "rsa")}
        ordered = daemon.events("order.created")
        daemon.renew("rsa")
        renewed = daemon.issued("rsa", generation=2)

    assert [] == done["failed"]
    assert {"d.test": "ecdsa-p384", "rsa": "rsa-2048"} == {n: p.leaf.key_type for n, p in pairs.items()}
    assert {name: leaf_of(folder / "certs" / name).serial for name in pairs} == {
        name: pair.leaf.serial for name, pair in pairs.items()
    }
    assert [] == list(ordered)
    assert "rsa-2048" == renewed.leaf.key_type
    assert 1 == accounts_made(pebble)
    assert before == print_of(folder)
