"""What an admin asks of the authority side, on the real store and state folder: revoking, accounts, trial orders."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certfan import log, pki, tls
from certfan.core.model import (
    Authority,
    Generation,
    Identifier,
    Limit,
    Limits,
    Problem,
    Revocation,
    RevocationReason,
)
from certfan.daemon.authority import make_account_key
from certfan.daemon.config import loading as config
from certfan.daemon.desk.authority_actions import AuthorityActions, how_to_stage
from certfan.daemon.disk import Disk
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.issuing.issuer import Issuer
from certfan.daemon.status.model import as_json
from certfan.errors import (
    ActionRefused,
    AuthorityRefused,
    AuthoritySlow,
    CertfanError,
    SelfCheckFailed,
    UnknownName,
)
from tests.unit import test_config
from tests.unit.fleet_parts import Fleet, a_fleet
from tests.unit.planner_parts import DAY, HOUR, NOW, WWW, make_certificate
from tests.unit.scripted_authority import ScriptedCa, refused

CA = Authority("ca", "https://ca/dir", staging="staging")
STAGING = Authority("staging", "https://staging/dir")
BROKEN = Problem("challenge.self_check_failed", f"http://{WWW}/: answered 404", "look at the vhost")


class Office:
    """A fleet, and what an admin asks of its authorities."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.ca = ScriptedCa(NOW)
        self.looked: list[str] = []
        self.rung = 0
        self.broken: dict[str, Problem] = {}
        fleet.desired = replace(fleet.desired, authorities={"ca": CA, "staging": STAGING})
        self.accounts = Accounts(
            store=fleet.store,
            state=fleet.state,
            journal=fleet.journal,
            connect=self.ca.connect,
            make_key=make_account_key,
            clock=fleet.clock,
        )
        self.issuer = Issuer(
            store=fleet.store,
            state=fleet.state,
            journal=fleet.journal,
            accounts=self.accounts,
            disk=Disk(),
            clock=fleet.clock,
        )
        self.ca.fetched = self.issuer.tokens.fetched
        self.actions = self.with_patience(timedelta(seconds=20))

    def with_patience(self, patience: timedelta) -> AuthorityActions:
        return AuthorityActions(
            store=self.fleet.store,
            journal=self.fleet.journal,
            accounts=self.accounts,
            issuer=self.issuer,
            desired=lambda: self.fleet.desired,
            check=self.check,
            self_check=lambda: True,
            ring=self.ring,
            clock=self.fleet.clock,
            trial_patience=patience,
        )

    async def check(self, identifier: Identifier) -> Problem | None:
        self.looked.append(identifier.value)
        return self.broken.get(identifier.value)

    def ring(self) -> None:
        self.rung += 1

    async def revoke(
        self, *, reason: str = "unspecified", number: int | None = None, name: str = WWW
    ) -> list[str]:
        asked = self.actions.revoke(name, number, RevocationReason(reason), at_once=False, uid=7)
        return [str(one) for one in await asked]

    async def wishes(self) -> dict[tuple[str, int], Revocation]:
        return dict((await self.fleet.store.facts()).revocations)


@pytest.fixture
async def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    # No machine's own roots end the scripted authority's chains.
    monkeypatch.setattr(tls, "system_roots_pem", lambda: ScriptedCa(NOW).root_pem)
    async with a_fleet(tmp_path) as fleet:
        yield Office(fleet)


async def keyed(office: Office, number: int, key: str, lifetime: timedelta = 90 * DAY) -> Generation:
    """Record a generation that has that key, by its hash."""
    known = replace(
        await office.fleet.issue(number, lifetime=lifetime),
        number=number + 10 if number < 5 else 10,
        fingerprint=f"{number:064x}",
        key=key,
    )
    await office.fleet.store.record_generation(known)
    return known


# Revoking


async def test_the_newest_generation_is_revoked_once_its_successor_is_served(office: Office) -> None:
    """The wish is durable, waits, and says who asked; the plan is told to look."""
    await office.fleet.issue(1)
    await office.fleet.issue(2)

    assert [f"{WWW}@2"] == await office.revoke(reason="superseded")

    assert {(WWW, 2): Revocation(RevocationReason.SUPERSEDED, False, NOW)} == await office.wishes()
    (event,) = await office.fleet.happened("revocation.asked")
    assert (f"{WWW}@2", {"uid": 7, "reason": "superseded", "at_once": False}) == (
        event.subject,
        dict(event.fields),
    )
    assert 1 == office.rung


