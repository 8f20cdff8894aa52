"""What is written is on the disk when its sync is done; the loop goes on meanwhile, with the kernel's help or without."""

import asyncio
import errno
import gc
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Never

import pytest

from certfan import files
from certfan.daemon import disk
from certfan.daemon.disk import AT_ONCE, Disk, Then


@pytest.fixture(params=["kernel", "threads"])
async def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Disk]:
    """A disk where the kernel syncs, and one where it refuses to be asked."""
    if request.param == "threads":

        def refuse(_: int) -> Never:
            raise SystemError("Operation not permitted")

        monkeypatch.setattr(disk, "Context", refuse)
    made = Disk()
    yield made
    made.close()
    made.close()


def sync(beside: Disk, fd: int) -> asyncio.Future[None]:
    """Return what ends with the sync, in the same way."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    beside.sync(fd, lambda error: future.set_exception(error) if error else future.set_result(None))
    return future


async def test_more_syncs_than_the_kernel_takes_at_once_all_end(either: Disk, tmp_path: Path) -> None:
    """Those above its limit wait in threads."""
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x")
        file.flush()
        async with asyncio.timeout(60):
            await asyncio.gather(*(sync(either, file.fileno()) for _ in range(2 * AT_ONCE)))


async def test_a_sync_that_fails_says_why_and_takes_no_other_along(either: Disk, tmp_path: Path) -> None:
    """A pipe cannot be synced and a closed file is none; the file beside them is."""
    reading, writing = os.pipe()
    with (tmp_path / "file").open("wb") as file:
        closed = os.dup(file.fileno())
        os.close(closed)
        syncs = [sync(either, fd) for fd in (writing, file.fileno(), closed, file.fileno())]
        async with asyncio.timeout(60):
            await asyncio.wait(syncs)
    os.close(reading)
    os.close(writing)

    found = [sync.exception() for sync in syncs]
    codes = [one.errno if isinstance(one, OSError) else one for one in found]
    assert [errno.EINVAL, None, errno.EBADF, None] == codes


async def test_a_file_of_its_own_is_synced_whole_and_one_that_grows_without_its_times(
    either: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a new file its mode and its owner count too; of the store's log, only what it holds."""
    asked: list[str] = []

    def noting(where: Any, name: str, told: str) -> Callable[[int], Any]:
        real = getattr(where, name)

        def note(fd: int) -> Any:
            asked.append(told)
            return real(fd)

        return note

    class Noting:
        fsync = staticmethod(noting(disk.Operation, "fsync", "whole"))
        fdsync = staticmethod(noting(disk.Operation, "fdsync", "contents"))

    monkeypatch.setattr(disk, "Operation", Noting)
    monkeypatch.setattr(os, "fsync", noting(os, "fsync", "whole"))
    monkeypatch.setattr(os, "fdatasync", noting(os, "fdatasync", "contents"))

    await either.run(files.write_private, tmp_path / "key.pem", b"secret")
    with (tmp_path / "key.pem").open("r+b") as file:
        await sync(either, file.fileno())

    assert ["whole", "whole", "contents"] == asked


async def test_code_that_writes_files_waits_on_the_loop_and_others_run(either: Disk, tmp_path: Path) -> None:
    """No thread runs it, and while it waits for the disk another task gets its turn."""
    told: list[str] = []
    before = files.syncing.get()

    def write() -> int:
        files.write_private(tmp_path / "key.pem", b"secret")
        told.append("written")
        return threading.get_ident()

    async def other() -> None:
        told.append("other")

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        written = group.create_task(either.run(write))
        group.create_task(other())

    assert ["other", "written"] == told
    assert threading.get_ident() == written.result()
    assert b"secret" == files.read_private(tmp_path / "key.pem")
    assert before is files.syncing.get()


async def test_cut_off_while_it_waits_it_leaves_the_old_file_and_nothing_else(
    either: Disk, tmp_path: Path
) -> None:
    """Cancelled before the new file is on the disk, it has not taken the old one's name."""
    files.write_private(tmp_path / "key.pem", b"old")
    task = asyncio.create_task(either.run(files.write_private, tmp_path / "key.pem", b"new"))
    await asyncio.sleep(0)  # it has written, and waits
    there = {path.name for path in tmp_path.iterdir()}
    task.cancel()
    await asyncio.wait([task])

    assert 2 == len(there) and task.cancelled()
    assert {"key.pem": b"old"} == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


