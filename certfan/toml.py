"""TOML files of the admin: read, checked for who may write them, and every problem told at once.

Shared by both wings' configs. What must never come in: the meaning of any key.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from certfan.errors import ConfigInvalid, ConfigTooOpen

MAX_BYTES = 1 << 22
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

M = TypeVar("M", bound=BaseModel)


def load(path: Path) -> dict[str, Any]:
    """Read one TOML file that nobody but root and this process's user may write.

    Raises:
        ConfigTooOpen: others may write it, or put another file in its place.
        ConfigInvalid: it is missing, unreadable, too long or no TOML (with line and column).
    """
    try:
        refuse_open(path)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(
            (f"{path}: cannot be read: {error.strerror}",), subject=str(path), hint=f"run: ls -l {path}"
        ) from error
    if len(data) > MAX_BYTES:
        raise ConfigInvalid((f"{path}: longer than {MAX_BYTES} bytes",), subject=str(path))
    return parse(data, where=str(path))


def parse(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse TOML bytes.

    Raises:
        ConfigInvalid: one problem, with line and column.
    """
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"{where}: not UTF-8 (at line {line})"
    except tomllib.TOMLDecodeError as error:
        line, column = data.count(b"\n") + 1, len(data) - data.rfind(b"\n")
        end = f"(at line {line}, column {column}, the end of the file)"
        problem = f"{where}: {_lower_first(str(error)).replace('(at end of document)', end)}"
    except RecursionError:
        problem = f"{where}: nested too deeply"
    raise ConfigInvalid((problem,), subject=where)


def refuse_open(path: Path, *, secret: bool = False) -> None:
    """Let pass a file that only root and this process's user can change; with `secret` also only they can read.

    Its folder counts too: who may write there may put another file in its place.

    Raises:
        ConfigTooOpen: someone else may.
        OSError: it cannot be looked at.
    """
    file = path.resolve(strict=True)
    about = file.stat()
    trusted = {0, os.geteuid()}
    mode = stat.S_IMODE(about.st_mode)
    if about.st_uid not in trusted:
        _too_open(f"{path} belongs to uid {about.st_uid}", path, f"run: chown root {file}")
    if mode & 0o022:
        _too_open(f"{path} can be written by others (mode {mode:04o})", path, f"run: chmod go-w {file}")
    if secret and mode & 0o077:
        _too_open(
            f"{path} holds a secret that others can read (mode {mode:04o})", path, f"run: chmod 600 {file}"
        )
    folder = file.parent.stat()
    if folder.st_uid not in trusted:
        _too_open(
            f"the folder of {path} belongs to uid {folder.st_uid}", path, f"run: chown root {file.parent}"
        )
    if folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX:
        _too_open(f"the folder of {path} can be written by others", path, f"run: chmod go-w {file.parent}")


def validate(model: type[M], data: Mapping[str, Any], *, where: str) -> M:
    """Turn parsed TOML into a model.

    Raises:
        ConfigInvalid: with every problem, each `WHERE: key.path: what is wrong`.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigInvalid(problems(error, model, where=where), subject=where) from error


def problems(error: ValidationError, model: type[BaseModel], *, where: str) -> tuple[str, ...]:
    """Tell every problem of a refused model as `WHERE: key.path: what is wrong`; no value is repeated."""
    errors = error.errors(include_url=False)
    lines = (
        f"{where}: {key_path(one['loc'])}: {_tell(one, model)}"
        if one["loc"]
        else f"{where}: {_tell(one, model)}"
        for one in errors
        if not _follows(one, errors)
    )
    return tuple(dict.fromkeys(lines))


def key_path(location: Sequence[int | str]) -> str:
    """Write a location as the admin would: `service[0].endpoints[1].port`; lists count from 0."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":  # pydantic's word for "the key itself is wrong"
            key = part if _BARE_KEY.fullmatch(part) else f'"{part}"'
            path += f".{key}" if path else key
    return path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean "X"?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f', did you mean "{near[0]}"?' if near else ""


def _tell(one: Mapping[str, Any], model: type[BaseModel]) -> str:
    location: tuple[int | str, ...] = one["loc"]
    match one["type"]:
        case "extra_forbidden":
            return f"unknown key{did_you_mean(str(location[-1]), _keys_at(model, location[:-1]))}"
        case "missing":
            return "is missing"
        case "enum" | "literal_error":
            expected = re.findall(r"'([^']*)'", str(one["ctx"]["expected"]))
            return f"{_lower_first(one['msg'])}{did_you_mean(str(one['input']), expected)}"
        case _:
            return _lower_first(str(one["msg"]).removeprefix("Value error, "))


def _follows(one: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list only seems too short because its items were refused."""
    here = one["loc"]
    return one["type"] == "too_short" and any(
        len(other["loc"]) > len(here) and other["loc"][: len(here)] == here for other in errors
    )


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _too_open(text: str, path: Path, hint: str) -> typing.NoReturn:
    raise ConfigTooOpen(text, subject=str(path), hint=hint)


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Return the keys that the model allows at a location."""
    here: list[Any] = [model]
    for part in location:
        here = [inner for kind in here for inner in _step(kind, part)]
    return {key for kind in here for one in _members(kind) if _is_model(one) for key in _fields(one)}


def _step(kind: Any, part: int | str) -> Iterator[Any]:
    for one in _members(kind):
        if _is_model(one):
            if part in (fields := _fields(one)):
                yield fields[str(part)]
        elif arguments := typing.get_args(one):
            yield arguments[0 if isinstance(part, int) else -1]


def _members(kind: Any) -> Iterator[Any]:
    """Take unions and Annotated apart."""
    origin = typing.get_origin(kind)
    if origin in {typing.Union, types.UnionType}:
        for one in typing.get_args(kind):
            yield from _members(one)
    elif origin is typing.Annotated:
        yield from _members(typing.get_args(kind)[0])
    else:
        yield kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {about.alias or name: about.annotation for name, about in model.model_fields.items()}
