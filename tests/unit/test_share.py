"""The daemon's edge to the share, on a local folder and with a real worker process."""

import os
import shutil
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certfan.core.model import Consumer
from certfan.daemon.share.setup import set_up_share
from certfan.daemon.share.share import Share
from certfan.errors import (
    BundleInvalid,
    ConfigInvalid,
    GenerationLive,
    PermissionTooOpen,
    ShareTampered,
    ShareUnavailable,
)
from certfan.share_worker.patrol import AT_ONCE
from certfan.share_worker.tree import Folder
from tests.unit.share_parts import (
    MAIL1,
    NAME,
    WEB1,
    Place,
    bundle,
    is_whole,
    make_place,
    now,
    read_live,
    set_up_at,
)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = make_place(tmp_path)
    yield place
    await place.share.stop()


def _mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.lstat().st_mode):04o}"


async def test_publishes_a_generation_and_then_points_at_it(place: Place) -> None:
    """After publish the look shows it, the pointer names it, and the files are those given."""
    await place.share.publish(WEB1, NAME, 7, bundle(7))
    seen = await place.share.look()

    assert {(NAME, "web1"): frozenset({Folder(7)})} == seen.published
    assert {(NAME, "web1"): Folder(7)} == seen.live
    assert bundle(7) == read_live(place.root / "web1")
    assert place.share.problem is None


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    """The key has the consumer's mode, the rest 0644, folders are closed to others, whatever the umask."""
    before = os.umask(umask)
    try:
        place = make_place(tmp_path)
        await place.share.publish(replace(WEB1, mode=0o440), NAME, 1, bundle(1))
        await place.share.stop()
    finally:
        os.umask(before)

    assert {"privkey.pem": "0440"} | dict.fromkeys(bundle(1).keys() - {"privkey.pem"}, "0644") == {
        path.name: _mode(path) for path in place.files(1).iterdir()
    }
    assert {"2750"} == {
        _mode(path) for path in (place.root / "web1").rglob("*") if path.is_dir() and not path.is_symlink()
    }


async def test_publishing_again_changes_nothing(place: Place) -> None:
    """A whole folder with the same content is adopted, not written again."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    before = {path.name: path.stat().st_ino for path in place.files(1).iterdir()}
    await place.share.publish(WEB1, NAME, 1, bundle(1))

    assert before == {path.name: path.stat().st_ino for path in place.files(1).iterdir()}


async def test_a_new_signature_over_the_same_manifest_replaces_the_old_one(place: Place) -> None:
    """When only the signer changed, the pair stays as it is and the signature is the new one."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    key = (place.files(1) / "privkey.pem").stat().st_ino
    await place.share.publish(WEB1, NAME, 1, bundle(1) | {"manifest.sig": b"signed anew"})

    assert b"signed anew" == (place.files(1) / "manifest.sig").read_bytes()
    assert key == (place.files(1) / "privkey.pem").stat().st_ino


async def test_a_number_is_never_used_for_other_content(place: Place) -> None:
    """Whole and different: refused, and what is there stays."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))

    with pytest.raises(BundleInvalid, match="never used twice"):
        await place.share.publish(WEB1, NAME, 1, bundle(2))
    assert bundle(1) == read_live(place.root / "web1")


async def test_an_unfinished_folder_is_made_whole(place: Place) -> None:
    """What an interrupted publish left is removed, then everything is written."""
    place.files(1).mkdir(parents=True, mode=0o750)
    (place.files(1) / "privkey.pem").write_bytes(b"half a k")
    (place.files(1) / ".manifest.json.0011223344556677").write_bytes(b"{")
    await place.share.publish(WEB1, NAME, 1, bundle(1))

    assert set(bundle(1)) == {path.name for path in place.files(1).iterdir()}
    assert bundle(1) == read_live(place.root / "web1")


@pytest.mark.parametrize("harm", ["missing", "shorter", "no signature"])
async def test_an_incomplete_generation_is_not_seen(place: Place, harm: str) -> None:
    """A look shows only folders that hold all that their manifest names."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    await place.share.publish(WEB1, NAME, 2, bundle(2))
    match harm:
        case "missing":
            (place.files(2) / "chain.pem").unlink()
        case "shorter":
            os.truncate(place.files(2) / "cert.pem", 10)
        case _:
            (place.files(2) / "manifest.sig").unlink()
    seen = await place.share.look()

    assert {(NAME, "web1"): frozenset({Folder(1)})} == seen.published


