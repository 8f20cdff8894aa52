"""`certfan share verify` and `rebuild` on a real share, store and state folder: every difference is told, and mended."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certfan import pki
from certfan.core.model import (
    Authority,
    Certificate,
    Consumer,
    Custody,
    Desired,
    Generation,
    Identifier,
    KeyType,
)
from certfan.core.share_audit import Difference
from certfan.core.steps import Observed
from certfan.daemon.ca import open_ca
from certfan.daemon.journal import Journal
from certfan.daemon.listeners import Listener
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.publishing.share_audit import ShareAudit
from certfan.daemon.state import StateFolder
from certfan.daemon.status import app
from certfan.daemon.store import Store, StoreFacts
from certfan.errors import ShareUnavailable
from certfan.protocol import manifest
from certfan.share_worker.tree import Folder
from tests.unit.command import certfan
from tests.unit.share_parts import MAIL1, NAME, WEB1, Place, make_place, now, read_live, set_up_at
from tests.unit.status_parts import DOORS

pytestmark = pytest.mark.long

DESIRED = Desired(
    {"ca": Authority("ca", "https://ca.int/dir")},
    {NAME: Certificate(NAME, (Identifier(NAME),), consumers=("web1", "mail1"), authority="ca")},
    {"web1": WEB1, "mail1": MAIL1},
)


class House:
    """A daemon's state, store and share, with three generations issued and published."""

    def __init__(self, place: Place, state: StateFolder, store: Store) -> None:
        self.place, self.state, self.store = place, state, store
        self.desired = DESIRED
        self.looked = 0
        self.told: list[str] = []
        self.ca = open_ca(state.ca, "home", now())
        self.bundles = Bundles(state, lambda: self.ca, "home", lambda: self.desired)
        self.audit = ShareAudit(
            store=store,
            state=state,
            share=place.share,
            bundles=self.bundles,
            journal=Journal(store, now),
            ca_pem=lambda: self.ca.ca.cert_pem,
            fleet="home",
            desired=lambda: self.desired,
            observed=self.observed,
            look_again=self.look_again,
            clock=now,
        )

    def observed(self, facts: StoreFacts) -> Observed:
        return Observed(generations=facts.generations, revoked=frozenset(facts.revoked))

    def look_again(self) -> None:
        self.looked += 1

    async def issue(self, number: int) -> None:
        key, cert = pki.make_placeholder([NAME], now())
        self.state.generation_key(NAME, number, lambda: key)
        self.state.save_chain(NAME, number, cert)
        leaf = pki.read_leaf(cert)
        await self.store.begin_issuance(NAME, number, "ca", (Identifier(NAME),), now())
        await self.store.record_generation(
            Generation(
                NAME, number, fingerprint=leaf.fingerprint, serial=leaf.serial, key_type=KeyType.ECDSA_P256,
                identifiers=frozenset({Identifier(NAME)}), authority="ca", not_before=leaf.not_before,
                not_after=leaf.not_after, issued_at=now(),
            )
        )  # fmt: skip

    async def publish(self, consumer: Consumer, number: int) -> None:
        bundle = self.bundles.pack(consumer.name, NAME, number, sealing_key=None)
        await self.place.share.publish(consumer, NAME, number, bundle)
        await self.store.record_published(NAME, consumer.name, number, now())

    async def progress(self, done: int, of: int, at: str) -> None:
        self.told.append(f"{done}/{of} {at}")

    async def verify(self) -> list[str]:
        """Return the differences as lines."""
        _, found = await self.audit.verify(self.progress, uid=0)
        return _lines(found)

    async def rebuild(self) -> list[str]:
        _, found = await self.audit.rebuild(self.progress, uid=0)
        return _lines(found)


def _lines(found: tuple[Difference, ...]) -> list[str]:
    return [f"{d.place} {d.detail}" for d in found]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    place = make_place(tmp_path)
    with StateFolder(tmp_path / "daemon") as state:
        store = await Store.open(state.database, now)
        house = House(place, state, store)
        for number in (1, 2, 3):
            await house.issue(number)
            for consumer in (WEB1, MAIL1):
                await house.publish(consumer, number)
        yield house
        await store.close()
    await place.share.stop()


async def test_a_share_that_is_as_it_should_be_has_no_difference(house: House) -> None:
    """Nothing is told of a healthy tree, and every generation was read, with progress on the way."""
    assert [] == await house.verify()
    assert 6 == len(house.told)
    assert house.told[0] == f"0/6 mail1: {NAME}@1"
    assert "share.verified" in [event.name for event in await house.store.last_events(5)]


Harm = Callable[[House, Path], object]
G = f"web1/generations/{NAME}"


def _flip(_: House, root: Path) -> None:
    path = root / G / "2/cert.pem"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def _resign(house: House, root: Path) -> None:
    stranger = pki.InternalCA.create("home", now()).issue_signer(now())
    manifest = (root / G / "3/manifest.json").read_bytes()
    signature = pki.sign(stranger.key_pem, b"certfan manifest v1\0" + manifest)
    (root / G / "3/manifest.sig").write_bytes(signature + pki.read_leaf(stranger.cert_pem).der)


