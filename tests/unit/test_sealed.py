"""Sealed custody, rule by rule: on the share, in the plan, on the channel, on the consumer's disk."""

import base64
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from certfan import pki
from certfan.agent import boot, config
from certfan.agent.identity import SealingFolder, read_trust
from certfan.agent.shelf import Shelf
from certfan.agent.staging import Staging
from certfan.core import deployment
from certfan.core.agent_steps import AgentFacts, Assignment, Fetch
from certfan.core.model import Attempt, Custody, Problem
from certfan.core.plan import Observed, Publish, Retire, plan
from certfan.core.shown import Asked, shown
from certfan.daemon.publishing.bundles import Bundles
from certfan.errors import BundleInvalid, GenerationLive, NotAllowed
from certfan.protocol import manifest
from certfan.protocol.messages import AssignmentMessage, Report
from certfan.share_worker.tree import Folder
from tests.unit.apply_parts import NOW as TODAY
from tests.unit.apply_parts import WWW, Machine, spoil
from tests.unit.daemon_parts import Daemon, certificate_of, running_daemon
from tests.unit.planner_parts import NOW, make_certificate, make_desired, make_generation
from tests.unit.share_parts import NAME, WEB1, Place, make_place, sealed
from tests.unit.test_apply import boots

OLD, NEW = pki.make_sealing_key(), pki.make_sealing_key()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = make_place(tmp_path)
    yield made
    await made.share.stop()


# On the share


def folder(number: int, sealing: str) -> Folder:
    return Folder(number, manifest.bundle_of(sealed(number, sealing)))


async def test_a_sealing_has_a_folder_of_its_own_and_the_pointer_goes_to_the_last(place: Place) -> None:
    """Sealed anew, the same number lies beside itself; nothing is rewritten, and a lower number moves nothing."""
    for number, sealing in ((7, "old"), (7, "new"), (6, "new")):
        await place.share.publish(WEB1, NAME, number, sealed(number, sealing))
    seen = await place.share.look()

    assert {folder(7, "old"), folder(7, "new"), folder(6, "new")} == seen.published[NAME, "web1"]
    assert folder(7, "new") == seen.live[NAME, "web1"]
    assert f"../generations/{NAME}/{folder(7, 'new')}" == place.pointer()
    assert 0o640 == (place.root / "web1/live" / NAME / "privkey.hpke").stat().st_mode & 0o777


async def test_one_bundle_or_all_of_a_generation_are_retired_but_never_what_is_live(place: Place) -> None:
    """The pointer's own folder is refused by its name and by its number."""
    for number, sealing in ((6, "old"), (6, "new"), (7, "old"), (7, "new")):
        await place.share.publish(WEB1, NAME, number, sealed(number, sealing))
    await place.share.retire("web1", NAME, 7, folder(7, "old").bundle)
    await place.share.retire("web1", NAME, 6)

    for which in (None, folder(7, "new").bundle):
        with pytest.raises(GenerationLive):
            await place.share.retire("web1", NAME, 7, which)
    assert {folder(7, "new")} == (await place.share.look()).published[NAME, "web1"]


async def test_an_unfinished_bundle_is_swept_with_its_key_last_and_the_live_one_stays(place: Place) -> None:
    """What a crash left of a sealing goes; a whole one that nothing points at is not a sweep's to take."""
    for sealing in ("old", "new"):
        await place.share.publish(WEB1, NAME, 7, sealed(7, sealing))
    await place.share.publish(WEB1, NAME, 7, sealed(7, "cut"))
    await place.share.publish(WEB1, NAME, 7, sealed(7, "newest"))
    cut = place.root / f"web1/generations/{NAME}/{folder(7, 'cut')}"
    (cut / "manifest.json").unlink()
    os.utime(cut, (1, 1))

    assert 1 == await place.share.sweep()
    assert {folder(7, s) for s in ("old", "new", "newest")} == (await place.share.look()).published[
        NAME, "web1"
    ]


