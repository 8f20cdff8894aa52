"""Readers on another mount of the real volume, while the daemon's side publishes as fast as it can."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.lab.fleet import Fleet
from tests.real.share_faults import PYTHON

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

HAMMERED = "hammer.example.test"
PARTS = r"""
import asyncio, errno, hashlib, json, os, select, sys, time
from datetime import UTC, datetime
from pathlib import Path
NAMES = ("privkey.pem", "cert.pem", "chain.pem", "fullchain.pem")
def bundle(number):
    files = {name: f"{name} {number}\n".encode() * 99 for name in NAMES}
    facts = {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
    return files | {"manifest.json": json.dumps({"number": number, "files": facts}).encode(), "manifest.sig": b"signed"}
"""
# Publishes so many generations of a name of its own, as the daemon does, then takes everything away again.
PUBLISHER = r"""
from certfan.core.model import Consumer
from certfan.daemon.share.share import Share
async def main(name, count, gid):
    share = Share(Path("/srv/le"), Path("/tmp/hammer.lock"), lambda: datetime.now(UTC), require_mount=True)
    began = time.monotonic()
    for number in range(1, count + 1):
        await share.publish(Consumer("web1", group=gid), name, number, bundle(number))
        if number > 3:
            await share.retire("web1", name, number - 3)
    print(json.dumps(time.monotonic() - began), flush=True)
    sys.stdin.readline()
    await share.clear("web1", name)
    await share.stop()
asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""
# The same files by path, one renamed over the other: what must not be done, to see that the reader would tell.
CARELESS = r"""
place = Path("/srv/le/web1/live") / sys.argv[1]
place.mkdir()
for number in range(1, int(sys.argv[2]) + 1):
    for name, data in bundle(number).items():
        (place / ".new").write_bytes(data)
        (place / ".new").rename(place / name)
print("0", flush=True)
sys.stdin.readline()
for path in place.iterdir():
    path.unlink()
place.rmdir()
"""
# Opens the pointer once and reads all through that descriptor, as docs/share-format.md says, in a tight loop.
READER = r"""
GONE = {errno.ESTALE, errno.ENOENT}
seen = {"reads": 0, "torn": 0, "mixed": 0, "missing": 0, "again": 0, "highest": 0}
def read():
    fd = os.open(f"/srv/le/live/{sys.argv[1]}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = {}
        for name in (*NAMES, "manifest.json"):
            with open(os.open(name, os.O_RDONLY, dir_fd=fd), "rb") as file:
                found[name] = file.read()
        return found
    finally:
        os.close(fd)
def bounded():
    for pause in (0, 0, 0.3):
        time.sleep(pause)
        try:
            return read()
        except OSError as why:
            if why.errno not in GONE:
                raise
            seen["again"] += 1
    return None
while not os.path.lexists(f"/srv/le/live/{sys.argv[1]}"):
    time.sleep(0.01)
print("reading", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    found = bounded()
    seen["reads"] += 1
    if found is None:
        seen["missing"] += 1
        continue
    numbers = {data.split(b"\n")[0].split()[-1] for name, data in found.items() if name in NAMES and data}
    try:
        facts = json.loads(found["manifest.json"])["files"]
        whole = all(hashlib.sha256(found[name]).hexdigest() == facts[name]["sha256"] for name in NAMES)
        seen["highest"] = max(seen["highest"], json.loads(found["manifest.json"])["number"])
    except ValueError:
        whole = False
    seen["mixed"] += len(numbers) != 1
    seen["torn"] += len(numbers) == 1 and not whole
print(json.dumps(seen), flush=True)
"""


def _hammer(fleet: Fleet, writer: str, count: int) -> tuple[float, dict[str, int]]:
    """Let a writer work on cert and the reader on web1; return the writer's seconds, and what the reader saw."""
    gid = fleet.cert.run(["stat", "-c", "%g", "/srv/le/web1"]).stdout.strip()
    reading = fleet.web1.popen([PYTHON, "-c", PARTS + READER, HAMMERED])
    as_daemon = ["setpriv", "--reuid=certfan", "--regid=certfan", "--init-groups"]
    writing = fleet.cert.popen([*as_daemon, PYTHON, "-c", PARTS + writer, HAMMERED, str(count), gid])
    assert reading.stdout is not None
    assert writing.stdout is not None
    assert reading.stdout.readline() == "reading\n"
    took = float(json.loads(writing.stdout.readline()))
    seen, _ = reading.communicate("\n", timeout=30)
    writing.communicate("\n", timeout=30)
    return took, json.loads(seen.splitlines()[-1])


@pytest.fixture
def careless(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, where the careless writer may make its folder; removed however it ends."""
    yield fleet
    fleet.cert.run(["rm", "-rf", f"/srv/le/web1/live/{HAMMERED}", f"/srv/le/web1/generations/{HAMMERED}"])


@pytest.mark.sweep
def test_a_reader_on_another_mount_sees_whole_generations_only(careless: Fleet) -> None:
    """Through a thousand publishes (a tenth by default): no mixed pair, no torn file, none missing after its own retries."""
    count = 1000 if os.environ.get("CERTFAN_SWEEP") == "all" else 100
    took, seen = _hammer(careless, PUBLISHER, count)
    print(f"\n{count} publishes in {took:.1f} s: {seen}")

    assert (0, 0, 0) == (seen["mixed"], seen["torn"], seen["missing"])
    assert seen["highest"] == count
    assert seen["reads"] > count


def test_the_reader_tells_what_a_careless_writer_does(careless: Fleet) -> None:
    """The control: two files renamed one after the other give mixed pairs to the same reader."""
    _, seen = _hammer(careless, CARELESS, 60)

    assert seen["mixed"] + seen["torn"] > 0, seen
