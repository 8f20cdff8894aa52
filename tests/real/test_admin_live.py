"""What an admin asks of the authority side, by real commands of a real daemon at the faulty authority."""

import json
from pathlib import Path

import pytest

from certfan import pki
from tests.lab import machine
from tests.real.daemon_place import Daemon, Place, authority, certificate

pytestmark = pytest.mark.real


def told(daemon: Daemon, *words: str) -> dict[str, object]:
    """What a command answers a program."""
    found: dict[str, object] = json.loads(daemon.certfan(*words, "--json"))
    return found


def test_a_trial_orders_at_staging_and_leaves_everything_as_it_was(daemons: Place) -> None:
    """A line for each certificate; nothing is published, counted or ordered at the other authority."""
    ca, staging = daemons.faulty(), daemons.faulty()
    staging.behaviour.blocked = ("b.test",)
    fragments = [authority("ca", ca, staging="st"), authority("st", staging)]
    with daemons.running(*fragments, certificate("a.test"), certificate("b.test")) as daemon:
        pairs = [daemon.issued("a.test"), daemon.issued("b.test")]
        good = daemon.certfan("check", "--order", "a.test").splitlines()
        with pytest.raises(machine.CommandFailed) as failed:
            daemon.certfan("check", "--order")

        assert good[0].endswith("good: 2 certificates, 1 consumer, 2 authorities")
        assert good[1].startswith("a.test: ok at st (")
        assert "\na.test: ok at st (" in failed.value.printed
        assert "\nb.test: authority st refused a new order: " in failed.value.printed
        assert 2 == len(ca.records.orders)
        assert [("a.test",), ("a.test",)] == [one.names for one in staging.records.orders.values()]
        assert ["a.test", "a.test"] == [one["subject"] for one in daemon.events("trial.passed")]
        assert 2 == len(daemon.events("generation.issued"))
        assert pairs == [daemon.issued("a.test"), daemon.issued("b.test")]
        assert {"a.test", "b.test"} == {
            path.name.partition("@")[0] for path in (daemon.here / "state/generations").iterdir()
        }


def test_an_account_gets_a_new_key_and_moves_to_another_machine(daemons: Place, tmp_path: Path) -> None:
    """One account throughout; the key that it was exported with is the one that it was rolled over to."""
    ca = daemons.faulty()
    fragments = (authority("ca", ca), certificate("a.test"))
    with daemons.running(*fragments) as daemon:
        daemon.issued("a.test")
        before = told(daemon, "account", "show", "ca")
        daemon.certfan("account", "rollover", "ca")
        daemon.wait(lambda: daemon.events("account.key_changed"), "the new key")
        after = told(daemon, "account", "show", "ca")
        daemon.renew("a.test")
        daemon.issued("a.test", 2)
        exported = tmp_path / "account.json"
        exported.write_text(daemon.certfan("account", "export", "ca"))
        secret = json.loads(exported.read_text())["key"].splitlines()[1]
        said = daemon.log.read_text() + json.dumps(daemon.get("/api/v1/status")) + json.dumps(daemon.events())
    with daemons.running(*fragments) as other:
        other.issued("a.test")  # by an account of its own
        moved = told(other, "account", "import", "ca", str(exported))
        other.renew("a.test")
        other.issued("a.test", 2)
        shown = told(other, "account", "show", "ca")

    assert before["uri"] == after["uri"] == moved["uri"] == shown["uri"]
    assert before["thumbprint"] != after["thumbprint"] == shown["thumbprint"]
    assert secret not in said
    assert {after["uri"]} == {one.account for one in list(ca.records.orders.values())[-1:]}


def test_a_certificate_is_revoked_at_once_and_replaced_with_a_new_key(daemons: Place) -> None:
    """The authority hears the reason; the successor has another key; what was revoked is never gone back to."""
    ca = daemons.faulty()
    with daemons.running(authority("ca", ca), certificate("a.test", reuse_key="365d")) as daemon:
        first = daemon.issued("a.test")
        daemon.renew("a.test")
        second = daemon.issued("a.test", 2)
        daemon.certfan("revoke", "a.test", "--reason", "keyCompromise", "--now")
        third = daemon.issued("a.test", 3)
        daemon.wait(lambda: len(daemon.events("generation.revoked")) == 2, "both to be revoked")
        with pytest.raises(machine.CommandFailed) as refused:
            daemon.certfan("rollback", "a.test", "--to", "1")
        revoked = [ca.records.by_serial(one.leaf.serial) for one in (first, second, third)]

    assert [1, 1, None] == [one.revoked if one else "unknown" for one in revoked]
    assert key(first) == key(second) != key(third)
    assert "is revoked or is to be" in refused.value.printed


def key(pair: pki.Pair) -> str:
    return pki.public_key_hash(pair.key_pem)


def test_a_revocation_waits_for_who_does_not_prove_the_successor_and_not_for_what_left(
    daemons: Place,
) -> None:
    """No agent has reported here, so nothing is revoked; once the certificate is out of the config nobody is waited for."""
    ca = daemons.faulty()
    with daemons.running(authority("ca", ca)) as daemon:
        daemon.write("a", certificate("a.test"))
        first = daemon.issued("a.test")
        daemon.certfan("revoke", "a.test", "--reason", "cessationOfOperation")
        daemon.issued("a.test", 2)
        (waiting,) = daemon.certificate("a.test")["revocations"]
        issued = ca.records.by_serial(first.leaf.serial)
        assert issued is not None
        before = issued.revoked
        daemon.write("a", "")
        daemon.wait(lambda: daemon.events("generation.revoked"), "the revocation")

    assert ("web1 to prove the successor", None) == (waiting["waits_for"], before)
    assert 5 == issued.revoked