async def test_the_pointer_never_goes_back(place: Place) -> None:
    """An older generation that is published late is on the share, but live stays ahead."""
    await place.share.publish(WEB1, NAME, 3, bundle(3))
    await place.share.publish(WEB1, NAME, 2, bundle(2))

    assert f"../generations/{NAME}/3" == place.pointer()


async def test_an_adopted_key_that_is_too_open_moves_no_pointer(place: Place) -> None:
    """Someone opened a key of a whole folder: refused with its mode, and nothing points at it."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    await place.share.publish(WEB1, NAME, 2, bundle(2))
    link = place.root / "web1" / "live" / NAME
    link.unlink()
    link.symlink_to(f"../generations/{NAME}/1")
    (place.files(2) / "privkey.pem").chmod(0o644)

    with pytest.raises(PermissionTooOpen, match=r"privkey\.pem has mode 0644"):
        await place.share.publish(WEB1, NAME, 2, bundle(2))
    assert f"../generations/{NAME}/1" == place.pointer()


async def test_a_key_mode_that_opens_the_key_is_refused(place: Place) -> None:
    """Nothing is written for a consumer whose key files others could read or write."""
    for mode in (0o644, 0o660, 0o4640, 0o040):
        with pytest.raises(PermissionTooOpen):
            await place.share.publish(replace(WEB1, mode=mode), NAME, 1, bundle(1))
        assert not place.files(1).exists()


async def test_a_consumer_folder_open_to_others_is_refused(place: Place) -> None:
    """The folder that keeps others out must do so; the look says it, the other consumer goes on."""
    (place.root / "web1").chmod(0o2755)

    with pytest.raises(PermissionTooOpen, match="web1"):
        await place.share.publish(WEB1, NAME, 1, bundle(1))
    await place.share.publish(MAIL1, NAME, 1, bundle(1))
    seen = await place.share.look()
    assert {(NAME, "mail1"): frozenset({Folder(1)})} == seen.published
    assert "share.permission_too_open" == seen.problems["web1"].code
    assert place.share.problem is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_a_folder_of_a_foreign_owner_is_refused(place: Place) -> None:
    """Whoever owns the folder could swap everything in it."""
    os.chown(place.root / "web1" / "generations", 12345, -1)

    with pytest.raises(ShareTampered, match="uid 12345"):
        await place.share.publish(WEB1, NAME, 1, bundle(1))


@pytest.mark.parametrize(
    "component",
    ["web1", "web1/generations", f"web1/generations/{NAME}", f"web1/generations/{NAME}/1", "web1/live"],
)
async def test_a_planted_symlink_is_never_followed(place: Place, tmp_path: Path, component: str) -> None:
    """A symlink in place of any folder: publish refuses, and nothing appears where it leads."""
    victim, trap = tmp_path / "victim", place.root / component
    if trap.exists():
        shutil.move(trap, tmp_path / "kept")
        shutil.copytree(tmp_path / "kept", victim, symlinks=True)
    else:
        trap.parent.mkdir(exist_ok=True)
        victim.mkdir(mode=0o750)
    trap.symlink_to(victim)
    before = sorted(victim.rglob("*"))

    with pytest.raises(ShareTampered):
        await place.share.publish(WEB1, NAME, 1, bundle(1))
    assert before == sorted(victim.rglob("*"))


@pytest.mark.parametrize(
    "component",
    [
        *("web1", "web1/generations", f"web1/generations/{NAME}", f"web1/generations/{NAME}/1", "web1/live"),
        *(f"web1/generations/{NAME}/1/{name}" for name in bundle(1)),
        f"web1/live/{NAME}",
    ],
)
async def test_a_planted_hard_link_is_never_written_through(
    place: Place, tmp_path: Path, component: str
) -> None:
    """A second name of somebody's file in any place: publish refuses or takes the name away, never the file."""
    victim, trap = tmp_path / "victim", place.root / component
    victim.write_text("somebody's")
    victim.chmod(0o600)
    if trap.exists():
        shutil.move(trap, tmp_path / "kept")
    for folder in reversed([one for one in trap.parents if not one.exists()]):
        folder.mkdir(mode=0o750)
    os.link(victim, trap)
    before = victim.stat()

    if component.count("/") < 4 and component != f"web1/live/{NAME}":
        with pytest.raises(ShareTampered):
            await place.share.publish(WEB1, NAME, 1, bundle(1))
    else:
        await place.share.publish(WEB1, NAME, 1, bundle(1))
        assert bundle(1) == read_live(place.root / "web1")
    assert ("somebody's", before.st_mode) == (victim.read_text(), victim.stat().st_mode)
    assert before.st_mtime_ns == victim.stat().st_mtime_ns