async def test_several_files_are_synced_beside_each_other(either: Disk, tmp_path: Path) -> None:
    """A new file and its folder are on the disk after one wait; one that is not durable is not there."""
    async with asyncio.timeout(60):
        with files.opened_folder(tmp_path) as folder:
            await either.run(files.write_new, "key.pem", b"secret", folder)
        with pytest.raises(OSError, match="descriptor"):
            await either.run(files.write_new, "other.pem", b"", folder)

    assert {"key.pem": b"secret"} == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert 0o600 == stat.S_IMODE((tmp_path / "key.pem").stat().st_mode)


async def test_a_new_file_has_its_name_while_it_waits_and_is_gone_when_cut_off(
    either: Disk, tmp_path: Path
) -> None:
    """A process that dies leaves it whole; one that gives up leaves nothing that could be taken for durable."""
    with files.opened_folder(tmp_path) as folder:
        task = asyncio.create_task(either.run(files.write_new, "key.pem", b"secret", folder))
        await asyncio.sleep(0)  # it has written, and waits
        there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        task.cancel()
        await asyncio.wait([task])

    assert {"key.pem": b"secret"} == there and task.cancelled()
    assert [] == list(tmp_path.iterdir())


async def test_what_is_asked_close_together_is_asked_of_the_disk_at_once(
    either: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that several are in once for all; of whoever was cut off meanwhile nothing, as its file is closed."""
    asked: list[int] = []
    begin = either._begin

    def noting(fds: Sequence[int], thens: Sequence[Then], **how: bool) -> None:
        asked.append(len(fds))
        begin(fds, thens, **how)

    monkeypatch.setattr(either, "_begin", noting)
    names = [f"{number}.pem" for number in range(3)]
    with files.opened_folder(tmp_path) as folder:
        tasks = [asyncio.create_task(either.run(files.write_new, name, b"secret", folder)) for name in names]
        await asyncio.sleep(0)  # they have written, and wait
        tasks[0].cancel()
        async with asyncio.timeout(60):
            await asyncio.wait(tasks)

    assert [3] == asked  # two files and their folder
    assert [False, False] == [task.cancelled() for task in tasks[1:]]
    assert names[1:] == sorted(path.name for path in tmp_path.iterdir())


async def test_two_may_wait_for_the_same_folder(either: Disk, tmp_path: Path) -> None:
    """Each of them hears of it, though it is asked for once."""
    with files.opened_folder(tmp_path) as folder:
        waiting = [either.run(files.sync_folder, ".", dir_fd=folder) for _ in range(2)]
        async with asyncio.timeout(60):
            assert [None, None] == await asyncio.gather(*waiting)


def test_what_the_kernel_could_not_write_is_told_as_an_error() -> None:
    """With its number, which comes without a sign."""
    told: list[BaseException | None] = []
    for result in (0, 2**64 - errno.EIO):
        disk._end(told.append, result)

    assert (None, errno.EIO) == (told[0], told[1].errno if isinstance(told[1], OSError) else None)


async def test_a_sync_that_has_ended_leaves_nothing_to_the_collector(either: Disk, tmp_path: Path) -> None:
    """There are thousands of them, and each pass of the collector holds up everybody."""
    gc.collect()
    gc.disable()
    try:
        async with asyncio.timeout(60):
            with files.opened_folder(tmp_path) as folder:
                await either.run(files.write_new, "key.pem", b"secret", folder)
                await sync(either, folder)
        await asyncio.sleep(0)  # what is under way here lets go of it

        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left, gc.garbage[:] = [repr(one) for one in gc.garbage], []
        assert [] == left
    finally:
        gc.set_debug(0)
        gc.enable()


@pytest.mark.parametrize(("write", "failing"), [("old", 0), ("new", 0), ("new", 1)])
async def test_an_error_of_the_disk_reaches_the_code_that_wrote(
    tmp_path: Path, write: str, failing: int
) -> None:
    """It is an OSError there, as it would be without the loop, also of one sync among several; no new file is left."""
    made = Disk()

    def broken(_: object, thens: Sequence[Then]) -> None:
        for number, then in enumerate(thens):
            then(OSError(errno.EIO, "Input/output error") if number == failing else None)

    made._begin = broken  # type: ignore[method-assign]
    with files.opened_folder(tmp_path) as folder, pytest.raises(OSError, match="Input/output"):
        if write == "new":
            await made.run(files.write_new, "key.pem", b"new", folder)
        else:
            await made.run(files.write_private, tmp_path / "key.pem", b"new")
    made.close()

    assert [] == list(tmp_path.iterdir())
