"""`certfan backup` and `restore`: what is in the archive, and what is refused rather than half done."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sqlite3
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certfan.daemon.backup import ABOUT, DATABASE, SUMS, archived, verify
from certfan.daemon.restoring import restore
from certfan.daemon.state import StateFolder
from certfan.daemon.status.control import backup as backup_control
from certfan.daemon.status.control.backup import backup_routes
from certfan.daemon.store import Event, Store
from certfan.errors import ActionRefused, BackupInvalid, StateLocked, StateTooOpen
from tests.unit.command import certfan
from tests.unit.status_parts import Admin, control_socket
from tests.unit.test_config_watch import MAIN

NOW = datetime(2026, 11, 25, 19, tzinfo=UTC)
KEY = b"-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n"


async def lived_in(folder: Path) -> Path:
    """A state folder with an event, an account, a CA's file and a generation."""
    with StateFolder(folder) as state:
        store = await Store.open(state.database, lambda: NOW)
        await store.add_events([Event(NOW, "it.happened", "yesterday")])
        await store.close()
        state.account_key("pebble", lambda: KEY)
        state.generation_key("www.test", 7, lambda: KEY)
        state.save_chain("www.test", 7, b"ch")
        (state.ca / "ca.pem").touch(mode=0o600)
    return folder


def archive_of(state: Path) -> bytes:
    with archived(state, "example", NOW) as (source, _):
        return source.read()


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with mode and contents, the database and the lock apart."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode & 0o7777, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("certfan.")
    }


async def test_what_was_archived_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every key and chain, closed, and the journal; a store opens it."""
    state = await lived_in(tmp_path / "state")
    about = restore(io.BytesIO(archive_of(state)), tmp_path / "new", fleet="example")

    assert ("example", NOW, 6) == (about.fleet, about.made_at, about.files)
    assert tree(state) == tree(tmp_path / "new")
    assert {0o600} == {mode for mode, _ in tree(tmp_path / "new").values()}
    assert {0o700} == {p.stat().st_mode & 0o7777 for p in (tmp_path / "new").rglob("*") if p.is_dir()}
    store = await Store.open(tmp_path / "new" / DATABASE, lambda: NOW)
    assert ["yesterday"] == [event.subject for event in await store.last_events(5)]
    await store.close()


async def test_a_database_that_is_written_to_is_copied_at_one_instant(tmp_path: Path) -> None:
    """With all that was durable before, also what only its log has."""
    state = await lived_in(tmp_path / "state")
    store = await Store.open(state / DATABASE, lambda: NOW)
    await store.add_events([Event(NOW, "it.happened", "just now")])
    writing = asyncio.create_task(
        store.add_events([Event(NOW, "it.happened", str(number)) for number in range(1000)])
    )
    archive = await asyncio.to_thread(archive_of, state)
    await writing
    await store.close()

    restore(io.BytesIO(archive), tmp_path / "new", fleet="example")
    with sqlite3.connect(tmp_path / "new" / DATABASE) as db:
        subjects = {subject for (subject,) in db.execute("SELECT subject FROM events")}
    assert {"yesterday", "just now"} <= subjects
    assert len(subjects) in {2, 1002}


async def test_nothing_of_a_backup_is_left_in_the_state_folder(tmp_path: Path) -> None:
    """Neither of one that ended nor, after the next start, of one that was cut short."""
    state = await lived_in(tmp_path / "state")
    archive_of(state)
    left = state / ".backup.0123456789abcdef"
    assert [] == list(state.glob(".*"))

    left.mkdir(mode=0o700)
    (left / DATABASE).touch()
    with StateFolder(state):
        assert not left.exists()


async def test_a_key_that_others_may_read_is_in_no_backup(tmp_path: Path) -> None:
    """It is told instead."""
    state = await lived_in(tmp_path / "state")
    (state / "accounts" / "pebble.pem").chmod(0o644)

    with pytest.raises(StateTooOpen):
        archive_of(state)


def altered(archive: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """Pack an archive anew, each member as `change` has it; the sums stay those of before."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            source = old.extractfile(member)
            assert source is not None
            if (found := change(member.name, source.read())) is not None:
                name, data = found
                told = tarfile.TarInfo(name)
                told.size = len(data)
                new.addfile(told, io.BytesIO(data))
    return out.getvalue()


