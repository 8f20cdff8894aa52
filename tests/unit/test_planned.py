"""What `certfan plan` and `certfan why` tell, as pure functions: what follows from what, and what hurries it along."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from certfan.cli.lines.plan import plan_lines
from certfan.core.model import Certificate, Consumer, Identifier, Problem
from certfan.daemon.config.wire import as_wire, from_wire
from certfan.daemon.status.model import as_json
from certfan.daemon.status.planned import planned
from certfan.daemon.status.view import view
from certfan.errors import MessageInvalid
from tests.unit.status_parts import DAY, DESIRED, MINUTE, NOW, WHERE, deployment, proof, things
from tests.unit.test_status_authorities import REFUSED, due, failed, used_up

SHOWN = {"published": {WHERE: frozenset({1})}, "live": {WHERE: 1}}
SETTLED = {"proofs": {WHERE: (proof(),)}, "deployments": {WHERE: (deployment(1),)}}


def told_of(*asked: Any) -> list[str]:
    """The lines of a plan, without what only makes columns of them."""
    return [" ".join(line.split()) for line in plan_lines(as_json(planned(*asked)))]


def test_a_settled_farm_plans_nothing_but_its_next_renewal() -> None:
    """The instant is the one that the certificate's page has."""
    found = planned(things(seen=SHOWN, **SETTLED))

    assert ((), (), ()) == (found.orders, found.publications, found.reloads)
    assert [("www.test", NOW - DAY + 60 * DAY)] == [(one.certificate, one.at) for one in found.upcoming]
    assert plan_lines(as_json(found))[-1] == "next by itself: renew www.test in 59 d"


def test_an_order_is_told_with_what_follows_from_it() -> None:
    """Published for each consumer when it is there, then loaded by the services that were seen there."""
    lines = told_of(due())

    assert lines[:3] == [
        "order www.test (www.test) at pebble: renewal_due",
        "publish www.test, when it is there, for web1",
        "reload apache2 on web1 for www.test: renewal_due",
    ]


def test_what_holds_an_order_or_the_share_up_stands_below_it() -> None:
    """A limit with its end, a share that is away with its reason."""
    told = due(seen={"ledgers": used_up()})
    away = dataclasses.replace(told, share_problem=Problem("share.unavailable", "/srv/le is not mounted"))
    lines = told_of(away)

    assert lines[1].startswith(
        "waits: pebble: 2 certificates for exactly www.test in 7 days are used up, until in "
    )
    assert lines[3] == "waits: /srv/le is not mounted"


def test_another_config_is_planned_for_without_being_in_force() -> None:
    """What is new, changed or gone, and where it ends; the plan of the config in force stays what it was."""
    other = dataclasses.replace(
        DESIRED,
        certificates={
            "www.test": dataclasses.replace(
                DESIRED.certificates["www.test"], identifiers=(Identifier("www.test"), Identifier("a.test"))
            ),
            "new.test": Certificate(
                "new.test", (Identifier("new.test"),), consumers=("web2",), authority="pebble"
            ),
        },
        consumers={"web1": Consumer("web1"), "web2": Consumer("web2")},
    )
    settled = things(seen=SHOWN, **SETTLED)
    lines = told_of(settled, other)

    assert lines == [
        "config: new certificate new.test",
        "config: changed certificate www.test",
        "config: new consumer web2",
        "order new.test (new.test) at pebble: missing",
        "order www.test (www.test a.test) at pebble: names_changed",
        "publish new.test, when it is there, for web2",
        "publish www.test, when it is there, for web1",
        "reload apache2 on web1 for www.test: names_changed",
        "reload services (none reported yet) on web2 for new.test: missing",
        *lines[9:],
    ]
    assert planned(settled).orders == ()


def test_what_leaves_the_config_is_withdrawn() -> None:
    """And nothing is ordered or loaded for it."""
    found = planned(things(seen=SHOWN, **SETTLED), dataclasses.replace(DESIRED, certificates={}))

    assert ("www.test",) == found.difference.removed if found.difference else False
    assert [("withdraw", "www.test web1", "superseded")] == [
        (one.step, one.subject, one.reason) for one in found.steps
    ]


def test_a_config_goes_over_the_wire_and_comes_back_the_same() -> None:
    """Through JSON text, spans and all."""
    told = json.loads(json.dumps(as_wire(DESIRED)))

    assert DESIRED == from_wire(told)


@pytest.mark.parametrize(
    "told",
    [
        [],
        {"authorities": {}, "certificates": {}},
        {**as_wire(DESIRED), "authorities": {}},
        {**as_wire(DESIRED), "consumers": {}},
        {**as_wire(DESIRED), "certificates": {"www.test": {"name": 1}}},
    ],
)
def test_what_is_no_config_is_refused(told: object) -> None:
    """Also one that names what is not in it: the plan looks names up without asking."""
    with pytest.raises(MessageInvalid):
        from_wire(told)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            due(attempts=failed(problem=REFUSED, since=NOW - MINUTE)),
            "run: certfan renew www.test (it lifts the wait",
        ),
        (due(seen={"ledgers": used_up()}), "no command can: the limit is that of pebble"),
        (due(seen={"in_flight": frozenset({("www.test",)})}), "nothing: it is being worked on now"),
        (things(seen=SHOWN, **SETTLED), "run: certfan renew www.test (nothing waits"),
        (
            things(seen=SHOWN, proofs={WHERE: (proof(heard_ago=DAY),)}),
            "run on web1: systemctl status certfan-agent",
        ),
    ],
    ids=["back-off", "limit", "in flight", "settled", "unheard"],
)
def test_how_to_force_it_depends_on_what_it_waits_for(told: object, expected: str) -> None:
    """One sentence, with the command if there is one."""
    (one,) = view(told).certificates  # type: ignore[arg-type]

    assert one.to_force.startswith(expected)
