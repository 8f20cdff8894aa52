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

from tests.real.share_scenarios import SCENARIOS
from tests.unit.share_parts import NAME, WEB1, Place, bundle, is_whole, make_place, read_live

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
    """Attach strace to the running worker; return when it is attached."""
    await place.share.look()
    tracer = await asyncio.create_subprocess_exec(
        "strace",
        "-a0",
        "-o",
        str(log),
        "-e",
        f"trace={_CALLS}",
        *words,
        "-p",
        str(place.pid),
        stderr=asyncio.subprocess.PIPE,
    )
    assert tracer.stderr is not None
    assert b"attached" in await tracer.stderr.readline()
    return tracer


async def _trace_of_publish(place: Place, log: Path, number: int) -> list[str]:
    tracer = await _traced(place, log)
    await place.share.publish(WEB1, NAME, number, bundle(number))
    tracer.terminate()
    await tracer.communicate()
    return [line for line in log.read_text().splitlines() if not line.startswith("---")]


async def test_no_byte_of_a_file_is_written_before_owner_and_mode_are_final(
    place: Place, tmp_path: Path
) -> None:
    """Traced: born 0600 with O_EXCL, then the mode, then bytes, fsync; never touched after the first byte."""
    lines = await _trace_of_publish(place, tmp_path / "trace", 1)
    text = "\n".join(lines)
    births = re.findall(
        r'openat\(\d+, "([^"]+)", O_WRONLY\|O_CREAT\|O_EXCL\|O_NOFOLLOW\|O_CLOEXEC, 0600\) = (\d+)\n(.*?)close\(\2\)',
        text,
        re.DOTALL,
    )

    assert text.count("O_CREAT") == len(births) == 6
    assert sorted(re.sub(r"^\.(.*)\.[0-9a-f]{16}$", r"\1", name) for name, _, _ in births) == sorted(
        bundle(1)
    )
    for name, fd, life in births:
        calls = [
            line.split("(")[0]
            for line in life.splitlines()
            if line.split("(")[1].startswith((f"{fd},", f"{fd})"))
        ]
        assert calls == ["fchmod", "write", "fsync"], name
        assert f"fchmod({fd}, {'0640' if name == 'privkey.pem' else '0644'}) = 0" in life


def _points(trace: list[str]) -> list[tuple[str, int]]:
    """Name every call as strace counts them: by name, from 1."""
    seen: Counter[str] = Counter()
    points = []
    for line in trace:
        name = line.split("(")[0]
        seen[name] += 1
        points.append((name, seen[name]))
    # The last write is the answer, sent when all is done.
    return points[:-1]


@pytest.mark.sweep
@pytest.mark.timeout(300)
async def test_killed_at_any_system_call_of_a_publish_the_next_one_completes(
    place: Place, tmp_path: Path
) -> None:
    """SIGKILL at the n-th call, for each n: what services read is whole, and the next publish makes all of it."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    points = _points(await _trace_of_publish(place, tmp_path / "trace", 2))
    chosen = (
        points
        if os.environ.get("CERTFAN_SWEEP") == "all"
        else points[random.Random(2711).randrange(10) :: 10]
    )
    live = 2
    for number, (name, nth) in enumerate(chosen, start=3):
        tracer = await _traced(place, tmp_path / "trace", "-e", f"inject={name}:signal=KILL:when={nth}")
        call = asyncio.create_task(place.share.publish(WEB1, NAME, number, bundle(number)))
        async with asyncio.timeout(20):
            await asyncio.wait({call})
            assert call.exception() is not None, (name, nth)
            await tracer.communicate()
        found = read_live(place.root / "web1")
        assert found in (bundle(live), bundle(number)), (name, nth)
        await place.share.publish(WEB1, NAME, number, bundle(number))
        assert bundle(number) == read_live(place.root / "web1"), (name, nth)
        live = number
    print(f"\nkilled at {len(chosen)} of {len(points)} points")
    seen = await place.share.look()

    assert seen.published[NAME, "web1"] == frozenset(range(1, live + 1))
    assert len(chosen) >= len(points) // 10
    assert len(points) > 50
    assert is_whole(read_live(place.root / "web1") or {})
