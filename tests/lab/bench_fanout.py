"""One announcement to thousands of agents over mutual TLS, beside Mosquitto 2 in the same run.

All on 127.0.0.1. The daemon, the broker and the load generator are a process each; CPU and memory are the kernel's
accounting of the daemon's and the broker's process. Prints a table, writes build/bench/fanout.json; asserts nothing.
"""

import json
import os
import platform
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.lab import machine
from tests.lab.fanout_parts import (
    Talker,
    agent_rss_mib,
    bring_mosquitto,
    cpu_seconds,
    mosquitto,
    seed,
    when_quiet,
)

SIZES = (10, 1000, 5000)
ROUNDS = 5
IDLE = 5.0  # seconds over which idle cost is counted
BODY = 300  # bytes of a broker's message, about what a list with one certificate has
Found = dict[int, dict[str, float]]  # by size
_ROWS = {
    "last_ack_s": "publish to last acknowledgement, s",
    "cpu_us": "CPU per announcement, us",
    "kib_each": "memory per connected agent, KiB",
    "idle_ms_per_s": "CPU while all wait, ms/s",
    "storm_s": "all reconnect at once, s",
    "storm_again": "connections that were tried again then",
    "storm_cpu_us": "CPU per reconnect, us",
    "offers_s": "the offers before, s",
}


def main() -> int:
    """Measure, print, write."""
    print(machine_line())
    began = time.monotonic()
    version = bring_mosquitto()
    with tempfile.TemporaryDirectory(prefix="certfan-fanout-") as folder:
        ours, theirs, agent = _measure(Path(folder))
    figures = {
        "seconds_last_ack_1000": round(ours[1000]["last_ack_s"], 3),
        "seconds_last_ack_5000": round(ours[5000]["last_ack_s"], 3),
        "kib_per_agent": round(ours[5000]["kib_each"], 1),
        "cpu_us_per_announcement": round(ours[5000]["cpu_us"], 1),
        "last_ack_vs_mosquitto": round(ours[5000]["last_ack_s"] / theirs[5000]["last_ack_s"], 2),
        "agent_rss_mib": agent,
    }
    _print(ours, theirs, version)
    for name, value in figures.items():
        print(f"{name:<24} {value:>8}")
    place = machine.PROJECT / "build/bench/fanout.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {place.relative_to(machine.PROJECT)} after {time.monotonic() - began:.0f} s")
    return 0


def machine_line() -> str:
    """Say on what this runs, and what else keeps it busy just now."""
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores of{processor.partition(':')[2]}, Linux {platform.release()}, Python {platform.python_version()}, {ssl.OPENSSL_VERSION}; load {load:.1f}"


def _measure(folder: Path) -> tuple[Found, Found, float]:
    ca = seed(folder, max(SIZES))
    with Talker(folder, "tests.lab.fanout_load", folder / "identities") as load:
        with Talker(folder, "tests.lab.fanout_daemon", folder / "daemon") as daemon:
            ours = _rounds("agents", load, int(daemon.ask("port")["port"]), daemon.pid, daemon)
            agent = agent_rss_mib(folder, daemon)
        with mosquitto(folder, ca) as (port, pid):
            theirs = _rounds("subscribers", load, port, pid, load)
    return ours, theirs, agent


def _rounds(kind: str, load: Talker, port: int, pid: int, publisher: Talker) -> Found:
    """Connect ever more peers and publish to them again and again; medians by size."""
    load.ask("connect", kind, port, min(SIZES), "gently")
    when_quiet(pid)
    _publish(publisher, pid, kind, min(SIZES))  # what is loaded late is no agent's memory
    load.ask("drop")
    empty = when_quiet(pid)
    found: Found = {}
    for size in SIZES:
        load.ask("connect", kind, port, size, "gently")
        when_quiet(pid)
        runs = [_publish(publisher, pid, kind, size) for _ in range(ROUNDS)]
        found[size] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        found[size]["kib_each"] = (when_quiet(pid) - empty) / size
        before = cpu_seconds(pid)
        time.sleep(IDLE)
        found[size]["idle_ms_per_s"] = (cpu_seconds(pid) - before) / IDLE * 1000
        load.ask("drop")
        when_quiet(pid)
        before = cpu_seconds(pid)
        storm = load.ask("connect", kind, port, size, "at-once")
        found[size] |= {"storm_s": storm["seconds"], "storm_again": storm["again"]}
        found[size]["storm_cpu_us"] = (cpu_seconds(pid) - before) / size * 1e6
        load.ask("drop")
        when_quiet(pid)
        print(f"  {size} {kind} measured", flush=True)
    return found


def _publish(publisher: Talker, pid: int, kind: str, size: int) -> dict[str, float]:
    if kind == "agents":
        return dict(publisher.ask("publish", size))
    before = cpu_seconds(pid)
    seconds = publisher.ask("publish", BODY)["seconds"]
    return {"offers_s": 0.0, "last_ack_s": seconds, "cpu_us": (cpu_seconds(pid) - before) / size * 1e6}


def _print(ours: Found, theirs: Found, version: str) -> None:
    sides: Mapping[str, Found] = {"certfan": ours, "mosquitto": theirs}
    print(f"\nmosquitto {version}; medians of {ROUNDS} announcements")
    print(f"{'':<36}" + "".join(f"{side:>11} {size:>5}" for side in sides for size in SIZES))
    for row, title in _ROWS.items():
        cells = (f"{found[size][row]:>17.3f}" for found in sides.values() for size in SIZES)
        print(f"{title:<36}" + "".join(cells))


if __name__ == "__main__":
    sys.exit(main())