async def test_a_name_that_leads_elsewhere_is_refused(place: Place) -> None:
    """Names are checked below the pipe too: no certificate's name becomes a path."""
    for name in ("../web1", "a/b", "", ".hidden", "a..b", "A", "-x", "x" * 101, "a\n"):
        with pytest.raises(BundleInvalid, match="cannot be a name"):
            await place.share.publish(WEB1, name, 1, bundle(1))


async def test_a_consumer_that_was_not_set_up_says_what_to_run(place: Place) -> None:
    """The daemon does not make consumer folders: root does, and the hint says so."""
    with pytest.raises(ShareUnavailable) as caught:
        await place.share.publish(replace(WEB1, name="web2"), NAME, 1, bundle(1))

    assert ("web2", "run as root: certfan share setup") == (caught.value.subject, caught.value.hint)
    assert place.share.problem is None


async def test_an_unknown_group_names_the_consumer(place: Place) -> None:
    """A group that does not exist is the config's fault, not the share's."""
    with pytest.raises(ConfigInvalid, match="web1: group no-such-group"):
        await place.share.publish(replace(WEB1, group="no-such-group"), NAME, 1, bundle(1))


async def test_a_folder_without_sentinel_is_no_share_and_stays_empty(tmp_path: Path) -> None:
    """The bare directory below an unmounted mount point: refused by name, never written; heals when mounted."""
    root = tmp_path / "share"
    (root / "web1" / "live").mkdir(parents=True, mode=0o750)
    share = Share(root, tmp_path / "lock", now)

    with pytest.raises(ShareUnavailable, match=r"no certfan\.share"):
        await share.publish(WEB1, NAME, 1, bundle(1))
    assert share.problem is not None
    assert "share.unavailable" == share.problem.code
    assert "mount | grep" in share.problem.hint
    assert [] == list((root / "web1" / "live").iterdir())
    await set_up_share(root, [WEB1], uid=os.geteuid(), lock=tmp_path / "setup.lock")
    await share.publish(WEB1, NAME, 1, bundle(1))
    assert share.problem is None
    await share.stop()


async def test_a_sentinel_that_says_something_else_is_refused(place: Place) -> None:
    """Neither an empty sentinel nor one of a later format is taken for ours."""
    for said in (
        "",
        "[]",
        "nonsense",
        '{"format": 1}',
        '{"format": 2, "share": "x"}',
        '{"format": 1, "share": ""}',
    ):
        (place.root / "certfan.share").write_text(said)
        with pytest.raises(ShareUnavailable, match="says nothing we understand"):
            await place.share.look()


async def test_another_share_is_refused_by_its_id(tmp_path: Path) -> None:
    """With the id configured, a different volume on the same mount point is named."""
    place = make_place(tmp_path, share_id="0123456789abcdef")

    with pytest.raises(ShareUnavailable, match="another share is mounted"):
        await place.share.look()
    await place.share.stop()


