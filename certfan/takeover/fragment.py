"""The file of conf.d that asks for what was adopted, with a comment for whoever reads it later."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from certfan.takeover.planning import LETSENCRYPT, LETSENCRYPT_STAGING, Adoption
from certfan.takeover.tree import FoundAccount, Tree


def head(tree: Tree, now: datetime) -> str:
    """Return the lines that begin the file."""
    return (
        f"# Taken over from {_clean(str(tree.root))} ({tree.kind}) by `certfan import`, {now:%Y-%m-%d}. It is yours to edit;\n"
        f"# `certfan import --undo --from {tree.kind}` removes it, and forgets what was adopted.\n"
    )


def authorities(
    places: Mapping[str, str], accounts: Mapping[str, FoundAccount], ours: Mapping[str, str]
) -> str:
    """Return the tables of authorities that the config lacks; `ours` are the directories of those it has."""
    every = {directory: name for name, directory in {**ours, **places}.items()}
    tables = []
    for name, directory in places.items():
        account = accounts.get(name)
        lines = [
            f"[authority.{name}]",
            f"directory = {_text(directory)}",
            "agree_to_terms = true   # as the account that was taken over has done",
        ]
        if account is not None and account.contact:
            lines.append(f"contact = {_texts(account.contact)}")
        if directory == LETSENCRYPT and LETSENCRYPT_STAGING in every:
            lines.append(f"staging = {_text(every[LETSENCRYPT_STAGING])}")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def certificates(adoptions: Sequence[Adoption], consumers: Collection[str]) -> str:
    """Return the tables of certificates that the config lacks."""
    tables = []
    for one in adoptions:
        way = one.found.way
        answered = f"challenges: {way.authenticator} {' '.join(way.webroots)}".rstrip()
        lines = [
            f"# {_clean(str(one.found.where))}, good until {one.pair.leaf.not_after:%Y-%m-%d}; {_clean(answered)}",
            *(f"# ran after a renewal: {_clean(hook)}" for hook in way.hooks),
            "[[certificate]]",
            f"name = {_text(one.name)}",
            f"names = {_texts(one.pair.leaf.names)}",
            f"consumers = {_texts(consumers)}",
            f"authority = {_text(one.authority)}",
            f"key_type = {_text(one.pair.leaf.key_type)}",
        ]
        if one.found.profile:
            lines.append(f"profile = {_text(one.found.profile)}")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _text(value: str) -> str:
    # TOML's basic strings are JSON's, with the escapes of JSON among theirs; what is not ASCII is escaped.
    return json.dumps(value)


def _texts(values: Collection[str]) -> str:
    return json.dumps(list(values))


def _clean(text: str) -> str:
    """Return text that ends no comment."""
    return "".join(c if c.isprintable() else " " for c in text)
