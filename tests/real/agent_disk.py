"""How far web1's agent has come with a generation, as its disk and the daemon's books tell."""

import json
from enum import IntEnum
from pathlib import Path
from typing import Any

from tests.lab.fleet import NAME
from tests.real.crash_parts import Ledger, generation_of


class Stage(IntEnum):
    """The last thing on web1's disk before a kill."""

    ASSIGNED = 0  # or less
    STAGED = 1  # the bundle is verified
    TRYING = 2  # noted, nothing applied yet
    LAID = 3  # the folder is begun, no pointer moves
    OWED = 4  # what the pointer was is noted
    INSTALLED = 5  # the pointer has moved, the reload is due or under way
    RELOADED = 6  # and probed, as far as that had come
    CONCLUDED = 7  # proven on web1, the daemon has not heard it
    REPORTED = 8


class Disk:
    """What is on web1's disk about one generation; `agent` is its state folder, `installed` where the pairs are."""

    def __init__(self, agent: Path, installed: Path, ledger: Ledger, number: int) -> None:
        self._agent, self._installed = agent, installed
        self._ledger, self._number = ledger, number

    def outcomes(self) -> dict[str, Any]:
        """Return what the agent has noted of each generation."""
        return dict(json.loads((self._agent / "outcomes.json").read_bytes())[NAME])

    def assert_settled_well(self) -> None:
        """What web1 remembers, and what it runs, is as if nothing had been."""
        noted = self.outcomes()
        assert self._number == self.live()
        assert ("proven", 0) == (noted[str(self._number)]["state"], noted[str(self._number)]["failures"])
        assert {"proven"} == {one["state"] for one in noted.values()}

    def live(self) -> int:
        """Return the generation that Apache's configuration leads to."""
        return generation_of(self._installed / "live" / NAME)

    def stage(self) -> Stage:
        """Return the last stage that is reached."""
        state = self._state()
        if state == "proven":
            return Stage.REPORTED if self._is_reported() else Stage.CONCLUDED
        owed = self._owed()
        if self.live() == self._number:
            return Stage.INSTALLED if owed else Stage.RELOADED
        if owed:
            return Stage.OWED
        if (self._installed / "generations" / NAME / str(self._number)).exists():
            return Stage.LAID
        if state == "trying":
            return Stage.TRYING
        staged = (self._agent / "bundles" / NAME / str(self._number)).exists()
        return Stage.STAGED if staged else Stage.ASSIGNED

    def is_settled(self) -> bool:
        """Whether nothing is left to do or to tell."""
        return self.stage() is Stage.REPORTED and not self._owed()

    def _owed(self) -> bool:
        return (self._installed / "generations/.owed.json").exists()

    def _state(self) -> str:
        return str(self.outcomes().get(str(self._number), {}).get("state", ""))

    def _is_reported(self) -> bool:
        query = "SELECT 1 FROM deployments WHERE consumer = 'web1' AND generation = ? AND state = 'proven'"
        return bool(self._ledger.ask(query, self._number))
