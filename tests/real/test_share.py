"""The share against the kernel: mounts that change, every system call of a publish, and real GlusterFS."""

import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from certfan.agent.shelf import Shelf
from certfan.errors import BundleInvalid, ShareUnavailable
from certfan.protocol import manifest
from certfan.share_worker.tree import Folder
from tests.real.share_scenarios import SCENARIOS
from tests.unit.share_parts import NAME, WEB1, Place, bundle, is_whole, make_place, read_live, sealed

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting and tracing need root"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

_CALLS = (
    "mkdirat,openat,fchown,fchmod,write,fsync,close,renameat,symlinkat,unlinkat,newfstatat,fstat,getdents64"
)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = make_place(tmp_path)
    yield place
    await place.share.stop()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_mount_changes(scenario: str, tmp_path: Path) -> None:
    """Read-only, full, unmounted, never mounted: each is named, nothing lands in the wrong place, each heals."""
    argv = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        sys.executable,
        "-m",
        "tests.real.share_scenarios",
    ]
    done = subprocess.run(
        [*argv, scenario, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


async def _traced(place: Place, log: Path, *words: str) -> asyncio.subprocess.Process:
    """Attach strace to the running worker and all its threads to come; return when it is attached."""
    await place.share.look()
    return await _attached(place.pid, log, *words)


async def _attached(pid: int, log: Path, *words: str) -> asyncio.subprocess.Process:
    tracer = await asyncio.create_subprocess_exec(
        "strace",
        "-a0",
        "-ff",
        "-o",
        str(log),
        "-e",
        f"trace={_CALLS}",
        *words,
        "-p",
        str(pid),
        stderr=asyncio.subprocess.PIPE,
    )
    assert tracer.stderr is not None
    while b"attached" not in await tracer.stderr.readline():
        pass  # it also says how it understood a path
    return tracer


async def _trace_of_publish(place: Place, log: Path, number: int, files: dict[str, bytes]) -> list[list[str]]:
    """Return the calls of the worker's own thread, then those for each file, then the fsync of each folder beside it."""
    tracer = await _traced(place, log)
    await place.share.publish(WEB1, NAME, number, files)
    tracer.terminate()
    await tracer.communicate()
    own, others = log.with_name(f"{log.name}.{place.pid}"), log.parent.glob(f"{log.name}.*")
    lives: list[list[str]] = []
    for file in sorted(others):
        lines = [line for line in file.read_text().splitlines() if not line.startswith(("---", "+++"))]
        if file == own:
            lives.insert(0, lines)
            continue
        # A thread of the pool takes one call after the other: a file from its birth to its end, or a folder's fsync.
        at = 0
        while at < len(lines):
            end = next(n for n in range(at, len(lines)) if lines[n].startswith(("close", "fsync")))
            end += lines[end].startswith("fsync") and end > at
            lives.append(lines[at : end + 1])
            at = end + 1
    return [lives[0], *sorted(lives[1:], key=lambda life: life[0].startswith("fsync"))]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_no_byte_of_a_file_is_written_before_owner_and_mode_are_final(
    tmp_path: Path, umask: int
) -> None:
    """Traced under several umasks: born 0600 with O_EXCL, then the mode, then bytes, fsync; never touched afterwards."""
    before = os.umask(umask)
    try:
        place = make_place(tmp_path)
        traces = await _trace_of_publish(place, tmp_path / "trace", 1, bundle(1))
        await place.share.stop()
    finally:
        os.umask(before)
    born = {}
    assert [1, 1, 1] == [len(trace) for trace in traces[-3:]]
    for trace in traces[1:-3]:
        match = re.fullmatch(
            r'openat\(\d+, "([^"]+)", O_WRONLY\|O_CREAT\|O_EXCL\|O_NOFOLLOW\|O_CLOEXEC, 0600\) = (\d+)',
            trace[0],
        )
        assert match, trace
        born[re.sub(r"^\.(.*)\.[0-9a-f]{16}$", r"\1", match[1])] = (match[2], trace[1:])

    assert set(bundle(1)) == born.keys()
    assert "O_CREAT" not in "\n".join(traces[0])
    assert "fchmod" not in "\n".join(traces[0])
    for name, (fd, life) in born.items():
        assert ["fchmod", "write", "fsync", "close"] == [line.split("(")[0] for line in life], name
        assert f"fchmod({fd}, {'0640' if name == 'privkey.pem' else '0644'}) = 0" == life[0]


def _points(traces: list[list[str]], folder: Path, place: Place) -> list[tuple[str, ...]]:
    """Name every call in strace's words: of the worker itself by name and count, fsyncs and what is for a file by path."""
    seen: Counter[str] = Counter()
    points: list[tuple[str, ...]] = []
    for line in traces[0]:
        name = line.split("(")[0]
        seen[name] += 1
        if name != "fsync":  # that one is done beside it too
            points.append(("-e", f"inject={name}:signal=KILL:when={seen[name]}"))
    # The last write is the answer, sent when all is done.
    points.pop()
    points += [
        ("-P", str(synced), "-e", "inject=fsync:signal=KILL:when=1")
        for synced in (folder, place.files(1).parent, place.files(1).parents[1], place.root / "web1/live")
    ]
    for trace in traces[1:-3]:
        file = trace[0].split('"')[1]
        if not file.startswith("."):  # a random name cannot be told in advance
            calls = [line.split("(")[0] for line in trace]
            points += [
                ("-P", file, "-P", str(folder / file), "-e", f"inject={name}:signal=KILL:when=1")
                for name in calls
            ]
    return points


@pytest.mark.sweep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sealing", [False, True])
async def test_killed_at_any_system_call_of_a_publish_the_next_one_completes(
    place: Place, tmp_path: Path, sealing: bool
) -> None:
    """SIGKILL at the n-th call, for each n: what services read is whole, and the next publish makes all of it.

    Each publish is the next generation, or the next sealing of the same one.
    """

    def contents(publish: int) -> tuple[int, dict[str, bytes]]:
        return (7, sealed(7, f"sealing {publish}")) if sealing else (publish, bundle(publish))

    def folder(publish: int) -> Folder:
        number, files = contents(publish)
        return Folder(number, manifest.bundle_of(files))

    await place.share.publish(WEB1, NAME, *contents(1))
    traces = await _trace_of_publish(place, tmp_path / "trace", *contents(2))
    points = _points(traces, Path("GENERATION"), place)
    chosen = (
        points
        if os.environ.get("CERTFAN_SWEEP") == "all"
        else points[random.Random(2711).randrange(10) :: 10]
    )
    live = 2
    for number, point in enumerate(chosen, start=3):
        where = place.files(number).with_name(str(folder(number)))
        words = [word.replace("GENERATION", str(where)) for word in point]
        tracer = await _traced(place, tmp_path / "trace", *words)
        call = asyncio.create_task(place.share.publish(WEB1, NAME, *contents(number)))
        async with asyncio.timeout(20):
            await asyncio.wait({call})
            assert call.exception() is not None, point
            await tracer.communicate()
        found = read_live(place.root / "web1")
        assert found in (contents(live)[1], contents(number)[1]), point
        await place.share.publish(WEB1, NAME, *contents(number))
        assert contents(number)[1] == read_live(place.root / "web1"), point
        live = number
    print(f"\nkilled at {len(chosen)} of {len(points)} points")
    seen = await place.share.look()

    assert seen.published[NAME, "web1"] == frozenset(map(folder, range(1, live + 1)))
    assert len(chosen) >= len(points) // 10
    assert len(points) > 50
    assert is_whole(read_live(place.root / "web1") or {})


@pytest.mark.parametrize("error", ["ESTALE", "ENOENT"])
async def test_a_reader_outlives_what_another_mount_changed(place: Place, tmp_path: Path, error: str) -> None:
    """One failing call, whichever it is, costs a second try; a call that fails every time is told as what it is."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    shelf = Shelf(place.root, "web1", tmp_path / "shelf.lock")
    await shelf.read(NAME, 1)
    inside = ["-P", str(place.files(1)), *(word for name in bundle(1) for word in ("-P", name))]
    for nth in range(1, 7):
        tracer = await _attached(
            _pid(shelf), tmp_path / "trace", *inside, "-e", f"inject=openat:error={error}:when={nth}"
        )
        found = await shelf.read(NAME, 1)
        tracer.terminate()
        await tracer.communicate()
        assert bundle(1) == found, nth
    tracer = await _attached(
        _pid(shelf), tmp_path / "trace", *inside, "-e", f"inject=openat:error={error}:when=1+"
    )
    with pytest.raises(ShareUnavailable if error == "ESTALE" else BundleInvalid):
        await shelf.read(NAME, 1)
    tracer.terminate()
    await tracer.communicate()

    assert bundle(1) == await shelf.read(NAME, 1)
    await shelf.stop()


def _pid(shelf: Shelf) -> int:
    assert shelf._worker.pid is not None
    return shelf._worker.pid