def with_sums(archive: bytes, name: str) -> bytes:
    """Give the first account's key another name, and the sums with it."""
    sums = {}

    def change(old: str, data: bytes) -> tuple[str, bytes]:
        called = name if old.startswith("accounts/") else old
        if old == SUMS:
            return old, "".join(f"{digest}  {one}\n" for one, digest in sums.items()).encode()
        sums[called] = hashlib.sha256(data).hexdigest()
        return called, data

    return altered(archive, change)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"nothing of the kind",
        lambda whole: b"",
        lambda whole: altered(whole, lambda name, data: None if name == SUMS else (name, data)),
        lambda whole: altered(whole, lambda name, data: None if name == DATABASE else (name, data)),
        lambda whole: altered(
            whole, lambda name, data: (name, data + b" ") if "privkey" in name else (name, data)
        ),
        lambda whole: altered(
            whole,
            lambda name, data: (
                (
                    name,
                    json.dumps(
                        {"format": 99, "fleet": "example", "version": "9", "made_at": NOW.isoformat()}
                    ).encode(),
                )
                if name == ABOUT
                else (name, data)
            ),
        ),
        *(
            (lambda whole, name=name: with_sums(whole, name))
            for name in (
                "../evil",
                "/etc/evil",
                "accounts/../../evil",
                "accounts/.evil",
                "certfan.lock",
                "a/b",
            )
        ),
    ],
)
async def test_an_archive_that_is_not_whole_changes_nothing(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    """Cut, altered, foreign, newer, or with names that lead elsewhere: refused, and nothing is left of the try."""
    state = await lived_in(tmp_path / "state")
    spoilt = spoil(archive_of(state))

    with pytest.raises(BackupInvalid):
        verify(io.BytesIO(spoilt))
    with pytest.raises(BackupInvalid):
        restore(io.BytesIO(spoilt), tmp_path / "new", fleet="example")
    assert ["state"] == [path.name for path in tmp_path.iterdir()]


async def test_links_and_devices_are_no_members(tmp_path: Path) -> None:
    """A symlink in an archive would lead a later member out of the folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        link = tarfile.TarInfo("accounts/x")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)

    with pytest.raises(BackupInvalid, match="which no backup does"):
        verify(io.BytesIO(out.getvalue()))


async def test_restore_refuses_a_live_daemon_a_full_folder_and_another_fleet(tmp_path: Path) -> None:
    """And leaves what is there as it is."""
    state = await lived_in(tmp_path / "state")
    archive = archive_of(state)
    before = tree(state)
    empty = tmp_path / "empty"

    with StateFolder(state), pytest.raises(StateLocked):
        restore(io.BytesIO(archive), state, fleet="example")
    with pytest.raises(ActionRefused, match="is not empty"):
        restore(io.BytesIO(archive), state, fleet="example")
    with pytest.raises(ActionRefused, match="fleet example"):
        restore(io.BytesIO(archive), empty, fleet="other")
    assert (before, False) == (tree(state), empty.exists())


async def test_an_empty_folder_is_taken_over(tmp_path: Path) -> None:
    """As systemd makes it, also when a daemon has once tried to start there; the owner gets all of it."""
    state = await lived_in(tmp_path / "state")
    new = tmp_path / "new"
    new.mkdir(mode=0o755)
    restore(io.BytesIO(archive_of(state)), new, fleet="example", owner=(12345, 12346))

    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (new, *new.rglob("*"))}
    assert ({(12345, 12346)}, 0o700) == (owners, new.stat().st_mode & 0o7777)


def config_of(folder: Path) -> Path:
    path = folder / "certfan.toml"
    text = MAIN.replace('fleet = "example"', f'fleet = "example"\nstate = "{folder}/state"')
    path.write_text(f'{text}[control]\nsocket = "{folder}/control.sock"\n')
    return path


async def test_a_backup_of_a_running_daemon_goes_over_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file, closed, read again before it has its name; it stands in the journal who took it."""
    monkeypatch.setattr(backup_control, "caller", lambda _: 0)  # it would be whoever runs the tests
    state = await lived_in(tmp_path / "state")
    told: list[tuple[str, object]] = []

    class Notes:
        async def note(self, name: str, _: str, **fields: object) -> None:
            told.append((name, fields["files"]))

    routes = backup_routes(lambda: archived(state, "example", NOW), Notes())  # type: ignore[arg-type]
    file = tmp_path / "certfan.tar"
    async with control_socket(tmp_path, Admin(), others=routes):
        argv = ("backup", str(file), "--config", str(config_of(tmp_path)))
        done = await asyncio.to_thread(certfan, *argv)
        again = await asyncio.to_thread(certfan, *argv)

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith(f"{file}: 6 files of fleet example, ")
    assert (1, f"certfan: error: {file} exists") == (again.returncode, again.stderr.splitlines()[0])
    assert (0o600, [("backup.taken", 6)]) == (file.stat().st_mode & 0o7777, told)
    assert 6 == verify(io.BytesIO(file.read_bytes())).files


async def test_only_root_takes_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every private key is in it; the group of the socket is not enough, and no file is left."""
    monkeypatch.setattr(backup_control, "caller", lambda _: 1000)
    routes = backup_routes(lambda: archived(tmp_path, "example", NOW), None)  # type: ignore[arg-type]
    file = tmp_path / "certfan.tar"
    async with control_socket(tmp_path, Admin(), others=routes) as config:
        done = await asyncio.to_thread(certfan, "backup", str(file), "--config", str(config))

    assert 77 == done.returncode
    assert done.stderr.startswith("certfan: error: only root may take a backup")
    assert [] == [path.name for path in tmp_path.iterdir() if "tar" in path.name]


async def test_a_daemon_that_is_off_can_be_backed_up_and_restored(tmp_path: Path) -> None:
    """With its folder locked meanwhile; a second restore finds the folder full."""
    await lived_in(tmp_path / "state")
    config, file = str(config_of(tmp_path)), str(tmp_path / "certfan.tar")
    taken = await asyncio.to_thread(certfan, "backup", file, "--config", config, "--json")
    before = tree(tmp_path / "state")
    (tmp_path / "state").rename(tmp_path / "old")
    words = ("restore", file, "--user", str(os.getuid()), "--config", config)
    restored = await asyncio.to_thread(certfan, *words)
    again = await asyncio.to_thread(certfan, *words)

    assert (0, 6) == (taken.returncode, json.loads(taken.stdout)["files"])
    assert (0, "") == (restored.returncode, restored.stderr)
    assert before == tree(tmp_path / "state")
    assert (1, True) == (again.returncode, "is not empty" in again.stderr)
