"""The local tree: modes before bytes, pointers in one step, nothing of others touched."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certfan import pki
from certfan.agent.forms import KeyFile, Layout
from certfan.agent.installer import Installer, Laid
from certfan.errors import InstallFailed

NAME = "www.example.org"
NOW = datetime.now(UTC)
ME = (str(os.geteuid()), str(os.getegid()))
MINE = Layout(KeyFile(*ME, 0o640))


def pair() -> pki.Pair:
    return pki.load_pair(*pki.make_placeholder([NAME], NOW))


@pytest.fixture
def tree(tmp_path: Path) -> Installer:
    return Installer(tmp_path)


def lay(tree: Installer, generation: int, what: pki.Pair) -> None:
    tree.point(NAME, tree.put(NAME, generation, what, MINE))


def test_a_pair_is_laid_out_as_certbot_does(tree: Installer, tmp_path: Path) -> None:
    """Services find their files below live/NAME, with the configured mode on what is secret."""
    one = pair()
    lay(tree, 7, one)

    live = tmp_path / "live" / NAME
    assert live.readlink() == Path("../generations/www.example.org/7")
    assert (live / "privkey.pem").read_bytes() == one.key_pem
    assert (live / "fullchain.pem").read_bytes() == one.fullchain_pem
    assert (live / "combined.pem").read_bytes() == one.key_pem + one.fullchain_pem
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in live.iterdir()}
    assert modes == {
        "privkey.pem": 0o640,
        "combined.pem": 0o640,
        "cert.pem": 0o644,
        "chain.pem": 0o644,
        "fullchain.pem": 0o644,
    }
    assert tree.current(NAME) == 7


def test_to_lay_the_same_again_changes_nothing(tree: Installer, tmp_path: Path) -> None:
    """Repeated, not one inode is new."""
    one = pair()
    lay(tree, 7, one)
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}

    lay(tree, 7, one)

    assert {path: path.lstat().st_ino for path in tmp_path.rglob("*")} == before


def test_an_interrupted_folder_is_completed(tree: Installer, tmp_path: Path) -> None:
    """A crash between two files leaves what the next try needs."""
    one = pair()
    lay(tree, 7, one)
    (tmp_path / "generations" / NAME / "7" / "fullchain.pem").unlink()

    lay(tree, 7, one)

    assert tree.read(NAME, tree.stored(NAME)[0]) == one


def test_a_changed_mode_is_carried_over_to_installed_keys(tree: Installer, tmp_path: Path) -> None:
    """The admin edits agent.toml, and the next installation obeys."""
    one = pair()
    lay(tree, 7, one)
    tree.put(NAME, 7, one, Layout(KeyFile(*ME, 0o600)))

    assert stat.S_IMODE((tmp_path / "live" / NAME / "privkey.pem").stat().st_mode) == 0o600


def test_another_pair_of_the_same_number_never_mixes_with_the_first(tree: Installer) -> None:
    """A folder in use keeps its pair: a reader in the middle sees one or the other."""
    first, second = pair(), pair()
    lay(tree, 7, first)
    lay(tree, 7, second)

    folders = tree.stored(NAME)
    assert [one.generation for one in folders] == [7, 7]
    assert {tree.read(NAME, one) for one in folders} == {first, second}
    laid = tree.pointer(NAME)
    assert laid is not None
    assert tree.read(NAME, laid) == second


def test_a_placeholder_counts_as_generation_zero(tree: Installer) -> None:
    """It loads, says what it is, and is no generation."""
    tree.point(NAME, tree.put_placeholder(NAME, NOW, MINE))

    laid = tree.pointer(NAME)
    assert laid is not None
    seen = tree.read(NAME, laid)
    assert seen is not None
    assert (tree.current(NAME), seen.leaf.placeholder, seen.leaf.names) == (0, True, (NAME,))


def test_nothing_laid_is_none(tree: Installer) -> None:
    """No folder is needed to ask."""
    assert (tree.current(NAME), tree.stored(NAME), tree.names()) == (None, (), ())


@pytest.mark.parametrize(
    "what",
    [
        *("folder", "file", "elsewhere", "other name", "dangling", "absolute"),
        *("mounted elsewhere", "mounted other name", "mounted placeholder", "mounted too deep"),
    ],
)
def test_what_certfan_did_not_make_stays(tree: Installer, tmp_path: Path, what: str) -> None:
    """Certbot's own folder, a file, and any foreign symlink are refused with a command to try."""
    live = tmp_path / "live" / NAME
    live.parent.mkdir()
    match what:
        case "folder":
            live.mkdir()
        case "file":
            live.write_text("mine")
        case "elsewhere":
            live.symlink_to("../archive/www.example.org/7")
        case "other name":
            live.symlink_to("../generations/mail.example.org/7")
        case "dangling":
            live.symlink_to("nowhere")
        case "mounted elsewhere":
            live.symlink_to(f"../mounted/../generations/{NAME}/7")
        case "mounted other name":
            live.symlink_to("../mounted/generations/mail.example.org/7")
        case "mounted placeholder":
            live.symlink_to(f"../mounted/generations/{NAME}/placeholder-0123456789abcdef")
        case "mounted too deep":
            live.symlink_to(f"../mounted/one/two/generations/{NAME}/7")
        case "absolute":
            live.symlink_to(tmp_path / "generations" / NAME / "7")
    before = (live.lstat().st_ino, live.lstat().st_mtime_ns)

    with pytest.raises(InstallFailed, match="not made by certfan") as caught:
        lay(tree, 7, pair())

    assert caught.value.hint == f"run: mv {live} {live}.before-certfan"
    assert (live.lstat().st_ino, live.lstat().st_mtime_ns) == before
    assert tree.pointers() == {}


