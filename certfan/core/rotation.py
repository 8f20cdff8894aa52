"""How the internal CA stands: alone, or followed by another one that some consumers lack. Its steps are daemon/rotation.py's."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from certfan.core.model import Problem

PATIENCE = timedelta(days=1)  # a machine that is off for a night is no news


class Phase(StrEnum):
    """How far a rotation has come."""

    SETTLED = "settled"
    OVERLAP = "overlap"
    DROPPING = "dropping"


@dataclass(frozen=True, slots=True)
class InternalCa:
    """The CA in force; `waits_for` are the consumers that have not followed yet, and may be none of the config's.

    `since` and `old_until` are those of a rotation: when it was begun, and when the one that goes ends by itself.
    """

    fleet: str
    phase: Phase
    rotations: int
    fingerprint: str
    not_after: datetime
    waits_for: tuple[str, ...]
    problem: str = ""
    since: datetime | None = field(default=None, kw_only=True)
    old_until: datetime | None = field(default=None, kw_only=True)

    @property
    def told(self) -> str:
        """In words, whom a rotation waits for, and what else holds it up."""
        waits = ", ".join(self.waits_for) or "nobody any more"
        return f"waits for {waits}{f', and {self.problem}' if self.problem else ''}"

    def why_stuck(self, now: datetime) -> Problem | None:
        """Return why a rotation needs somebody: what failed, or whoever has lacked the new CA for a day."""
        late = bool(self.waits_for) and self.since is not None and now >= self.since + PATIENCE
        if not self.problem and not late:
            return None
        return Problem(
            "ca.rotation_waits", f"another internal CA follows, and {self.told}", "run: certfan ca show"
        )