async def test_a_compromised_key_takes_every_live_generation_that_has_it_along(office: Office) -> None:
    """Not what has another key, and not what is revoked or expired already; another reason takes one only."""
    await keyed(office, 5, "same", lifetime=-DAY)
    for number, key in ((1, "same"), (2, "other"), (3, "same"), (4, "same")):
        await keyed(office, number, key)
    await office.fleet.store.mark_revoked(WWW, 11, NOW)

    assert [f"{WWW}@14"] == await office.revoke(reason="superseded")
    assert [f"{WWW}@14", f"{WWW}@13"] == await office.revoke(reason="keyCompromise")

    assert {(WWW, 13), (WWW, 14)} == (await office.wishes()).keys()
    assert {RevocationReason.KEY_COMPROMISE} == {wish.reason for wish in (await office.wishes()).values()}


async def test_a_leaf_is_revoked_under_its_newest_number(office: Office) -> None:
    """Or the copy of a roll-back, which is what is served, would get no successor."""
    first = await office.fleet.issue(1)
    await office.fleet.issue(2)
    await office.fleet.store.record_copy(replace(first, number=3, copy_of=1))

    assert [f"{WWW}@3"] == await office.revoke(number=1)


async def test_what_left_the_config_can_be_revoked(office: Office) -> None:
    """It is known as long as it is not forgotten."""
    await office.fleet.issue(1)
    office.fleet.desired = replace(office.fleet.desired, certificates={})

    assert [f"{WWW}@1"] == await office.revoke()


@pytest.mark.parametrize(
    ("number", "text", "hint"),
    [
        (5, "there is no generation 5", "run: certfan status"),
        (1, "is revoked already", "run: certfan status"),
        (2, "expired at 2026-11-23 12:00 UTC", "run: certfan status"),
        (
            3,
            "issued by elsewhere, which is not in the config",
            "put [authority.elsewhere] back into certfan.toml",
        ),
    ],
)
async def test_what_cannot_be_revoked_is_refused_and_says_why(
    office: Office, number: int, text: str, hint: str
) -> None:
    """Nothing is remembered of it."""
    await office.fleet.issue(1)
    await office.fleet.store.mark_revoked(WWW, 1, NOW)
    old = await office.fleet.issue(2, lifetime=DAY)
    foreign = replace(old, number=3, fingerprint=f"{3:064x}", authority="elsewhere", not_after=NOW + 90 * DAY)
    await office.fleet.store.record_generation(foreign)
    office.fleet.now = NOW + 2 * DAY

    with pytest.raises(ActionRefused, match=text.replace("(", "\\(")) as caught:
        await office.revoke(number=number)

    assert hint == caught.value.hint
    assert {} == await office.wishes()
    assert [] == await office.fleet.happened("revocation.asked")


async def test_an_unknown_name_is_guessed_at(office: Office) -> None:
    """Certificates and authorities alike."""
    with pytest.raises(UnknownName, match=f'did you mean "{WWW}"'):
        await office.revoke(name="ww.example.org")
    with pytest.raises(UnknownName, match='did you mean "staging"'):
        await office.actions.account("stagin")


# Accounts


async def test_an_account_is_shown_with_what_is_used_of_its_limits(office: Office) -> None:
    """Before the first order there is none; afterwards its URL, key, contacts and spends."""
    limited = replace(CA, limits=Limits(orders=Limit(300, 3 * HOUR)), contact=("mailto:me@example.org",))
    office.fleet.desired = replace(office.fleet.desired, authorities={"ca": limited})

    before = await office.actions.account("ca")
    await office.accounts.client(limited)
    await office.fleet.store.begin_issuance(WWW, 1, "ca", (Identifier(WWW),), NOW)
    await office.fleet.store.record_order_url(WWW, 1, "https://ca.example/order/1", NOW)
    after = await office.actions.account("ca")

    assert (None, None, ("mailto:me@example.org",), ()) == (
        before.uri,
        before.since,
        before.contact,
        before.limits,
    )
    assert ("https://ca.example/account/1", NOW) == (after.uri, after.since)
    assert pki.public_key_hash(office.fleet.state.account_key("ca", make_account_key)) == after.thumbprint
    (used,) = after.limits
    assert ("orders", "", 1, 300, NOW + 3 * HOUR) == (
        used.limit,
        used.subject,
        used.used,
        used.count,
        used.frees_at,
    )


