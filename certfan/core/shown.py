"""Which of the folders on the share count for a consumer: of a sealed key only what it was last sealed to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from certfan.core.model import Custody, Desired
from certfan.core.steps import Where

Folder: TypeAlias = tuple[int, str]  # number, and which sealing of it: "" where the key is not sealed
Asked: TypeAlias = Callable[
    [str, str, int], str | None
]  # (certificate, consumer, number): its bundle, None: none yet
NOTHING: frozenset[Any] = frozenset()


@dataclass(frozen=True, slots=True)
class Shown:
    """What the plan takes the share for."""

    published: Mapping[Where, frozenset[int]]  # whole, and of use to the consumer
    live: Mapping[Where, int]
    outdated: Mapping[Where, frozenset[Folder]]  # of no use to anybody, while the pointer is at one that is


class Showing:
    """Judges every folder, and a place anew only where others lie, or a consumer may ask for another bundle by now."""

    def __init__(self) -> None:
        self._desired: Desired | None = None
        self._asking: frozenset[str] = NOTHING  # certificates with keys of which not everybody takes the same
        self._published: Mapping[Where, frozenset[Folder]] = {}
        self._live: Mapping[Where, Folder] = {}
        self._shown = Shown({}, {}, {})

    def of(
        self,
        desired: Desired,
        published: Mapping[Where, frozenset[Folder]],
        live: Mapping[Where, Folder],
        asked: Asked,
    ) -> Shown:
        """Return what is shown. Of what left the config all counts: nothing more is known of it.

        Of a key that every consumer takes as it is, `asked` must always say the same.
        """
        if desired is not self._desired:
            wanted = desired.certificates.items()
            self._asking = frozenset([name for name, one in wanted if one.custody is not Custody.SHARE])
            self._published, self._live, self._shown = {}, {}, Shown({}, {}, {})
        stale = _changed(self._published, published) | _changed(self._live, live)
        if self._asking:
            stale.update([where for where in (*published, *live) if where[0] in self._asking])
        if stale:
            self._shown = _judged(self._shown, stale, desired, published, live, asked)
        self._desired, self._published, self._live = desired, dict(published), dict(live)
        return self._shown


def shown(
    desired: Desired,
    published: Mapping[Where, frozenset[Folder]],
    live: Mapping[Where, Folder],
    asked: Asked,
) -> Shown:
    """Return what `Showing` says of these folders, for who asks only once."""
    return Showing().of(desired, published, live, asked)


def _changed(before: Mapping[Where, object], after: Mapping[Where, object]) -> set[Where]:
    if before == after:
        return set()
    return {where for where, found in after.items() if before.get(where) != found} | before.keys() - after


def _judged(
    before: Shown,
    stale: set[Where],
    desired: Desired,
    published: Mapping[Where, frozenset[Folder]],
    live: Mapping[Where, Folder],
    asked: Asked,
) -> Shown:
    counting, pointers, outdated = dict(before.published), dict(before.live), dict(before.outdated)
    for where in stale:
        for known in (counting, pointers, outdated):
            known.pop(where, None)
        whole, pointer = published.get(where), live.get(where)
        if whole is None and pointer is None:
            continue
        if pointer is not None:
            pointers[where] = pointer[0]
        asking = asked if where in desired.pairs else None
        counting[where], useless = _at(where, whole or NOTHING, pointer, asking)
        if useless:
            outdated[where] = useless
    return Shown(counting, pointers, outdated)


def _at(
    where: Where, whole: frozenset[Folder], pointer: Folder | None, asked: Asked | None
) -> tuple[frozenset[int], frozenset[Folder]]:
    """Return the numbers that count at one place, and what is outdated there.

    A number whose pointer is at another bundle than the one that counts is not published, whatever lies beside it.
    """
    if asked is None:
        return frozenset([number for number, _ in whole]), NOTHING
    good = [one for one in whole if asked(*where, one[0]) == one[1]]
    numbers = frozenset([number for number, _ in good])
    if len(good) == len(whole) and (pointer is None or pointer in whole):
        return numbers, NOTHING  # so it is nearly everywhere
    if pointer is not None and pointer not in good:
        return numbers - {pointer[0]}, NOTHING
    if pointer is None:
        return numbers, NOTHING
    return numbers, frozenset([one for one in whole.difference(good) if one[0] <= pointer[0]])
