"""The file of conf.d that an import writes: extended, put in force, taken back."""

from __future__ import annotations

import contextlib
import os
import tomllib
from pathlib import Path
from typing import Any

from certfan.errors import ActionRefused, ConfigInvalid, UnknownName

_MODE = 0o644  # the daemon's user reads it, and no secret is in it


def place(config: Path, kind: str) -> Path:
    """Return where an import of that program writes."""
    return config.parent / "conf.d" / f"taken-over-{kind}.toml"


def extend(config: Path, file: Path, head: str, text: str) -> None:
    """Add tables to the file and have the daemon take them; what it refuses is taken back.

    Raises:
        ConfigInvalid: with them the config is wrong; the one before stays.
    """
    before = file.read_text() if file.exists() else None
    _write(file, f"{head if before is None else before.rstrip() + chr(10)}\n{text}")
    if problems := _reload(config):
        if before is None:
            file.unlink()
        else:
            _write(file, before)
        _reload(config)
        raise ConfigInvalid(
            tuple(problems), subject=str(file), hint=f"mend {config}, then run certfan import again"
        )


def undo(config: Path, kind: str, yes: bool) -> tuple[dict[str, Any], str]:
    """Return what taking an import back does, done with `yes`, as JSON and as text.

    A crash is completed by the next call: the file leaves the config first, and the folder last.
    """
    from certfan.cli.control import call

    file = place(config, kind)
    aside = file.with_name(f".{file.name}.undone")
    source = file if file.exists() else aside
    if not source.exists():
        raise ActionRefused(f"nothing was imported from {kind}: there is no {file}", subject=kind)
    names = [str(one.get("name")) for one in tomllib.loads(source.read_text()).get("certificate", ())]
    told = {"file": str(file), "certificates": names, "done": yes}
    if not yes:
        said = f"would remove {file} and forget {', '.join(names) or 'nothing'}, with every generation since"
        return told, f"{said}; to do it: certfan import --undo --from {kind} --yes"
    if source is file:
        file.replace(aside)
        if problems := _reload(config):
            aside.replace(file)
            _reload(config)
            raise ConfigInvalid(tuple(problems), subject=str(file), hint=f"mend {config} first")
    for name in names:
        with contextlib.suppress(UnknownName):
            call(config, "POST", "/api/v1/forget", {"certificate": name})
    aside.unlink()
    return told, (
        f"removed {file}; {', '.join(names) or 'nothing'} being forgotten (follow it with: certfan events --follow).\n"
        "The accounts stay; yours of before: certfan account import AUTHORITY FILE"
    )


def _reload(config: Path) -> list[str]:
    from certfan.cli.control import call

    problems = call(config, "POST", "/api/v1/reload")["problems"]
    return [one["detail"] for one in problems if one["code"] != "config.needs_restart"]


def _write(file: Path, text: str) -> None:
    """Replace the file in one step."""
    file.parent.mkdir(mode=0o755, exist_ok=True)
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        os.fchmod(descriptor, _MODE)  # whatever the umask
        out.write(text)
        out.flush()
        os.fsync(descriptor)
    fresh.replace(file)