async def test_a_new_key_is_asked_for_once_there_is_an_account(office: Office) -> None:
    """The wish is durable and says who asked; without an account there is nothing to roll."""
    with pytest.raises(ActionRefused, match="no account at ca yet") as caught:
        await office.actions.roll_account_key("ca", uid=7)
    assert "it is made with the first order" == caught.value.hint
    await office.accounts.client(CA)

    await office.actions.roll_account_key("ca", uid=7)

    assert {"ca"} == (await office.fleet.store.facts()).rollovers
    assert [("ca", 7)] == [
        (e.subject, e.fields["uid"]) for e in await office.fleet.happened("rollover.asked")
    ]


async def test_an_exported_account_is_the_same_after_its_import_elsewhere(
    office: Office, tmp_path: Path
) -> None:
    """Another machine uses the same URL and key; both exchanges say who asked."""
    await office.accounts.client(CA)
    spec, uri, key = await office.actions.export_account("ca", uid=0)
    (tmp_path / "other").mkdir()
    async with a_fleet(tmp_path / "other") as fleet:
        other = Office(fleet)
        other.ca.accounts = office.ca.accounts
        assert uri == await other.actions.import_account("ca", key, spec.directory, uid=0)

        assert (uri, key) == (await other.actions.export_account("ca", uid=0))[1:]
        assert 1 == len(await fleet.happened("account.import_asked"))
    assert [0] == [e.fields["uid"] for e in await office.fleet.happened("account.exported")]


async def test_an_account_of_another_directory_is_refused_before_its_key_is_tried(office: Office) -> None:
    """The key of production does not reach staging."""
    with pytest.raises(
        ActionRefused, match="that account is not of staging, whose directory is https://staging"
    ):
        await office.actions.import_account("staging", make_account_key(), CA.directory, uid=0)

    assert 0 == office.ca.calls["find_account"]


async def test_no_key_reaches_a_text_an_event_a_log_line_or_the_page(office: Office, tmp_path: Path) -> None:
    """Whatever goes right or wrong with an account, nothing that is told holds a piece of a key."""
    said = io.StringIO()
    log.set_up(level="debug", stream=said)
    good, unknown = make_account_key(), make_account_key()
    office.ca.accounts[good] = "https://ca.example/account/9"
    torn = b"-----BEGIN PRIVATE KEY-----\n" + good[40:90]  # the second half of a file
    texts: list[str] = []

    for key in (unknown, torn, good):
        try:
            await office.actions.import_account("ca", key, None, uid=0)
        except CertfanError as error:
            texts += [error.text, error.hint, str(error), repr(error)]
    office.ca.scripts["find_account"] = [refused("unauthorized", 403)]
    with pytest.raises(AuthorityRefused) as caught:
        await office.actions.import_account("ca", good, None, uid=0)
    texts += [caught.value.text, repr(caught.value)]
    await office.actions.export_account("ca", uid=0)
    await office.actions.roll_account_key("ca", uid=0)
    texts.append(json.dumps(as_json(await office.actions.account("ca"))))
    texts += [json.dumps(as_json(event)) for event in await office.fleet.store.events()]
    texts += [repr(await office.fleet.store.facts()), said.getvalue()]

    assert "account.adopted" in said.getvalue()
    for text in texts:
        for key in (good, unknown, torn):
            pieces = [line for line in key.decode().splitlines() if not line.startswith("-")]
            assert not any(piece[:20] in text for piece in pieces), text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"", "no private key as PEM"),
        (b"{}", "no private key as PEM"),
        (None, "ca knows no account of that key"),
    ],
)
async def test_what_is_no_accounts_key_changes_nothing(office: Office, key: bytes | None, text: str) -> None:
    """The account before is the account after."""
    before = await office.accounts.client(CA)

    with pytest.raises(ActionRefused, match=text) as caught:
        await office.actions.import_account("ca", key if key is not None else make_account_key(), None, uid=0)

    assert caught.value.hint
    assert before is await office.accounts.client(CA)


# Trial orders


async def test_a_trial_goes_the_whole_way_at_staging_and_keeps_nothing(office: Office) -> None:
    """Our own look first, then a real order with a key that is thrown away; the journal says who tried what."""
    place, leaf = await office.actions.trial(WWW, None, uid=7)

    facts = await office.fleet.store.facts()
    assert ("staging", (WWW,), [WWW]) == (place, leaf.names, office.looked)
    assert ({}, (), {}) == (facts.generations, facts.issuances, facts.spends)
    assert frozenset() == office.fleet.state.generation_numbers(WWW)
    assert {} == await office.fleet.store.tokens()
    (event,) = await office.fleet.happened("trial.passed")
    assert {"uid": 7, "authority": "staging"} == dict(event.fields)


