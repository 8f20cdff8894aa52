"""The state folder: one holder, keys before anyone hears of them, closed to others under any umask."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certfan import files
from certfan.daemon.pair_files import rename_old
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store
from certfan.errors import StateLocked, StateTooOpen

HOLDER = """
import sys
from certfan import files
from certfan.daemon.state import StateFolder
with StateFolder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""

SECOND = """
import sys
from certfan import files
from certfan.daemon.state import StateFolder
from certfan.errors import CertfanError
try:
    StateFolder(sys.argv[1])
except CertfanError as error:
    print(error.code, error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def umask_zero() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_second_start_names_the_first_one(tmp_path: Path) -> None:
    """While one process holds the folder another exits 75 and says which; when it dies, the lock is free."""
    where = str(tmp_path / "state")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert "held\n" == holder.stdout.readline()
        second = subprocess.run([sys.executable, "-c", SECOND, where], capture_output=True, text=True)
        with pytest.raises(StateLocked):
            StateFolder(where)
        holder.kill()
    StateFolder(where).close()

    assert 75 == second.returncode
    assert "state.locked" in second.stdout
    assert str(holder.pid) in second.stdout


@pytest.mark.usefixtures("umask_zero")
async def test_nothing_in_the_folder_is_open_to_others(tmp_path: Path) -> None:
    """With umask 000 every folder, parents included, is 0700 and every file, the database's too, 0600."""
    with StateFolder(tmp_path / "var" / "certfan") as state:
        store = await Store.open(state.database, lambda: datetime.now(UTC))
        await store.ask_renewal("www", datetime.now(UTC))
        state.account_key("le", lambda: b"account key")
        state.generation_key("www", 1, lambda: b"key")
        state.save_chain("www", 1, b"ci")
        modes = {
            str(path.relative_to(tmp_path)): oct(stat.S_IMODE(path.stat().st_mode))
            for path in tmp_path.rglob("*")
        }
        await store.close()

    assert {} == {name: mode for name, mode in modes.items() if mode != ("0o600" if "." in name else "0o700")}
    assert {"var", "var/certfan/certfan.db", "var/certfan/certfan.db-wal", "var/certfan/certfan.lock"} <= set(
        modes
    )


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    """A state folder that others may look into is not used, and the lock is not kept."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "accounts").mkdir(mode=0o755)
    with pytest.raises(StateTooOpen):
        StateFolder(tmp_path / "state")
    (tmp_path / "state" / "accounts").rmdir()

    StateFolder(tmp_path / "state").close()


def test_a_key_is_made_once(tmp_path: Path) -> None:
    """A key that exists is reused, by the next call and by the next process."""
    made = iter([b"first", b"second", b"third"])
    with StateFolder(tmp_path / "state") as state:
        keys = [state.generation_key("www", 1, lambda: next(made)) for _ in range(2)]
        accounts = [state.account_key("le", lambda: next(made)) for _ in range(2)]
    with StateFolder(tmp_path / "state") as state:
        keys.append(state.generation_key("www", 1, lambda: next(made)))

    assert [b"first"] * 3 == keys
    assert [b"second"] * 2 == accounts


def test_a_key_is_durable_with_its_name(tmp_path: Path) -> None:
    """In one wait, also where a process that was killed has made the key, and synced nothing."""
    with StateFolder(tmp_path / "state") as state:
        synced: list[list[str]] = []
        token = files.syncing.set(
            lambda *fds: synced.append([os.readlink(f"/proc/self/fd/{fd}") for fd in fds])
        )
        try:
            for _ in range(2):
                state.generation_key("www", 1, lambda: b"key")
        finally:
            files.syncing.reset(token)

    at = f"{tmp_path}/state/generations"
    assert [[f"{at}/www@1.privkey.pem", at]] * 2 == synced


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Somebody opened a key: certfan says so instead of going on with it."""
    with StateFolder(tmp_path / "state") as state:
        state.generation_key("www", 1, lambda: b"key")
        key = state.path / "generations/www@1.privkey.pem"
        key.chmod(0o640)

        with pytest.raises(StateTooOpen, match=f"^{key} holds"):
            state.generation_key("www", 1, lambda: b"other")


