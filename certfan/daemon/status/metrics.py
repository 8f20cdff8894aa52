"""The page as Prometheus metrics: timestamps, not days left; of endpoints only what is not proven has a line of its own.

Names follow cert-manager's suffixes under our prefix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from certfan.core.policy import Urgency
from certfan.daemon.status.model import Page, State, Verdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(page: Page) -> bytes:
    """Return the page in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(page))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, page: Page) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        """Yield every family; the same page gives the same lines."""
        yield from self._certificates()
        yield from self._endpoints()
        yield from self._authorities()
        yield from self._consumers()

    def _certificates(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "certfan_certificate_ready_status", "1 while nothing is wrong with a certificate", labels=["name"]
        )
        expires = GaugeMetricFamily(
            "certfan_certificate_expiration_timestamp_seconds", "notAfter of the newest leaf", labels=["name"]
        )
        renews = GaugeMetricFamily(
            "certfan_certificate_renewal_timestamp_seconds", "when the next one is ordered", labels=["name"]
        )
        for one in self._page.certificates:
            ready.add_metric([one.name], float(one.state is not State.PROBLEM))
            if one.not_after:
                expires.add_metric([one.name], one.not_after.timestamp())
            if one.renew_at:
                renews.add_metric([one.name], one.renew_at.timestamp())
        yield from (ready, expires, renews)

    def _endpoints(self) -> Iterator[Metric]:
        rows = [row for one in self._page.certificates for row in one.endpoints]
        counts = Counter(row.verdict for row in rows)
        by_verdict = GaugeMetricFamily(
            "certfan_endpoints", "endpoints by what is thought of them", labels=["verdict"]
        )
        for verdict in Verdict:
            by_verdict.add_metric([verdict.value], counts[verdict])
        labels = ["name", "consumer", "endpoint", "verdict"]
        deadline = GaugeMetricFamily(
            "certfan_endpoint_deadline_timestamp_seconds",
            "by when an unproven endpoint must agree",
            labels=labels,
        )
        urgency = GaugeMetricFamily(
            "certfan_endpoint_urgency",
            "how near the deadline of an unproven endpoint is: "
            + ", ".join(f"{one.rank} {one}" for one in Urgency),
            labels=labels,
        )
        for row in rows:
            if row.verdict is not Verdict.PROVEN:
                where = [row.certificate, row.consumer, str(row.endpoint or ""), row.verdict.value]
                deadline.add_metric(where, row.deadline.timestamp())
                urgency.add_metric(where, row.urgency.rank)
        yield from (by_verdict, deadline, urgency)

    def _authorities(self) -> Iterator[Metric]:
        answers = GaugeMetricFamily(
            "certfan_authority_answers",
            "0 since an order failed because nobody answered",
            labels=["authority"],
        )
        used = GaugeMetricFamily(
            "certfan_authority_limit_used_ratio",
            "how much is used of a limit of the authority, where it is most",
            labels=["authority", "limit"],
        )
        for one in self._page.authorities:
            answers.add_metric([one.name], float(not one.silent))
            most: dict[str, float] = {}
            for limit in one.limits:
                most[limit.limit] = max(most.get(limit.limit, 0.0), limit.used / limit.count)
            for name, ratio in most.items():
                used.add_metric([one.name, name], ratio)
        yield from (answers, used)

    def _consumers(self) -> Iterator[Metric]:
        heard = GaugeMetricFamily(
            "certfan_consumer_heard_timestamp_seconds", "when a consumer last reported", labels=["consumer"]
        )
        for one in self._page.consumers:
            if one.heard_at:
                heard.add_metric([one.name], one.heard_at.timestamp())
        yield heard
