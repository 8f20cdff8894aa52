"""Private files: born closed, whole or not at all, never followed through a symlink."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from certfan import files
from certfan.errors import StateLocked, StateTooOpen


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_mode_is_exact_under_any_umask(tmp_path: Path, umask: int) -> None:
    """Owner and mode come from the caller, never from the process."""
    before = os.umask(umask)
    try:
        files.write_private(tmp_path / "key", b"secret", mode=0o640)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o640
    assert (tmp_path / "key").read_bytes() == b"secret"


def test_a_file_is_replaced_whole_and_leaves_no_temporary(tmp_path: Path) -> None:
    """Writing again replaces the name, not the bytes of an open file."""
    files.write_private(tmp_path / "key", b"old")
    with (tmp_path / "key").open("rb") as reader:
        files.write_private(tmp_path / "key", b"new")

        assert reader.read() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_create_refuses_a_name_that_exists_even_as_a_dangling_symlink(tmp_path: Path) -> None:
    """A planted symlink never decides where a key goes."""
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(FileExistsError):
        files.create(tmp_path / "key", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The error names the file and the command that mends it."""
    (tmp_path / "key").write_bytes(b"secret")
    (tmp_path / "key").chmod(0o644)

    with pytest.raises(StateTooOpen, match="mode 0644") as caught:
        files.read_private(tmp_path / "key")
    assert "chmod 600" in caught.value.hint


def test_a_symlink_is_swapped_in_one_step(tmp_path: Path) -> None:
    """Replacing works over an existing link and leaves nothing else behind."""
    files.replace_symlink(tmp_path / "live", "one")
    files.replace_symlink(tmp_path / "live", "two")

    assert os.readlink(tmp_path / "live") == "two"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_second_holder_of_the_lock_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    """The lock works across processes and names its holder."""
    script = (
        "import sys\nfrom certfan import files\n"
        f"with files.locked({str(tmp_path / 'lock')!r}):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        with pytest.raises(StateLocked, match=str(holder.pid)), files.locked(tmp_path / "lock"):
            pass
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait(10)
    with files.locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("end", ["", "/", "/."])
def test_the_name_of_a_new_folder_is_durable_in_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Each folder that got a new name is synced, however the path is written; mocked, as no disk here loses its power."""
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", lambda path: synced.append(Path(path)))

    made = files.private_folder(f"{tmp_path}/a/b{end}")

    assert tmp_path / "a" / "b" == made
    assert [tmp_path, tmp_path / "a"] == synced
