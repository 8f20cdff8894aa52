"""What `make bench-share` runs on the cert VM: publishes bundles as the daemon does, or writes the same files plainly.

`python -c` of this text: WAY ROOT CERTIFICATES CONSUMER... ; prints seconds as JSON: on the wall, and of the CPU (of the
worker too, its start included). Nothing of the tests is imported.
"""

import asyncio
import hashlib
import json
import os
import resource
import secrets
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from certfan.core.model import Consumer
from certfan.daemon.share.setup import set_up_share
from certfan.daemon.share.share import Share

SIZES = {"privkey.pem": 241, "cert.pem": 1310, "chain.pem": 1790, "fullchain.pem": 3100}


def bundle() -> dict[str, bytes]:
    """Return six files of the sizes that an ECDSA pair of a public authority has."""
    files = {name: secrets.token_hex(size)[:size].encode() for name, size in SIZES.items()}
    facts = {n: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in files.items()}
    manifest = json.dumps({"files": facts, "fingerprint": "0" * 64, "identifiers": ["www.example.org"] * 3})
    return files | {"manifest.json": manifest.encode(), "manifest.sig": secrets.token_bytes(600)}


async def publish(root: Path, names: list[str], consumers: list[str]) -> float:
    """Publish a first generation of every name to every consumer; return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder)
        people = [Consumer(name, group=str(os.getegid())) for name in consumers]
        if not (root / "certfan.share").exists():
            await set_up_share(root, people, uid=os.geteuid(), lock=lock / "setup.lock")
        share = Share(root, lock / "share.lock", lambda: datetime.now(UTC))
        await share.glance(people)  # the worker runs before the clock does
        contents = bundle()
        began = time.monotonic()
        for name in names:
            for consumer in people:
                await share.publish(consumer, name, 1, contents)
        took = time.monotonic() - began
        await share.stop()
    return took


def floor(root: Path, names: list[str], consumers: list[str]) -> float:
    """Write, fsync and rename the same files into a folder of each bundle; return the seconds."""
    contents = bundle()
    began = time.monotonic()
    for name in names:
        for consumer in consumers:
            folder = root / f"floor-{consumer}" / name
            folder.mkdir(parents=True)
            for file, data in contents.items():
                with open(folder / f".{file}", "wb", buffering=0) as out:
                    out.write(data)
                    os.fsync(out.fileno())
                (folder / f".{file}").rename(folder / file)
    return time.monotonic() - began


def main() -> None:
    way, root, count, *consumers = sys.argv[1:]
    before = time.process_time()
    stamp = secrets.token_hex(2)
    names = [f"{stamp}-{number}.example.org" for number in range(int(count))]
    if way == "floor":
        took = floor(Path(root), names, consumers)
    else:
        took = asyncio.run(publish(Path(root), names, consumers))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps([took, sum(one.ru_utime + one.ru_stime for one in used) - before]))


main()