async def test_the_folder_of_one_consumer_is_not_the_whole_share(place: Place) -> None:
    """The daemon with a consumer's sub-directory mount says so instead of seeing nothing published."""
    share = Share(place.root / "web1", place.state / "other.lock", now)

    with pytest.raises(ShareUnavailable, match="only the folder of consumer web1"):
        await share.look()
    await share.stop()


async def test_a_directory_that_is_no_mount_is_refused_where_one_is_required(tmp_path: Path) -> None:
    """With require_mount even a copy with a right sentinel is not written unless mounted."""
    place = make_place(tmp_path, require_mount=True)

    with pytest.raises(ShareUnavailable, match="not mounted"):
        await place.share.publish(WEB1, NAME, 1, bundle(1))
    assert not place.files(1).exists()
    await place.share.stop()


async def test_a_share_that_was_replaced_under_its_path_is_opened_again(place: Place, tmp_path: Path) -> None:
    """The path is compared before each operation: nothing goes to a folder that it no longer names."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    place.root.rename(tmp_path / "old")
    place.root.mkdir()

    with pytest.raises(ShareUnavailable, match=r"no certfan\.share"):
        await place.share.publish(WEB1, NAME, 2, bundle(2))
    assert not (tmp_path / "old" / "web1" / "generations" / NAME / "2").exists()
    place.root.rmdir()
    (tmp_path / "old").rename(place.root)
    await place.share.publish(WEB1, NAME, 2, bundle(2))
    assert f"../generations/{NAME}/2" == place.pointer()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give things away")
@pytest.mark.parametrize("uid", [None, 12345])
@pytest.mark.parametrize("below", ["generations", f"generations/{NAME}", f"generations/{NAME}/1", "live"])
async def test_a_neighbour_that_spoils_its_folder_spoils_no_other(
    place: Place, below: str, uid: int | None
) -> None:
    """Whatever root on web1 makes of its folder, of another owner or no folder at all: mail1 gets its keys."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    spoilt = place.root / "web1" / below
    if uid is None:
        spoilt.rename(spoilt.with_name("aside"))
        spoilt.write_text("no folder")
    else:
        os.chown(spoilt, uid, -1)
    with pytest.raises((ShareTampered, PermissionTooOpen)) as caught:
        await place.share.publish(WEB1, NAME, 1, bundle(1))
    await place.share.glance(map(Consumer, ["web1", "mail1"]))
    await place.share.publish(MAIL1, NAME, 1, bundle(1))
    await place.share.sweep()
    seen = await place.share.look()

    assert str(place.root) != caught.value.subject
    assert place.share.is_up
    assert {1} == {folder.number for folder in seen.published[NAME, "mail1"]}


