"""The daemon killed after every durable step, from an empty state folder to an offered generation, without VMs.

strace numbers its fsyncs, fdatasyncs and renames, those of its share worker too, and holds each back for a moment, so
that a kill falls between one and the next.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab import machine
from tests.lab.pebble import LoopbackDns, Pebble
from tests.real.crash_parts import points_of, seed_of, sweeps_all
from tests.real.sweep_parts import Daemon, Place, shown
from tests.real.sweep_stories import RENEWAL, REVOCATION, ROLLOVER, Stage, Story

pytestmark = [
    pytest.mark.real,
    pytest.mark.sweep,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="tracing needs root"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Pebble]]:
    """A place at Pebble."""
    folder = tmp_path_factory.mktemp("sweep")
    with Place(folder).opened() as place:
        dns = LoopbackDns(folder)
        pebble = Pebble(
            folder, dns.server, http_port=place.vhost.port, nonce_reject=0, retry_after=0,
            env={"PEBBLE_AUTHZREUSE": "0"},
        )  # fmt: skip
        dns.start()
        pebble.start()
        place.order_at(pebble)
        yield place, pebble
        pebble.stop()
        dns.stop()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("sweep")).running() as stage:
        yield stage


@pytest.mark.skipif(
    machine.pebble_program() is None or not LoopbackDns.available(), reason="pebble is not installed"
)
def test_killed_after_any_durable_step_the_daemon_loses_nothing(
    pebble: tuple[Place, Pebble], say: Callable[[str], None]
) -> None:
    """Whatever it was killed after: one account, one key, one certificate; two orders only if newOrder's answer was lost."""
    place, ca = pebble
    counted = Daemon(place.fresh()).killed_after(10**6)
    _sweep("issue", counted, lambda point: _issued_in_two_lives(place, ca, point), say)

    assert counted > 60


@pytest.mark.parametrize("story", [RENEWAL, ROLLOVER, REVOCATION], ids=str)
def test_what_comes_after_the_first_generation_loses_nothing_either(
    stage: Stage, story: Story, say: Callable[[str], None]
) -> None:
    """The same, killed while it renews by ARI, gives its account a new key, or revokes."""
    with stage.telling(story) as telling:
        counted = telling.daemon.killed_after(10**6)
        telling.check()
    _sweep(story.name, counted, lambda point: _told_in_two_lives(stage, story, point), say)

    assert counted > 35


def _sweep(name: str, counted: int, killed_after: Callable[[int], bool], say: Callable[[str], None]) -> None:
    """Kill after every step that is asked for, and say where that cost an order."""
    seed, began = seed_of(4), time.monotonic()
    points = points_of(counted, seed)
    extra = [point for point in points if killed_after(point)]
    say(
        f"{name}: killed after {len(points)} of {counted} durable steps, seed {seed}, in"
        f" {time.monotonic() - began:.0f} s; one order more at {extra or 'none'}"
    )

    assert len(points) >= (counted if sweeps_all() else counted // 10)


def _issued_in_two_lives(place: Place, pebble: Pebble, point: int) -> bool:
    """Kill after one step, start again, and check; return whether the CA saw a second order."""
    here, told = place.fresh(), pebble.log_path.stat().st_size
    daemon = Daemon(here)
    daemon.killed_after(point)
    may_cost_one = daemon.ledger.has_intent_without_order()
    daemon.finish()
    said = pebble.log_path.read_bytes()[told:].decode(errors="replace")
    orders = len(re.findall(r"orders in the db", said))
    assert 1 == len(re.findall(r"accounts in memory", said)), point
    assert 1 == len(daemon.ledger.ask("SELECT uri FROM accounts")), point
    assert 1 == len(re.findall(r"Issued certificate serial", said)), point
    assert [] == daemon.ledger.lost_keys(), point
    assert [(shown(here),)] == daemon.ledger.ask("SELECT fingerprint FROM generations"), point
    assert 1 <= orders <= 1 + may_cost_one, point
    assert 1 == daemon.ledger.ask("SELECT count(*) FROM orders")[0][0], point
    shutil.rmtree(here)
    return orders > 1


def _told_in_two_lives(stage: Stage, story: Story, point: int) -> bool:
    """Kill after one step, start again, and check; return whether it cost an order."""
    with stage.telling(story) as telling:
        telling.daemon.killed_after(point)
        return telling.finish(f"{story}, step {point}")
