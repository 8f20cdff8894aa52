"""The shape of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Argv = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one service is tested, reloaded, started and asked whether it runs.

    `reload`, `start` and `active` are for machines without systemd; with it they are `systemctl` on `unit`.
    `ports` tells which probe speaks on a port; the first is what an endpoint gets that names neither. `output` is
    the form of its pairs (config_schema.Output).
    """

    name: str
    unit: str = field(kw_only=True)
    test: Argv = field(kw_only=True)
    reload: Argv = field(kw_only=True)
    start: Argv = field(kw_only=True)
    active: Argv = field(kw_only=True)
    ports: Mapping[int, str] = field(kw_only=True)
    output: str = field(default="certbot", kw_only=True)
