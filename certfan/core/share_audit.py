"""What lies on the share against what should: folders, owners, modes, pointers, numbers. Signatures are not judged here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from certfan.core.model import Desired, Generation
from certfan.core.shown import Asked, Folder
from certfan.core.steps import Where

FOLDER_MODE = 0o2750
SENTINEL_MODE = 0o640
PUBLIC_MODE = 0o644
SENTINEL, LIVE, GENERATIONS = "certfan.share", "live", "generations"

_SET_UP = "run as root: certfan share setup"
_REBUILD = "run: certfan share rebuild"
_REMOVE = "look who put it there, and remove it"
_POINTER = re.compile(r"\.\./generations/([^/]+)/([1-9][0-9]{0,17}(?:\.[0-9a-f]{8})?)")
_FOLDER = re.compile(r"([1-9][0-9]{0,17})(?:\.([0-9a-f]{8}))?")


@dataclass(frozen=True, slots=True)
class Fact:
    """One entry of a folder, nothing followed."""

    kind: str  # folder, file, symlink, something else
    mode: int
    uid: int = field(kw_only=True)
    gid: int = field(kw_only=True)
    links: int = field(kw_only=True)
    size: int = field(kw_only=True)

    def __str__(self) -> str:
        return f"a {self.kind} {self.mode:04o} of {self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class Line:
    """What stands for one certificate below `generations/`: itself and its entries."""

    fact: Fact
    entries: Mapping[str, Fact]


@dataclass(frozen=True, slots=True)
class Tree:
    """One consumer's folder: entries of it (itself as ""), pointers (None: no symlink), certificates."""

    facts: Mapping[str, Fact]
    live: Mapping[str, str | None]
    lines: Mapping[str, Line]


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a consumer's files are, and the mode of its keys."""

    uid: int
    gid: int
    key_mode: int

    def mode_of(self, file: str) -> int:
        """Return the mode that a file of a bundle has."""
        return self.key_mode if file.startswith("privkey") else PUBLIC_MODE


@dataclass(frozen=True, slots=True)
class Expected:
    """What one consumer should have of one certificate. Folders are named as they are on the share."""

    live: str | None  # where the pointer belongs; None: wherever it is
    kept: Mapping[str, int]  # folders that must be there, with their numbers
    known: frozenset[int]  # what may be there: this daemon made it


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be: where, what, and what to do."""

    place: str
    detail: str
    hint: str = ""


def expected(
    desired: Desired,
    generations: Mapping[str, tuple[Generation, ...]],
    published: Iterable[tuple[str, str, int]],
    usable: Mapping[Where, int],
    asked: Asked,
) -> Mapping[Where, Expected]:
    """Return what should be on the share: where each pointer belongs, and the newest two of what was ever published.

    `usable` is the generation that the plan wants at each place. What was never sealed to the key that a consumer
    has now need not be there, its newest apart.
    """
    history: dict[Where, set[int]] = {}
    for certificate, consumer, number in published:
        history.setdefault((certificate, consumer), set()).add(number)
    found = {}
    for where in desired.pairs | history.keys():
        known = frozenset(g.number for g in generations.get(where[0], ()))
        live = usable.get(where) if where in desired.pairs else None
        newest = sorted(history.get(where, set()) & known | ({live} if live else set()))[-2:]
        bundles = {n: asked(*where, n) for n in newest} if where in desired.pairs else {}
        kept = {folder_name(n, b or ""): n for n, b in bundles.items() if b is not None or n == live}
        pointer = next((name for name, number in kept.items() if number == live), None)
        found[where] = Expected(pointer, kept, known)
    return found


def folder_name(number: int, bundle: str) -> str:
    """Return what a bundle's folder is called on the share."""
    return f"{number}.{bundle}" if bundle else str(number)


def differences(
    trees: Mapping[str, Tree], owners: Mapping[str, Owner], wanted: Mapping[Where, Expected]
) -> Iterator[Difference]:
    """Tell every difference of the folders; what is in a generation's files is another look."""
    for consumer, owner in sorted(owners.items()):
        if consumer not in trees:
            yield Difference(f"{consumer}/", "is missing", _SET_UP)
            continue
        mine = {where[0]: one for where, one in wanted.items() if where[1] == consumer}
        yield from _consumer(consumer, trees[consumer], owner, mine)
    known = {where[1] for where in wanted}
    for consumer in sorted(trees.keys() - owners.keys() - known):
        if SENTINEL in trees[consumer].facts:
            yield Difference(f"{consumer}/", "is a consumer's that nobody knows", _REMOVE)


def whole_generations(
    trees: Mapping[str, Tree], wanted: Mapping[Where, Expected]
) -> list[tuple[str, str, Folder]]:
    """Return (consumer, certificate, folder) of every folder that is worth a look into its files."""
    return sorted(
        (consumer, certificate, folder)
        for consumer, tree in trees.items()
        for certificate, line in tree.lines.items()
        for name, fact in line.entries.items()
        if fact.kind == "folder"
        and (folder := _folder(name)) is not None
        and folder[0] in _of(wanted, certificate, consumer).known
    )


