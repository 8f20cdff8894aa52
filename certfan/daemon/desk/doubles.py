"""Which consumers speak with two voices: a copied machine has its original's identity, and a boot id of its own.

Known only in memory; after a restart of the daemon it is found again within two reports of each voice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from certfan.core.model import Problem

QUIET = timedelta(minutes=5)  # a voice unheard for as long is gone; agents report every 30 s
_MOST_VOICES = 8  # of one consumer that are kept apart


@dataclass(slots=True)
class _Voices:
    """The boot ids heard lately, when each was last heard, and how often one came back after another."""

    heard: dict[str, datetime] = field(default_factory=dict)  # the one that spoke last is the last
    returns: int = 0
    doubled_at: datetime | None = None


class Doubles:
    """Tells a copy from a reboot, after which the old boot id is heard no more.

    A machine put back to a snapshot of its memory returns to its old boot id once; two machines do so for ever.

    Known limit: a copy that is off while its original's identity is renewed shows an ended one when it comes back,
    and is refused like anybody's.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._voices: dict[str, _Voices] = {}

    def heard(self, consumer: str, boot_id: str) -> bool:
        """Take in that somebody spoke; True when this shows for the first time that there are two of them."""
        voices, now = self._voices.setdefault(consumer, _Voices()), self._clock()
        self._forget_silent(voices, now)
        before = self.is_doubled(consumer)
        if boot_id in voices.heard and boot_id != next(reversed(voices.heard)):
            voices.returns += 1
        voices.heard.pop(boot_id, None)
        voices.heard[boot_id] = now
        if len(voices.heard) > _MOST_VOICES:
            voices.heard.pop(next(iter(voices.heard)))
        if before or not self.is_doubled(consumer):
            return False
        voices.doubled_at = now
        return True

    def is_doubled(self, consumer: str) -> bool:
        """Whether two machines speak as this consumer."""
        voices = self._voices.get(consumer)
        if voices is not None:
            self._forget_silent(voices, self._clock())
        return voices is not None and voices.returns > 1

    @property
    def problems(self) -> Mapping[str, Problem]:
        """What to show, by consumer."""
        return {name: _problem(name, self._voices[name]) for name in self._voices if self.is_doubled(name)}

    @property
    def since(self) -> Mapping[str, datetime]:
        """When each of them was found out in this run."""
        return {name: at for name in self.problems if (at := self._voices[name].doubled_at) is not None}

    def _forget_silent(self, voices: _Voices, now: datetime) -> None:
        voices.heard = {boot_id: at for boot_id, at in voices.heard.items() if now < at + QUIET}
        if len(voices.heard) < 2:
            voices.returns = 0


def _problem(consumer: str, voices: _Voices) -> Problem:
    boots = " and ".join(sorted(voices.heard))
    return Problem(
        "consumer.doubled",
        f"{consumer} speaks from {len(voices.heard)} machines at once, with one identity: boot ids {boots}",
        "stop the copy; or give it a name of its own in the config, run: certfan consumer add NAME, and on it:"
        " certfan agent enrol LINE (/proc/sys/kernel/random/boot_id tells them apart)",
    )