async def test_a_glance_tells_what_is_wrong_with_one_folder(place: Place) -> None:
    """Open to others, another owner's, a planted symlink, gone: each is told by its consumer, the share is up."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    await place.share.glance(map(Consumer, ["web1", "mail1"]))
    assert {} == place.share.folder_problems
    (place.root / "mail1").chmod(0o2755)
    (place.root / "web1" / "live").chmod(0o2770)
    (place.root / "web2").symlink_to("web1")
    await place.share.glance(map(Consumer, ["web1", "mail1", "web2", "web3"]))

    assert {
        "mail1": "share.permission_too_open",
        "web1": "share.tampered",
        "web2": "share.tampered",
        "web3": "share.unavailable",
    } == {consumer: problem.code for consumer, problem in place.share.folder_problems.items()}
    assert place.share.is_up
    since = place.share.folders_since
    assert {"mail1", "web1", "web2", "web3"} == since.keys()
    (place.root / "web1" / "live").chmod(0o2750)
    await place.share.glance(map(Consumer, ["web1", "mail1"]))
    assert {"mail1": since["mail1"]} == place.share.folders_since
    assert place.share.problem is None


@pytest.mark.parametrize("harm", ["mode", "a second name", "a link in its place"])
async def test_a_glance_finds_a_key_that_somebody_opened_up(place: Place, harm: str) -> None:
    """Told by its consumer with the file's name, as long as it is so; the share is up, and others are not blamed."""
    for number in (1, 2):
        await place.share.publish(WEB1, NAME, number, bundle(number))
        await place.share.publish(MAIL1, NAME, number, bundle(number))
    key = place.root / "web1/generations" / NAME / "1/privkey.pem"
    aside = key.with_name("aside")
    if harm == "mode":
        key.chmod(0o644)
    elif harm == "a second name":
        aside.hardlink_to(key)
    else:
        key.rename(aside)
        key.symlink_to(aside)
    told = []
    for _ in range(3):
        await place.share.glance([WEB1, MAIL1])
        told.append({name: problem.code for name, problem in place.share.folder_problems.items()})
        key.unlink(missing_ok=True)
        aside.unlink(missing_ok=True)
    code = "share.permission_too_open" if harm == "mode" else "share.tampered"

    assert [{"web1": code}, {}, {}] == told
    assert place.share.problem is None


async def test_glances_go_round_all_keys(place: Place) -> None:
    """More certificates than one glance looks at: what the first round began, it ends, and tells what it has seen."""
    for number in range(AT_ONCE + 5):
        await place.share.publish(WEB1, f"{number:03}.example", 1, bundle(1))
    for number in (0, AT_ONCE + 4):
        (place.root / f"web1/generations/{number:03}.example/1/privkey.pem").chmod(0o664)
    told = []
    for _ in range(2):
        await place.share.glance([WEB1])
        told.append(place.share.folder_problems["web1"].detail)
    (place.root / "web1/generations/000.example/1/privkey.pem").chmod(0o640)
    await place.share.glance([WEB1])

    assert ["000.example" in one for one in told] == [True, True]
    assert f"{AT_ONCE + 4:03}.example" in place.share.folder_problems["web1"].detail


async def test_a_glance_notices_a_share_that_lost_its_sentinel_or_became_another(tmp_path: Path) -> None:
    """The same folder, opened long ago: its sentinel is read anew at every glance."""
    place = make_place(tmp_path)
    await place.share.glance(map(Consumer, ["web1"]))
    sentinel = place.root / "certfan.share"
    kept = sentinel.read_text()
    sentinel.unlink()
    with pytest.raises(ShareUnavailable, match=r"no certfan\.share"):
        await place.share.glance(map(Consumer, ["web1"]))
    assert not place.share.is_up
    sentinel.write_text(kept)
    await place.share.glance(map(Consumer, ["web1"]))

    assert place.share.problem is None
    await place.share.stop()


async def test_a_key_with_a_second_name_moves_no_pointer(place: Place) -> None:
    """Somebody keeps a hard link to a key: what is whole is not adopted, and says so."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    (place.root / "web1" / "live" / NAME).unlink()
    os.link(place.files(1) / "privkey.pem", place.root / "web1" / "kept")

    with pytest.raises(ShareTampered, match="reachable by 2 names"):
        await place.share.publish(WEB1, NAME, 1, bundle(1))
    assert not (place.root / "web1" / "live" / NAME).is_symlink()


async def test_retire_removes_an_older_generation_and_may_be_repeated(place: Place) -> None:
    """Gone after the first time, no complaint the second."""
    for number in (1, 2):
        await place.share.publish(WEB1, NAME, number, bundle(number))
    for _ in range(2):
        await place.share.retire("web1", NAME, 1)

    assert not place.files(1).exists()
    assert bundle(2) == read_live(place.root / "web1")


async def test_retire_never_takes_what_live_points_at(place: Place) -> None:
    """The one thing that services follow stays, whoever asks."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))

    with pytest.raises(GenerationLive):
        await place.share.retire("web1", NAME, 1)
    assert bundle(1) == read_live(place.root / "web1")


