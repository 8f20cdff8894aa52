"""One import, carried out: what would be done, and doing it. Loaded by `certfan import` alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from certfan import pki
from certfan.cli import conf_files
from certfan.cli.control import call
from certfan.cli.lines import imports
from certfan.cli.saying import counted, counting
from certfan.core.model import Desired
from certfan.errors import ActionRefused, AuthorityError, CertfanError
from certfan.takeover import advice, fragment, servers, serving
from certfan.takeover.planning import Adoption, Plan

_PATIENCE = 60  # seconds; an authority is asked for its account

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Take:
    """One import: what would be done, and doing it."""

    config: Path
    desired: Desired
    responder: str  # where challenges are to come
    plan: Plan
    consumers: tuple[str, ...]
    replace_account: bool

    def told(self, places: Sequence[tuple[str, int]]) -> Json:
        """Return what would be done, from what the daemon has and what is served now; nothing is changed."""
        plan = self.plan
        leaves = {one.name: one.pair.leaf for one in plan.adoptions}
        names = sum(len(leaf.names) for leaf in leaves.values())
        with counting("looking at what is served", names) as looked:
            served = asyncio.run(serving.look(leaves, places, looked))
        lines = servers.lines(servers.FOLDERS, plan.tree.root)
        return {
            "kind": plan.tree.kind,
            "folder": str(plan.tree.root),
            "authorities": dict(plan.authorities),
            "accounts": [self._account(name) for name in sorted(plan.accounts)],
            "certificates": [
                self._told_of(one, served[one.name]) for one in counted("asking what is ours", plan.adoptions)
            ],
            "left_out": [
                {"name": one.name, "why": one.why, "hint": one.hint, "stays": one.stays}
                for one in plan.left_out
            ],
            "servers": advice.line_texts(lines, self.responder, imports.INSTALL_TO),
            "config": {
                "file": str(conf_files.place(self.config, plan.tree.kind)),
                "text": self._text([one.name for one in plan.adoptions]),
            },
            "stop": plan.tree.stop_some if any(one.stays for one in plan.left_out) else plan.tree.stop,
            "failed": [],
            "done": False,
        }

    def _told_of(self, one: Adoption, served: Sequence[serving.Seen]) -> Json:
        return {
            **self._certificate(one),
            "served": [
                {"endpoint": seen.endpoint, "served": seen.served, "detail": seen.detail} for seen in served
            ],
            "way": advice.way_text(one.found.way, self.responder),
            "hooks": list(one.found.way.hooks),
        }

    def _account(self, authority: str) -> Json:
        account = self.plan.accounts[authority]
        told = {"authority": authority, "uri": account.uri, "ours": None, "do": "adopt"}
        if authority in self.plan.authorities:
            return told
        ours = call(self.config, "GET", f"/api/v1/accounts/{quote(authority, safe='')}")
        if ours["thumbprint"] == pki.public_key_hash(account.key_pem):
            return {**told, "uri": ours["uri"], "do": "adopted"}
        if ours["uri"] is not None and not self.replace_account:
            return {**told, "ours": ours["uri"], "do": "keep"}
        return {**told, "ours": ours["uri"]}

    def _certificate(self, one: Adoption) -> Json:
        leaf = one.pair.leaf
        answer = call(self.config, "GET", f"{_adoption(one.name)}/{leaf.fingerprint}")
        return {
            "name": one.name,
            "names": list(leaf.names),
            "key_type": leaf.key_type,
            "not_after": leaf.not_after.isoformat(),
            "serial": leaf.serial,
            "authority": one.authority,
            "in_config": one.in_config,
            "generation": answer["generation"],
            "do": "adopted" if answer["adopted"] else "adopt",
        }

    def _text(self, names: Sequence[str]) -> str:
        """Return the lines that the config lacks for these certificates."""
        plan = self.plan
        lacking = [one for one in plan.adoptions if one.name in names and not one.in_config]
        ours = {name: one.directory for name, one in self.desired.authorities.items()}
        parts = [
            fragment.authorities(plan.authorities, plan.accounts, ours),
            fragment.certificates(lacking, self.consumers),
        ]
        return "\n".join(part for part in parts if part)

    # Doing it: what the config must know first, accounts, pairs, and last the certificates, which would be ordered else.

    def carry_out(self, told: Json, to_stdout: bool) -> None:
        """Do what was told, and write into that how it went. A crash anywhere is completed by the next call."""
        plan = self.plan
        file, head = Path(told["config"]["file"]), fragment.head(plan.tree, datetime.now(UTC))
        if plan.authorities:
            if to_stdout:
                raise ActionRefused(
                    f"{self.config} must know {', '.join(plan.authorities)} first",
                    hint="put the [authority] tables that are printed without --yes into it",
                )
            conf_files.extend(self.config, file, head, self._text(()))
        waiting, failed = self._adopt_accounts(told["accounts"])
        adopted = self._adopt_pairs(told["certificates"], waiting, failed)
        text = fragment.certificates([one for one in adopted if not one.in_config], self.consumers)
        if text and not to_stdout:
            conf_files.extend(self.config, file, head, text)
        told["config"]["text"] = text
        told["failed"], told["done"] = failed, True

    def _adopt_pairs(self, rows: Sequence[Json], waiting: set[str], failed: list[str]) -> list[Adoption]:
        """Adopt pairs, and return those that are ours now."""
        adopted = []
        pairs = [*zip(self.plan.adoptions, rows, strict=True)]
        for one, row in counted("adopting", pairs):
            if one.authority in waiting:
                failed.append(f"{one.name}: waits for the account at {one.authority}")
                continue
            try:
                row["generation"] = self._adopt(one)
            except ActionRefused as error:
                failed.append(_failed(error))
            else:
                row["do"] = "adopted"
                adopted.append(one)
        return adopted

    def _adopt_accounts(self, rows: Sequence[Json]) -> tuple[set[str], list[str]]:
        """Adopt accounts; return the authorities that did not answer, as a new account would be made there."""
        waiting, failed = set(), []
        for row in rows:
            authority = row["authority"]
            account = self.plan.accounts[authority]
            body = {"key": account.key_pem.decode(), "directory": account.directory}
            try:
                if row["do"] == "adopt":
                    path = f"/api/v1/accounts/{quote(authority, safe='')}"
                    row["uri"] = call(self.config, "PUT", path, body, patience=_PATIENCE)["uri"]
                    row["do"] = "adopted"
            except (ActionRefused, AuthorityError) as error:
                failed.append(_failed(error))
                if isinstance(error, AuthorityError):
                    waiting.add(authority)
        return waiting, failed

    def _adopt(self, one: Adoption) -> int:
        body = {
            "key": one.pair.key_pem.decode(),
            "fullchain": one.pair.fullchain_pem.decode(),
            "authority": one.authority,
        }
        return int(call(self.config, "PUT", _adoption(one.name), body)["generation"])


def _adoption(name: str) -> str:
    return f"/api/v1/adoptions/{quote(name, safe='')}"


def _failed(error: CertfanError) -> str:
    return f"{error.text}; {error.hint}" if error.hint else error.text
