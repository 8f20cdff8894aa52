"""Certificates from one Pebble: the real daemon beside lego, certbot and Caddy in the same run; asserts nothing.

The daemon's time runs from the config being saved until every generation is recorded: keys and chains in its state
folder, facts and journal in its store. Its peers go as far, each in its own way, and publish to nobody; so the daemon
that is compared has no share either, and one that has publishes and offers every generation beside it. CPU is that of
all processes of a client. Prints a table, writes build/bench/acme.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.lab import machine
from tests.lab.acme_parts import Ca, Cost, Daemon, anew_when_stuck, cpu_of, status_mib, wait_while_it_grows
from tests.lab.acme_peers import by_caddy, by_certbot, by_lego, versions
from tests.lab.bench_fanout import machine_line

SIZES = (1, 50, 200)
ROUNDS = 3  # of ours; the one of median time counts
QUIET = 0.5  # seconds for what the first certificate still causes
Peer = Callable[[Ca, Path, int], Cost]
# Their own pauses make lego and certbot take seconds a certificate; Caddy allows itself ten in ten seconds.
PEERS: Mapping[str, tuple[Peer, tuple[int, ...]]] = {
    "lego": (by_lego, (1, 50, 200)),
    "certbot": (by_certbot, (1, 4)),
    "Caddy": (by_caddy, (1, 20)),
}


@dataclass(frozen=True, slots=True)
class Ours:
    """What one run of the daemon took."""

    cost: Cost
    offered_s: float  # 0 without a share
    peak_mib: float


def main() -> int:
    """Measure, print, write."""
    print(machine_line())
    print(" ".join(f"{name} {version}" for name, version in versions().items()))
    with tempfile.TemporaryDirectory(prefix="certfan-acme-") as folder:
        ours = {size: _median_of_ours(Path(folder), size, share=False) for size in SIZES}
        publishing = _median_of_ours(Path(folder), max(SIZES), share=True)
        peers = {
            name: {count: _measured(Path(folder), name, measure, count) for count in counts}
            for name, (measure, counts) in PEERS.items()
        }
    most = {name: runs[max(runs)] for name, runs in peers.items()}
    figures = _figures(ours[max(SIZES)], most) | {
        "certificates_per_second_with_share": round(publishing.cost.per_second, 1),
        "cpu_ms_per_certificate_with_share": round(publishing.cost.cpu_ms, 2),
        "rss_mib_with_share": round(publishing.peak_mib, 1),
    }
    for name, value in figures.items():
        print(f"{name:<32} {value:>8}")
    place = machine.PROJECT / "build/bench/acme.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {place.relative_to(machine.PROJECT)}")
    return 0


def _figures(ours: Ours, peers: Mapping[str, Cost]) -> dict[str, float]:
    """Return the ratios, everybody's at the most certificates that it was asked for."""
    cost = ours.cost
    throughput = {name: cost.per_second / peer.per_second for name, peer in peers.items()}
    cpu = {name: cost.cpu_ms / peer.cpu_ms for name, peer in peers.items()}
    return {
        "throughput_vs_lego": round(throughput["lego"], 1),
        "throughput_vs_certbot": round(throughput["certbot"], 1),
        "cpu_per_certificate_vs_lego": round(cpu["lego"], 3),
        "cpu_per_certificate_vs_caddy": round(cpu["Caddy"], 3),
        "cpu_per_certificate_vs_certbot": round(cpu["certbot"], 4),
        "requests_per_certificate": round(cost.requests_each, 2),
        "rss_mib": round(ours.peak_mib, 1),
        "certificates_per_second": round(cost.per_second, 1),
        "cpu_ms_per_certificate": round(cost.cpu_ms, 2),
    }


def _median_of_ours(folder: Path, size: int, *, share: bool) -> Ours:
    measure = partial(_ours, count=size, share=share)
    runs = [anew_when_stuck(folder / f"certfan-{size}-{share}-{turn}", measure) for turn in range(ROUNDS)]
    ours = sorted(runs, key=lambda run: run.cost.seconds)[ROUNDS // 2]
    offered = f"; all offered after {ours.offered_s:.2f} s" if share else ""
    _print("certfan", ours.cost, f"; {ours.peak_mib:.0f} MiB{offered}")
    return ours


def _measured(folder: Path, name: str, measure: Peer, count: int) -> Cost:
    cost = anew_when_stuck(folder / f"{name}-{count}", partial(measure, count=count))
    _print(name, cost)
    return cost


def _ours(ca: Ca, here: Path, count: int, *, share: bool) -> Ours:
    with Daemon(ca, here, share=share).running() as daemon:
        daemon.want(["first.example.test"])
        wait_while_it_grows(daemon.offered if share else daemon.issued, 1)
        time.sleep(QUIET)
        requests, cpu, began = ca.requests(), cpu_of(daemon.pid), time.monotonic()
        daemon.want(f"n{n}.example.test" for n in range(count))
        wait_while_it_grows(daemon.issued, count + 1)
        seconds, offered = time.monotonic() - began, 0.0
        if share:
            wait_while_it_grows(daemon.offered, count + 1)
            offered = time.monotonic() - began
        cost = Cost(count, seconds, cpu_of(daemon.pid) - cpu, ca.requests() - requests)
        return Ours(cost, offered, status_mib(daemon.pid, "VmHWM"))


def _print(name: str, cost: Cost, more: str = "") -> None:
    print(
        f"{name:<8}{cost.count:>4}: {cost.seconds:>7.2f} s, {cost.per_second:>7.2f} a second, {cost.cpu_ms:>7.1f} ms"
        f" CPU and {cost.requests_each:>6.2f} requests each{more}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
