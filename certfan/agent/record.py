"""What the agent remembers across a crash: what was assigned, how each generation fared, what worked before.

`outcomes.json` is read by the boot unit too. Every change is durable when the call returns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from certfan import files, log
from certfan.core.agent_steps import Assignment, Outcome, Pair
from certfan.core.model import Endpoint

MAX_ASSIGNED = 8 << 20
Worked = frozenset[tuple[str, Endpoint]]


@dataclass(frozen=True, slots=True)
class LastBoot:
    """The boot that the agent last ran in, whether it was told to end there, and whether the one before was not."""

    boot_id: str
    ended: bool
    reset: bool | None


_BOOT: TypeAdapter[LastBoot] = TypeAdapter(LastBoot)
_OUTCOMES: TypeAdapter[dict[str, dict[int, Outcome]]] = TypeAdapter(dict[str, dict[int, Outcome]])
_WORKED: TypeAdapter[list[tuple[str, Endpoint]]] = TypeAdapter(list[tuple[str, Endpoint]])
_ASSIGNED: TypeAdapter[list[Assignment]] = TypeAdapter(list[Assignment])


def assigned(folder: Path) -> Mapping[str, Assignment] | None:
    """Return what an agent was last assigned, as root or anybody may look; None when that is not to be had."""
    try:
        fd = os.open(folder / "assignments.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return {one.certificate: one for one in _ASSIGNED.validate_json(file.read(MAX_ASSIGNED))}
    except (OSError, ValidationError):
        return None


class Record:
    """The agent's memory in its state folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = files.private_folder(folder)
        self._log = log.get("record")
        by_name = self._read("outcomes.json", _OUTCOMES) or {}
        self.outcomes: Mapping[Pair, Outcome] = {
            (name, number): outcome for name, tries in by_name.items() for number, outcome in tries.items()
        }
        self.worked_before: Worked = frozenset(self._read("worked.json", _WORKED) or [])
        self.assignments: Mapping[str, Assignment] = {
            one.certificate: one for one in self._read("assignments.json", _ASSIGNED) or []
        }

    def remember_outcomes(self, changed: Mapping[Pair, Outcome]) -> None:
        """Replace the outcomes of these pairs; repeatable."""
        outcomes = {**self.outcomes, **changed}
        by_name: dict[str, dict[int, Outcome]] = {}
        for (name, number), outcome in outcomes.items():
            by_name.setdefault(name, {})[number] = outcome
        self._write("outcomes.json", _OUTCOMES.dump_json(by_name))
        self.outcomes = outcomes

    def remember_worked(self, worked: Worked) -> None:
        """Replace what completed a handshake before the current try."""
        if worked != self.worked_before:
            self._write("worked.json", _WORKED.dump_json(sorted(worked, key=str)))
            self.worked_before = worked

    def remember_assignments(self, assignments: Mapping[str, Assignment]) -> None:
        """Replace the whole list, so that a boot without the daemon still knows what is wanted."""
        if assignments != self.assignments:
            self._write("assignments.json", _ASSIGNED.dump_json(list(assignments.values())))
            self.assignments = dict(assignments)

    def forget_outcomes(self, pairs: frozenset[Pair]) -> None:
        """Drop what is said of pairs that nobody can go back to."""
        if pairs & self.outcomes.keys():
            self.outcomes = {pair: outcome for pair, outcome in self.outcomes.items() if pair not in pairs}
            self.remember_outcomes({})

    def begin_boot(self, boot_id: str) -> bool | None:
        """Remember that we run in this boot; return whether the one before had no end. Repeatable.

        None: there is none before, or nobody knows of it.
        """
        before = self._read("boot.json", _BOOT)
        if before is None or before.boot_id != boot_id:
            reset = None if before is None else not before.ended
            self._boot = LastBoot(boot_id, ended=False, reset=reset)
        else:
            self._boot = replace(before, ended=False)
        self._write("boot.json", _BOOT.dump_json(self._boot))
        return self._boot.reset

    def end_boot(self) -> None:
        """Remember that we were told to end: should the machine go down now, it is no reset."""
        self._write("boot.json", _BOOT.dump_json(replace(self._boot, ended=True)))

    def _read(self, name: str, kind: TypeAdapter[Any]) -> Any:
        try:
            return kind.validate_json(files.read_private(self._folder / name))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            # Nothing in it decides alone: everything is assigned, verified and proven again.
            self._log.error("record.unreadable", file=name, problem=str(error.errors()[0]["type"]))
            return None

    def _write(self, name: str, data: bytes) -> None:
        files.write_private(self._folder / name, data)