def test_a_generation_is_read_back(tmp_path: Path) -> None:
    """What was written comes back by name, what was not is left out, and every number is seen."""
    with StateFolder(tmp_path / "state") as state:
        state.generation_key("www", 1, lambda: b"key")
        unfinished = state.read_generation("www", 1)
        state.save_chain("www", 1, b"ci")
        state.save_chain("www", 1, b"ci")
        state.generation_key("www", 10, lambda: b"key")

        assert {"privkey.pem": b"key"} == unfinished
        assert {
            "privkey.pem": b"key",
            "fullchain.pem": b"ci",
        } == state.read_generation("www", 1)
        assert {} == state.read_generation("www", 2)
        assert {1, 10} == state.generation_numbers("www")
        assert frozenset() == state.generation_numbers("other")


def test_a_chain_is_read_without_its_key(tmp_path: Path) -> None:
    """Who asks for the chain alone gets it even where the key may not be read, and nothing where there is none yet."""
    with StateFolder(tmp_path / "state") as state:
        state.generation_key("www", 1, lambda: b"key")
        unfinished = state.read_chain("www", 1)
        state.save_chain("www", 1, b"ci")
        (state.path / "generations/www@1.privkey.pem").chmod(0o644)

        assert (None, b"ci", None) == (unfinished, state.read_chain("www", 1), state.read_chain("www", 2))


OLD = {
    "www/1/privkey.pem": b"key",
    "www/1/fullchain.pem": b"ci",
    "www/1/cert.pem": b"c",
    "www/1/chain.pem": b"i",
    "www/1/web1.01234567.hpke": b"sealed",
    "www/12/request.pem": b"request",
    "other/3/privkey.pem": b"another key",
}
NEW = {
    "www@1.privkey.pem": b"key",
    "www@1.fullchain.pem": b"ci",
    "www@1.sealed/web1.01234567.hpke": b"sealed",
    "www@12.request.pem": b"request",
    "other@3.privkey.pem": b"another key",
}


def laid_by_an_earlier_release(generations: Path) -> None:
    for name, data in OLD.items():
        files.private_folder((generations / name).parent)
        files.write_private(generations / name, data)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_an_earlier_release_has_laid_is_taken_over(tmp_path: Path) -> None:
    """There each generation had a folder; all of it has its name of today, closed, and nothing else is left."""
    generations = tmp_path / "state/generations"
    laid_by_an_earlier_release(generations)
    with StateFolder(tmp_path / "state") as state:
        assert NEW == contents(generations)
        assert {"www@1.sealed"} == {path.name for path in generations.iterdir() if path.is_dir()}
        assert 0o700 == stat.S_IMODE((generations / "www@1.sealed").stat().st_mode)
        assert b"sealed" == state.read_sealed_key("www", 1, "web1", "01234567")
        assert ({1, 12}, {3}) == (state.generation_numbers("www"), state.generation_numbers("other"))


@pytest.mark.parametrize("call", ["link", "sync_folder", "unlink", "rmdir"])
@pytest.mark.parametrize("after", range(8))
def test_a_take_over_that_is_cut_off_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    """Whichever step is the last, each file is there under a name, and the next start goes on."""

    class Cut(BaseException):
        pass

    where = {"link": os, "sync_folder": files, "unlink": Path, "rmdir": Path}[call]
    step, left = getattr(where, call), iter(range(after))

    def until_cut(*args: object, **kwargs: object) -> object:
        if next(left, None) is None:
            raise Cut
        return step(*args, **kwargs)

    generations = tmp_path / "state/generations"
    laid_by_an_earlier_release(generations)
    monkeypatch.setattr(where, call, until_cut)
    with contextlib.suppress(Cut):
        StateFolder(tmp_path / "state").close()
    monkeypatch.undo()

    assert set(NEW.values()) <= set(contents(generations).values())
    StateFolder(tmp_path / "state").close()
    assert NEW == contents(generations)


