"""`make bench-status`: how fast a large farm's status is told while orders run, and what the daemon takes of memory.

Times: 1,000 certificates on each of 20 consumers, all proven, in a store that is written beforehand, and orders one after the
other at an authority that answers at once. Memory: 1,000 certificates among 200 agents that wait on the channel. The share is
away, so that what is measured is not the publishing of 20,000 bundles.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from certfan.core.model import Endpoint, Generation, Identifier, KeyType
from certfan.daemon.store import Store, issued, tables
from certfan.daemon.store.store import transaction
from certfan.daemon.wiring import now
from tests.lab import machine
from tests.lab.bench_fanout import machine_line
from tests.lab.fanout_daemon import FLEET, consumer
from tests.lab.fanout_parts import Talker, seed
from tests.lab.faulty import FaultyAuthority
from tests.lab.pebble import free_port
from tests.real.daemon_place import Place, authority

CERTIFICATES, CONSUMERS, AGENTS, ORDERED = 1000, 20, 200, 20
ROUNDS, PAGED = 300, 100
PATIENCE = 120.0
_MAIN = """\
fleet = "{fleet}"
state = "{here}/daemon"
[share]
path = "{here}/absent"
[http01]
listen = ["127.0.0.1:{responder}"]
self_check = "off"
[channel]
listen = ["127.0.0.1:{channel}"]
[status]
listen = ["127.0.0.1:{status}"]
probe_interval = 86400
[control]
socket = "{here}/control.sock"
group = "root"
"""


def main() -> int:
    """Measure, print, write."""
    print(machine_line())
    with tempfile.TemporaryDirectory() as folder, Place(Path(folder)) as place:
        figures = {
            **_times(place, Path(folder) / "times"),
            "rss_mib": _memory(place, Path(folder) / "memory"),
        }
    for name, value in figures.items():
        print(f"{name:<24} {value:>8}")
    written = machine.PROJECT / "build/bench/status.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {written.relative_to(machine.PROJECT)}")
    return 0


def _times(place: Place, here: Path) -> Mapping[str, float]:
    """Ask a farm of 1,000 certificates on each of 20 consumers."""
    everybody = tuple(map(consumer, range(CONSUMERS)))
    with _farm(place, here, lambda _: everybody) as (farm, daemon, ca), _ordering(here / "control.sock"):
        times = farm.measured()
        figures = {"orders_meanwhile": len(ca.records.orders), "rss_mib_times_20": _rss_mib(daemon.pid)}
    p99 = {f"p99_ms_{name}": _percentile(taken, 99) for name, taken in times.items()}
    median = {f"median_ms_{name}": _percentile(taken, 50) for name, taken in times.items()}
    return {**p99, **median, **figures}


def _memory(place: Place, here: Path) -> float:
    """Let 200 agents wait, with 1,000 certificates among them, and read all that there is to read."""
    with (
        _farm(place, here, lambda number: (consumer(number % AGENTS),)) as (farm, daemon, _),
        Talker(here, "tests.lab.fanout_load", here / "identities") as load,
    ):
        load.ask("connect", "agents", farm.channel, AGENTS, "gently")
        for path in ("/api/v1/status", f"/api/v1/certificates?limit={PAGED}", "/", "/metrics"):
            farm.get(path)
        return _rss_mib(daemon.pid)


@contextlib.contextmanager
def _farm(
    place: Place, here: Path, consumers: Callable[[int], tuple[str, ...]]
) -> Iterator[tuple["_Farm", subprocess.Popen[bytes], FaultyAuthority]]:
    """Run a daemon with 1,000 certificates, each on consumers of its own; yields it when it tells of all of them."""
    here.mkdir()
    ports = {"responder": place.responder, "channel": free_port(), "status": free_port()}
    ca = place.faulty()
    seed(here, AGENTS)
    pairs = [(_name(number), one) for number in range(CERTIFICATES) for one in consumers(number)]
    asyncio.run(_fill(here / "daemon" / "certfan.db", pairs))
    config = here / "certfan.toml"
    main = _MAIN.format(fleet=FLEET, here=here, **ports)
    config.write_text("\n".join([main, authority("ca", ca), *_wanted(consumers)]))
    argv = [sys.executable, "-m", "certfan", "daemon", "--config", str(config)]
    daemon = machine.spawn(argv, here / "log")
    try:
        farm = _Farm(ports["status"], ports["channel"])
        told = f'certfan_endpoints{{verdict="proven"}} {len(pairs)}.0'.encode()
        machine.wait_until(lambda: farm.tells(told), f"the farm to be told: {here / 'log'}", PATIENCE)
        yield farm, daemon, ca
    finally:
        machine.end(daemon, 20)


def _wanted(consumers: Callable[[int], tuple[str, ...]]) -> Iterator[str]:
    for number in range(AGENTS):
        yield f'[consumer.{consumer(number)}]\ngroup = "root"'
    for number in range(CERTIFICATES):
        yield f'[[certificate]]\nnames = ["{_name(number)}"]\nconsumers = {json.dumps(consumers(number))}'
    for number in range(ORDERED):
        yield f'[[certificate]]\nnames = ["order{number}.test"]\nconsumers = ["{consumer(0)}"]'


def _name(number: int) -> str:
    return f"n{number:04}.example.org"


async def _fill(database: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write a farm in which everything is issued, assigned and proven."""
    at = now()

    def fill(db: Connection) -> None:
        for number in range(CERTIFICATES):
            issued.record_generation(db, _generation(number))
        where = [{"certificate": name, "consumer": where, "generation": 1} for name, where in pairs]
        db.execute(insert(tables.assignments), [{**one, "offered_at": at} for one in where])
        db.execute(insert(tables.deployments), [{**one, "state": "proven", "at": at} for one in where])
        db.execute(insert(tables.proofs), [_proof(*pair) for pair in pairs])
        boots = [
            {"consumer": consumer(n), "boot_id": f"b{n}", "sequence": 1, "heard_at": at, "version": "0.1.0"}
            for n in range(AGENTS)
        ]
        db.execute(insert(tables.agent_boots), boots)

    store = await Store.open(database, now)
    await transaction(fill)(store)
    await store.close()


