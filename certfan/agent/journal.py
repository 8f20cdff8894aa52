"""What a swap under way owes: which pointers stood where, and which services ran. Durable, beside the generations.

What must never come in: how it is paid back (`swap`, or the boot unit).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from certfan import files, log
from certfan.agent.installer import Laid
from certfan.core.model import CERTIFICATE_NAME
from certfan.errors import CertfanError


@dataclass(frozen=True, slots=True)
class Owed:
    """What a swap that has not ended must be able to restore: former pointers, and services that ran."""

    former: Mapping[str, str | None]  # certificate -> folder
    ran: frozenset[str]


class Journal:
    """The durable `Owed` of a swap under way, beside the generations."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".owed.json"

    def read(self) -> Owed:
        """Return what an interrupted swap has left, or nothing. A damaged file counts as nothing."""
        try:
            document = json.loads(files.read_private(self._path))
            former = {
                name: folder
                for name, folder in document["former"].items()
                if CERTIFICATE_NAME.fullmatch(name) and (folder is None or Laid.parse(folder))
            }
            return Owed(former, frozenset(document["ran"]))
        except FileNotFoundError:
            pass
        except (CertfanError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.get("apply").warning("journal.unreadable", problem=str(error))
        return Owed({}, frozenset())

    def write(self, owed: Owed) -> None:
        """Make it durable."""
        document = {"former": dict(owed.former), "ran": sorted(owed.ran)}
        files.write_private(self._path, json.dumps(document).encode())

    def clear(self) -> None:
        """The swap has ended."""
        self._path.unlink(missing_ok=True)
        files.sync_folder(self._path.parent)
