"""What a real daemon asks of authorities beside orders, while consumers and orders hang: revocations, a new account key, tidying."""

from collections.abc import Iterator

import pytest

from certfan import pki
from tests.lab import machine
from tests.lab.faulty import FaultyAuthority
from tests.lab.faulty.faults import Spoil, Stuck
from tests.real.daemon_consumer import Consumer
from tests.real.daemon_place import Place, authority, certificate

pytestmark = pytest.mark.real


@pytest.fixture
def ca(daemons: Place) -> Iterator[FaultyAuthority]:
    yield daemons.faulty()


def revoked(ca: FaultyAuthority, pair: pki.Pair) -> int | None:
    """The reason for which the authority has revoked a leaf, None when it has not."""
    found = ca.records.by_serial(pair.leaf.serial)
    assert found is not None
    return found.revoked


def test_a_revocation_waits_until_a_successor_with_another_key_is_proven_everywhere(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """While the consumer hangs the old leaf stays good; afterwards it is revoked, and nothing goes back to it."""
    with (
        daemons.running(authority("ca", ca), certificate("a.test", reuse_key="90d")) as daemon,
        Consumer(daemon).enrolled() as consumer,
    ):
        consumer.wait_proven(["a.test"])
        first = daemon.issued("a.test")
        with consumer.frozen():
            daemon.certfan("revoke", "a.test", "--reason", "keyCompromise")
            second = daemon.issued("a.test", 2)
            daemon.wait(lambda: daemon.certificate("a.test")["revocations"], "the status to tell of it")
            early = revoked(ca, first), daemon.events("generation.revoked")
            assert first.leaf.serial == consumer.serial("a.test")
        daemon.wait(lambda: revoked(ca, first), "the authority to have revoked it")
        daemon.wait(lambda: daemon.events("generation.revoked"), "the journal to tell of it")
        with pytest.raises(machine.CommandFailed) as refused:
            daemon.certfan("rollback", "a.test", "--to", "1")
        served = consumer.serial("a.test")
        (asked,) = (one for one in ca.records.exchanges if one.kind == "revokeCert" and one.status == 200)

    assert (None, []) == early
    assert 1 == revoked(ca, first)
    assert None is revoked(ca, second)
    assert pki.public_key_hash(first.key_pem) != pki.public_key_hash(second.key_pem)
    assert second.leaf.serial == served
    assert "revoked" in refused.value.printed
    assert asked.protected is not None
    assert "jwk" in asked.protected  # a compromised key revokes itself


def test_an_account_key_is_rolled_between_orders(daemons: Place) -> None:
    """Pebble knows the same account by the new key; orders before and after it are good, and a restart uses the new one."""
    pebble = daemons.pebble()
    with daemons.running(authority("pebble", pebble), certificate("a.test")) as daemon:
        daemon.issued("a.test")
        before = daemon.ledger.ask("SELECT uri, thumbprint FROM accounts")
        daemon.certfan("account", "rollover", "pebble")
        daemon.wait(lambda: daemon.events("account.key_changed"), "the new key")
        daemon.write("b", certificate("b.test"))
        daemon.issued("b.test")
        daemon.restart()
        daemon.write("c", certificate("c.test"))
        daemon.issued("c.test")
        after = daemon.ledger.ask("SELECT uri, thumbprint FROM accounts")
        failed = daemon.events("step.failed")

    assert [] == failed
    assert [uri for uri, _ in before] == [uri for uri, _ in after]
    assert before != after
    assert 1 == pebble.log_path.read_text(errors="replace").count("There are now 1 accounts in memory")


def test_an_account_key_is_rolled_although_an_order_hangs(daemons: Place, ca: FaultyAuthority) -> None:
    """It waits for orders that get on; one that stands still holds up neither the key nor the orders after it."""
    ca.faults.add("challenge", Stuck(), name="stuck.test")
    with daemons.running(authority("ca", ca), certificate("stuck.test")) as daemon:
        daemon.wait(lambda: daemon.events("order.created"), "an order that hangs")
        daemon.certfan("account", "rollover", "ca")
        daemon.write("a", certificate("a.test"))
        daemon.wait(lambda: daemon.events("account.key_changed"), "the new key")
        daemon.issued("a.test")


def test_what_a_failed_order_left_pending_is_given_up(daemons: Place, ca: FaultyAuthority) -> None:
    """One name is refused, so nobody needs the authorization of the other any more."""
    ca.faults.add("challenge", Spoil("unauthorized", "not yours"), name="refused.test")
    ca.faults.add("challenge", Stuck(), name="pending.test")
    wanted = certificate("pending.test", "refused.test", name="both")
    with daemons.running(authority("ca", ca), wanted) as daemon:
        problem = daemon.failure("both")
        daemon.wait(lambda: "deactivated" == status_of(ca, "pending.test"), "it to be given up")
        told = daemon.events("authorization.deactivated")

    assert "not yours" in problem["detail"]
    assert ["pending.test"] == [one["subject"] for one in told]
    assert "invalid" == status_of(ca, "refused.test")


def status_of(ca: FaultyAuthority, name: str) -> str:
    return next(one.status for one in ca.records.authorizations.values() if one.identifier[1] == name)


def test_a_name_that_hangs_is_taken_out_and_the_rest_is_ordered_soon(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """The order that stands still is given up for what the config asks now, and what it left pending too."""
    ca.faults.add("challenge", Stuck(), name="stuck.test")
    with daemons.running(authority("ca", ca), certificate("a.test", "stuck.test", name="a")) as daemon:
        daemon.wait(lambda: daemon.events("order.created"), "an order that hangs")
        daemon.edit('["a.test", "stuck.test"]', '["a.test"]')
        pair = daemon.issued("a")
        daemon.wait(lambda: "deactivated" == status_of(ca, "stuck.test"), "it to be given up")

    assert ("a.test",) == pair.leaf.names
    assert 2 == len(ca.records.orders)
