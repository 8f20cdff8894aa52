"""The share's child process: deadlines, the breaker, death at any point, and what it promises the next one."""

import asyncio
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from certfan import pki
from certfan.agent.shelf import Shelf
from certfan.core.model import Custody
from certfan.daemon.share.share import Share
from certfan.errors import BundleInvalid, InternalError, ShareError, ShareUnavailable
from certfan.protocol import manifest
from certfan.share_worker.client import ShareWorker
from certfan.share_worker.frames import Decoder, Frame, encode
from certfan.share_worker.tree import Folder
from tests.unit.share_parts import NAME, WEB1, Place, bundle, is_whole, make_place, now, read_live

_SHORT = timedelta(milliseconds=150)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = make_place(tmp_path)
    yield place
    await place.share.stop()


@pytest.fixture
async def worker(place: Place) -> AsyncIterator[ShareWorker]:
    worker = ShareWorker(place.root, lock=place.state / "worker.lock", writable=True)
    await worker.start()
    yield worker
    await worker.stop()


def _pid(worker: ShareWorker) -> int:
    assert worker.pid is not None
    return worker.pid


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_frames_survive_any_cut(cut: int) -> None:
    """However the pipe cuts the stream, the same frames come out, bytes that look like JSON included."""
    sent = [
        Frame({"n": 1}, {}),
        Frame({"n": 2}, {"a": b"\0{}\xff" * 99, "empty": b""}),
        Frame({}, {"b": b"x"}),
    ]
    stream = b"".join(encode(*frame) for frame in sent)
    decoder = Decoder()

    assert sent == [f for at in range(0, len(stream), cut) for f in decoder.feed(stream[at : at + cut])]


def test_a_stream_that_is_no_frames_is_refused() -> None:
    """A length that nobody would send ends the conversation instead of filling the memory."""
    with pytest.raises(ValueError, match="too long"):
        list(Decoder().feed(b"Traceback (most recent call last)"))


def test_the_child_imports_next_to_nothing() -> None:
    """It must start fast and stay small: none of the big libraries, no event loop."""
    code = "import certfan.share_worker.__main__, sys; print(*sys.modules)"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )

    assert set() == loaded & {
        "asyncio",
        "aiohttp",
        "pydantic",
        "cryptography",
        "structlog",
        "subprocess",
        "click",
    }


async def test_a_hung_call_ends_at_its_deadline_and_later_calls_at_once(worker: ShareWorker) -> None:
    """The child stops dead: the caller is freed, the loop keeps turning, the error says how to look; then it heals."""
    os.kill(_pid(worker), signal.SIGSTOP)
    began = asyncio.get_running_loop().time()
    with pytest.raises(ShareUnavailable) as caught:
        await worker.call("look", patience=_SHORT)
    took = asyncio.get_running_loop().time() - began
    again = asyncio.get_running_loop().time()
    with pytest.raises(ShareUnavailable, match="hung in the kernel"):
        await worker.call("look")
    at_once = asyncio.get_running_loop().time() - again

    assert 0.1 < took < 2
    assert at_once < 0.1
    assert f"cat /proc/{worker.pid}/wchan" in caught.value.hint
    os.kill(_pid(worker), signal.SIGCONT)
    async with asyncio.timeout(5):
        assert worker._child is not None
        await worker._child._idle.wait()
    answer = await worker.call("look")
    assert {"web1", "mail1"} == answer.header["consumers"].keys()


async def test_the_loop_turns_while_the_child_hangs(worker: ShareWorker) -> None:
    """No tick of the loop is late by more than a moment, with a request larger than the pipe on its way."""
    loop = asyncio.get_running_loop()
    os.kill(_pid(worker), signal.SIGSTOP)
    call = asyncio.create_task(
        worker.call("publish", {}, {"big": b"x" * 4_000_000}, patience=timedelta(seconds=0.4))
    )
    ticks = [loop.time()]
    while not call.done():
        await asyncio.wait({call}, timeout=0.01)
        ticks.append(loop.time())
    os.kill(_pid(worker), signal.SIGKILL)

    assert isinstance(call.exception(), ShareUnavailable)
    assert max(later - earlier for earlier, later in pairwise(ticks)) < 0.3


async def test_stop_never_waits_for_a_hung_child(worker: ShareWorker) -> None:
    """Stopping takes about a second at most, and a child that can die is dead then."""
    pid = _pid(worker)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ShareUnavailable):
        await worker.call("look", patience=_SHORT)

    async with asyncio.timeout(1.5):
        await worker.stop()
    assert not Path(f"/proc/{pid}").exists()


async def test_no_worker_starts_beside_one_that_still_lives(place: Place, worker: ShareWorker) -> None:
    """The lock is the older worker's until it has ended, hung or not; then the newer one starts."""
    other = ShareWorker(place.root, lock=place.state / "worker.lock", writable=True)
    os.kill(_pid(worker), signal.SIGSTOP)
    with pytest.raises(ShareUnavailable, match=f"held by process {worker.pid}"):
        await other.call("look")
    os.kill(_pid(worker), signal.SIGKILL)
    async with asyncio.timeout(5):
        assert worker._child is not None
        await worker._child.ended.wait()

    await other.call("look")
    await other.stop()