async def test_the_shelf_reads_exactly_the_assigned_bundle(place: Place, tmp_path: Path) -> None:
    """Another sealing beside it is not taken for it, and a name from the wire leads nowhere."""
    await place.share.publish(WEB1, NAME, 7, sealed(7, "old"))
    await place.share.publish(WEB1, NAME, 7, sealed(7, "new"))
    shelf = Shelf(place.root, "web1", tmp_path / "shelf.lock")
    try:
        read = [await shelf.read(NAME, 7, folder(7, sealing).bundle) for sealing in ("old", "new")]

        assert [sealed(7, "old"), sealed(7, "new")] == read
        for missing in ("", "00000000", "../../x"):
            with pytest.raises(BundleInvalid):
                await shelf.read(NAME, 7, missing)
    finally:
        await shelf.stop()


# What counts, and what is planned

PLACE = (WWW, "web1")
DESIRED = make_desired(make_certificate())


def asked(bundles: dict[int, str]) -> Asked:
    return lambda _certificate, _consumer, number: bundles.get(number)


@pytest.mark.parametrize(
    ("folders", "live", "bundles", "published", "outdated"),
    [
        ({(7, "new")}, (7, "new"), {7: "new"}, {7}, set()),
        ({(7, "old")}, (7, "old"), {7: "new"}, set(), set()),  # not yet there: the old one stays
        ({(7, "old"), (7, "new")}, (7, "old"), {7: "new"}, set(), set()),  # cut off before the pointer
        ({(7, "old"), (7, "new")}, (7, "new"), {7: "new"}, {7}, {(7, "old")}),
        ({(6, "old"), (7, "new")}, (7, "new"), {7: "new"}, {7}, {(6, "old")}),
        ({(6, ""), (7, "")}, (7, ""), {}, set(), set()),  # its custody has become sealed
        ({(7, ""), (7, "new")}, (7, "new"), {7: "new"}, {7}, {(7, "")}),
        ({(7, ""), (7, "old")}, (7, ""), {6: "", 7: ""}, {7}, {(7, "old")}),  # and open again
        ({(7, "new"), (8, "x")}, (7, "new"), {7: "new"}, {7}, set()),  # ahead of the pointer: not ours to judge
    ],
)  # fmt: skip
def test_only_what_was_sealed_to_the_present_key_counts(
    folders: set[tuple[int, str]],
    live: tuple[int, str],
    bundles: dict[int, str],
    published: set[int],
    outdated: set[tuple[int, str]],
) -> None:
    """Another bundle is neither published nor removed before the pointer has left it."""
    found = shown(DESIRED, {PLACE: frozenset(folders)}, {PLACE: live}, asked(bundles))

    assert published == found.published[PLACE]
    assert outdated == found.outdated.get(PLACE, frozenset())
    assert live[0] == found.live[PLACE]


def test_of_what_left_the_config_everything_counts() -> None:
    """Its custody is not known any more, so nothing of it is taken for outdated."""
    found = shown(make_desired(), {PLACE: frozenset({(7, "a"), (7, "b")})}, {PLACE: (7, "b")}, asked({}))

    assert {7} == found.published[PLACE]
    assert not found.outdated


def test_a_bundle_of_no_use_is_published_anew_and_then_retired() -> None:
    """First the new one, then the old one goes, at once and alone."""
    facts = {"generations": {WWW: (make_generation(7),)}, "offered": {PLACE: 7}, "live": {PLACE: 7}}
    before = Observed(**facts, published={PLACE: frozenset()})  # type: ignore[arg-type]
    after = Observed(
        **facts,  # type: ignore[arg-type]
        published={PLACE: frozenset({7})},
        outdated={PLACE: frozenset({(7, "old"), (6, "")})},
    )

    assert Publish(*PLACE, 7) in plan(DESIRED, before, NOW).steps
    assert not [step for step in plan(DESIRED, before, NOW).steps if isinstance(step, Retire)]
    assert Retire(*PLACE, 6, bundle="") in plan(DESIRED, after, NOW).steps


