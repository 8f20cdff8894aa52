"""A real daemon at an authority that answers wrongly, or not now: what the status says, that nothing wrong is published, what then."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import trustme

from tests.lab.faulty import FaultyAuthority
from tests.lab.faulty.faults import Instead, Misissue, html, paused, rate_limited
from tests.real.daemon_place import Daemon, Place, authority, certificate

pytestmark = pytest.mark.real

# What the status says of each chain: its code, and what stands in its text.
SPOILT = {
    Misissue.OTHER_KEY: ("pki.pair_mismatch", r"private key does not belong to certificate [0-9a-f]+"),
    Misissue.OTHER_NAMES: ("pki.chain_invalid", r"certificate is for other\.example, not \S+\.test"),
    Misissue.TRUNCATED: ("authority.malformed", r"chain is truncated or holds something else"),
    Misissue.HTML: ("authority.malformed", r"certificate at https://\S+: no PEM"),
    Misissue.LEAF_ONLY: ("pki.chain_invalid", r"chain of certificate [0-9a-f]+ ends in none of the roots"),
    Misissue.FOREIGN_ISSUER: ("pki.chain_invalid", r"certificate [0-9a-f]+ is not signed by the next of its chain"),
    Misissue.EXPIRED: ("pki.chain_invalid", r"certificate [0-9a-f]+ is valid from \S+ to \S+, not at \S+"),
    Misissue.NOT_YET_VALID: ("pki.chain_invalid", r"certificate [0-9a-f]+ is valid from \S+ to \S+, not at \S+"),
}  # fmt: skip
SAID_ONCE = ("newOrder", "order", "authorization", "challenge", "finalize", "certificate")
UNPAUSE = f"https://ca.test/sfe/v1/unpause?jwt={'x' * 900}.{'y' * 86}"


@pytest.fixture
def ca(daemons: Place) -> Iterator[FaultyAuthority]:
    yield daemons.faulty()


def named(wrong: Misissue) -> str:
    return f"{wrong.name.lower().replace('_', '-')}.test"


def test_a_wrong_chain_is_refused_with_the_reason_and_the_order_after_it_is_good(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """None of them is ever published, and none stands in the way for ever: refused twice at most, it is ordered anew."""
    for wrong in SPOILT:
        ca.faults.add("finalize", wrong, name=named(wrong), times=1)
    with daemons.running(authority("ca", ca), *(certificate(named(wrong)) for wrong in SPOILT)) as daemon:
        problems = {wrong: daemon.failure(named(wrong)) for wrong in SPOILT}
        published = [wrong for wrong in SPOILT if daemon.published(named(wrong))]
        for wrong in SPOILT:
            try_until_published(daemon, named(wrong))
        names = {wrong: daemon.issued(named(wrong)).leaf.names for wrong in SPOILT}
        orders = {wrong: len(daemon.events("order.created", subject=named(wrong))) for wrong in SPOILT}

    for wrong, (code, text) in SPOILT.items():
        assert code == problems[wrong]["code"], wrong
        assert re.search(text, problems[wrong]["detail"]), problems[wrong]["detail"]
        assert problems[wrong]["hint"], wrong
    assert [] == published
    assert {wrong: (named(wrong),) for wrong in SPOILT} == names
    assert dict.fromkeys(SPOILT, 2) == orders


def try_until_published(daemon: Daemon, name: str) -> None:
    """Ask at most twice more."""
    for failures in (2, 3):
        daemon.renew(name)
        daemon.wait(
            lambda failures=failures: (
                daemon.published(name) or len(daemon.events("step.failed", subject=name)) == failures
            ),
            f"the next try of {name}",
        )
        if daemon.published(name):
            return


def test_a_root_that_is_not_trusted_costs_no_second_order(daemons: Place, ca: FaultyAuthority) -> None:
    """The chain is refused; once roots_file is right the same order's chain is taken, without being asked for."""
    other = daemons.file("other-roots.pem", trustme.CA().cert_pem.bytes())
    with daemons.running(authority("ca", ca, roots_file=str(other)), certificate("a.test")) as daemon:
        problem = daemon.failure("a.test")
        published = daemon.published("a.test")
        daemon.edit(str(other), str(ca.roots_file))
        daemon.issued("a.test")

        assert "pki.chain_invalid" == problem["code"]
        assert "ends in none of the roots" in problem["detail"]
        assert "check roots_file of authority ca" in problem["hint"]
        assert 0 == published
        assert 1 == len(ca.records.orders)


