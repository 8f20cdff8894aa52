"""An import carried out over a real control socket: what comes first, what waits, and what is never written."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certfan import pki, tls
from certfan.cli import conf_files
from certfan.cli.import_steps import Take
from certfan.cli.lines.imports import lines
from certfan.core.model import Authority, Problem
from certfan.daemon.config.checks import why_not_asked
from certfan.daemon.status.control import adoption as adoption_control
from certfan.daemon.status.model import AccountView
from certfan.errors import AuthorityUnreachable, UnknownName
from certfan.takeover import planning
from certfan.takeover.tree import FoundAccount, FoundPair, Tree, Way
from tests.unit.fleet_parts import PAIRS, a_fleet
from tests.unit.planner_parts import NOW, WWW, make_certificate
from tests.unit.status_parts import Admin, AuthorityAdmin, control_socket
from tests.unit.test_adoptions import Desk

ACCOUNT_KEY = pki.make_key()
HERE = Path("/nowhere")


class Reloading(Admin):
    """A daemon that finds nothing wrong."""

    config_problems: Sequence[Problem] = ()

    read: Callable[[], None] = staticmethod(lambda: None)

    async def reload(self, *, uid: int) -> Sequence[Problem]:
        self.read()
        return await super().reload(uid=uid)

    async def forget(self, certificate: str, *, uid: int) -> None:
        await super().forget(certificate, uid=uid)
        if certificate == "gone.test":
            raise UnknownName("no orphaned certificate 'gone.test' left")


class Office(AuthorityAdmin):
    """An authority where we have no account yet, or one of our own; it may be silent."""

    def __init__(self, *, uri: str | None = None, silent: bool = False) -> None:
        super().__init__()
        self.uri, self.silent = uri, silent
        self.thumbprint = "ab" * 32

    async def account(self, authority: str) -> AccountView:
        known = await super().account(authority)
        if self.uri is None:
            return replace(known, uri=None, thumbprint=None, since=None)
        return replace(known, uri=self.uri, thumbprint=self.thumbprint)

    async def import_account(self, authority: str, key: bytes, directory: str | None, *, uid: int) -> str:
        if self.silent:
            raise AuthorityUnreachable(f"{authority} does not answer")
        return await super().import_account(authority, key, directory, uid=uid)


class Import:
    """A tree of one or two pairs, whose authority the daemon knows as `ca`, and a daemon that adopts."""

    def __init__(self, desk: Desk, config: Path, admin: Reloading, office: Office) -> None:
        self.desk, self.config, self.admin, self.office = desk, config, admin, office

    def take(self, *names: str, replace_account: bool = False, directory: str = "https://ca/dir") -> Take:
        pairs = [
            FoundPair(
                name,
                *PAIRS[n],
                directory=directory,
                way=Way("webroot", ("/var/www",)),
                where=HERE / name,
            )
            for n, name in enumerate(names or (WWW,), 1)
        ]
        account = FoundAccount(directory, "https://ca/acct/9", ACCOUNT_KEY, where=HERE)
        tree = Tree(
            "certbot",
            HERE,
            accounts=(account,),
            pairs=tuple(pairs),
            left_out=(),
            stop="stop it",
            stop_some="stop the others",
        )
        desired = self.desk.fleet.desired
        roots = self.desk.roots.read_bytes()
        plan = planning.make(tree, desired, why_not=why_not_asked, roots=lambda _: roots, now=NOW)
        return Take(self.config, desired, "192.168.1.1:8055", plan, ("web1",), replace_account)

    async def do(self, take: Take) -> dict[str, Any]:
        told = await asyncio.to_thread(take.told, [("127.0.0.1", 1)])
        await asyncio.to_thread(take.carry_out, told, False)
        return told

    @property
    def file(self) -> Path:
        return conf_files.place(self.config, "certbot")


@contextlib.asynccontextmanager
async def importing(folder: Path, office: Office) -> AsyncIterator[Import]:
    async with a_fleet(folder / "fleet") as fleet:
        desk, admin = Desk(fleet, folder), Reloading()
        routes = adoption_control.adoption_routes(desk.adoptions())
        async with control_socket(folder, admin, office, others=routes) as config:
            yield Import(desk, config, admin, office)


async def test_accounts_and_pairs_come_before_the_certificates_that_would_be_ordered_else(
    tmp_path: Path,
) -> None:
    """Told first and nothing changed by it; then done, with the config's lines last."""
    async with importing(tmp_path, Office()) as one:
        take = one.take()
        before = await asyncio.to_thread(take.told, [("127.0.0.1", 1)])
        untouched = (await one.desk.fleet.known(), list(one.office.asked), one.file.exists())
        done = await one.do(take)
        again = await one.do(one.take())
        text = one.file.read_text()

    assert ((), [], False) == untouched
    assert ("adopt", "adopt") == (before["accounts"][0]["do"], before["certificates"][0]["do"])
    assert "nothing was changed; to do it: certfan import /nowhere --yes" == lines(before)[-1]
    assert [("import", "ca", ACCOUNT_KEY, "https://ca/dir", 0)] == one.office.asked[:1]
    assert ("adopted", 1) == (done["certificates"][0]["do"], done["certificates"][0]["generation"])
    assert f'name = "{WWW}"' in text
    assert "nothing" == before["certificates"][0]["served"][0]["served"]
    assert "now stop the renewals of certbot: stop it" in lines(done)
    assert 1 == again["certificates"][0]["generation"]


