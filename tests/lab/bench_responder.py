"""The daemon's http-01 responder beside nginx and Caddy serving the same answers as files; asserts nothing.

10,000 live tokens, 64 connections of one wrk, kept and closed; once idle, once while the daemon carries 200 orders. Prints a table,
writes build/bench/responder.json.
"""

import asyncio
import contextlib
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from sqlalchemy import Connection, insert

from certfan.daemon.store import Store, tables
from certfan.daemon.store.store import transaction
from certfan.daemon.wiring import now
from tests.lab import machine
from tests.lab.acme_parts import Ca, Daemon, anew_when_stuck, cpu_of, wait_while_it_grows
from tests.lab.acme_peers import caddy, nginx
from tests.lab.bench_fanout import machine_line
from tests.lab.pebble import free_port

TOKENS, CONNECTIONS, ORDERS = 10_000, 64, 200
ROUNDS, SECONDS = 3, 2
_CADDY = """\
{{
  admin off
  auto_https off
  persist_config off
}}
http://:{port} {{
  bind 127.0.0.1
  root * {root}
  file_server
}}
"""
# The same requests for everybody, made before the clock starts; neighbours are far apart.
_SCRIPT = """\
local requests, turn = {{}}, 0
function init()
  for n = 0, {tokens} - 1 do
    requests[n] = "GET /.well-known/acme-challenge/{kind}" .. string.format("%037d", (n * 7919) % {tokens})
      .. " HTTP/1.1\\r\\nHost: www.example.test\\r\\nUser-Agent: bench\\r\\nAccept: */*\\r\\nConnection: {connection}\\r\\n\\r\\n"
  end
end
function request() turn = (turn + 1) % {tokens}; return requests[turn] end
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What wrk counted in one go."""

    per_second: float
    p99_ms: float
    cpu_us: float  # of the server, a request
    errors: str


@dataclass(frozen=True, slots=True)
class Server:
    """One that is measured."""

    name: str
    port: int
    pid: int


def main() -> int:
    """Measure, print, write."""
    print(machine_line())
    with tempfile.TemporaryDirectory(prefix="certfan-responder-") as folder:
        found = anew_when_stuck(Path(folder), _measure)
    figures = _figures(found)
    for name, value in figures.items():
        print(f"{name:<28} {value:>8}")
    place = machine.PROJECT / "build/bench/responder.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {place.relative_to(machine.PROJECT)}")
    return 0


def _figures(found: Mapping[str, Mapping[str, Run]]) -> dict[str, float]:
    """Return the ratios; `rps_vs_...` is that of known tokens over kept connections while nothing else is done."""
    figures: dict[str, float] = {}
    for title, runs in found.items():
        suffix = "" if title == "keep-alive known" else "_" + title.replace("-", "_").replace(" ", "_")
        for peer in ("Caddy", "nginx"):
            ratio = runs["certfan"].per_second / runs[peer].per_second
            figures[f"rps_vs_{peer.lower()}{suffix}"] = round(ratio, 2)
    known, unknown = found["keep-alive known"], found["keep-alive unknown"]
    figures["unknown_vs_known"] = round(unknown["certfan"].per_second / known["certfan"].per_second, 2)
    figures["rps_idle"] = round(known["certfan"].per_second)
    figures["p99_ms_under_orders"] = round(found["keep-alive under orders"]["certfan"].p99_ms, 1)
    return figures


def _measure(ca: Ca, here: Path) -> dict[str, dict[str, Run]]:
    with _servers(ca, here) as (daemon, servers):
        found: dict[str, dict[str, Run]] = {}
        print(f"{'':<20}" + "".join(f"{one.name:>36}" for one in servers))
        for connection, kind in product(("keep-alive", "close"), ("known", "unknown", "under orders")):
            asked = partial(_wrk, here, connection=connection, kind=kind)
            if kind == "under orders":
                asked = partial(_under_orders, here, daemon, connection=connection)
            runs = [[asked(one) for one in servers] for _ in range(ROUNDS)]
            title = f"{connection} {kind}"
            found[title] = {
                one.name: _median(column)
                for one, column in zip(servers, zip(*runs, strict=True), strict=True)
            }
            _print(title, found[title])
        return found