def _generation(number: int) -> Generation:
    at = now() - timedelta(days=1)
    return Generation(
        _name(number), 1, fingerprint=f"{number:064x}", serial=f"{number + 1:x}",
        identifiers=frozenset({Identifier(_name(number))}), key_type=KeyType.ECDSA_P256, authority="ca",
        not_before=at, not_after=at + timedelta(days=90), issued_at=at,
    )  # fmt: skip


def _proof(certificate: str, where: str) -> dict[str, Any]:
    at, number = now(), int(certificate[1:5])
    seen = {"health": "served", "fingerprint": f"{number:064x}", "placeholder": False, "detail": ""}
    dates = {"not_before": at - timedelta(days=1), "not_after": at + timedelta(days=89)}
    place = Endpoint("apache2", "tls", "192.0.2.1", 443, certificate)
    return {
        "certificate": certificate,
        "consumer": where,
        **asdict(place),
        **seen,
        **dates,
        "at": at,
        "heard_at": at,
        "since": at,
    }


class _Farm:
    """Asks the status endpoint over one connection."""

    def __init__(self, port: int, channel: int) -> None:
        self.channel = channel
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def get(self, path: str) -> bytes:
        """Return what is told; it must be 200."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body[:500]
        return body

    def tells(self, line: bytes) -> bool:
        """Whether it answers, and a line stands in the metrics."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return line in self.get("/metrics")
        self._connection.close()
        return False

    def measured(self) -> dict[str, list[float]]:
        """Ask for each in turn, every time another page of them; return how long each took."""
        times: dict[str, list[float]] = {"json": [], "page": [], "metrics": []}
        pages = CERTIFICATES // PAGED
        for turn in range(ROUNDS):
            after = f"&after={_name(turn % pages * PAGED - 1)}" if turn % pages else ""
            for name, path in (
                ("json", f"/api/v1/certificates?limit={PAGED}{after}"),
                ("page", f"/?page={turn % pages + 1}"),
                ("metrics", "/metrics"),
            ):
                began = time.monotonic()
                self.get(path)
                times[name].append((time.monotonic() - began) * 1000)
        return times


@contextlib.contextmanager
def _ordering(control: Path) -> Iterator[None]:
    """Ask for one order after the other as long as the block lasts."""
    stop = threading.Event()

    def order() -> None:
        turn = 0
        while not stop.wait(0.1):
            _post(control, "/api/v1/renew", {"certificate": f"order{turn % ORDERED}.test"})
            turn += 1

    thread = threading.Thread(target=order)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)


def _post(control: Path, path: str, body: Mapping[str, str]) -> None:
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(control))
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body))
        connection.getresponse().read()


def _percentile(times: list[float], percent: int) -> float:
    return round(statistics.quantiles(times, n=100, method="inclusive")[percent - 1], 1)


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


if __name__ == "__main__":
    sys.exit(main())