def test_a_take_over_lets_go_of_no_name_before_the_other_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may undo what was not synced: the folders with the new names are, before an old one goes."""
    generations = tmp_path / "state/generations"
    laid_by_an_earlier_release(generations)
    done: list[str] = []
    sync, unlink = files.sync_folder, Path.unlink
    monkeypatch.setattr(files, "sync_folder", lambda path: (done.append(Path(path).name), sync(path)))
    monkeypatch.setattr(Path, "unlink", lambda path, **kw: (done.append("unlink"), unlink(path, **kw)))
    rename_old(generations)

    made, *rest = done  # the folder of what is sealed is new itself
    assert ("generations", {"generations", "www@1.sealed"}) == (made, set(rest[: rest.index("unlink")]))
    assert "generations" == done[-1]


def test_a_take_over_replaces_nothing_and_leaves_what_is_not_ours(tmp_path: Path) -> None:
    """Where a name of today is another file's, both stay, as does what somebody else has put there."""
    generations = tmp_path / "state/generations"
    laid_by_an_earlier_release(generations)
    files.write_private(generations / "www@1.privkey.pem", b"newer")
    others = {"other/3/note.txt": b"mine", "www/7": b"no folder", "www/0/privkey.pem": b"no number"}
    (generations / "www/0").mkdir()
    for name, data in others.items():
        (generations / name).write_bytes(data)
    for _ in range(2):
        StateFolder(tmp_path / "state").close()

        both = {"www@1.privkey.pem": b"newer", "www/1/privkey.pem": b"key"}
        assert {**NEW, **both, **others} == contents(generations)


def test_generations_are_removed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was sealed, each with its key last, and those of no other certificate."""
    with StateFolder(tmp_path / "state") as state:
        for number in (1, 2):
            state.generation_key("www", number, lambda: b"key")
            state.save_chain("www", number, b"ci")
        state.sealed_key("www", 2, "web1", "01234567", lambda: b"sealed")
        state.generation_key("www.other", 1, lambda: b"key")
        gone: list[str] = []
        unlink = Path.unlink
        monkeypatch.setattr(Path, "unlink", lambda path, **kw: (gone.append(path.name), unlink(path, **kw)))
        for _ in range(2):
            state.remove_generations("www")

            assert ["www@1.privkey.pem", "www@2.privkey.pem"] == gone[2::3]
            assert frozenset() == state.generation_numbers("www")
            assert ["www.other@1.privkey.pem"] == [p.name for p in (state.path / "generations").iterdir()]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "a..b", "A", "x\n", "/etc"])
def test_a_name_that_is_no_slug_makes_no_path(tmp_path: Path, name: str) -> None:
    """Nothing is looked up or made under a name that could lead elsewhere."""
    with StateFolder(tmp_path / "state") as state:
        for call in (
            lambda: state.account_key(name, lambda: b"key"),
            lambda: state.generation_key(name, 1, lambda: b"key"),
            lambda: state.read_generation(name, 1),
            lambda: state.generation_numbers(name),
        ):
            with pytest.raises(ValueError, match="file name"):
                call()


def test_what_an_interrupted_write_left_is_removed(tmp_path: Path) -> None:
    """A half-written key is gone at the next start; whole ones and foreign files stay."""
    with StateFolder(tmp_path / "state") as state:
        state.generation_key("www", 1, lambda: b"key")
        folder = state.path / "generations"
        left = folder / ".www@1.privkey.pem.0123456789abcdef"
        left.write_bytes(b"half a key")
        (folder / ".keep").write_bytes(b"")
    StateFolder(tmp_path / "state").close()

    assert [".keep", "www@1.privkey.pem"] == sorted(path.name for path in folder.iterdir())
