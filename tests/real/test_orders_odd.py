"""A real daemon at an authority whose orders take every turn that RFC 8555 allows, and whose limits are used up."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from certfan import pki
from tests.lab.faulty import FaultyAuthority
from tests.lab.faulty.answers import problem
from tests.lab.faulty.faults import Instead, Reset, Turn
from tests.real.daemon_place import Daemon, Place, authority, certificate

pytestmark = pytest.mark.real

# What is said of each at its second look, once; the try fails, and the next one orders anew.
TURNED = {
    "order-expires.test": ("order", Turn("expired"), "its order has expired"),
    "order-invalid.test": ("order", Turn("invalid"), "the authority has made its order invalid"),
    "authorization-expires.test": ("authorization", Turn("expired"), "is expired"),
    "authorization-revoked.test": ("authorization", Turn("revoked"), "is revoked"),
    "authorization-deactivated.test": ("authorization", Turn("deactivated"), "is deactivated"),
    "authorization-invalid.test": ("authorization", Turn("invalid"), "the authority gives no reason"),
}


@pytest.fixture
def ca(daemons: Place) -> Iterator[FaultyAuthority]:
    yield daemons.faulty()


def test_an_order_that_turns_bad_is_told_and_the_next_one_is_good(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """Whatever becomes of an order or an authorization, it costs one order more, and the same key is certified."""
    ca.behaviour.processing = 1  # every order is looked at
    for name, (kind, turn, _) in TURNED.items():
        ca.faults.add(kind, turn, name=name, times=1)
    with daemons.running(authority("ca", ca), *map(certificate, TURNED)) as daemon:
        problems = {name: daemon.failure(name)["detail"] for name in TURNED}
        keys = {
            name: (daemon.here / f"state/generations/{name}@1.privkey.pem").read_bytes() for name in TURNED
        }
        for name in TURNED:
            daemon.renew(name)
        certified = {name: daemon.issued(name).key_pem for name in TURNED}
        orders = {name: len(daemon.events("order.created", subject=name)) for name in TURNED}

    for name, (_, _, text) in TURNED.items():
        assert text in problems[name], name
    assert keys == certified
    assert dict.fromkeys(TURNED, 2) == orders


def test_an_order_that_is_not_ready_yet_or_processes_for_long_is_waited_for(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """Neither is a failure, and neither costs an order."""
    early = ca.faults.add("finalize", Instead(problem("orderNotReady", 403)), name="early.test", times=2)
    ca.behaviour.processing = 4
    names = ("early.test", "slow.test")
    with daemons.running(authority("ca", ca), *map(certificate, names)) as daemon:
        for name in names:
            daemon.issued(name)

        assert 2 == early.hits
        assert [] == daemon.events("step.failed")
    assert 2 == len(ca.records.orders)


def test_an_order_at_a_prompt_authority_is_looked_at_only_while_its_certificate_is_made(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """Nobody asks how an order stands that has nothing left to wait for: the second one takes five exchanges."""
    begins, ends = ("newOrder", "authorization", "challenge", "finalize"), ("certificate",)
    told: dict[int, tuple[str, ...]] = {}
    with daemons.running(authority("ca", ca), certificate("a.test")) as daemon:
        daemon.issued("a.test")
        for number, ca.behaviour.processing in enumerate((0, 1), 2):
            before = len(ca.records.exchanges)
            daemon.renew("a.test")
            daemon.issued("a.test", number)
            told[number] = tuple(one.kind for one in ca.records.exchanges[before:])
        fetched = daemon.events("challenge.fetched")

    assert {2: (*begins, *ends), 3: (*begins, "order", "order", *ends)} == told
    assert 3 == len(fetched)


def test_an_offer_is_told_of_only_once_there_is_a_generation(daemons: Place, ca: FaultyAuthority) -> None:
    """That a consumer was assigned a certificate before it was issued is none."""
    with daemons.running(authority("ca", ca), certificate("offered.test")) as daemon:
        daemon.issued("offered.test")
        daemon.wait(lambda: "offered.test@1" in offered(daemon), "the offer")
        told = offered(daemon)

    assert ["offered.test@1"] == told


def offered(daemon: Daemon) -> list[str]:
    return [one["subject"] for one in daemon.events("generation.offered")]


def test_a_connection_that_breaks_costs_a_moment_and_never_an_order_too_many(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """Before or after the request was heard, at every exchange; only an order whose answer is lost is ordered twice."""
    kinds = ("newOrder", "order", "authorization", "challenge", "finalize", "certificate")
    names = {(kind, heard): f"{kind}-{heard}.test".lower() for kind in kinds for heard in (False, True)}
    for (kind, heard), name in names.items():
        # A second one, since a request that meets a kept-alive connection just closed is sent once more.
        ca.faults.add(kind, Reset(heard), name=name, times=2)
    with daemons.running(authority("ca", ca), *(certificate(name) for name in names.values())) as daemon:
        for name in names.values():
            daemon.issued(name)
        failed = {one["fields"]["code"] for one in daemon.events("step.failed")}
    orders = {
        one: sum(name in order.names for order in ca.records.orders.values()) for one, name in names.items()
    }

    assert failed <= {"authority.unreachable", "authority.unanswered"}
    assert {("newOrder", True)} == {one for one, count in orders.items() if count > 1}


def test_two_certificates_for_the_same_names_are_issued_where_orders_are_given_again(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """As for one service with two kinds of keys: the second must not be handed the order of the first."""
    ca.behaviour.reuse_orders = ca.behaviour.reuse_authorizations = True
    ca.behaviour.processing = 2
    kinds = ("ecdsa-p256", "ecdsa-p384")
    wanted = [certificate("a.test", "b.test", name=kind, key_type=kind) for kind in kinds]
    with daemons.running(authority("ca", ca), *wanted) as daemon:
        pairs = [daemon.issued(kind) for kind in kinds]

        assert list(kinds) == [pki.key_type(pair.key_pem) for pair in pairs]
        assert [] == daemon.events("step.failed")
    assert 2 == len(ca.records.orders)


def test_an_order_that_our_own_limits_forbid_is_postponed_and_the_status_says_until_when(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """The authority is not asked at all; what it would have counted for is told."""
    limits = "[authority.ca.limits]\ncertificates_per_set = { count = 2, window = '7d' }\n"
    with daemons.running(authority("ca", ca), limits, certificate("a.test"), certificate("b.test")) as daemon:
        for number in (1, 2):
            daemon.issued("a.test", number)
            daemon.renew("a.test")
        daemon.wait(lambda: daemon.certificate("a.test")["held"], "the order to be held")
        daemon.restart()
        view = daemon.certificate("a.test")
        daemon.issued("b.test")

    until = datetime.fromisoformat(view["held"]["until"])
    assert "authority.limit" == view["held"]["code"]
    assert "2 certificates for exactly a.test in 7 days are used up" in view["held"]["why"]
    assert abs(until - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=1)
    assert view["held"]["until"] == view["next"]["at"]
    assert 3 == len(ca.records.orders)
