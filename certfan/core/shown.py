"""Which of the folders on the share count for a consumer: of a sealed key only what it was last sealed to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from certfan.core.model import Desired
from certfan.core.steps import Where

Folder: TypeAlias = tuple[int, str]  # number, and which sealing of it: "" where the key is not sealed
Asked: TypeAlias = Callable[
    [str, str, int], str | None
]  # (certificate, consumer, number): its bundle, None: none yet


@dataclass(frozen=True, slots=True)
class Shown:
    """What the plan takes the share for."""

    published: Mapping[Where, frozenset[int]]  # whole, and of use to the consumer
    live: Mapping[Where, int]
    outdated: Mapping[Where, frozenset[Folder]]  # of no use to anybody, while the pointer is at one that is


def shown(
    desired: Desired,
    published: Mapping[Where, frozenset[Folder]],
    live: Mapping[Where, Folder],
    asked: Asked,
) -> Shown:
    """Judge every folder. Of what left the config all count: nothing more is known of it.

    A number whose pointer is at another bundle than the one that counts is not published, whatever lies beside it.
    """
    counting: dict[Where, frozenset[int]] = {}
    outdated: dict[Where, frozenset[Folder]] = {}
    for where in published.keys() | live.keys():
        whole, pointer = published.get(where, frozenset()), live.get(where)
        if where not in desired.pairs:
            counting[where] = frozenset(number for number, _ in whole)
            continue
        numbers = frozenset([number for number, _ in whole])
        good = [one for one in whole if asked(*where, one[0]) == one[1]]
        if len(good) == len(whole) and (pointer is None or pointer in whole):
            counting[where] = numbers  # so it is nearly everywhere
            continue
        numbers = frozenset([number for number, _ in good])
        if pointer is not None and pointer not in good:
            numbers -= {pointer[0]}
        elif pointer is not None:
            outdated[where] = frozenset(one for one in whole.difference(good) if one[0] <= pointer[0])
        counting[where] = numbers
    return Shown(
        counting,
        {where: number for where, (number, _) in live.items()},
        {where: folders for where, folders in outdated.items() if folders},
    )