def test_an_unknown_owner_is_told_with_the_key_to_change(tree: Installer) -> None:
    """Nothing is written under a wrong owner."""
    with pytest.raises(InstallFailed, match="nobody-of-that-name") as caught:
        tree.put(NAME, 7, pair(), Layout(KeyFile("nobody-of-that-name", ME[1], 0o600)))

    assert "agent.toml" in caught.value.hint


def test_the_pointer_can_be_taken_away(tree: Installer) -> None:
    """Going back to nothing is possible too."""
    lay(tree, 7, pair())
    tree.point(NAME, None)

    assert tree.current(NAME) is None


def test_pruning_keeps_the_newest_two_and_the_live_one(tree: Installer, tmp_path: Path) -> None:
    """There is always something to go back to, and nothing more than that."""
    for number in (3, 4, 5, 6):
        lay(tree, number, pair())
    tree.put_placeholder(NAME, NOW, MINE)
    tree.point(NAME, next(one for one in tree.stored(NAME) if one.generation == 3))

    tree.prune(NAME)

    assert [one.generation for one in tree.stored(NAME)] == [6, 5, 3]
    assert tree.pointers() == {NAME: Laid("3", 3)}


def test_a_broken_pair_reads_as_none(tree: Installer, tmp_path: Path) -> None:
    """Truncated, mismatched or missing: it may not be laid."""
    laid = tree.put(NAME, 7, pair(), MINE)
    key = tmp_path / "generations" / NAME / "7" / "privkey.pem"
    key.write_bytes(pair().key_pem)
    assert tree.read(NAME, laid) is None
    key.unlink()

    assert tree.read(NAME, laid) is None


def test_the_whole_tree_is_walkable_under_a_closed_umask(tree: Installer, tmp_path: Path) -> None:
    """Services run as their own users; keys are guarded by their own modes."""
    before = os.umask(0o077)
    try:
        lay(tree, 7, pair())
    finally:
        os.umask(before)

    folders = [path for path in tmp_path.rglob("*") if path.is_dir() and not path.is_symlink()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o755}


@pytest.mark.parametrize("folder", ["generations", "web1/generations"])
def test_a_pointer_may_lead_to_the_mounted_generation(tree: Installer, tmp_path: Path, folder: str) -> None:
    """By one link to where the share is mounted; what is there is never looked at, and never removed."""
    mounted = Laid("7", 7, folder)
    tree.mount_at(tmp_path / "srv")
    tree.point(NAME, mounted)

    live = tmp_path / "live" / NAME
    assert (tmp_path / "live" / live.readlink()).resolve() == tmp_path / "srv" / folder / NAME / "7"
    assert (tree.pointer(NAME), tree.names()) == (mounted, (NAME,))
    assert (Laid.parse(str(mounted)), tree.read(NAME, mounted)) == (mounted, None)
    tree.prune(NAME)
    assert tree.pointer(NAME) == mounted


def test_the_link_to_the_share_follows_the_config_and_takes_no_other_things_place(
    tree: Installer, tmp_path: Path
) -> None:
    """Mounted elsewhere from now on, one link moves; a folder of somebody's stays."""
    tree.mount_at(tmp_path / "one")
    tree.mount_at(tmp_path / "two")
    assert (tmp_path / "mounted").readlink() == tmp_path / "two"
    (tmp_path / "mounted").unlink()
    (tmp_path / "mounted").mkdir()

    with pytest.raises(InstallFailed, match="not made by certfan"):
        tree.mount_at(tmp_path / "two")