async def test_the_renewals_of_a_wildcard_are_not_to_be_stopped(tmp_path: Path) -> None:
    """It cannot be in a config: the output says which it is, why, and what to do, and stops what was taken over alone."""
    async with importing(tmp_path, Office()) as one:
        take = one.take()
        made = pki.make_placeholder(["*.w.test"], NOW)
        pair = replace(take.plan.tree.pairs[0], name="w.test", key_pem=made[0], fullchain_pem=made[1])
        tree = replace(take.plan.tree, pairs=(*take.plan.tree.pairs, pair))
        roots = one.desk.roots.read_bytes() + made[1]
        plan = planning.make(tree, take.desired, why_not=why_not_asked, roots=lambda _: roots, now=NOW)
        told = lines(await one.do(replace(take, plan=plan)))

    at = told.index(
        "left out: w.test: *.w.test: a wildcard needs a dns-01 challenge, which this release does not have"
    )
    assert told[at + 1].startswith(
        "  certbot has to go on renewing it; a [[certificate]] with each host by its own name"
    )
    assert "now stop the renewals of certbot, but not those of w.test: stop the others" in told


async def test_a_terminal_shows_how_far_an_import_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of thousands takes minutes: what is looked at and adopted is counted, and elsewhere nothing is said."""
    async with importing(tmp_path, Office()) as one:
        await asyncio.to_thread(one.take().told, [("127.0.0.1", 1)])
        quiet = capsys.readouterr()
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        await one.do(one.take())
        seen = capsys.readouterr()

    assert ("", "") == (quiet.out, quiet.err)
    for what in ("looking at what is served", "asking what is ours", "adopting"):
        assert f"{what}: [{'#' * 20}] 1 of 1\x1b[K\r" in seen.err


async def test_when_all_is_ours_nothing_is_left_to_do(tmp_path: Path) -> None:
    """The look after the last call says so."""
    office = Office(uri="https://ca/acct/9")
    async with importing(tmp_path, office) as one:
        office.thumbprint = pki.public_key_hash(ACCOUNT_KEY)
        one.desk.want(make_certificate())
        await one.do(one.take())
        told = await asyncio.to_thread(one.take().told, [("127.0.0.1", 1)])

    assert ("adopted", "adopted") == (told["accounts"][0]["do"], told["certificates"][0]["do"])
    assert "nothing is left to do" == lines(told)[-1]
    assert [] == office.asked


async def test_an_authority_that_the_config_lacks_is_put_into_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon must know it before it can be asked for the account; the certificates still come last."""
    async with importing(tmp_path, Office()) as one:
        # The authority is a public one, so its chains end in the system's roots.
        monkeypatch.setattr(tls, "system_roots_pem", one.desk.roots.read_bytes)
        written: list[set[str]] = []

        def read() -> None:
            found = tomllib.loads(one.file.read_text())
            written.append(set(found))
            new = {name: Authority(name, table["directory"]) for name, table in found["authority"].items()}
            one.desk.fleet.desired = replace(one.desk.fleet.desired, authorities=new)

        one.admin.read = read
        done = await one.do(one.take(directory="https://new.example/dir"))

    assert {"new-example": "https://new.example/dir"} == done["authorities"]
    assert [{"authority"}, {"authority", "certificate"}] == written
    assert "new-example" == one.office.asked[0][1]
    assert [] == done["failed"]


