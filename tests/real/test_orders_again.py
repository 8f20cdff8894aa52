"""A real daemon renews when the authority says so, and orders at a fallback while the first authority fails for long."""

import asyncio
import json
import re
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from certfan import pki
from certfan.core.model import Authority
from certfan.daemon.authority import AcmeAuthority
from tests.lab.faulty.answers import problem
from tests.lab.faulty.faults import Instead
from tests.lab.pebble import Pebble
from tests.real.daemon_place import FAKETIME, Place, authority, certificate

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FAKETIME.exists(), reason="faketime is not installed"),
]

DAY = timedelta(days=1)
ASKED = timedelta(hours=7)  # after which an authority is asked when to renew, whatever it said before
EXPLANATION = "https://ca.test/why"


@pytest.fixture(scope="module")
def pebble(daemons: Place) -> Pebble:
    return daemons.pebble()


def suggest(pebble: Pebble, pair: pki.Pair, start: timedelta, end: timedelta) -> None:
    """Have Pebble suggest a window, from now."""
    dates = {"start": (datetime.now(UTC) + start).isoformat(), "end": (datetime.now(UTC) + end).isoformat()}
    said = json.dumps({"suggestedWindow": dates, "explanationURL": EXPLANATION})
    pebble.management("/set-renewal-info/", {"certificate": pair.cert_pem.decode(), "ariResponse": said})


def new_orders(pebble: Pebble) -> int:
    """How often Pebble was asked for an order, whatever its answer."""
    return len(re.findall(r"POST /order-plz ", pebble.log_path.read_text(errors="replace")))


def replacements(pebble: Pebble) -> int:
    """How many orders Pebble has taken as the replacement of a certificate."""
    return len(re.findall(r"is a replacement of", pebble.log_path.read_text(errors="replace")))


def test_the_window_that_the_authority_suggests_is_when_a_certificate_is_renewed(
    daemons: Place, pebble: Pebble
) -> None:
    """One in the past renews at once, as a replacement; of one to come the status shows the instant, and why."""
    daemon = daemons.fresh(authority("pebble", pebble), certificate("past.test"), certificate("later.test"))
    with daemon.started():
        past, later = daemon.issued("past.test"), daemon.issued("later.test")
        suggest(pebble, past, -2 * DAY, -1 * DAY)
        suggest(pebble, later, 30 * DAY, 31 * DAY)
        before, begun = replacements(pebble), datetime.now(UTC)
        daemon.restart(ahead=ASKED)
        daemon.issued("past.test", 2, timeout=15)
        daemon.wait(lambda: daemon.certificate("later.test")["renewal"], "the window in the status")
        view = daemon.certificate("later.test")
        told = daemon.events("renewal.suggested", subject="past.test")[0]

        assert EXPLANATION == told["fields"]["explanation"] == view["renewal"]["explanation_url"]
        assert before + 1 == replacements(pebble)
        assert begun + 29 * DAY < datetime.fromisoformat(view["renew_at"]) < begun + 31 * DAY
        assert 1 == daemon.published("later.test")
        assert [] == daemon.events("step.failed")


def test_a_certificate_that_the_authority_has_revoked_is_ordered_anew(daemons: Place, pebble: Pebble) -> None:
    """It moves the window into the past; nobody here has to notice."""
    daemon = daemons.fresh(authority("pebble", pebble), certificate("revoked.test"))
    with daemon.started():
        pair = daemon.issued("revoked.test")
        revoke_elsewhere(pebble, pair)
        daemon.restart(ahead=ASKED)
        successor = daemon.issued("revoked.test", 2, timeout=15)

        assert pki.public_key_hash(pair.key_pem) != pki.public_key_hash(successor.key_pem)
        assert pair.leaf.serial != successor.leaf.serial


