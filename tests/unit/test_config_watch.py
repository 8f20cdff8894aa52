"""A running daemon's config: what is noticed, what is taken over, and what leaves the good one in force."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from certfan.daemon.config import loading as config
from certfan.daemon.config.watch import ConfigWatch, Loaded

MAIN = """
fleet = "example"
[share]
path = "/srv/le"
[http01]
listen = ["127.0.0.1:8055"]
[channel]
listen = ["127.0.0.1:8057"]
[authority.pebble]
directory = "https://ca.int:14000/dir"
agree_to_terms = true
[consumer.web1]
"""


def certificate(name: str) -> str:
    return f'[[certificate]]\nnames = ["{name}"]\nconsumers = ["web1"]\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "certfan.toml"
    path.write_text(MAIN)
    return path


@contextlib.asynccontextmanager
async def watching(path: Path, every: float = 5.0) -> AsyncIterator[asyncio.Queue[Loaded]]:
    """Run a watch; what it yields arrives in a queue."""
    seen: asyncio.Queue[Loaded] = asyncio.Queue()
    watch = ConfigWatch(config.load(path), every=every)

    async def run() -> None:
        async for loaded in watch.changes():
            seen.put_nowait(loaded)

    task = asyncio.create_task(run())
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def soon(seen: asyncio.Queue[Loaded]) -> Loaded:
    return await asyncio.wait_for(seen.get(), 7)


def names(loaded: Loaded) -> set[str]:
    assert loaded.config is not None
    return set(loaded.config.desired.certificates)


async def test_a_saved_change_is_taken_over_without_waiting_for_the_timer(path: Path) -> None:
    """An editor writes a new file and renames it over the old one; the folder's notification tells."""
    async with watching(path, every=60) as seen:
        save(path, "first.test")
        await soon(seen)

        told = await until_told(seen, lambda n: save(path, f"n{n}.test"))

        assert names(told).isdisjoint({"first.test"})


async def until_told(seen: asyncio.Queue[Loaded], change: Callable[[int], None]) -> Loaded:
    """Make changes until one is told: the first may come before the watch is armed."""
    for number in range(20):
        change(number)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(seen.get(), 0.5)
    raise AssertionError("no change was told")


def save(path: Path, name: str, main: str = MAIN) -> None:
    draft = path.with_name(".certfan.toml.tmp")
    draft.write_text(main + certificate(name))
    draft.replace(path)


async def test_a_conf_d_that_appears_later_is_watched_too(path: Path) -> None:
    """The folder need not be there at start; from then on its files count, without waiting for the timer."""
    folder = path.parent / "conf.d"
    async with watching(path, every=60) as seen:
        save(path, "first.test")
        await soon(seen)
        folder.mkdir()
        (folder / "a.toml").write_text(certificate("a.test"))
        # Whether or not the watch was armed when the folder came, a change beside it is told.
        told = await until_told(seen, lambda n: save(path, f"n{n}.test"))
        assert "a.test" in names(told)

        while "b.test" not in names(told):
            told = await until_told(seen, lambda n: save(folder / "b.toml", "b.test", main=f"# {n}\n"))


async def test_a_folder_that_was_away_is_watched_again(path: Path) -> None:
    """Restoring /etc/certfan from a backup replaces the folder itself."""
    path.parent.joinpath("etc").mkdir()
    inner = path.rename(path.parent / "etc" / path.name)
    async with watching(inner, 0.1) as seen:
        inner.parent.rename(inner.parent.with_name("old"))
        assert "cannot be read" in (await soon(seen)).problems[0].detail
        inner.parent.mkdir()
        inner.write_text(MAIN + certificate("a.test"))

        while not (loaded := await soon(seen)).config:  # half of it may be seen first
            pass
        assert names(loaded) == {"a.test"}


