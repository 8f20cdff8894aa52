"""/metrics: what Prometheus reads is what the page says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from certfan.core.ledger import Ledger, Spend, SpendKind
from certfan.core.model import Health, Limit, Limits, Problem
from certfan.daemon.listeners import Listener
from certfan.daemon.status.metrics import exposition
from certfan.daemon.status.model import RemoteLog
from certfan.daemon.status.view import view
from tests.unit.status_parts import DAY, NOW, WHERE, proof, serving, things

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Every sample by name and labels, as Prometheus itself would read it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**words: str) -> frozenset[tuple[str, str]]:
    return frozenset(words.items())


def test_a_proven_certificate_has_its_instants_and_no_line_an_endpoint() -> None:
    """Timestamps, not days left; what is proven costs nothing."""
    found = samples(exposition(view(things(proofs={WHERE: (proof(),)}))).decode())

    name = labels(name="www.test")
    assert found["certfan_certificate_ready_status", labels(name="www.test", condition="True")] == 1
    assert found["certfan_certificate_expiration_timestamp_seconds", name] == (NOW + 89 * DAY).timestamp()
    assert found["certfan_certificate_renewal_timestamp_seconds", name] == (NOW + 59 * DAY).timestamp()
    assert found["certfan_endpoints", labels(verdict="proven")] == 1
    assert not [key for key, _ in found if key.startswith("certfan_endpoint_")]


def test_the_urgency_of_an_unproven_endpoint_rises_as_its_deadline_nears() -> None:
    """An endpoint that was lost has an hour; each third look is more urgent, and past it the highest."""
    lost = replace(proof(health=Health.UNREACHABLE), since=NOW)
    urgencies = []
    for minutes in (1, 40, 57, 61):
        now = NOW + timedelta(minutes=minutes)
        page = view(things(now=now, proofs={WHERE: (replace(lost, heard_at=now),)}))
        found = samples(exposition(page).decode())
        urgencies.append(
            next(value for (name, _), value in found.items() if name == "certfan_endpoint_urgency")
        )
        deadline = next(
            v for (n, _), v in found.items() if n == "certfan_endpoint_deadline_timestamp_seconds"
        )
        assert deadline == (NOW + timedelta(hours=1)).timestamp()

    assert urgencies == [0, 1, 2, 3]


async def test_it_is_served_beside_the_status() -> None:
    """On the read-only listener, in the content type that scrapers expect."""
    async with (
        serving(Listener("127.0.0.1", 0)) as runner,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/metrics") as response,
    ):
        text = await response.text()

    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert ("certfan_endpoints", labels(verdict="proven")) in samples(text)


def test_an_authority_has_one_line_a_kind_of_limit() -> None:
    """However many names a limit counts for, the one that is most used is told."""
    limits = Limits(failures_per_name=Limit(4, timedelta(hours=1)))
    spends = [
        Spend(SpendKind.FAILURE, NOW - timedelta(minutes=1), frozenset({name}))
        for name in ("a.test", "b.test", "b.test", "b.test")
    ]
    ledger = Ledger.of(limits, spends, domains=lambda name: name)
    found = samples(exposition(view(things(seen={"ledgers": {"pebble": ledger}}))).decode())

    assert found["certfan_authority_answers", labels(authority="pebble")] == 1
    used = {key: value for key, value in found.items() if key[0] == "certfan_authority_limit_used_ratio"}
    assert list(used.values()) == [0.75]
    assert labels(authority="pebble", limit="failures_per_name") in {key[1] for key in used}


def test_lines_that_a_remote_receiver_did_not_get_are_counted() -> None:
    """Beside what needs somebody; without a receiver there is no family."""
    problem = Problem("log.undelivered", "no log line reaches tls://log.int:6514: connection refused")
    sent = RemoteLog(target="tls://log.int:6514", problem=problem, waiting=7, dropped=3)
    page = view(replace(things(), remote_log=sent))
    lines = exposition(page).decode().splitlines()

    assert "certfan_log_waiting 7.0" in lines
    assert "certfan_log_dropped_total 3.0" in lines
    assert ["log"] == [one.subject for one in page.problems if one.code == "log.undelivered"]
    assert "certfan_log" not in exposition(view(things())).decode()