@contextlib.contextmanager
def _servers(ca: Ca, here: Path) -> Iterator[tuple[Daemon, Sequence[Server]]]:
    daemon = Daemon(ca, here)
    with daemon.running():  # makes its database
        daemon.want(["first.example.test"])
        wait_while_it_grows(daemon.offered, 1)
    asyncio.run(_seed(daemon.database_path))
    root = here / "root"
    answers = root / ".well-known/acme-challenge"
    answers.mkdir(parents=True)
    for token in map(_token, range(TOKENS)):
        (answers / token).write_text(_answer(token))
    with contextlib.ExitStack() as stack:
        ports = free_port(), free_port()
        folders = here / "nginx", here / "caddy"
        for folder in folders:
            folder.mkdir()
        stack.enter_context(daemon.running())
        nginx_pid = stack.enter_context(nginx(folders[0], root, ports[0]))
        caddy_pid = stack.enter_context(caddy(folders[1], _CADDY.format(port=ports[1], root=root), ports[1]))
        yield (
            daemon,
            (
                Server("certfan", ca.http, daemon.pid),
                Server("nginx", ports[0], nginx_pid),
                Server("Caddy", ports[1], caddy_pid),
            ),
        )


async def _seed(database: Path) -> None:
    rows = [
        {"token": token, "certificate": "bench", "key_authorization": _answer(token), "identifier": "bench.example.test", "recorded_at": now()}
        for token in map(_token, range(TOKENS))
    ]  # fmt: skip

    def fill(db: Connection) -> None:
        db.execute(insert(tables.tokens), rows)

    store = await Store.open(database, now)
    await transaction(fill)(store)
    await store.close()


def _token(number: int) -> str:
    return f"known-{number:037d}"


def _answer(token: str) -> str:
    return f"{token}.{'t' * 43}"


def _wrk(here: Path, server: Server, connection: str, kind: str) -> Run:
    script = here / f"{connection}-{kind}.lua"
    script.write_text(_SCRIPT.format(tokens=TOKENS, kind=f"{kind[:5]}-", connection=connection))
    argv = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{SECONDS}s",
        "--latency",
        "-s",
        str(script),
        f"http://127.0.0.1:{server.port}/",
    ]
    before = cpu_of(server.pid)
    said = machine.run(argv).stdout
    cpu = cpu_of(server.pid) - before
    requests = int(_found(r"(\d+) requests in", said))
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", said).groups()
    errors = re.search(r"Socket errors: (.*)", said)
    return Run(
        float(_found(r"Requests/sec:\s+([\d.]+)", said)), float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit],
        cpu / requests * 1e6, errors[1] if errors else "",
    )  # fmt: skip


def _found(pattern: str, said: str) -> str:
    found = re.search(pattern, said)
    assert found, said
    return found[1]


def _under_orders(here: Path, daemon: Daemon, server: Server, connection: str) -> Run:
    """Measure while the daemon carries its orders."""
    before = daemon.issued()
    daemon.want(f"n{before + n}.{connection}.{server.name.lower()}.example.test" for n in range(ORDERS))
    wait_while_it_grows(daemon.issued, before + 2)
    run = _wrk(here, server, connection, "known")
    done = daemon.issued() - before
    print(f"  {done} of {ORDERS} orders were done when wrk had asked {server.name}", flush=True)
    wait_while_it_grows(daemon.offered, before + ORDERS)
    return run


def _median(runs: Sequence[Run]) -> Run:
    return Run(
        statistics.median(run.per_second for run in runs), statistics.median(run.p99_ms for run in runs),
        statistics.median(run.cpu_us for run in runs), next((run.errors for run in runs if run.errors), ""),
    )  # fmt: skip


def _print(title: str, runs: Mapping[str, Run]) -> None:
    cells = (
        f"{run.per_second:>12.0f}/s {run.p99_ms:>6.1f} ms {run.cpu_us:>7.1f} us" for run in runs.values()
    )
    print(
        f"{title:<20}"
        + "  ".join(cells)
        + "".join(f"  [{name}: {run.errors}]" for name, run in runs.items() if run.errors),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