def test_the_agent_fetches_again_what_is_sealed_otherwise() -> None:
    """A bundle that no assignment names is taken as it is."""
    staged = deployment.Staged("f", NOW.replace(year=NOW.year + 1), staged_at=NOW, bundle="aaaaaaaa")
    fetches = {}
    for told in ("", "aaaaaaaa", "bbbbbbbb"):
        facts = AgentFacts(
            assignments={WWW: Assignment(WWW, 7, bundle=told)}, staged={(WWW, 7): staged}, live={WWW: 7}
        )
        fetches[told] = [step for step in deployment.plan(facts, NOW).steps if isinstance(step, Fetch)]

    assert {"": [], "aaaaaaaa": [], "bbbbbbbb": [Fetch(WWW, 7, "bbbbbbbb")]} == fetches


# At the daemon


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running_daemon(tmp_path / "daemon") as running:
        name = certificate_of("web1")
        certificates = dict(running.desired.certificates)
        certificates[name] = replace(certificates[name], custody=Custody.SEALED)
        running.desired = replace(running.desired, certificates=certificates)
        yield running


async def _told(daemon: Daemon) -> tuple[str, AssignmentMessage]:
    found = (await daemon.board.assignments(["web1"]))["web1"]
    (one,) = found.assignments
    return found.revision, one


async def test_share_and_channel_carry_the_same_bytes_and_the_assignment_names_them(
    daemon: Daemon, tmp_path: Path
) -> None:
    """Enrolled anew, the consumer's bundle and its list are others; the daemon never sends the key in the clear."""
    await daemon.issue("web1")
    said = []
    for folder_name in ("first", "second"):
        trust = await daemon.enrolled("web1", tmp_path / folder_name)
        unsealed = (await _told(daemon))[1].bundle
        async with daemon.link(trust, tmp_path / folder_name) as link:
            carried = await link.bundle(certificate_of("web1"), 1)
        facts = await daemon.store.facts()
        key = facts.sealing_keys["web1"]
        packed = daemon.board._bundles.pack("web1", certificate_of("web1"), 1, sealing_key=key)
        revision, told = await _told(daemon)
        said.append((revision, told.bundle))

        assert ("", dict(packed)) == (unsealed, carried)
        assert manifest.bundle_of(packed) == told.bundle
        assert "privkey.pem" not in carried
        assert b"PRIVATE KEY" not in b"".join(carried.values())
    assert 2 == len({revision for revision, _ in said})
    assert 2 == len({bundle for _, bundle in said})


async def test_a_consumer_without_a_sealing_key_is_told_how_to_get_one(daemon: Daemon) -> None:
    """Nothing is sealed to nobody; the error names the command that mends it."""
    await daemon.issue("web1")

    with pytest.raises(NotAllowed, match="has told no sealing key") as refused:
        await daemon.board.bundle("web1", certificate_of("web1"), 1)
    assert "certfan consumer add web1" in refused.value.hint
    assert "" == (await _told(daemon))[1].bundle


async def test_a_key_that_is_told_at_last_lifts_what_held_the_publish_up(daemon: Daemon) -> None:
    """By a report after a restore; a report of another key changes nothing."""
    subject = f"{certificate_of('web1')}/web1"
    await daemon.store.add_consumer("web1", daemon.now)
    attempt = Attempt(subject, Problem("x", "no key"), 3, daemon.now, daemon.now)
    rows = []
    for key in (b"a" * 32, b"b" * 32):
        await daemon.store.record_attempt(attempt)
        await daemon.board.report("web1", _report(key))
        rows.append(
            (subject in await daemon.store.attempts(), (await daemon.store.facts()).sealing_keys["web1"])
        )

    assert [(False, b"a" * 32), (True, b"a" * 32)] == rows


def _report(key: bytes) -> Report:
    return Report.of(
        [],
        [],
        boot_id="b",
        sequence=1,
        sent_at=NOW,
        version="0.2.0",
        sealing_key=base64.b64encode(key).decode(),
    )


async def test_a_bundle_is_known_by_its_sealing_and_by_none_before(daemon: Daemon) -> None:
    """Asked for before it is sealed there is none; a key told anew has another."""
    nothing = await daemon.store.facts()
    made = Bundles(daemon._state, lambda: daemon.ca, "home", lambda: daemon.desired)
    keys = {"web1": pki.sealing_public(OLD)}

    assert made.asked(certificate_of("web1"), "web1", 1, facts=nothing) is None
    assert made.asked(certificate_of("web1"), "web1", 1, facts=replace(nothing, sealing_keys=keys)) is None
    assert "" == made.asked(certificate_of("web2"), "web2", 1, facts=nothing)