def revoke_elsewhere(pebble: Pebble, pair: pki.Pair) -> None:
    """Revoke as whoever holds the certificate's key can."""

    async def revoke() -> None:
        spec = Authority("pebble", pebble.directory_url, ca_file=str(pebble.ca_file))
        client = AcmeAuthority(
            spec, account_key_pem=pki.make_key(), account_uri=None, clock=lambda: datetime.now(UTC)
        )
        try:
            await client.revoke(pki.read_leaf(pair.cert_pem).der, 4, key_pem=pair.key_pem)
        finally:
            await client.close()

    asyncio.run(revoke())


def test_what_was_replaced_already_is_ordered_again_without_saying_so(daemons: Place, pebble: Pebble) -> None:
    """Yesterday's state folder does not know of the renewal; the authority refuses its word, and gets the order without it."""
    daemon = daemons.fresh(authority("pebble", pebble), certificate("restored.test"))
    with daemon.started():
        daemon.issued("restored.test")
        daemon.stop()
        shutil.copytree(daemon.here / "state", daemon.here / "yesterday")
        daemon.start()
        daemon.renew("restored.test")
        second = daemon.issued("restored.test", 2)
        daemon.stop()
        shutil.rmtree(daemon.here / "state")
        (daemon.here / "yesterday").rename(daemon.here / "state")
        before, asked = replacements(pebble), new_orders(pebble)
        daemon.start()
        daemon.renew("restored.test")
        third = daemon.issued("restored.test", 3)

        assert before == replacements(pebble)
        assert asked + 2 == new_orders(pebble)
        assert second.leaf.serial != third.leaf.serial
        assert [] == daemon.events("step.failed")


def test_a_fallback_issues_while_the_first_authority_fails_and_the_status_says_why(daemons: Place) -> None:
    """Not before the configured time; a restart forgets nothing of it; the next renewal goes to the first again."""
    first, second = daemons.faulty(), daemons.faulty()
    down = first.faults.add("newOrder", Instead(problem("serverInternal", 500, "out of order")))
    fragments = [authority("first", first), authority("second", second)]
    wanted = certificate("a.test", authority="first", fallback=["second"], fallback_after="1m")
    daemon = daemons.fresh(*fragments, wanted)
    with daemon.started(ahead=timedelta(0)):
        reason = daemon.failure("a.test")
        too_early = len(second.records.orders)
        daemon.restart(ahead=timedelta(minutes=2))
        fallback = daemon.issued("a.test")
        issued_by = daemon.certificate("a.test")["issued_by"]
        (issued,) = daemon.events("generation.issued")
        first.faults.clear()
        daemon.renew("a.test")
        daemon.issued("a.test", 2)
        again = daemon.certificate("a.test")

    assert "out of order" in reason["detail"]
    assert 0 == too_early
    assert down.hits >= 1
    assert "second" == issued_by == issued["fields"]["authority"]
    assert [fallback.leaf.serial] == [one.serial for one in second.records.certificates.values()]
    assert ("first", None) == (again["issued_by"], again["problem"])
    assert 1 == len(second.records.orders)


def test_while_a_fallback_is_asked_the_status_tells_what_it_is_instead_of(daemons: Place) -> None:
    """Also when that one fails too: both are seen, and neither hides the other."""
    first, second = daemons.faulty(), daemons.faulty()
    first.faults.add("newOrder", Instead(problem("serverInternal", 500, "out of order")))
    second.faults.add("newOrder", Instead(problem("rejectedIdentifier", 400, "not here either")))
    fragments = [authority("first", first), authority("second", second)]
    wanted = certificate("a.test", authority="first", fallback=["second"], fallback_after="1m")
    daemon = daemons.fresh(*fragments, wanted)
    with daemon.started(ahead=timedelta(0)):
        daemon.failure("a.test")
        daemon.restart(ahead=timedelta(minutes=2))
        daemon.wait(lambda: len(daemon.events("step.failed")) > 1, "the fallback to fail")
        daemon.wait(
            lambda: "not here either" in json.dumps(daemon.certificate("a.test")), "the status to say so"
        )
        view = daemon.certificate("a.test")
        shown = daemon.certfan("status")

    assert "out of order" in json.dumps(view), view
    assert "not here either" in shown