def _folder(name: str) -> Folder | None:
    found = _FOLDER.fullmatch(name)
    return (int(found[1]), found[2] or "") if found else None


def file_differences(
    place: str, files: Mapping[str, Fact], names: Iterable[str], owner: Owner
) -> Iterator[Difference]:
    """Tell what is wrong with owner, mode and number of a generation's files; `names` are those of its bundle."""
    wanted = set(names)
    for name in sorted(wanted - files.keys()):
        yield Difference(f"{place}/{name}", "is missing", _REBUILD)
    for name, fact in sorted(files.items()):
        if name not in wanted:
            yield Difference(f"{place}/{name}", "belongs to no bundle", _REMOVE)
        else:
            yield from _compared(f"{place}/{name}", fact, "file", owner.mode_of(name), owner)
            if fact.kind == "file" and fact.links != 1:
                yield Difference(
                    f"{place}/{name}", f"has {fact.links} names: a hard link leads to it", _REMOVE
                )


def _of(wanted: Mapping[Where, Expected], certificate: str, consumer: str) -> Expected:
    return wanted.get((certificate, consumer), Expected(None, {}, frozenset()))


def _consumer(
    consumer: str, tree: Tree, owner: Owner, wanted: Mapping[str, Expected]
) -> Iterator[Difference]:
    for name in ("", LIVE, GENERATIONS):
        yield from _compared(f"{consumer}/{name}", tree.facts.get(name), "folder", FOLDER_MODE, owner)
    yield from _compared(f"{consumer}/{SENTINEL}", tree.facts.get(SENTINEL), "file", SENTINEL_MODE, owner)
    for name in sorted(tree.facts.keys() - {"", LIVE, GENERATIONS, SENTINEL}):
        yield _stray(f"{consumer}/{name}", name)
    yield from _pointers(consumer, tree.live, wanted)
    for certificate, line in sorted(tree.lines.items()):
        yield from _line(f"{consumer}/{GENERATIONS}/{certificate}", line, owner, wanted.get(certificate))
    for certificate, one in sorted(wanted.items()):
        there = tree.lines[certificate].entries if certificate in tree.lines else {}
        for name in sorted(one.kept.keys() - there.keys()):
            yield Difference(f"{consumer}/{GENERATIONS}/{certificate}/{name}", "is missing", _REBUILD)


def _pointers(
    consumer: str, live: Mapping[str, str | None], wanted: Mapping[str, Expected]
) -> Iterator[Difference]:
    for certificate in sorted(live.keys() | {name for name, one in wanted.items() if one.live}):
        place, target = f"{consumer}/{LIVE}/{certificate}", live.get(certificate)
        if certificate in live and certificate not in wanted:
            yield _stray(place, certificate)
            continue
        found = _POINTER.fullmatch(target) if target is not None else None
        name = found[2] if found and found[1] == certificate else None
        belongs = wanted[certificate].live
        if certificate not in live:
            yield Difference(place, f"is missing, and belongs at {belongs}", _REBUILD)
        elif name is None:
            yield Difference(place, f"leads to {target!r}" if target else "is no symlink", _REMOVE)
        elif belongs is not None and name != belongs:
            yield Difference(place, f"leads to {name}, and belongs at {belongs}", _REBUILD)


def _line(place: str, line: Line, owner: Owner, wanted: Expected | None) -> Iterator[Difference]:
    if wanted is None:
        yield _stray(place, place.rpartition("/")[2])
        return
    yield from _compared(place, line.fact, "folder", FOLDER_MODE, owner)
    for name, fact in sorted(line.entries.items()):
        if (folder := _folder(name)) is None:
            yield _stray(f"{place}/{name}", name)
        elif folder[0] not in wanted.known:
            yield Difference(f"{place}/{name}", "is a generation that this daemon never made", _REMOVE)
        else:
            yield from _compared(f"{place}/{name}", fact, "folder", FOLDER_MODE, owner)


def _compared(place: str, fact: Fact | None, kind: str, mode: int, owner: Owner) -> Iterator[Difference]:
    if fact is None:
        yield Difference(place, "is missing", _SET_UP)
    elif (fact.kind, fact.mode, fact.uid, fact.gid) != (kind, mode, owner.uid, owner.gid):
        hint = _SET_UP if fact.kind == kind else _REMOVE
        yield Difference(place, f"is {fact}, not a {kind} {mode:04o} of {owner.uid}:{owner.gid}", hint)


def _stray(place: str, name: str) -> Difference:
    if name.startswith("."):
        return Difference(
            place, "is left over from something that was cut off", "a sweep takes it within two hours"
        )
    return Difference(place, "is nothing that certfan put there", _REMOVE)
