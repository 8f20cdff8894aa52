"""Fleets for the page: small ones in each state that matters, large ones, and one whose every text is hostile.

They go through the real `view`, so that no test of the page shows what the state cannot be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from certfan.core.ledger import Ledger, Spend, SpendKind
from certfan.core.model import (
    Attempt,
    Authority,
    Certificate,
    Consumer,
    Deployment,
    DeploymentState,
    Desired,
    Endpoint,
    Generation,
    Health,
    Identifier,
    KeyType,
    Limit,
    Limits,
    Problem,
    Proof,
    RenewalInfo,
)
from certfan.core.resets import OURS, Boot
from certfan.daemon.observing import remembered
from certfan.daemon.status import app
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.store.facts import AccountFact, ConfigFact, Event, Heard, Run
from tests.unit.status_parts import DAY, MINUTE, NO_FACTS, NOW

HOUR = timedelta(hours=1)
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202eesrever\x1b[31m"
LETS = Authority(
    "letsencrypt",
    "https://acme.example.net/directory",
    limits=Limits(
        orders=Limit(300, 3 * HOUR),
        certificates_per_domain=Limit(50, 7 * DAY),
        certificates_per_set=Limit(5, 7 * DAY),
    ),
)
NAMES = ("www.example.org", "mail.example.org", "chat.example.org", "cloud.example.org", "example.net")
SERVICES = {
    "web1": (("apache2", "tls", 443),),
    "web2": (("apache2", "tls", 443),),
    "mail": (("postfix", "smtp", 25), ("postfix", "tls", 465), ("dovecot", "imap", 143)),
    "chat": (("prosody", "xmpp-client", 5222),),
}


def fingerprint(name: str, number: int) -> str:
    return sha256(f"{name}@{number}".encode()).hexdigest()


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[:20].ljust(20, b"~"))


def generation(name: str, number: int, issued_at: datetime, lifetime: timedelta = 90 * DAY) -> Generation:
    return Generation(
        name,
        number,
        fingerprint=fingerprint(name, number),
        serial=fingerprint(name, number)[20:38],
        identifiers=frozenset({Identifier(name), Identifier(f"*.{name}")}),
        key_type=KeyType.ECDSA_P256,
        authority=LETS.name,
        not_before=issued_at,
        not_after=issued_at + lifetime,
        issued_at=issued_at,
    )


def proof(
    name: str, consumer: str, service: tuple[str, str, int], of: Generation, heard: datetime, **more: Any
) -> Proof:
    address = f"192.0.2.{10 + hash_of(consumer) % 200}"
    return Proof(
        Endpoint(service[0], service[1], address, service[2], name),
        more.pop("health", Health.SERVED),
        heard - timedelta(seconds=20),
        **{
            "fingerprint": of.fingerprint,
            "not_before": of.not_before,
            "not_after": of.not_after,
            "heard_at": heard,
            "since": of.issued_at + MINUTE,
        }
        | more,
    )


class Fleet:
    """A fleet in which all is well until a test says otherwise."""

    def __init__(self, wanted: Mapping[str, Sequence[str]], now: datetime = NOW) -> None:
        self.now = now
        self.consumers = sorted({consumer for consumers in wanted.values() for consumer in consumers})
        self.desired = Desired(
            authorities={LETS.name: LETS},
            certificates={
                name: Certificate(
                    name,
                    (Identifier(name), Identifier(f"*.{name}")),
                    consumers=tuple(consumers),
                    authority=LETS.name,
                )
                for name, consumers in wanted.items()
            },
            consumers={name: Consumer(name) for name in self.consumers},
        )
        self.facts: dict[str, Any] = {
            "generations": {},
            "offered": {},
            "deployments": {},
            "proofs": {},
            "attempts": {},
            "heard": {name: self._heard(name, 40) for name in self.consumers},
            "config_changed": dict.fromkeys(wanted, now - 200 * DAY),
            "revoked": {},
        }
        self.extra: dict[str, Any] = {}
        self.spent: list[Spend] = []
        for index, (name, consumers) in enumerate(wanted.items()):
            self.issue(name, now - (3 + index * 7 % 56) * DAY - index * MINUTE * 7, consumers)

    def _heard(self, consumer: str, seconds_ago: int) -> Heard:
        at = self.now - timedelta(seconds=seconds_ago)
        return Heard(consumer, at, boot_id=f"boot of {consumer}", sequence=7, version="0.1.0")

    def issue(self, name: str, at: datetime, consumers: Sequence[str]) -> None:
        older, newer = generation(name, 6, at - 60 * DAY), generation(name, 7, at)
        self.facts["generations"][name] = (older, newer)
        self.spent.append(Spend(SpendKind.CERTIFICATE, at, frozenset({name})))
        self.spent.append(Spend(SpendKind.ORDER, at, frozenset({name})))
        for consumer in consumers:
            pair = (name, consumer)
            self.facts["offered"][pair] = 7
            self.facts["deployments"][pair] = (
                Deployment(name, consumer, 7, DeploymentState.PROVEN, at + MINUTE),
            )
            services = SERVICES.get(consumer, SERVICES["web1"])
            heard = self.facts["heard"][consumer].at
            self.facts["proofs"][pair] = tuple(
                proof(name, consumer, service, newer, heard) for service in services
            )

    def shows(self, name: str, consumer: str, **leaf: Any) -> None:
        """Let every endpoint of a pair show something else, since a quarter of an hour."""
        leaf = {"since": self.now - 15 * MINUTE} | leaf
        self.facts["proofs"][name, consumer] = tuple(
            dataclasses.replace(one, **leaf) for one in self.facts["proofs"][name, consumer]
        )

    def deployed(
        self, name: str, consumer: str, state: DeploymentState, problem: Problem | None = None
    ) -> None:
        self.facts["deployments"][name, consumer] = (
            Deployment(name, consumer, 7, state, self.now - 20 * MINUTE, problem),
        )

    def renewed(self, name: str) -> None:
        """A new generation was just issued, and nobody shows it yet."""
        self.facts["generations"][name] += (generation(name, 8, self.now - 4 * MINUTE),)

    def silent(self, consumer: str, since: timedelta) -> None:
        self.facts["heard"][consumer] = dataclasses.replace(
            self.facts["heard"][consumer], at=self.now - since
        )
        for pair in self.facts["proofs"]:
            if pair[1] == consumer:
                self.shows(*pair, heard_at=self.now - since, since=self.now - 3 * DAY)

    def fails(self, name: str, problem: Problem, *, failures: int = 3, since: timedelta = 5 * HOUR) -> None:
        self.facts["attempts"][name] = Attempt(
            name, problem, failures, self.now - 5 * MINUTE, self.now + 95 * MINUTE, self.now - since
        )

    def things(self) -> StateOfThings:
        facts = dataclasses.replace(NO_FACTS, **self.facts)
        ledger = Ledger.of(LETS.limits, self.spent, domains=lambda name: ".".join(name.split(".")[-2:]))
        observed = dataclasses.replace(remembered(facts), ledgers={LETS.name: ledger})
        account = AccountFact(
            LETS.name,
            LETS.directory,
            uri="https://acme.example.net/acct/1",
            thumbprint="ab" * 32,
            recorded_at=self.now - 300 * DAY,
        )
        return StateOfThings(
            **{
                "now": self.now,
                "fleet": "example",
                "desired": self.desired,
                "facts": facts,
                "observed": observed,
                "accounts": {LETS.name: account},
                "config": ConfigFact(12, "0" * 64, self.now - 9 * DAY),
                "live": dict(self.facts["offered"]),
                "runs": runs(self.now),
                "boots": boots(self.now),
            }
            | self.extra
        )


def boots(now: datetime) -> tuple[Boot, ...]:
    """The host took all with it twice, the mail server went down once on its own, the daemon's machine twice."""
    came_up = [
        (now - ago, timedelta(seconds=20 + 7 * n), name)
        for ago in (2 * HOUR, 5 * HOUR)
        for n, name in enumerate(SERVICES)
    ]
    came_up += [(now - ago, timedelta(0), OURS) for ago in (2 * HOUR, 5 * HOUR, 11 * HOUR, 19 * HOUR)]
    came_up.append((now - 8 * HOUR, timedelta(0), "mail"))
    newest = {name: max(at for at, _, who in came_up if who == name) for _, _, name in came_up}
    return tuple(
        Boot(
            machine=name,
            boot_id=f"{name} {at}",
            booted_at=at + after,
            heard_at=now
            if at == newest[name]
            else min(other for other, _, who in came_up if who == name and other > at),
            reset=True,
        )
        for at, after, name in came_up
    )