async def test_while_an_authority_is_silent_its_certificates_wait(tmp_path: Path) -> None:
    """In the config they would be renewed with a new account; nothing of them is written, and the same call goes on later."""
    async with importing(tmp_path, Office(silent=True)) as one:
        told = await one.do(one.take())
        waiting = (await one.desk.fleet.known(), one.file.exists())
        one.office.silent = False
        done = await one.do(one.take())

    assert ((), False) == waiting
    assert ["ca does not answer", f"{WWW}: waits for the account at ca"] == told["failed"]
    assert "the same again" in lines(told)[-1]
    assert [] == done["failed"]


async def test_an_account_of_our_own_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    """Certificates that we have came from it."""
    async with importing(tmp_path, Office(uri="https://ca.int/account/1")) as one:
        kept = await one.do(one.take())
        asked = list(one.office.asked)
        replaced = await one.do(one.take(replace_account=True))

    assert [] == asked
    assert "keep" == kept["accounts"][0]["do"]
    assert any("--replace-account" in line for line in lines(kept))
    assert "adopted" == replaced["accounts"][0]["do"]


async def test_a_pair_that_the_daemon_refuses_is_not_asked_for(tmp_path: Path) -> None:
    """An order for it is under way, say; the others are taken, and it is told what failed."""
    async with importing(tmp_path, Office()) as one:
        one.desk.in_flight = {("b.test",)}
        told = await one.do(one.take(WWW, "b.test"))
        text = one.file.read_text()

    assert ["an order for b.test is under way; run: certfan status"] == told["failed"]
    assert f'name = "{WWW}"' in text
    assert "b.test" not in text


async def test_undoing_removes_the_file_and_forgets_what_is_in_it(tmp_path: Path) -> None:
    """First only said; a crash after the file has gone is completed, and what is forgotten already is no failure."""
    async with importing(tmp_path, Office()) as one:
        await one.do(one.take(WWW, "gone.test"))
        said = (await asyncio.to_thread(conf_files.undo, one.config, "certbot", False))[0]
        there = one.file.exists()
        one.file.replace(one.file.with_name(f".{one.file.name}.undone"))  # where a crash leaves it
        await asyncio.to_thread(conf_files.undo, one.config, "certbot", True)
        left = list(one.file.parent.iterdir())

    assert {WWW, "gone.test"} == set(said["certificates"])
    assert there
    assert [] == left
    assert {("forget", WWW, 0), ("forget", "gone.test", 0)} == {
        a for a in one.admin.asked if a[0] == "forget"
    }


@pytest.mark.parametrize("line", ["\x1b[31m", "\r"])
def test_what_a_foreign_folder_says_moves_no_cursor(line: str) -> None:
    """Names, hooks and lines of configs are printed without control characters."""
    row = {
        "name": WWW, "names": [WWW], "key_type": "k", "not_after": NOW.isoformat(), "serial": "1", "generation": 1,
        "do": "adopt", "served": [], "way": "w", "hooks": [f"renew_hook = {line}"],
    }  # fmt: skip
    told = {
        "kind": "certbot", "folder": "/x", "authorities": {}, "accounts": [], "certificates": [row], "failed": [],
        "left_out": [{"name": f"x{line}", "why": line, "hint": line, "stays": True}], "servers": [line], "done": False, "stop": "",
        "config": {"text": f"# {line}\n", "file": "f"},
    }  # fmt: skip

    assert line not in "\n".join(lines(told))