def test_a_web_page_in_the_place_of_an_answer_is_named_and_the_next_try_goes_on(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """Whichever exchange it comes in: what it was is said, no more than a beginning of it shown, and no order is lost."""
    names = {kind: f"{kind.lower()}.test" for kind in SAID_ONCE}
    ca.behaviour.processing = 1  # every order is looked at
    for kind, name in names.items():
        ca.faults.add(kind, Instead(html("please log in" * 50)), name=name, times=1)
    with daemons.running(authority("ca", ca), *map(certificate, names.values())) as daemon:
        problems = {kind: daemon.failure(name) for kind, name in names.items()}
        for name in names.values():
            daemon.renew(name)
        for name in names.values():
            daemon.issued(name)
        orders = {kind: len(ca_orders(ca, name)) for kind, name in names.items()}

    assert dict.fromkeys(SAID_ONCE, "authority.malformed") == {k: one["code"] for k, one in problems.items()}
    assert all(len(one["detail"]) < 400 for one in problems.values())
    assert dict.fromkeys(SAID_ONCE, 1) == orders


def ca_orders(ca: FaultyAuthority, name: str) -> list[str]:
    return [url for url, order in ca.records.orders.items() if name in order.names]


def test_a_limit_of_the_authority_is_waited_for_and_the_status_says_until_when(
    daemons: Place, ca: FaultyAuthority
) -> None:
    """Retry-After is obeyed in seconds and as a date, over a restart too, and nobody else has to wait."""
    until = datetime.now(UTC) + timedelta(hours=5)
    ca.faults.add("newOrder", rate_limited(5 * 3600), name="seconds.test")
    ca.faults.add("newOrder", rate_limited(format_datetime(until, usegmt=True)), name="date.test")
    names = ["seconds.test", "date.test", "free.test"]
    with daemons.running(authority("ca", ca), *map(certificate, names)) as daemon:
        for name in names[:2]:
            daemon.failure(name)
        daemon.issued("free.test")
        daemon.restart()
        seen = [daemon.certificate(name) for name in names[:2]]

    assert 3 == ca.counts["newOrder"]
    for one in seen:
        assert "rateLimited" in one["problem"]["detail"]
        assert "issue" == one["next"]["step"]
        assert abs(datetime.fromisoformat(one["next"]["at"]) - until) < timedelta(minutes=1)


def test_a_paused_account_shows_its_whole_unpause_url(daemons: Place, ca: FaultyAuthority) -> None:
    """In the status and in the journal, however long it is: whoever is paused has to open it."""
    ca.faults.add("newOrder", paused(UNPAUSE, "a.test"))
    with daemons.running(authority("ca", ca), certificate("a.test")) as daemon:
        problem = daemon.failure("a.test")
        (failed,) = daemon.events("step.failed")
        shown = daemon.certfan("status")
        told = daemon.certfan("events")

    assert f"open {UNPAUSE}" == problem["hint"] == failed["fields"]["hint"]
    assert UNPAUSE in shown
    assert UNPAUSE in told


def test_a_name_that_the_authority_will_not_have_is_named(daemons: Place, ca: FaultyAuthority) -> None:
    """Out of many, with what to do about it; the others of the fleet are issued."""
    names = [*(f"n{number}.test" for number in range(20)), "x.blocked.test"]
    with daemons.running(
        authority("ca", ca), certificate(*names, name="many"), certificate("free.test")
    ) as daemon:
        problem = daemon.failure("many")
        daemon.issued("free.test")

    assert "x.blocked.test" in problem["detail"]
    assert "remove the name, or choose another authority for it" in problem["hint"]