def runs(now: datetime) -> tuple[Run, ...]:
    """Four resets of the machine today, and before that a calm month."""
    begun = [now - ago for ago in (2 * HOUR, 5 * HOUR, 11 * HOUR, 19 * HOUR, 31 * DAY)]
    return tuple(
        Run(
            number=9 - index,
            boot_id=f"boot {index}",
            pid=400,
            epoch="e",
            remembered_until=at - timedelta(seconds=20),
            began_at=at,
            ended_at=None,
        )
        for index, at in enumerate(begun)
    )


def small() -> Fleet:
    return Fleet(
        {
            NAMES[0]: ("web1", "web2"),
            NAMES[1]: ("mail", "web1"),
            NAMES[2]: ("chat",),
            NAMES[3]: ("web2",),
            NAMES[4]: ("mail", "web1", "web2"),
        }
    )


def all_well() -> StateOfThings:
    return small().things()


def empty() -> StateOfThings:
    fleet = Fleet({})
    fleet.desired = dataclasses.replace(fleet.desired, authorities={})
    fleet.extra = {"accounts": {}, "runs": runs(NOW)[:1]}
    return fleet.things()


def lagging() -> StateOfThings:
    """One consumer has not been heard for hours; the others are well."""
    fleet = small()
    fleet.silent("web2", 6 * HOUR)
    fleet.renewed(NAMES[0])
    return fleet.things()