async def test_a_broken_vhost_is_told_as_such_before_anything_is_ordered(office: Office) -> None:
    """Every name is looked at; the first that fails is the reason."""
    both = make_certificate(names=("good.example.org", WWW))
    office.fleet.desired = replace(office.fleet.desired, certificates={WWW: both})
    office.broken[WWW] = BROKEN

    with pytest.raises(SelfCheckFailed, match="answered 404") as caught:
        await office.actions.trial(WWW, None, uid=7)

    assert BROKEN.hint == caught.value.hint
    assert ["good.example.org", WWW] == office.looked
    assert 0 == office.ca.calls["new_order"]
    (event,) = await office.fleet.happened("trial.failed")
    assert "challenge.self_check_failed" == event.fields["code"]


async def test_what_the_authority_refuses_is_what_the_trial_says(office: Office) -> None:
    """As an order would, and it is no attempt: no order waits for it."""
    office.ca.scripts["new_order"] = [refused("rejectedIdentifier")]

    with pytest.raises(AuthorityRefused, match="rejectedIdentifier"):
        await office.actions.trial(WWW, "ca", uid=7)

    assert {} == await office.fleet.store.attempts()


async def _for_ever(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


async def test_an_authority_that_does_not_come_to_an_end_is_given_up(office: Office) -> None:
    """The caller is told so while it still listens; no token is left behind."""
    client = await office.accounts.client(STAGING)
    client.finalize = _for_ever  # type: ignore[method-assign]

    with pytest.raises(AuthoritySlow, match="not done within 0 s") as caught:
        await office.with_patience(timedelta(seconds=0.2)).trial(WWW, None, uid=7)

    assert f"run: certfan check --order {WWW}" == caught.value.hint
    assert 1 == len(await office.fleet.happened("trial.failed"))


LETSENCRYPT = Authority("le", "https://acme-v02.api.letsencrypt.org/directory")
LE_STAGING = Authority("st", "https://acme-staging-v02.api.letsencrypt.org/directory")


@pytest.mark.parametrize(
    ("authority", "known", "hint"),
    [
        (LETSENCRYPT, (LETSENCRYPT, LE_STAGING), 'add to [authority.le]: staging = "st"'),
        (
            LETSENCRYPT,
            (LETSENCRYPT,),
            'add to [authority.le]: staging = "le-staging", and below it:\n'
            "[authority.le-staging]\n"
            f'directory = "{LE_STAGING.directory}"\n'
            "agree_to_terms = true",
        ),
        (
            CA,
            (CA,),
            'add to [authority.ca]: staging = "NAME", where [authority.NAME] is a test authority; '
            "or name one: certfan check --order --authority NAME",
        ),
    ],
    ids=["in the config", "published", "unknown"],
)
def test_the_hint_says_how_an_authority_gets_a_staging_one(
    authority: Authority, known: tuple[Authority, ...], hint: str
) -> None:
    """As lines to paste, where its directory is known."""
    assert hint == how_to_stage(authority, known)


def test_the_lines_of_the_hint_can_be_pasted(tmp_path: Path) -> None:
    """The config is good afterwards, without a default_authority."""
    main = test_config.MAIN.replace("https://ca.int:14000/dir", LETSENCRYPT.directory)
    path = test_config.write(tmp_path, main + test_config.one('["a.test"]'))
    authorities = config.load(path).desired.authorities
    hint = how_to_stage(authorities["pebble"], tuple(authorities.values()))
    line, below = hint.split(", and below it:\n")
    key = line.removeprefix("add to [authority.pebble]: ")
    pasted = main.replace("agree_to_terms = true", f"agree_to_terms = true\n{key}\n{below}")

    desired = config.load(test_config.write(tmp_path, pasted + test_config.one('["a.test"]'))).desired

    assert LE_STAGING.directory == desired.authorities["pebble-staging"].directory
    assert ("pebble", "pebble-staging") == (
        desired.certificates["a.test"].authority,
        desired.authorities["pebble"].staging,
    )


async def test_without_a_staging_authority_the_trial_says_how_to_have_one(office: Office) -> None:
    """Production is never tried by itself."""
    office.fleet.desired = replace(office.fleet.desired, authorities={"ca": replace(CA, staging=None)})

    with pytest.raises(ActionRefused, match="has no staging authority") as caught:
        await office.actions.trial(WWW, None, uid=7)

    assert caught.value.hint.startswith("add to [authority.ca]: staging")
    assert [] == office.looked