async def test_a_change_behind_a_symlink_is_noticed(path: Path) -> None:
    """Inotify on the folder says nothing about a target elsewhere; the timer does."""
    target = path.parent / "elsewhere"
    target.mkdir()
    real = path.rename(target / path.name)
    path.symlink_to(real)
    async with watching(path, 0.1) as seen:
        real.write_text(MAIN + certificate("a.test"))

        while not (loaded := await soon(seen)).config:
            pass
        assert names(loaded) == {"a.test"}


async def test_a_bad_config_leaves_the_good_one_in_force(path: Path) -> None:
    """Problems are told once, and told to be gone when the file is good again, even if nothing else changed."""
    watch = ConfigWatch(config.load(path))
    path.write_text(MAIN.replace("fleet", "flet"))
    bad = await watch.look()
    again = await watch.look(force=True)
    path.write_text(MAIN)

    good = await watch.look(force=True)

    assert bad is not None
    assert bad.config is None
    assert {f"{path}: fleet: is missing", f'{path}: flet: unknown key, did you mean "fleet"?'} == {
        problem.detail for problem in bad.problems
    }
    assert again is None
    assert good is not None
    assert good.problems == ()


async def test_the_same_values_again_do_nothing(path: Path) -> None:
    """A touch, a comment or a rewrite with the same content is no change."""
    watch = ConfigWatch(config.load(path))
    path.write_text("# a comment\n" + MAIN)
    commented = await watch.look(force=True)
    os.utime(path, (0, 0))

    touched = await watch.look()

    assert commented is None
    assert touched is None


async def test_a_change_is_told_once_and_its_undoing_too(path: Path) -> None:
    """What counts is the difference to the config in force, which is the last good one."""
    watch = ConfigWatch(config.load(path))
    path.write_text(MAIN + certificate("a.test"))
    told = await watch.look(force=True)
    again = await watch.look(force=True)
    path.write_text(MAIN)

    undone = await watch.look(force=True)

    assert told is not None
    assert again is None
    assert undone is not None
    assert names(undone) == set()


async def test_an_untouched_file_is_not_read_again(path: Path) -> None:
    """Between notifications a look costs a stat of each file, no parsing."""
    watch = ConfigWatch(config.load(path))
    await watch.look()
    about = path.stat()
    path.write_text(MAIN.replace("web1", "web2"))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))

    noticed = await watch.look()

    assert noticed is not None, "ctime cannot be set back"


async def test_a_file_that_others_may_write_is_not_taken_over(path: Path) -> None:
    """A mode is a problem as good as a wrong value, and heals as one."""
    watch = ConfigWatch(config.load(path))
    path.write_text(MAIN + certificate("a.test"))
    path.chmod(0o666)
    refused = await watch.look()
    path.chmod(0o644)

    healed = await watch.look()

    assert refused is not None
    assert [p.code for p in refused.problems] == ["config.too_open"]
    assert healed is not None
    assert names(healed) == {"a.test"}


async def test_a_changed_listener_waits_for_a_restart(path: Path) -> None:
    """The rest of the file is in force at once; the listener is named until it is written back."""
    watch = ConfigWatch(config.load(path))
    path.write_text(MAIN.replace("8055", "8155") + certificate("a.test"))
    loaded = await watch.look()
    path.write_text(MAIN + certificate("a.test"))

    back = await watch.look(force=True)

    assert loaded is not None
    assert names(loaded) == {"a.test"}
    assert [
        ("config.needs_restart", f"{path}: http01.listen has changed, and takes effect after a restart")
    ] == [(p.code, p.detail) for p in loaded.problems]
    assert back is not None
    assert back.problems == ()


async def test_cancelling_ends_the_watch_at_once(path: Path) -> None:
    """No thread is left behind that a stopping daemon would wait for."""
    async with watching(path) as seen:
        path.write_text(MAIN + certificate("a.test"))
        await soon(seen)
        began = asyncio.get_running_loop().time()

    assert asyncio.get_running_loop().time() - began < 1