def authority_down() -> StateOfThings:
    fleet = small()
    down = Problem(
        "authority.unreachable",
        "letsencrypt does not answer: connect to acme.example.net:443 timed out after 10 s",
        "run: certfan doctor",
    )
    for name in (NAMES[2], NAMES[3]):
        old = fleet.facts["generations"][name][-1]
        aged = dataclasses.replace(old, not_before=NOW - 70 * DAY, not_after=NOW + 20 * DAY)
        fleet.facts["generations"][name] = (aged,)
        fleet.fails(name, down, failures=7)
    return fleet.things()


def share_down() -> StateOfThings:
    fleet = small()
    fleet.renewed(NAMES[1])
    problem = Problem(
        "share.unavailable",
        "/srv/le is not mounted: nothing of fstype fuse.glusterfs there",
        "run: mount /srv/le",
    )
    fleet.extra = {"share_problem": problem, "share_lost_at": NOW - 40 * MINUTE}
    return fleet.things()


def expired() -> StateOfThings:
    fleet = small()
    name = NAMES[0]
    gone = generation(name, 7, NOW - 91 * DAY)
    fleet.facts["generations"][name] = (gone,)
    refused = Problem(
        "authority.refused",
        "order for www.example.org is invalid: dns problem: SERVFAIL looking up CAA for example.org",
        "run: certfan why www.example.org",
    )
    fleet.fails(name, refused, failures=9, since=30 * DAY)
    for consumer in ("web1", "web2"):
        fleet.shows(name, consumer, not_before=gone.not_before, not_after=gone.not_after)
    return fleet.things()


def with_problem(things: StateOfThings, detail: str) -> StateOfThings:
    return dataclasses.replace(things, share_problem=Problem("share.unavailable", detail))


def every_verdict() -> StateOfThings:
    fleet = small()
    done = DeploymentState.RELOADED
    fleet.shows(NAMES[0], "web1", fingerprint="f" * 64)
    fleet.deployed(NAMES[0], "web1", done)
    fleet.shows(NAMES[0], "web2", placeholder=True, fingerprint="e" * 64)
    fleet.deployed(NAMES[0], "web2", done)
    fleet.shows(NAMES[1], "web1", health=Health.UNREACHABLE, fingerprint="", detail="connection refused")
    fleet.shows(NAMES[4], "web1", health=Health.REFUSED, fingerprint="", detail="wrong version number")
    fleet.shows(NAMES[4], "web2", fingerprint=fingerprint(NAMES[4], 6))
    tested = Problem(
        "service.pair_refused",
        "the config test of apache2 fails with example.net@7",
        "run on web2: apachectl -t",
        output="AH00526: Syntax error on line 12 of /etc/apache2/sites-enabled/www.conf:\nSSLCertificateFile: file does not exist",
    )
    fleet.deployed(NAMES[4], "web2", DeploymentState.FAILED, tested)
    fleet.silent("chat", 3 * HOUR)
    fleet.renewed(NAMES[3])
    fleet.facts["renewal_infos"] = {
        (NAMES[3], 8): RenewalInfo(
            NAMES[3],
            8,
            start=NOW + 50 * DAY,
            end=NOW + 55 * DAY,
            chosen=NOW + 52 * DAY,
            ask_again_at=NOW + DAY,
            explanation_url="https://acme.example.net/docs/why-now",
        )
    }
    return fleet.things()