async def test_sweep_takes_what_is_unfinished_and_old_and_nothing_else(place: Place) -> None:
    """Young leftovers may be somebody's work, whole generations and the sentinel are never leftovers."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    live, old = place.root / "web1" / "live", (now() - timedelta(hours=2)).timestamp()
    for number in (2, 3):
        place.files(number).mkdir(mode=0o750)
        (place.files(number) / "privkey.pem").write_bytes(b"half")
    for path in (live / f".{NAME}.0011223344556677", live / f".{NAME}.8899aabbccddeeff"):
        path.symlink_to("../generations/nowhere")
    for path in (place.files(1), place.files(2), live / f".{NAME}.0011223344556677"):
        os.utime(path, (old, old), follow_symlinks=False)

    assert 2 == await place.share.sweep()
    assert ["1", "3"] == sorted(path.name for path in place.files(1).parent.iterdir())
    assert [f".{NAME}.8899aabbccddeeff", NAME] == sorted(path.name for path in live.iterdir())
    assert is_whole(read_live(place.root / "web1") or {})


async def test_setup_may_be_repeated_and_mends_modes(place: Place) -> None:
    """Run again for one consumer more: same id, same content, owner and mode put right."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    (place.root / "web1" / "generations").chmod(0o777)
    web2 = replace(WEB1, name="web2")
    ids = [
        await set_up_share(place.root, [WEB1, web2], uid=os.geteuid(), lock=place.state / "setup.lock")
        for _ in range(2)
    ]

    assert ids[0] == ids[1]
    assert {"2750"} == {
        _mode(place.root / name) for name in ("web1", "web1/live", "web1/generations", "web2")
    }
    assert bundle(1) == read_live(place.root / "web1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change groups at will")
async def test_setup_takes_a_consumers_new_group_down_to_its_keys(place: Place) -> None:
    """After a change of group the daemon refuses until setup ran, then adopts what is there."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    web1 = replace(WEB1, group="4711")
    with pytest.raises(ShareTampered, match="group"):
        await place.share.publish(web1, NAME, 1, bundle(1))
    await set_up_share(place.root, [web1], uid=os.geteuid(), lock=place.state / "setup.lock")
    await place.share.publish(web1, NAME, 1, bundle(1))

    assert {4711} == {path.lstat().st_gid for path in place.files(1).rglob("*")}
    assert "0640" == _mode(place.files(1) / "privkey.pem")


async def test_setup_of_a_large_share_tells_that_it_is_at_work(place: Place) -> None:
    """A sign of life for every file that it looks at: a thousand certificates on a slow volume take minutes."""
    for number in (1, 2, 3):
        await place.share.publish(WEB1, NAME, number, bundle(number))
    beats: list[None] = []

    set_up_at(place.root, lambda: beats.append(None))

    assert len(beats) >= 3 * len(bundle(1))


async def test_setup_follows_no_symlink(tmp_path: Path) -> None:
    """Root makes nothing where a link leads."""
    root, victim = tmp_path / "share", tmp_path / "victim"
    root.mkdir()
    victim.mkdir(mode=0o755)
    (root / "web1").symlink_to(victim)

    with pytest.raises(ShareTampered):
        await set_up_share(root, [WEB1], uid=os.geteuid(), lock=tmp_path / "setup.lock")
    assert ([], "0755") == (list(victim.iterdir()), _mode(victim))


async def test_a_share_that_moved_is_used_from_then_on(place: Place, tmp_path: Path) -> None:
    """Another root in the config needs no restart, and the old root is left as it was."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    other = tmp_path / "other"
    other.mkdir(mode=0o755)
    set_up_at(other)

    await place.share.move(other, share_id=None, require_mount=False)
    await place.share.publish(WEB1, NAME, 2, bundle(2))

    assert {(NAME, "web1"): frozenset({Folder(2)})} == (await place.share.look()).published
    assert bundle(1) == read_live(place.root / "web1")
    assert bundle(2) == read_live(other / "web1")
