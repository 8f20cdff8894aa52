"""The page as Prometheus metrics: timestamps, not days left; of endpoints only what is not proven has a line of its own.

Names follow cert-manager's suffixes under our prefix, and of a certificate's leaf x509-certificate-exporter's families
and labels. docs/metrics.md tells what each is for, config/prometheus/ and config/grafana/ use them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from certfan import __version__
from certfan.core.policy import Urgency
from certfan.daemon.status.model import CertificateView, Page, Row, State, Verdict

_PER_NAME = ("name",)
_ENDPOINT = ("name", "consumer", "endpoint", "verdict")
_LEAF = ("serial_number", "subject_CN", "filename", "filepath")
# What a problem of the whole daemon is filed under, and the family that is 0 meanwhile.
_SOUND = {
    "share": ("certfan_share_up", "1 while the share can be read and written"),
    "clock": ("certfan_clock_trusted", "1 while the clock can be believed; without it nothing is renewed"),
    "config": ("certfan_config_valid", "1 while the newest config is in force"),
}

_Samples: TypeAlias = Iterable[tuple[Sequence[str], float | datetime | None]]


def exposition(page: Page) -> bytes:
    """Return the page in the text format of Prometheus, and what this process uses of the machine."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families(page))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class Families(Collector):
    """What a page tells, family by family; an empty one has every family too."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        """Yield every family; the same page gives the same lines."""
        yield from self._daemon()
        yield from self._remote_log()
        yield from self._certificates()
        yield from self._leaves()
        yield from self._endpoints()
        yield from self._authorities()
        yield from self._consumers()
        yield from self._internal_ca()

    def _daemon(self) -> Iterator[Metric]:
        page = self._page
        build = [((__version__, page.fleet), 1.0)]
        yield _gauge("certfan_build_info", "1, with version and fleet", ("version", "fleet"), build)
        ill = {one.subject for one in page.problems}
        for subject, (family, about) in _SOUND.items():
            yield _gauge(family, about, (), [((), float(subject not in ill))])
        codes = Counter(one.code for one in page.problems)
        problems = [((code,), float(count)) for code, count in sorted(codes.items())]
        yield _gauge("certfan_problems", "what needs somebody, by code", ("code",), problems)
        runs = CounterMetricFamily("certfan_runs", "how often the daemon was started")
        runs.add_metric([], float(page.runs[0].number if page.runs else 0))
        yield runs
        resets = [((), float(page.summary.resets_today))]
        yield _gauge(
            "certfan_machine_resets", "how often the machine was reset in the last 24 hours", (), resets
        )

    def _remote_log(self) -> Iterator[Metric]:
        if (sent := self._page.remote_log) is not None:
            waiting = [((), float(sent.waiting))]
            yield _gauge("certfan_log_waiting", "log lines that wait for the remote receiver", (), waiting)
            about = "log lines that found no room to wait for the remote receiver"
            dropped = CounterMetricFamily("certfan_log_dropped", about)
            dropped.add_metric([], sent.dropped)
            yield dropped

    def _certificates(self) -> Iterator[Metric]:
        def of(name: str, about: str, value: str) -> Metric:
            samples = (((one.name,), getattr(one, value)) for one in self._page.certificates)
            return _gauge(f"certfan_certificate_{name}", about, _PER_NAME, samples)

        ready = (
            ((one.name, condition), float(condition == _condition(one)))
            for one in self._page.certificates
            for condition in ("True", "False", "Unknown")
        )
        labels = ("name", "condition")
        yield _gauge(
            "certfan_certificate_ready_status",
            "1 for what a certificate is: True while nothing is wrong, Unknown before there is one",
            labels,
            ready,
        )
        yield of("expiration_timestamp_seconds", "notAfter of the newest leaf", "not_after")
        yield of("renewal_timestamp_seconds", "when the next one is ordered", "renew_at")
        yield of("generation", "the number of the newest generation", "generation")
        yield of("failed_attempts", "how often in a row an order has failed", "failures")
        yield of("failing_since_timestamp_seconds", "when the first order of them failed", "failing_since")
        unproven = (
            ((one.name,), min(_deadlines(one.endpoints), default=None)) for one in self._page.certificates
        )
        about = "by when the first of its unproven endpoints must agree"
        yield _gauge("certfan_certificate_deadline_timestamp_seconds", about, _PER_NAME, unproven)

    def _leaves(self) -> Iterator[Metric]:
        labelled = [(_leaf(one), one) for one in self._page.certificates if one.serial]
        before = ((labels, one.not_before) for labels, one in labelled)
        yield _gauge("x509_cert_not_before", "notBefore of the newest leaf", _LEAF, before)
        after = ((labels, one.not_after) for labels, one in labelled)
        yield _gauge("x509_cert_not_after", "notAfter of the newest leaf", _LEAF, after)
        now = self._page.now
        expired = (
            (labels, float(one.not_after is not None and one.not_after <= now)) for labels, one in labelled
        )
        yield _gauge("x509_cert_expired", "1 when the newest leaf has expired", _LEAF, expired)

    def _endpoints(self) -> Iterator[Metric]:
        rows = [row for one in self._page.certificates for row in one.endpoints]
        counts = Counter(row.verdict for row in rows)
        by_verdict = (((verdict.value,), float(counts[verdict])) for verdict in Verdict)
        yield _gauge("certfan_endpoints", "endpoints by what is thought of them", ("verdict",), by_verdict)
        late = [(_where(row), row) for row in rows if row.verdict is not Verdict.PROVEN]
        about = "by when an unproven endpoint must agree"
        deadlines = ((where, row.deadline) for where, row in late)
        yield _gauge("certfan_endpoint_deadline_timestamp_seconds", about, _ENDPOINT, deadlines)
        ranks = ", ".join(f"{one.rank} {one}" for one in Urgency)
        urgencies = ((where, float(row.urgency.rank)) for where, row in late)
        about = f"how near the deadline of an unproven endpoint is: {ranks}"
        yield _gauge("certfan_endpoint_urgency", about, _ENDPOINT, urgencies)

    def _authorities(self) -> Iterator[Metric]:
        authorities = self._page.authorities
        answers = (((one.name,), float(not one.silent)) for one in authorities)
        about = "0 since an order failed because nobody answered"
        yield _gauge("certfan_authority_answers", about, ("authority",), answers)
        orders = (((one.name,), float(one.orders)) for one in authorities)
        yield _gauge("certfan_authority_orders", "orders under way", ("authority",), orders)
        most: dict[tuple[str, str], float] = {}
        for one in authorities:
            for limit in one.limits:
                key = one.name, limit.limit
                most[key] = max(most.get(key, 0.0), limit.used / limit.count)
        about = "how much is used of a limit of the authority, where it is most"
        yield _gauge("certfan_authority_limit_used_ratio", about, ("authority", "limit"), most.items())

    def _consumers(self) -> Iterator[Metric]:
        labels, consumers = ("consumer",), self._page.consumers
        heard = (((one.name,), one.heard_at) for one in consumers)
        yield _gauge(
            "certfan_consumer_heard_timestamp_seconds", "when a consumer last reported", labels, heard
        )
        lately = (((one.name,), float(one.heard)) for one in consumers)
        about = "1 while a consumer has reported within two probe intervals"
        yield _gauge("certfan_consumer_heard_status", about, labels, lately)
        rows = (row for one in self._page.certificates for row in one.endpoints)
        late = Counter(row.consumer for row in rows if row.verdict is not Verdict.PROVEN)
        unproven = (((one.name,), float(late[one.name])) for one in consumers)
        about = "how many of its endpoints do not serve what they should"
        yield _gauge("certfan_consumer_unproven_endpoints", about, labels, unproven)

    def _internal_ca(self) -> Iterator[Metric]:
        ca = self._page.internal_ca
        begun = [((), ca.since if ca else None)]
        about = "when the rotation of the internal CA that is under way was begun"
        yield _gauge("certfan_ca_rotation_begun_timestamp_seconds", about, (), begun)
        lacking = [((name,), 1.0) for name in (ca.waits_for if ca else ())]
        about = "1 for a consumer that does not have the new internal CA yet, and is waited for"
        yield _gauge("certfan_ca_rotation_waits", about, ("consumer",), lacking)
        ends = [((), ca.not_after if ca else None)]
        yield _gauge("certfan_ca_expiration_timestamp_seconds", "notAfter of the internal CA", (), ends)


def _gauge(name: str, about: str, labels: Sequence[str], samples: _Samples) -> Metric:
    """Return a family; what is None has no line, an instant becomes seconds."""
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value.timestamp() if isinstance(value, datetime) else value)
    return family


def _condition(one: CertificateView) -> str:
    if one.state is State.PROBLEM:
        return "False"
    return "True" if one.generation is not None else "Unknown"


def _leaf(one: CertificateView) -> tuple[str, ...]:
    assert one.serial is not None
    return str(int(one.serial, 16)), one.identifiers[0], "fullchain.pem", f"live/{one.name}/fullchain.pem"


def _where(row: Row) -> tuple[str, ...]:
    return row.certificate, row.consumer, str(row.endpoint or ""), row.verdict.value


def _deadlines(rows: Sequence[Row]) -> Iterator[datetime]:
    return (row.deadline for row in rows if row.verdict is not Verdict.PROVEN)