# On the consumer's disk


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    SealingFolder(tmp_path / "trust").store(OLD)
    return made


def sealed_for(machine: Machine, number: int, sealing_key: bytes = OLD) -> dict[str, bytes]:
    pair = pki.load_pair(*pki.make_placeholder([WWW], TODAY))
    facts = {"fleet": "home", "consumer": "web1", "certificate": WWW, "generation": number}
    public = pki.sealing_public(sealing_key)
    return manifest.pack(
        pair,
        manifest.seal_key(pair.key_pem, public, **facts),  # type: ignore[arg-type]
        custody=Custody.SEALED,
        signer_key_pem=machine.signer.key_pem,
        signer_cert_pem=machine.signer.cert_pem,
        **facts,  # type: ignore[arg-type]
    )


async def test_root_opens_what_the_unprivileged_half_has_staged_sealed(machine: Machine) -> None:
    """The pair is live with a key that loads, and below the agent's folder no key was ever in the clear."""
    machine.service("web")
    staging = Staging(machine.root / "state/bundles", read_trust(machine.root / "trust"), lambda: TODAY)
    packed = sealed_for(machine, 1)
    staged = staging.put(WWW, 1, packed)
    answer = await machine.asks((WWW, 1))

    assert {WWW: 1} == answer["installed"]
    assert machine.live() == machine.staged_fingerprint(WWW, 1)
    assert manifest.bundle_of(packed) == staged.bundle == staging.scan()[WWW, 1].bundle
    assert not [
        p for p in (machine.root / "state").rglob("*") if p.is_file() and b"PRIVATE" in p.read_bytes()
    ]


async def test_what_is_sealed_to_another_key_is_refused_unless_it_was_opened_before(machine: Machine) -> None:
    """After a new enrolment the pair that root laid earlier still goes live; a new one waits to be fetched anew."""
    machine.service("web")
    machine.stage(WWW, 1, sealed_for(machine, 1))
    machine.stage(WWW, 2, sealed_for(machine, 2, NEW))
    first = await machine.asks((WWW, 1))
    SealingFolder(machine.root / "trust").store(NEW)
    again, second = await machine.asks((WWW, 1)), await machine.asks((WWW, 2))
    machine.stage(WWW, 3, sealed_for(machine, 3))
    third = await machine.asks((WWW, 3))

    assert [{WWW: 1}, {WWW: 1}, {WWW: 2}] == [first["installed"], again["installed"], second["installed"]]
    assert "pki.seal_invalid" == third["problem"]["code"]
    assert machine.live() == machine.staged_fingerprint(WWW, 2)


@pytest.mark.parametrize("harm", ["key lost", "key cut short", "folder lost"])
def test_boot_opens_the_sealed_key_without_the_share(machine: Machine, harm: str) -> None:
    """Whatever the power cut did to the installed copy, the staged bundle makes it anew."""
    machine.service("web")
    machine.stage(WWW, 4, sealed_for(machine, 4))
    machine.outcomes(g4=("proven", 1))
    first = boots(machine)
    installed = machine.root / "etc/generations" / WWW / "4"
    spoil(installed, harm)
    healed = boots(machine)

    assert [{WWW: 4}, {WWW: 4}] == [first, healed]
    assert machine.live() == machine.staged_fingerprint(WWW, 4)


def test_boot_lays_a_placeholder_where_nothing_opens(machine: Machine) -> None:
    """A key sealed to what this machine was before, and one that was never tried, are not laid."""
    machine.service("web")
    machine.stage(WWW, 4, sealed_for(machine, 4, NEW))
    machine.stage(WWW, 5, sealed_for(machine, 5))
    machine.outcomes(g4=("proven", 1))

    assert {WWW: 0} == boot.lay_all(config.load(machine.path), lambda: TODAY, deadline=10**9)