async def test_the_worker_ends_with_its_parent(place: Place) -> None:
    """EOF on its stdin ends the child and frees the lock, when the parent was killed -9 too."""
    lock = place.state / "share.lock"
    code = (
        "import asyncio, os, sys; from pathlib import Path; from certfan.share_worker.client import ShareWorker\n"
        "async def main():\n"
        f"    await ShareWorker(Path({str(place.root)!r}), lock=Path({str(lock)!r}), writable=True).start()\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert -signal.SIGKILL == await parent.wait()

    fd = os.open(lock, os.O_RDWR)
    async with asyncio.timeout(5):
        await asyncio.to_thread(fcntl.flock, fd, fcntl.LOCK_EX)
    os.close(fd)


async def test_a_cancelled_call_leaves_the_worker_usable(worker: ShareWorker) -> None:
    """The answer of a cancelled call is thrown away; the next call gets its own."""
    os.kill(_pid(worker), signal.SIGSTOP)
    call = asyncio.create_task(worker.call("sweep", {"before": 0}))
    await asyncio.wait({call}, timeout=0.05)
    call.cancel()
    await asyncio.wait({call})
    next_call = asyncio.create_task(worker.call("look"))
    await asyncio.wait({next_call}, timeout=0.05)
    os.kill(_pid(worker), signal.SIGCONT)

    assert "consumers" in (await next_call).header


async def test_a_dead_worker_is_replaced_at_the_next_call(worker: ShareWorker) -> None:
    """Killed during a call: that call says so, the next one works."""
    pid = _pid(worker)
    os.kill(pid, signal.SIGSTOP)
    call = asyncio.create_task(worker.call("look"))
    await asyncio.wait({call}, timeout=0.05)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ShareUnavailable, match="ended with -9"):
        await call

    assert "consumers" in (await worker.call("look")).header
    assert pid != worker.pid


async def test_a_bug_in_the_worker_is_an_internal_error(
    capfd: pytest.CaptureFixture[str], place: Place
) -> None:
    """An unknown operation is a bug: traceback in the journal, the worker goes on."""
    worker = ShareWorker(place.root, lock=place.state / "worker.lock", writable=True)
    with pytest.raises(InternalError, match="nonsense"):
        await worker.call("nonsense")

    assert "ValueError: no operation nonsense" in capfd.readouterr().err
    assert "consumers" in (await worker.call("look")).header
    await worker.stop()


async def test_killed_anywhere_publish_completes_later_and_readers_see_whole_generations(
    place: Place,
) -> None:
    """Killed -9 at a random moment of 15 publishes: the next try completes, no reader ever saw parts."""
    dice = random.Random(2711)
    halt = asyncio.Event()

    def read() -> tuple[int, list[dict[str, bytes]]]:
        torn, reads = [], 0
        while not halt.is_set() and reads < 1_000_000:
            found = read_live(place.root / "web1")
            reads += found is not None
            if found is not None and not is_whole(found):
                torn.append(found)
        return reads, torn

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(asyncio.to_thread(read), name="reader")
        try:
            killed = sum(
                [await _publish_killed(place, number, dice.uniform(0, 0.006)) for number in range(1, 16)]
            )
        finally:
            halt.set()
    reads, torn = reader.result()
    seen = await place.share.look()

    assert [] == torn
    assert killed > 3
    assert reads > 5
    assert frozenset(map(Folder, range(1, 16))) == seen.published[NAME, "web1"]
    assert f"../generations/{NAME}/15" == place.pointer()
    assert bundle(15, 60_000) == read_live(place.root / "web1")


async def _publish_killed(place: Place, number: int, after: float) -> bool:
    await place.share.look()  # the worker runs
    files = bundle(number, 60_000)
    call = asyncio.create_task(place.share.publish(WEB1, NAME, number, files))
    await asyncio.wait({call}, timeout=after)
    os.kill(place.pid, signal.SIGKILL)
    await asyncio.wait({call})
    assert place.share._worker._child is not None
    async with asyncio.timeout(5):
        await place.share._worker._child.ended.wait()
    await place.share.publish(WEB1, NAME, number, files)
    return call.exception() is not None


