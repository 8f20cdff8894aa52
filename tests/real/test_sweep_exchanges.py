"""The daemon killed at every exchange with an authority: before it is heard, before it is answered, once it is answered.

What is lost is so by construction: the authority lives in the tests' process and kills from inside an exchange. A
request that is not heard is dropped; an answer that is not sent meets a socket whose owner is dead.
"""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.faulty import FaultyAuthority
from tests.lab.faulty.faults import Kind, Reset
from tests.real.crash_parts import kill, points_of, seed_of
from tests.real.sweep_stories import ISSUE, RENEWAL, REVOCATION, ROLLOVER, Stage, Story

pytestmark = [pytest.mark.real, pytest.mark.sweep, pytest.mark.timeout(1800)]

PHASES = ("received", "processed", "answered")
# Where an answer that is lost costs most: killed there in every run.
MUST_KILL = {(kind, PHASES[1]) for kind in (Kind.NEW_ORDER, Kind.KEY_CHANGE, Kind.REVOKE_CERT, Kind.FINALIZE)}
MUST_HAVE = {
    ISSUE: {Kind.DIRECTORY, Kind.NEW_NONCE, Kind.NEW_ACCOUNT, Kind.NEW_ORDER, Kind.AUTHORIZATION, Kind.CHALLENGE}
    | {Kind.ORDER, Kind.FINALIZE, Kind.CERTIFICATE},
    RENEWAL: {Kind.RENEWAL_INFO, Kind.NEW_ORDER, Kind.FINALIZE, Kind.CERTIFICATE},
    ROLLOVER: {Kind.KEY_CHANGE, Kind.NEW_ORDER, Kind.FINALIZE, Kind.CERTIFICATE},
    REVOCATION: {Kind.REVOKE_CERT, Kind.NEW_ORDER, Kind.FINALIZE, Kind.CERTIFICATE},
}  # fmt: skip


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("sweep")).running() as stage:
        yield stage


class Killer:
    """Watches the exchanges of one process, and kills it at one moment of them (0: never)."""

    def __init__(self, ca: FaultyAuthority, moment: int = 0) -> None:
        self._ca, self._moment = ca, moment
        self.moments: list[tuple[Kind, str]] = []  # until it was killed
        self.cost_an_order = False

    def watch(self, pid: int) -> None:
        """Begin."""

        def on_exchange(_number: int, kind: Kind, phase: str) -> None:
            if self._moment and len(self.moments) == self._moment:
                return
            self.moments.append((kind, phase))
            if len(self.moments) == self._moment:
                kill(pid)
                if phase == PHASES[0]:
                    self._ca.faults.add(None, Reset(), times=1)

        self._ca.on_exchange = on_exchange

    @property
    def last(self) -> str:
        """Which moment it was killed at."""
        return "/".join(self.moments[-1])


@pytest.mark.parametrize("story", MUST_HAVE, ids=str)
def test_killed_at_any_exchange_the_daemon_loses_nothing(
    stage: Stage, story: Story, say: Callable[[str], None]
) -> None:
    """One account, one certificate a generation, one order more only if the answer to newOrder was lost."""
    seed, began = seed_of(6), time.monotonic()
    moments = _moments(stage, story)
    always = {point for point, moment in enumerate(moments, 1) if moment in MUST_KILL}
    points = sorted(always.union(points_of(len(moments), seed)))
    lives = [_kill_and_finish(stage, story, point) for point in points]
    killed = [life for point, life in zip(points, lives, strict=True) if len(life.moments) == point]
    extra = [life.last for life in lives if life.cost_an_order]
    say(
        f"{story}: {' '.join(kind for kind, phase in moments if phase == PHASES[0])}, each {', '.join(PHASES)}:"
        f" killed at {len(killed)} of {len(moments)}, seed {seed}, in {time.monotonic() - began:.0f} s;"
        f" one order more at {', '.join(extra) or 'none'}"
    )

    assert MUST_HAVE[story] <= {kind for kind, _ in moments}
    # An order that is looked at once less is over before the last ones.
    assert len(points) - len(killed) < max(2, 0.1 * len(points))


def _moments(stage: Stage, story: Story) -> list[tuple[Kind, str]]:
    killer = Killer(stage.ca)
    with stage.telling(story) as telling:
        telling.daemon.killed_by(killer.watch)
        telling.check()
    return killer.moments


def _kill_and_finish(stage: Stage, story: Story, point: int) -> Killer:
    """Kill at one moment, start again, and check; return who has watched."""
    killer = Killer(stage.ca, point)
    with stage.telling(story) as telling:
        telling.daemon.killed_by(killer.watch)
        stage.ca.on_exchange = lambda _number, _kind, _phase: None
        killer.cost_an_order = telling.finish(f"{story}, moment {point}, {killer.last}")
    return killer