def hostile() -> StateOfThings:
    """What an authority, an agent or whoever answers at an endpoint could try."""
    fleet = small()
    fleet.fails(NAMES[0], Problem("authority.refused", HOSTILE, f"run: {HOSTILE}"))
    fleet.facts["generations"][NAMES[0]] = fleet.facts["generations"][NAMES[0]][:1]
    tested = Problem("service.config_test_failed", HOSTILE, HOSTILE, output=HOSTILE)
    fleet.deployed(NAMES[1], "web1", DeploymentState.FAILED, tested)
    spelled = Endpoint("apache2", "tls", "192.0.2.9", 443, HOSTILE)
    fleet.shows(NAMES[1], "web1", health=Health.REFUSED, fingerprint="", detail=HOSTILE, endpoint=spelled)
    fleet.facts["heard"]["web1"] = dataclasses.replace(fleet.facts["heard"]["web1"], version=HOSTILE)
    fleet.extra = {"share_problem": Problem("share.unavailable", HOSTILE, HOSTILE)}
    return fleet.things()


def many(certificates: int = 300, consumers: int = 6) -> StateOfThings:
    """Most is well; here and there something is not."""
    names = [f"site{index:03}.example{index % 9}.org" for index in range(certificates)]
    fleet = Fleet(
        {
            name: tuple(f"web{(index + more) % consumers + 1}" for more in range(min(3, consumers)))
            for index, name in enumerate(names)
        }
    )
    for index, name in enumerate(names):
        consumer = fleet.desired.certificates[name].consumers[0]
        if index % 61 == 7:
            fleet.shows(name, consumer, fingerprint="f" * 64)
            fleet.deployed(name, consumer, DeploymentState.RELOADED)
        if index % 97 == 11:
            fleet.renewed(name)
    fleet.silent("web3", 2 * HOUR)
    return fleet.things()


def events(now: datetime = NOW) -> tuple[Event, ...]:
    told = (
        ("run.began", "daemon", {"version": "0.1.0", "pid": 411}),
        (
            "run.unclean",
            "run 8",
            {
                "began_at": "2026-11-22T07:00:00",
                "last": [{"at": "2026-11-22T09:58:00", "name": "order.begun", "subject": NAMES[0]}],
            },
        ),
        ("share.found", "share", {}),
        ("order.begun", NAMES[0], {"authority": "letsencrypt", "reason": "renewal_due"}),
        ("generation.issued", f"{NAMES[0]}@7", {"took": 3.2}),
        ("generation.published", f"{NAMES[0]}@7", {"consumers": ["web1", "web2"]}),
        ("endpoint.proven", f"{NAMES[0]}/web1", {"endpoint": "tls://www.example.org@192.0.2.10:443"}),
        ("endpoint.proven", f"{NAMES[0]}/web2", {"endpoint": "tls://www.example.org@192.0.2.11:443"}),
        ("path.broken", NAMES[0], {"problem": HOSTILE}),
        ("path.mended", NAMES[0], {}),
    )
    return tuple(
        Event(now - (len(told) - index) * 7 * MINUTE, name, subject, fields, index + 1)
        for index, (name, subject, fields) in enumerate(told)
    )


def doors(show: Callable[[], StateOfThings]) -> app.Doors:
    """What an application asks; `show` is asked anew for each page."""

    async def things() -> StateOfThings:
        return show()

    async def told(_after: int, limit: int, subject: str) -> Sequence[Event]:
        return [one for one in events() if subject in one.subject][-limit:]

    async def story(certificate: str, _identifiers: Sequence[str], limit: int) -> Sequence[Event]:
        return [one for one in events() if certificate in one.subject][-limit:]

    return app.Doors(things=things, events=told, story=story)


SCENES = {
    "all-well": all_well,
    "empty": empty,
    "lagging": lagging,
    "authority-down": authority_down,
    "share-down": share_down,
    "expired": expired,
    "every-verdict": every_verdict,
    "hostile": hostile,
    "many": many,
}