async def test_the_shelf_reads_a_bundle_from_the_whole_share_and_from_its_own_folder(place: Place) -> None:
    """What was published is what the agent gets, by either mount."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    shelves = [Shelf(path, "web1", place.state / "shelf.lock") for path in (place.root, place.root / "web1")]
    for shelf in shelves:
        assert bundle(1) == await shelf.read(NAME, 1)
        await shelf.stop()


async def test_a_signed_bundle_goes_over_the_share_and_opens(place: Place) -> None:
    """The real manifest is what publish takes for whole, and what the shelf gives back verifies."""
    ca = pki.InternalCA.create("home", now())
    signer = ca.issue_signer(now())
    pair = pki.load_pair(*pki.make_placeholder([NAME], now()))
    packed = manifest.pack(
        pair, pair.key_pem, fleet="home", consumer="web1", certificate=NAME, generation=1, custody=Custody.SHARE,
        signer_key_pem=signer.key_pem, signer_cert_pem=signer.cert_pem,
    )  # fmt: skip
    await place.share.publish(WEB1, NAME, 1, packed)
    shelf = Shelf(place.root, "web1", place.state / "shelf.lock")
    read = await shelf.read(NAME, 1)
    await shelf.stop()

    opened = manifest.open_bundle(
        read, ca_pem=ca.cert_pem, fleet="home", consumer="web1", certificate=NAME, generation=1, now=now()
    )
    assert pair.leaf == opened.pair().leaf
    assert (await place.share.look()).published == {(NAME, "web1"): frozenset({Folder(1)})}


async def test_files_that_their_manifest_does_not_describe_are_never_pointed_at(place: Place) -> None:
    """A bundle that is not whole by its own manifest is refused, and what was written of it is gone."""
    with pytest.raises(BundleInvalid, match="does not describe"):
        await place.share.publish(WEB1, NAME, 1, bundle(1) | {"cert.pem": b"short"})
    assert not place.files(1).exists()
    assert not (place.root / "web1" / "live" / NAME).is_symlink()


async def test_a_bundle_that_is_not_there_yet_says_so(place: Place) -> None:
    """Not published, or without its manifest: the same answer, to be asked again."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    (place.files(1) / "manifest.json").unlink()
    shelf = Shelf(place.root, "web1", place.state / "shelf.lock")

    for certificate, number in ((NAME, 1), (NAME, 2), ("mail.example.org", 1)):
        with pytest.raises(BundleInvalid, match=f"{certificate}@{number} is not on the share yet"):
            await shelf.read(certificate, number)
    await shelf.stop()


async def test_the_shelf_refuses_another_consumers_folder(place: Place) -> None:
    """mail1's folder, mounted on web1 by mistake, is named."""
    shelf = Shelf(place.root / "mail1", "web1", place.state / "shelf.lock")

    with pytest.raises(ShareUnavailable, match="consumer mail1 is mounted, not of web1"):
        await shelf.read(NAME, 1)
    await shelf.stop()


@pytest.mark.parametrize("plant", ["symlink", "fifo", "long", "many"])
async def test_the_shelf_takes_no_more_than_a_bundle(place: Place, plant: str) -> None:
    """A planted symlink, a FIFO, a file over 1 MiB, a heap of files: refused, nothing followed or waited for."""
    await place.share.publish(WEB1, NAME, 1, bundle(1))
    planted = place.files(1) / "planted.pem"
    match plant:
        case "symlink":
            planted.symlink_to("/etc/passwd")
        case "fifo":
            os.mkfifo(planted)
        case "long":
            planted.write_bytes(b"x" * ((1 << 20) + 1))
        case _:
            for number in range(20):
                (place.files(1) / f"{number}.pem").touch()
    shelf = Shelf(place.root, "web1", place.state / "shelf.lock")

    with pytest.raises(ShareError, match=r"no regular file|longer than|holds 2"):
        await shelf.read(NAME, 1)
    await shelf.stop()


async def test_a_reading_worker_writes_nothing(place: Place) -> None:
    """The agent's worker refuses to write, whatever it is asked."""
    worker = ShareWorker(place.root, lock=place.state / "reader.lock", writable=False)

    with pytest.raises(ShareUnavailable, match="only reads"):
        await worker.call("sweep", {"before": 1e12})
    await worker.stop()


async def test_a_second_daemon_on_the_same_state_is_refused(place: Place) -> None:
    """Two edges with one lock: the second is told who holds it, and both survive."""
    await place.share.look()
    second = Share(place.root, place.state / "share.lock", now)

    with pytest.raises(ShareUnavailable, match=f"held by process {place.pid}"):
        await second.look()
    await second.stop()
    await place.share.look()


async def test_a_child_that_tells_that_it_is_at_work_may_take_longer(worker: ShareWorker) -> None:
    """The deadline is one of silence: with a sign of life now and then, twice the patience passes and nothing fails."""
    assert worker._child is not None
    os.kill(_pid(worker), signal.SIGSTOP)
    call = asyncio.create_task(worker.call("look", patience=timedelta(seconds=1)))
    for _ in range(7):
        await asyncio.wait({call}, timeout=0.3)
        worker._child.pipe_data_received(1, encode({"working": True}))
    assert not call.done()
    os.kill(_pid(worker), signal.SIGCONT)

    assert "consumers" in (await call).header


async def test_a_call_without_a_sign_of_life_is_late_long_before_its_deadline(place: Place) -> None:
    """The status names a hung share while a patient call is still waiting for it."""
    await place.share.look()
    os.kill(place.pid, signal.SIGSTOP)
    call = asyncio.create_task(place.share.publish(WEB1, NAME, 1, bundle(1)))
    await asyncio.wait({call}, timeout=0.2)
    assert place.share.problem is None
    late = place.share._worker.late(_SHORT)
    os.kill(place.pid, signal.SIGCONT)
    await call

    assert late is not None
    assert f"(process {place.pid})" in late.text
    assert place.share._worker.late(timedelta(0)) is None