HARMS: dict[str, tuple[Harm, str]] = {
    "a key open to all": (lambda _, r: (r / G / "3/privkey.pem").chmod(0o644), f"{G}/3/privkey.pem is a file 0644"),
    "a folder open to all": (lambda _, r: (r / "web1").chmod(0o2755), "web1/ is a folder 2755"),
    "a folder writable by its group": (lambda _, r: (r / "web1/live").chmod(0o2770), "web1/live is a folder 2770"),
    "a flipped bit": (_flip, f"{G}/2/cert.pem holds other bytes than this daemon's"),
    "a stranger's signature": (_resign, f"{G}/3/manifest.sig "),
    "a lost file": (lambda _, r: (r / G / "3/chain.pem").unlink(), f"{G}/3/chain.pem is missing"),
    "a surplus file": (lambda _, r: (r / G / "3/x.pem").touch(), f"{G}/3/x.pem belongs to no bundle"),
    "a hard link": (lambda _, r: os.link(r / G / "3/privkey.pem", r / "kept"), f"{G}/3/privkey.pem has 2 names"),
    "a symlink for a file": (
        lambda _, r: ((r / G / "3/cert.pem").unlink(), (r / G / "3/cert.pem").symlink_to("/etc/passwd")),
        f"{G}/3/cert.pem is a symlink",
    ),
    "a pointer gone back": (
        lambda _, r: ((r / f"web1/live/{NAME}").unlink(), (r / f"web1/live/{NAME}").symlink_to(f"../generations/{NAME}/2")),
        f"web1/live/{NAME} leads to 2, and belongs at 3",
    ),
    "a pointer elsewhere": (
        lambda _, r: ((r / f"web1/live/{NAME}").unlink(), (r / f"web1/live/{NAME}").symlink_to("/tmp")),
        f"web1/live/{NAME} leads to '/tmp'",
    ),
    "no pointer": (lambda _, r: (r / f"web1/live/{NAME}").unlink(), f"web1/live/{NAME} is missing, and belongs at 3"),
    "a lost generation": (lambda _, r: shutil.rmtree(r / G / "2"), f"{G}/2 is missing"),
    "a foreign generation": (lambda _, r: (r / G / "9").mkdir(), f"{G}/9 is a generation that this daemon never made"),
    "a foreign certificate": (
        lambda _, r: (r / "web1/generations/evil.example").mkdir(),
        "web1/generations/evil.example is nothing that certfan put there",
    ),
    "a foreign pointer": (lambda _, r: (r / "web1/live/evil").symlink_to("x"), "web1/live/evil is nothing that certfan put there"),
    "a leftover": (
        lambda _, r: (r / f"web1/live/.{NAME}.0011223344556677").symlink_to("x"),
        f"web1/live/.{NAME}.0011223344556677 is left over",
    ),
    "a stray file": (lambda _, r: (r / "web1/notes").touch(), "web1/notes is nothing that certfan put there"),
    "a lost sentinel": (lambda _, r: (r / "web1/certfan.share").unlink(), "web1/certfan.share is missing"),
    "a lost consumer": (lambda _, r: shutil.rmtree(r / "web1"), "web1/ is missing"),
    "a consumer that nobody knows": (
        lambda _, r: shutil.copytree(r / "web1", r / "web9", symlinks=True),
        "web9/ is a consumer's that nobody knows",
    ),
    "a foreign owner": (lambda _, r: os.chown(r / G, 12345, -1), f"{G} is a folder 2750 of 12345:"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
async def test_every_harm_is_told_and_nothing_else(house: House, harm: str) -> None:
    """One harm, and the differences name its place; what is at other places is not accused."""
    do, said = HARMS[harm]
    do(house, house.place.root)
    found = await house.verify()

    assert any(line.startswith(said) for line in found), found
    assert all(line.startswith(("web1/", "web9/")) for line in found), found
    assert len(found) <= 3, found


async def test_a_lost_volume_is_rebuilt_from_local_state(house: House) -> None:
    """A new, set-up, empty volume: afterwards the newest two generations are there, and verify finds nothing."""
    shutil.rmtree(house.place.root)
    house.place.root.mkdir(mode=0o755)
    set_up_at(house.place.root)
    lost = await house.verify()

    assert [] == await house.rebuild()
    assert f"{G}/3 is missing" in lost
    assert [] == await house.verify()
    assert {"2", "3"} == {path.name for path in (house.place.root / G).iterdir()}
    assert f"../generations/{NAME}/3" == house.place.pointer()
    assert read_live(house.place.root / "web1") is not None
    assert 1 == house.looked


async def test_rebuild_signs_anew_what_only_needs_that(house: House) -> None:
    """An ended signer's signature is replaced over the same manifest; key and chain are not touched."""
    _resign(house, house.place.root)
    key = (house.place.files(3) / "privkey.pem").stat().st_ino
    before = await house.verify()
    failed = await house.rebuild()

    assert before
    assert [] == failed
    assert [] == await house.verify()
    assert key == (house.place.files(3) / "privkey.pem").stat().st_ino


async def test_rebuild_never_writes_over_other_content(house: House) -> None:
    """Bytes that somebody changed stay, for somebody to look at, and the outcome says so."""
    _flip(house, house.place.root)
    failed = await house.rebuild()

    assert [f"{G}/2 generation 2 is on the share with other content; a number is never used twice"] == failed
    assert f"{G}/2/cert.pem holds other bytes than this daemon's" in await house.verify()


async def test_an_orphan_is_no_difference(house: House) -> None:
    """What left the config stays until it has expired, and verify knows that it was ours."""
    house.desired = Desired(DESIRED.authorities, {}, {"web1": WEB1})

    assert [] == await house.verify()


def _unmount(root: Path) -> None:
    root.rename(root.with_name("volume"))
    root.mkdir()


async def test_without_a_share_both_refuse(house: House) -> None:
    """An unmounted share has no differences: it is an error, with the command to look with."""
    _unmount(house.place.root)

    for act in (house.verify, house.rebuild):
        with pytest.raises(ShareUnavailable, match=r"no certfan\.share"):
            await act()


async def _certfan(house: House, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command against the audit behind a real control socket."""
    (folder / "certfan.toml").write_text(f'[control]\nsocket = "{folder}/control.sock"\n')
    runner = await app.start(
        app.make_app(DOORS, shares=house.audit), (Listener(path=str(folder / "control.sock")),)
    )
    done = await asyncio.to_thread(certfan, "share", *words, "--config", str(folder / "certfan.toml"))
    await runner.cleanup()
    return done


async def test_the_command_says_it_in_words_and_by_its_exit_code(house: House, tmp_path: Path) -> None:
    """0 and one line when all is well; 1 and a line for each difference with what to do about it."""
    good = await _certfan(house, tmp_path, "verify")
    (house.place.files(3) / "privkey.pem").chmod(0o644)
    bad = await _certfan(house, tmp_path, "verify")
    raw = await _certfan(house, tmp_path, "verify", "--json")

    assert (0, "6 generations were read, all is as it should be\n") == (good.returncode, good.stdout)
    assert 1 == bad.returncode
    assert "privkey.pem is a file 0644" in bad.stdout
    assert "certfan share setup" in bad.stdout
    assert {"generations", "differences"} == json.loads(raw.stdout).keys()


async def test_a_refusal_in_the_middle_reaches_the_command(house: House, tmp_path: Path) -> None:
    """The answer has begun when the share fails: its last line is the error, with hint and exit code."""
    _unmount(house.place.root)
    done = await _certfan(house, tmp_path, "rebuild")

    assert 1 == done.returncode
    assert "no certfan.share in it" in done.stderr
    assert "mount | grep" in done.stderr


async def test_publishing_goes_on_while_the_share_is_verified(house: House) -> None:
    """Each look is a short call of its own: a publish in the middle has not to wait for the end."""
    await house.issue(4)

    async def progress(done: int, of: int, at: str) -> None:
        if done == 3:
            async with asyncio.timeout(timedelta(seconds=5).total_seconds()):
                await house.publish(WEB1, 4)

    await house.audit.verify(progress, uid=0)

    assert f"../generations/{NAME}/4" == house.place.pointer()


async def test_of_a_sealed_key_only_the_present_bundle_is_as_it_should_be(house: House) -> None:
    """Open folders and an earlier sealing are told; a lost volume gets what the consumer can open, and nothing open."""
    certificate = replace(DESIRED.certificates[NAME], custody=Custody.SEALED, consumers=("web1",))
    house.desired = replace(DESIRED, certificates={NAME: certificate}, consumers={"web1": WEB1})
    await house.store.add_consumer("web1", now())
    keys = [pki.sealing_public(pki.make_sealing_key()) for _ in range(2)]
    bundles = [house.bundles.pack("web1", NAME, 3, sealing_key=key) for key in keys]
    await house.store.tell_sealing_key("web1", keys[1])
    for files in bundles:
        await house.place.share.publish(WEB1, NAME, 3, files)
    earlier, present = (Folder(3, manifest.bundle_of(files)) for files in bundles)
    told = [line for line in await house.verify() if line.startswith("web1/")]
    shutil.rmtree(house.place.root)
    house.place.root.mkdir(mode=0o755)
    set_up_at(house.place.root)
    lost = await house.verify()

    assert {f"{G}/{name}" for name in ("1", "2", "3", earlier)} == {line.partition(" ")[0] for line in told}
    assert all("no bundle of use" in line for line in told)
    assert f"{G}/{present} is missing" in lost
    assert [] == await house.rebuild()
    assert [] == await house.verify()
    assert [str(present)] == [path.name for path in (house.place.root / G).iterdir()]
