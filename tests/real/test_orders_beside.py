"""Many certificates at once: one that cannot be had delays none of the others, and answers to challenges wait for nothing."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from statistics import median

import pytest

from tests.lab.faulty import FaultyAuthority
from tests.lab.faulty.faults import Hang, Stuck
from tests.real.daemon_consumer import Consumer
from tests.real.daemon_place import Daemon, Place, authority, certificate, toml

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

GOOD = 20
MOST = 1.2  # times as long as without the broken ones
MOST_LATER = 1.5  # the same, where the two cannot be measured side by side
ROUNDS = 10  # other work on this machine must not decide
AT_ONCE = 8


@pytest.fixture(scope="module")
def ca(daemons: Place) -> FaultyAuthority:
    return daemons.faulty()


def test_answers_to_challenges_never_wait_for_orders(
    daemons: Place, ca: FaultyAuthority, say: Callable[[str], None]
) -> None:
    """While 30 orders run every fetch of a live token is answered rightly."""
    ca.faults.add("challenge", Stuck(), name="held.test")
    names = [f"n{number}.busy.test" for number in range(30)]
    took: list[float] = []
    with daemons.running(authority("ca", ca, orders_at_once=31), certificate("held.test")) as daemon:
        daemon.wait(lambda: token_of(ca, "held.test"), "a live token")
        token, expected = token_of(ca, "held.test"), answer_of(ca, "held.test")
        daemon.write("busy", "\n".join(map(certificate, names)))
        while not all(map(daemon.published, names)):
            begun = time.monotonic()
            assert (200, expected) == fetched(daemons.responder, "held.test", token)
            took.append(time.monotonic() - begun)
    say(f"{len(took)} answers while 30 orders ran: p99 {sorted(took)[len(took) * 99 // 100] * 1000:.1f} ms")

    assert len(took) >= 30


def token_of(ca: FaultyAuthority, name: str) -> str:
    found = [one for one in list(ca.records.authorizations.values()) if one.identifier[1] == name]
    tokens = [
        c.token for one in found for c in one.challenges if c.kind == "http-01" and c.status == "processing"
    ]
    return tokens[0] if tokens else ""


def answer_of(ca: FaultyAuthority, name: str) -> str:
    (authorization,) = (one for one in ca.records.authorizations.values() if one.identifier[1] == name)
    return f"{token_of(ca, name)}.{ca.records.accounts[authorization.account].thumbprint}"


def fetched(port: int, name: str, token: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", f"/.well-known/acme-challenge/{token}", headers={"Host": name})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Race:
    """One daemon with one consumer, where the same number of new certificates is awaited again and again."""

    def __init__(self, daemon: Daemon, consumer: Consumer) -> None:
        self.daemon, self.consumer, self._count = daemon, consumer, 0

    def seconds(self, *broken: str) -> float:
        """Return how long it takes until 20 new certificates are proven, beside these fragments of a config."""
        self._count += 1
        names = [f"n{number}.race{self._count}.test" for number in range(GOOD)]
        begun = time.monotonic()
        self.daemon.write("race", "\n".join([*broken, *(certificate(n, authority="ca") for n in names)]))
        self.consumer.wait_proven(names)
        took = time.monotonic() - begun
        assert len(names) == len({self.consumer.serial(name) for name in names})
        self.daemon.write("race", "")
        return took


@pytest.fixture(scope="module")
def race(daemons: Place, ca: FaultyAuthority) -> Iterator[Race]:
    with (
        daemons.running(authority("ca", ca, orders_at_once=AT_ONCE)) as daemon,
        Consumer(daemon).enrolled() as consumer,
    ):
        race = Race(daemon, consumer)
        race.seconds()  # the first account, the first connections
        yield race


def ratio(race: Race, broken: Callable[[int], Sequence[str]]) -> float:
    """Return how many times as long 20 certificates take beside broken ones, in some rounds in turns.

    By the best rounds of both, or by their medians: what holds the others up shows in both, a lucky round in one only.
    """
    without, beside = list[float](), list[float]()
    times = inf
    for number in range(ROUNDS):
        without.append(race.seconds())
        beside.append(race.seconds(*broken(number)))
        times = min(min(beside) / min(without), median(beside) / median(without))
        if times <= MOST:
            break
    return times


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """An authority that accepts every connection and never says a word; its directory."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        held: list[socket.socket] = []

        def hold() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept()[0])

        threading.Thread(target=hold, daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/directory"
        listener.shutdown(socket.SHUT_RDWR)
        for one in held:
            one.close()


def test_a_name_whose_authority_never_answers_delays_no_other(race: Race, say: Callable[[str], None]) -> None:
    """20 good names at another authority are proven as fast as without it."""
    with silent() as directory:
        other = toml("[authority.silent]", directory=directory, agree_to_terms=True)
        times = ratio(race, lambda n: [other, certificate(f"silent{n}.test", authority="silent")])
    say(f"beside a name whose authority never answers: {times:.2f} times as long")

    assert times <= MOST


HANGS = {
    "validation": ("challenge", Stuck()),
    "no answer to finalize": ("finalize", Hang()),
}


def hang(ca: FaultyAuthority, kind: str, many: int, prefix: str) -> list[str]:
    """Have new names hang for ever; return their part of a config."""
    names = [f"a{one}.{prefix}.test" for one in range(many)]
    for name in names:
        ca.faults.add(*HANGS[kind], name=name)
    return [certificate(name, authority="ca") for name in names]


@pytest.mark.parametrize("kind", HANGS)
def test_a_name_that_hangs_at_the_same_authority_delays_no_other(
    race: Race, ca: FaultyAuthority, kind: str, say: Callable[[str], None]
) -> None:
    """Although it comes first: its validation never ends, or finalize is never answered."""
    times = ratio(race, lambda number: hang(ca, kind, 1, f"{number}.{kind.replace(' ', '-')}"))
    say(f"beside one with {kind}: {times:.2f} times as long")

    assert times <= MOST


def test_more_names_that_hang_than_may_be_at_once_delay_the_others_by_moments(
    race: Race, ca: FaultyAuthority, say: Callable[[str], None]
) -> None:
    """Until they are known to stand still; from then on whoever comes later is as fast as without them."""
    usual = min(race.seconds() for _ in range(2))
    many = [
        line
        for kind in ("validation", "no answer to finalize")
        for line in hang(ca, kind, AT_ONCE, f"many.{kind.replace(' ', '-')}")
    ]
    race.daemon.write("many", "\n".join(many))
    first = race.seconds()
    afterwards = [race.seconds()]
    while min(afterwards) / usual > MOST_LATER and len(afterwards) < ROUNDS:
        afterwards.append(race.seconds())
    times = min(afterwards) / usual
    say(f"beside {len(many)} that hang: {first - usual:.1f} s more, afterwards {times:.2f} times as long")

    assert first - usual < 25
    assert times <= MOST_LATER
