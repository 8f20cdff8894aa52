"""Whether live pairs lie where they should: in place while the share shows them, as a copy while it does not.

A service has its pair in memory and serves on when the share goes away; its next restart, or whoever rotates its log,
would find nothing. What must never come in: moving a pointer, which is the privileged half's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from certfan import log
from certfan.agent.installer import Laid
from certfan.agent.shelf import Shelf
from certfan.errors import BundleInvalid, ShareError

AT_ONCE = 50  # certificates of one look; the next look goes on with the others
LONGEST_WAIT = timedelta(hours=1)


class Whereabouts:
    """Looks at the share now and then; every look is a worker's, with a deadline. Without a shelf all are copies."""

    def __init__(
        self,
        shelf: Shelf | None,
        pointers: Callable[[], Mapping[str, Laid]],
        *,
        clock: Callable[[], datetime],
        interval: timedelta,
    ) -> None:
        self._shelf = shelf
        self.pointers = pointers
        self._clock = clock
        self._interval = interval
        self._shown: dict[tuple[str, int], bool] = {}  # whether the share shows a live pair
        self._last = ""
        self._vain: dict[str, int] = {}
        self._not_before: dict[str, datetime] = {}
        self._log = log.get("agent")

    def misplaced(self, pointers: Mapping[str, Laid]) -> frozenset[str]:
        """Return the certificates whose pair should be moved now, as far as is known."""
        now = self._clock()
        wrong = self._wrong(pointers)
        return frozenset(name for name in wrong if not now < self._not_before.get(name, now))

    def tried(self, certificates: Iterable[str]) -> None:
        """The privileged half was asked for these: what is still misplaced it knows better, and waits longer."""
        wrong = self._wrong(self.pointers())
        for name in certificates:
            if name not in wrong:
                self._vain.pop(name, None)
                self._not_before.pop(name, None)
                continue
            self._vain[name] = self._vain.get(name, 0) + 1
            wait = min(self._interval * 2 ** min(self._vain[name], 16), LONGEST_WAIT)
            self._not_before[name] = self._clock() + wait

    async def watch(self, found: Callable[[], object]) -> None:
        """Look for ever; `found` is called after each look that found something misplaced."""
        while True:
            await self.look()
            if self.misplaced(self.pointers()):
                found()
            await asyncio.sleep(self._interval.total_seconds())

    async def look(self) -> None:
        """See which of the live pairs the share shows, as many as fit into one look.

        Cancelled, it knows what it had seen until then.
        """
        if self._shelf is None:
            return
        live = {name: laid.generation for name, laid in self.pointers().items() if laid.generation}
        self._shown = {pair: shown for pair, shown in self._shown.items() if live.get(pair[0]) == pair[1]}
        for name in self._turn(sorted(live)):
            pair = (name, live[name])
            try:
                files = await self._shelf.read(*pair)
            except BundleInvalid:
                self._note(pair, shown=False)
            except ShareError as error:
                self._log.debug("share.away", code=error.code, detail=error.text)
                for one in live.items():
                    self._note(one, shown=False)
                return
            else:
                # A sealed key is none that a service could read.
                self._note(pair, shown="privkey.pem" in files)

    def _turn(self, names: list[str]) -> list[str]:
        """Return the names whose turn it is, after those of the last look."""
        later = [name for name in names if name > self._last]
        turn = [*later, *(name for name in names if name <= self._last)][:AT_ONCE]
        self._last = turn[-1] if turn else ""
        return turn

    def _note(self, pair: tuple[str, int], *, shown: bool) -> None:
        if self._shown.get(pair, shown) is not shown:
            told = self._log.info if shown else self._log.warning
            told("share.shows" if shown else "share.hides", bundle=f"{pair[0]}@{pair[1]}")
            self._vain.pop(pair[0], None)  # something has changed: whoever decided otherwise may decide anew
            self._not_before.pop(pair[0], None)
        self._shown[pair] = shown

    def _wrong(self, pointers: Mapping[str, Laid]) -> frozenset[str]:
        return frozenset(
            name
            for name, laid in pointers.items()
            if laid.generation and bool(laid.mounted) is not self._wish(name, laid)
        )

    def _wish(self, name: str, laid: Laid) -> bool:
        """Whether a pair should be in place; as long as nobody has looked, it is right where it is."""
        if self._shelf is None:
            return False
        return self._shown.get((name, laid.generation), bool(laid.mounted))
