"""`certfan restore`: an archive becomes the state folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from certfan import files
from certfan.daemon.backup import LOCK, About, extract
from certfan.errors import ActionRefused


def restore(archive: BinaryIO, state: Path, *, fleet: str, owner: tuple[int, int] | None = None) -> About:
    """Make an archive the state folder, which must not be there or hold nothing; `owner` (uid, gid) gets all of it.

    Everything lies complete and verified in a folder beside it before that one takes its name. Cut short, the
    folder beside it is left and removed by the next try.

    Raises:
        StateLocked: a daemon runs on that folder.
        ActionRefused: the folder holds something, or the archive is of another fleet.
        BackupInvalid: the archive is cut, altered, or none.
    """
    beside = state.with_name(f".{state.name}.restoring")
    _check_empty(state)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(mode=0o700, parents=True)
    try:
        about = extract(archive, beside)
        if about.fleet != fleet:
            raise ActionRefused(
                f"the backup is of fleet {about.fleet}, the config of {fleet}",
                subject=fleet,
                hint="restore with the config of the fleet that the backup was made of",
            )
        if owner is not None:
            _give(beside, owner)
        _take_place(beside, state)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return about


def _check_empty(state: Path) -> None:
    if not state.exists():
        return
    with files.locked(state / LOCK):
        pass  # StateLocked: a daemon runs
    if held := sorted(entry.name for entry in state.iterdir() if entry.name != LOCK):
        raise ActionRefused(
            f"{state} is not empty: it holds {', '.join(held[:3])}",
            subject=str(state),
            hint=f"move it away first: mv {state} {state}.old",
        )


def _give(folder: Path, owner: tuple[int, int]) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *owner, follow_symlinks=False)


def _take_place(beside: Path, state: Path) -> None:
    """Give the complete folder its name; a daemon that starts in this instant makes it fail, not half done."""
    for path in (beside, *(one for one in beside.rglob("*") if one.is_dir())):
        files.sync_folder(path)
    if state.exists():
        (state / LOCK).unlink(missing_ok=True)
    beside.rename(state)
    files.sync_folder(state.parent)
