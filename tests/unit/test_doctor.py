"""`certfan doctor`: the daemon's looks, the ones without it, and how they are told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.rcode
import pytest

from certfan.cli.doctor import finding_lines
from certfan.core.findings import CaaRecord, CaaSet, FileSeen, Finding, Grade
from certfan.core.model import Authority, Identifier, Problem
from certfan.core.path import Failure
from certfan.core.rotation import InternalCa, Phase
from certfan.daemon.challenges.caa import CaaFinder
from certfan.daemon.desk.doctor import Doctor
from certfan.daemon.offline import examine
from certfan.daemon.status.control.doctor import doctor_routes
from certfan.daemon.status.things import StateOfThings
from certfan.errors import AuthorityUnreachable
from tests.unit.command import certfan
from tests.unit.status_parts import DAY, NOW, WHERE, Admin, control_socket, deployment, proof, things
from tests.unit.test_config_watch import MAIN, certificate
from tests.unit.tiny_dns import serving

SETTLED = things(proofs={WHERE: (proof(),)}, deployments={WHERE: (deployment(1),)})
SETTLED_CA = InternalCa("example", Phase.SETTLED, 0, "ab" * 32, NOW, ())
ALLOWED = CaaSet("test", (CaaRecord(False, "issue", "ca.test"),))


def make_doctor(
    of: StateOfThings = SETTLED,
    *,
    path: Problem | None = None,
    caa: CaaSet | Failure = ALLOWED,
    files: tuple[FileSeen, ...] = (FileSeen("/s", 0o700, 7),),
    self_check: bool = True,
    silent: bool = False,
    rotation: InternalCa = SETTLED_CA,
) -> Doctor:
    async def state() -> StateOfThings:
        return dataclasses.replace(of, internal_ca=rotation)

    async def look(authority: Authority) -> frozenset[str]:
        if silent:
            raise AuthorityUnreachable("pebble does not answer", hint="run: curl -v https://ca.int/dir")
        return frozenset({"ca.test"})

    async def check(_: Identifier) -> Problem | None:
        return path

    async def find(_: str) -> CaaSet | Failure:
        return caa

    return Doctor(
        things=state,
        look=look,
        check=check,
        self_check=lambda: self_check,
        find_caa=find,
        files=lambda: files,
        uid=7,
    )


async def found(doctor: Doctor) -> dict[str, list[Finding]]:
    """What it tells, by area."""
    areas: dict[str, list[Finding]] = {}

    async def tell(finding: Finding) -> None:
        areas.setdefault(finding.area, []).append(finding)

    await doctor.examine(tell)
    return areas


async def test_a_settled_farm_has_a_good_word_for_every_area() -> None:
    """Nothing is left out without being said."""
    areas = await found(make_doctor())

    assert {
        "config",
        "clock",
        "share",
        "permissions",
        "authority",
        "agents",
        "path",
        "caa",
        "ca",
    } == areas.keys()
    assert {Grade.OK} == {one.grade for findings in areas.values() for one in findings}


@pytest.mark.parametrize(
    ("doctor", "area", "subject", "hint"),
    [
        (
            lambda: make_doctor(path=Problem("x", "http://www.test/: answered 404", "look at the vhost")),
            "path",
            "www.test",
            "look at the vhost",
        ),
        (lambda: make_doctor(silent=True), "authority", "pebble", "run: curl -v https://ca.int/dir"),
        (lambda: make_doctor(caa=Failure.SERVFAIL), "caa", "www.test", "run: dig www.test CAA"),
        (
            lambda: make_doctor(files=(FileSeen("/s/key", 0o604, 7),)),
            "permissions",
            "/s/key",
            "run: chmod 600 /s/key",
        ),
        (
            lambda: make_doctor(things(proofs={WHERE: (proof(heard_ago=DAY),)})),
            "agents",
            "web1",
            "run on web1: systemctl status certfan-agent",
        ),
    ],
    ids=["path", "authority", "caa", "permissions", "agents"],
)
async def test_what_is_wrong_comes_with_what_mends_it(
    doctor: Callable[[], Doctor], area: str, subject: str, hint: str
) -> None:
    """Once, in its own area; the others are looked at all the same."""
    areas = await found(doctor())

    assert [(Grade.BAD, subject, hint)] == [(one.grade, one.subject, one.hint) for one in areas[area]]
    assert 9 == len(areas)


async def test_paths_that_are_not_to_be_looked_at_are_said_not_to_be() -> None:
    """`self_check = "off"` is no finding of its own, but nobody can tell how the paths are."""
    (one,) = (await found(make_doctor(self_check=False)))["path"]

    assert (Grade.WARN, "self_check") == (one.grade, one.subject)


async def test_a_rotation_that_waits_is_told(tmp_path: Path) -> None:
    """Somebody has begun it, and may have forgotten who is off."""
    waits = dataclasses.replace(SETTLED_CA, phase=Phase.OVERLAP, waits_for=("web1",))
    (one,) = (await found(make_doctor(rotation=waits)))["ca"]

    assert (Grade.WARN, "run: certfan ca show") == (one.grade, one.hint)
    assert "waits for web1" in one.detail


async def test_nobody_listening_ends_the_looks() -> None:
    """What is asked of the outside does not go on behind a caller who has gone."""
    doctor = make_doctor()

    async def tell(finding: Finding) -> None:
        if finding.area == "authority":
            raise ConnectionResetError

    with pytest.raises(ExceptionGroup):
        await doctor.examine(tell)
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_caa_records_are_looked_for_upwards() -> None:
    """The nearest set counts, an empty answer or none sends us on, a failure ends it."""
    zone = {
        "www.example.org": {"A": ["192.0.2.1"]},
        "example.org": {"CAA": ['0 issue "ca.test"', '128 tbs "x"']},
        "broken.test": dns.rcode.SERVFAIL,
    }
    async with serving(zone) as (_, port):
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], port
        finder = CaaFinder(resolver)

        both = (CaaRecord(False, "issue", "ca.test"), CaaRecord(True, "tbs", "x"))
        assert CaaSet("example.org", both) == await finder.find("a.www.example.org")
        assert CaaSet("", ()) == await finder.find("nobody.test")
        assert Failure.SERVFAIL is await finder.find("www.broken.test")


def whole_config(folder: Path, **changes: str) -> Path:
    text = MAIN + certificate("www.test") + f'[control]\nsocket = "{folder}/control.sock"\ngroup = "root"\n'
    text = text.replace('fleet = "example"', f'fleet = "example"\nstate = "{folder}/state"')
    text = text.replace("[consumer.web1]", '[consumer.web1]\ngroup = "root"')
    for old, new in changes.items():
        text = text.replace(old, new)
    path = folder / "certfan.toml"
    path.write_text(text)
    return path


def test_without_the_daemon_config_groups_disk_and_share_are_looked_at(tmp_path: Path) -> None:
    """A group that is missing, a share that is not mounted; the rest is well."""
    found = {one.area: one for one in examine(whole_config(tmp_path), runs=False) if one.area != "clock"}
    bad = list(examine(whole_config(tmp_path, **{'group = "root"': 'group = "nosuch-group"'}), runs=True))

    assert {"config": Grade.OK, "disk": Grade.OK, "share": Grade.BAD} == {
        area: one.grade for area, one in found.items()
    }
    assert "run: mount /srv/le" == found["share"].hint
    assert "run: groupadd --system nosuch-group" in {one.hint for one in bad if one.grade is Grade.BAD}


def test_a_socket_for_everybody_is_bad(tmp_path: Path) -> None:
    """Whoever may connect may command."""
    config = whole_config(tmp_path)
    (tmp_path / "control.sock").touch(mode=0o600)
    (tmp_path / "control.sock").chmod(0o666)

    found = [one.detail for one in examine(config, runs=True) if one.area == "permissions"]

    assert [f"{tmp_path}/control.sock has mode 0666: everybody may command the daemon"] == found


async def run_doctor(folder: Path, doctor: Doctor, *words: str) -> Any:
    async with control_socket(folder, Admin(), others=doctor_routes(doctor)):
        config = whole_config(folder)
        return await asyncio.to_thread(certfan, "doctor", *words, "--config", str(config))


async def test_doctor_tells_what_is_not_well_and_counts_the_rest(tmp_path: Path) -> None:
    """Exit code 1 when something is bad; --all tells what is well too, --json has it all."""
    broken = make_doctor(path=Problem("x", "http://www.test/: answered 404", "run: apachectl -S"))
    done = await run_doctor(tmp_path, broken)
    lines = done.stdout.splitlines()
    raw = await run_doctor(tmp_path, make_doctor(), "--json")
    every = await run_doctor(tmp_path, make_doctor(), "--all")

    assert (1, "") == (done.returncode, done.stderr)
    assert "bad   path         http://www.test/: answered 404" in lines
    assert "                   try: apachectl -S" in lines
    assert lines[-1].endswith(" 1 bad")
    assert (0, 0) == (raw.returncode, json.loads(raw.stdout)["bad"])
    assert any(line.startswith("ok    caa ") for line in every.stdout.splitlines())


def test_doctor_looks_at_the_rest_when_no_daemon_answers(tmp_path: Path) -> None:
    """And says that it does not."""
    done = certfan("doctor", "--config", str(whole_config(tmp_path)))

    assert 1 == done.returncode
    assert "bad   daemon       the daemon does not answer on" in done.stdout
    assert "bad   share        /srv/le is not mounted" in done.stdout


def test_what_a_foreign_machine_said_cannot_move_the_cursor() -> None:
    """Escape sequences do not reach the terminal."""
    one = {"grade": "bad", "area": "dns", "subject": "x", "detail": "a\x1b[2Jb", "hint": "run: c\rd"}

    assert ["bad   dns          a [2Jb", f"{'':<19}try: c d"] == finding_lines(one)
