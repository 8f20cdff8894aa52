"""What authorities publish about themselves: limits, profiles, a staging directory. The numbers are in published.toml.

What must never come in: a number of an authority, and anything that a directory says about itself when asked.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from certfan.core.model import NO_LIMITS, Identifier, Limit, Limits


@dataclass(frozen=True, slots=True)
class Profile:
    """What an authority certifies under one of its profiles."""

    name: str
    most_names: int = field(kw_only=True)
    ip_addresses: bool = field(kw_only=True)
    order_lifetime: timedelta = field(kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What is known of an authority; the defaults are an authority of which nothing is."""

    limits: Limits = NO_LIMITS
    profiles: Mapping[str, Profile] = field(default_factory=lambda: MappingProxyType({}))
    staging: str | None = None  # its directory
    default_profile: str | None = None  # what it takes when an order names none

    def why_not(self, profile: str | None, identifiers: Iterable[Identifier]) -> str | None:
        """Return why the authority would refuse these identifiers under a profile, or None.

        None also for a profile of which nothing is known: the authority will say.
        """
        wanted = self.profiles.get(profile or self.default_profile or "")
        if wanted is None:
            return None
        identifiers = tuple(identifiers)
        addresses = [one for one in identifiers if one.kind == "ip"]
        if addresses and not wanted.ip_addresses:
            return f"{addresses[0]}: {self._which_takes_addresses()} of this authority certifies IP addresses"
        if len(identifiers) > wanted.most_names:
            return (
                f"{len(identifiers)} names: the profile {wanted.name} takes at most {wanted.most_names};"
                " split them over several certificates"
            )
        return None

    def _which_takes_addresses(self) -> str:
        able = sorted(name for name, profile in self.profiles.items() if profile.ip_addresses)
        return f"only the profile {' or '.join(able)}" if able else "no profile"


NOTHING_PUBLISHED = Published()


def of(directory: str) -> Published:
    """Return what the authority with this directory publishes."""
    return _table().get(directory.rstrip("/"), NOTHING_PUBLISHED)


@cache
def _table() -> Mapping[str, Published]:
    text = resources.files("certfan.daemon.issuing").joinpath("published.toml").read_text(encoding="utf-8")
    return {directory: _published(entry) for directory, entry in tomllib.loads(text).items()}


def _published(entry: Mapping[str, Any]) -> Published:
    limits = {
        name: Limit(limit["count"], timedelta(seconds=limit["window"]))
        for name, limit in entry.get("limits", {}).items()
    }
    profiles = {
        name: Profile(name, **{**profile, "order_lifetime": timedelta(seconds=profile["order_lifetime"])})
        for name, profile in entry.get("profiles", {}).items()
    }
    return Published(
        limits=Limits(**limits),
        profiles=MappingProxyType(profiles),
        staging=entry.get("staging"),
        default_profile=entry.get("default_profile"),
    )
