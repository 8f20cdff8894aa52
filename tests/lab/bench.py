"""The figures of docs/benchmarks.md: one fleet, one certificate, then many; prints a table, writes build/bench/demo.json.

CPU and memory are the kernel's own accounting of the real processes in their VMs; nothing here is asserted.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.lab import machine
from tests.lab.dns import SPARE_NAMES
from tests.lab.fleet import Fleet
from tests.lab.vm import Vm

RENEWALS = 5
HELP_RUNS = 10
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure, print, write."""
    if missing := machine.capabilities():
        sys.exit("no bench here: " + "; ".join(missing))
    with Fleet(print).up() as fleet:
        figures = {**_certificates(fleet), **_memory(fleet), "help_ms": _help_ms()}
    _print(figures)
    place = machine.PROJECT / "build/bench/demo.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {place.relative_to(machine.PROJECT)}")
    return 0


def _certificates(fleet: Fleet) -> Mapping[str, float]:
    """Time one certificate from its line in the config, then count the daemon's CPU over renewals."""
    began = time.monotonic()
    fleet.add_certificate()
    fleet.wait_proven()
    first = time.monotonic() - began
    before = _cpu_seconds(fleet.cert, "certfan.service")
    again = []
    for generation in range(2, RENEWALS + 2):
        began = time.monotonic()
        fleet.renew()
        fleet.wait_proven(generation)
        again.append(time.monotonic() - began)
    spent = _cpu_seconds(fleet.cert, "certfan.service") - before
    many = _many(fleet)
    return {
        "seconds_config_to_proven": round(first, 2),
        "seconds_renewal_to_proven_median": round(statistics.median(again), 2),
        "daemon_cpu_s_per_certificate": round(many, 4),
        "daemon_cpu_s_per_renewal_with_idle": round(spent / RENEWALS, 4),
    }


def _many(fleet: Fleet) -> float:
    """Return the daemon's CPU seconds a certificate, over as many certificates as there are spare names."""
    names = [f"{name}.example.test" for name in SPARE_NAMES]
    before = _cpu_seconds(fleet.cert, "certfan.service")
    tables = (f'[[certificate]]\nnames = ["{name}"]\nconsumers = ["web1"]\n' for name in names)
    fleet.write_config("many", "\n".join(tables))

    def all_issued() -> bool:
        views = fleet.get("/api/v1/status")["certificates"]
        return sum(1 for view in views if view["generation"]) >= len(names) + 1

    machine.wait_until(all_issued, "all certificates issued", 120)
    return (_cpu_seconds(fleet.cert, "certfan.service") - before) / len(names)


def _memory(fleet: Fleet) -> Mapping[str, float]:
    return {
        "daemon_rss_mib": _rss_mib(fleet.cert, "certfan.service"),
        "agent_rss_mib": _rss_mib(fleet.web1, "certfan-agent.service"),
    }


def _main_pid(vm: Vm, unit: str) -> str:
    return vm.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()


def _cpu_seconds(vm: Vm, unit: str) -> float:
    fields = vm.run(["cat", f"/proc/{_main_pid(vm, unit)}/stat"]).stdout.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _rss_mib(vm: Vm, unit: str) -> float:
    status = vm.run(["cat", f"/proc/{_main_pid(vm, unit)}/status"]).stdout
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return round(kib / 1024, 1)


def _help_ms() -> float:
    """Return the median wall time of `certfan --help`, after one run that is not counted."""
    program = str(Path(sys.executable).parent / "certfan")
    took = []
    for _ in range(HELP_RUNS + 1):
        began = time.monotonic()
        subprocess.run([program, "--help"], check=True, stdout=subprocess.DEVNULL)
        took.append((time.monotonic() - began) * 1000)
    return round(statistics.median(took[1:]), 1)


def _print(figures: Mapping[str, float]) -> None:
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>10}")


if __name__ == "__main__":
    sys.exit(main())
